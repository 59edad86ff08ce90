"""What leaves a silo, typed: the words of a plan, a site's decision and the table of a report are all made from it."""

from manyhands.messages.leaves.kinds import (
    Activations,
    Fresh,
    GeneratedImages,
    Gradients,
    Images,
    Labels,
    Leaving,
    NoisedImages,
    Picked,
    Statistics,
    Weights,
)

__all__ = [
    "Activations",
    "Fresh",
    "GeneratedImages",
    "Gradients",
    "Images",
    "Labels",
    "Leaving",
    "NoisedImages",
    "Picked",
    "Statistics",
    "Weights",
]
