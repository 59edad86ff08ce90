"""What is measured, and how: the fields ``[evaluation]`` of a recipe."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from manyhands.evaluation import metrics
from manyhands.spec import Int, Spec

DISTORTIONS = "distortions"
"""The features of ``manyhands.evaluation.distortions``."""


class Evaluation(Spec):
    """What is generated and measured at the end of a run and, where asked for, during it.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, Heusel et al., 2017,
            arXiv 1706.08500
        Demystifying MMD GANs, Binkowski et al., 2018, arXiv 1801.01401
        Improved Precision and Recall Metric for Assessing Generative Models, Kynkaanniemi et al., 2019,
            arXiv 1904.06991
        Reliable Fidelity and Diversity Metrics for Generative Models, Naeem et al., 2020, arXiv 2002.09797
        Improved Techniques for Training GANs, Salimans et al., 2016, arXiv 1606.03498
        On Training Sample Memorization: Lessons from Benchmarking Generative Modeling with a Large-Scale Competition,
            Bai et al., 2021, arXiv 2106.03062
    """

    images: Int = Field(
        default=500,
        ge=0,
        le=1_000_000,
        description="The number of samples, each with the class of a held-out image, and at most as many as "
        "there are held-out images; 0 measures nothing.",
    )
    every: Int = Field(
        default=0,
        ge=0,
        description="Evaluate each time after this many rounds, and at the end; 0 evaluates at the end only.",
    )
    features: str = Field(
        default="classifier",
        description="The network whose features are compared: 'classifier' is a small one trained on the real images, "
        "'distortions' one that is also asked how an image was distorted and so sees shapes (for few classes), "
        "'inception:PATH' is Inception v3 with the weights in the file PATH.",
    )
    reference: Int = Field(
        default=50_000,
        ge=metrics.MIN_IMAGES,
        description="The maximum number of training images that samples are compared with.",
    )
    cas: bool = Field(
        default=False,
        description="Also train a classifier on the samples alone and test it on the held-out images (classification "
        "accuracy score, CAS).",
    )
    seeds: Int = Field(
        default=1,
        ge=1,
        le=1000,
        description="How many sets of samples are drawn, with the seeds 0, 1, 2 ...; with several, figures are their "
        "means, and deviations are taken over them.",
    )
    bootstrap: Int = Field(
        default=10,
        ge=0,
        le=1000,
        description="With a single set of samples, how many random halves of it the deviations are computed from; "
        "with 0 or 1 there are no deviations.",
    )

    @field_validator("images")
    @classmethod
    def _enough(cls, images: int) -> int:
        if 0 < images < metrics.MIN_IMAGES:
            raise ValueError(
                f"{images} images are too few to measure anything; {metrics.MIN_IMAGES} or more, or 0 for none"
            )
        return images

    @field_validator("features")
    @classmethod
    def _known(cls, features: str) -> str:
        if not re.fullmatch(rf"classifier|{DISTORTIONS}|inception:.+", features):
            raise ValueError(f"{features!r} is none of 'classifier', '{DISTORTIONS}' and 'inception:PATH'")
        return features

    @property
    def inception(self) -> Path | None:
        """The file with the weights of Inception; None for other features."""
        kind, _, path = self.features.partition(":")
        return Path(path) if kind == "inception" else None
