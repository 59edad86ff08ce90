"""What leaves a silo, typed: the words of a plan, a site's decision and the table of a report are all made from it."""

from manyhands.messages.outgoing.kinds import (
    Activations,
    Fresh,
    GeneratedImages,
    Gradients,
    Images,
    Labels,
    NoisedImages,
    OutgoingData,
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
    "OutgoingData",
    "NoisedImages",
    "Picked",
    "Statistics",
    "Weights",
]
