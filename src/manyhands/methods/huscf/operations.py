"""The operations of one iteration of HuSCF-GAN, in order. All silos do each of them together."""

from __future__ import annotations

BACKWARD = "-back"
"""The suffix of an operation that takes gradients back the way that a forward pass came."""
GENERATOR_FORWARD, GENERATOR_BACKWARD = "make", "make-back"
"""The generator makes a batch of images, and is trained by what the discriminator says of them in the end."""
FAKE_FORWARD, FAKE_BACKWARD = "made", "made-back"
"""The discriminator is trained on the generated images."""
REAL_FORWARD, REAL_BACKWARD = "real", "real-back"
"""The discriminator is trained on the silo's own images."""
ADVERSARIAL_FORWARD, ADVERSARIAL_BACKWARD = "fool", "fool-back"
"""The discriminator, already updated, judges the generated images again; this gives the generator its gradient."""
ORDER = (
    GENERATOR_FORWARD,
    FAKE_FORWARD,
    FAKE_BACKWARD,
    REAL_FORWARD,
    REAL_BACKWARD,
    ADVERSARIAL_FORWARD,
    ADVERSARIAL_BACKWARD,
    GENERATOR_BACKWARD,
)


def network_of(op: str) -> str:
    """Return which network the operation passes through: ``generator`` or ``discriminator``."""
    return "generator" if op.startswith(GENERATOR_FORWARD) else "discriminator"


def forward_of(op: str) -> str:
    """Return the forward operation that a backward operation belongs to."""
    return op.removesuffix(BACKWARD)
