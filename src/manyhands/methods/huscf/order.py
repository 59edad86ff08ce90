"""The operations of an iteration, in their order."""

from __future__ import annotations

ORDER = ("make", "made", "made-back", "real", "real-back", "fool", "fool-back", "make-back")
"""Images are made; the discriminator learns from them and from real ones; then the generator learns from what it now
says of those that were made. All silos do each of them together."""
BACK = "-back"


def network_of(op: str) -> str:
    """The network that is passed through."""
    return "generator" if op.startswith("make") else "discriminator"


def there_of(op: str) -> str:
    """The operation on the way there, of one on the way back."""
    return op.removesuffix(BACK)
