"""What leaves a silo, as typed values: a plan's words, a site's decision and a report's table are made from them."""

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
