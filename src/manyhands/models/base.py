"""The base classes of models: a specification of a network that silos train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from manyhands.errors import RunFolderError
from manyhands.registry import MODELS, OneOf
from manyhands.spec import Int, Spec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from manyhands.generators.base import ImageGenerator
    from manyhands.methods.learners.base import Learner
    from manyhands.models.adapters import Adapter
    from manyhands.models.autoencoder import TrainedAutoencoder


class Model(Spec, ABC):
    """A specification of a network for square images. Equal ones build interchangeable networks.

    How it is trained is said by the learner of its class (``manyhands.methods.learners``).

    Attributes:
        learner: The class of its own learner; None for that of its base class.
        has_parts: Whether ``part_of`` divides the network in parts that can be shared by themselves.
        can_checkpoint: Whether its network can compute features again in the backward pass instead of keeping them.
        weights_of: What its weights are called in the sentences about what leaves a silo.
    """

    learner: ClassVar[type[Learner[Any]] | None] = None
    has_parts: ClassVar[bool] = False
    can_checkpoint: ClassVar[bool] = False
    weights_of: ClassVar[str] = "its network"

    kind: str = Field(description="Selects this kind of model.")
    size: Int = Field(ge=1, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, description="The number of image channels: 1 for grey, 3 for RGB.")

    if TYPE_CHECKING:  # a field of most models, and a property of others

        @property
        def classes(self) -> int:
            """The number of classes; 0 for an unconditional model."""
            ...

    @property
    def noun(self) -> str:
        """What errors call it."""
        return f"a model of kind {self.kind!r}"

    @property
    def stacking(self) -> Adapter | None:
        """The adapters whose products are averaged by stacking their factors; None where weights are averaged."""
        return None

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """Build the network.

        Args:
            seed: The seed of its initial weights: with the same seed they are the same.
        """

    def load_generator(self, folder: Path, device: str) -> ImageGenerator:
        """Load what the generator of its learner has saved, so that ``evaluate`` and ``sample`` can use it.

        It is for a model with a learner of its own that is no denoiser; those of this package are loaded otherwise.

        Args:
            folder: The folder of the stored generator.
            device: The device to sample on.
        """
        raise RunFolderError(f"{folder}: {self.noun} is not loaded from files: its class has no load_generator")

    def part_of(self, name: str) -> Literal["down", "mid", "up"]:
        """Return where a weight is: on the way down, in the middle or on the way up.

        Args:
            name: The name of the weight.
        """
        return "mid"


class Denoiser(Model, ABC):
    """A network that is called with (x_t, t, labels), and predicts the target of ``Diffusion``.

    Its shapes are (B, C, H, W) for x_t and for the prediction, and (B,) for t, from 1 to T, and for labels. Labels are
    None where ``classes`` is 0; the number after the last class means no label.

    Attributes:
        diffusers_folder: The folder in which ``inner`` of the network is stored as a network of diffusers: "unet" or
            "transformer"; empty where it is none.
    """

    diffusers_folder: ClassVar[str] = ""

    classes: Int = Field(ge=0, description="The number of classes; 0 for an unconditional model.")

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the noise that denoising starts from."""
        return self.channels, self.size, self.size

    def load_decoder(self, folder: Path, device: str) -> TrainedAutoencoder | None:
        """Load the autoencoder that decodes what was denoised, or return None where it is images already.

        Args:
            folder: The folder of the stored generator.
            device: The device to decode on.
        """
        return None


AnyModel = Annotated[Model, OneOf(MODELS)]
