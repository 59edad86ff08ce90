"""The operations of one iteration of HuSCF-GAN, in order. All silos do each of them together."""

from __future__ import annotations

FORWARD, BACKWARD = "-forward", "-backward"
"""The suffixes of a pass of activations, and of the pass that takes gradients back the same way."""
GENERATOR_FORWARD, GENERATOR_BACKWARD = "generator-forward", "generator-backward"
"""The generator draws a batch of images, and is trained by the discriminator's gradient at them in the end."""
FAKE_FORWARD, FAKE_BACKWARD = "fake-forward", "fake-backward"
"""The discriminator is trained on the generated images."""
REAL_FORWARD, REAL_BACKWARD = "real-forward", "real-backward"
"""The discriminator is trained on the silo's own images."""
ADVERSARIAL_FORWARD, ADVERSARIAL_BACKWARD = "adversarial-forward", "adversarial-backward"
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
    return "generator" if op in (GENERATOR_FORWARD, GENERATOR_BACKWARD) else "discriminator"


def forward_of(op: str) -> str:
    """Return the forward operation that a backward operation belongs to."""
    return op.removesuffix(BACKWARD) + FORWARD


def backward_of(op: str) -> str:
    """Return the backward operation that belongs to a forward operation."""
    return op.removesuffix(FORWARD) + BACKWARD
