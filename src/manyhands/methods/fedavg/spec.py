"""What a run with federated averaging is told, and what follows from that."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from manyhands.messages.codec.codec import BFloat16, Float16, Float32
from manyhands.messages.codec.updates import Updates
from manyhands.messages.codec.weights import Weights
from manyhands.methods.fedavg.broadcast import Downlink
from manyhands.methods.fedavg.proximal import Mode
from manyhands.methods.fedavg.server_optimizer import Momentum, ServerAdam
from manyhands.methods.fedavg.sharing import ALL, SHARED, Share
from manyhands.methods.local_training import LocalTrainingMethod
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.models.autoencoder import Autoencoder
from manyhands.models.gan import Gan
from manyhands.models.state_spec import state_spec_of
from manyhands.spec import Float, Int
from manyhands.tensors import StateSpec

AnyCodec = Annotated[Float32 | Float16 | BFloat16 | Weights | Updates, Field(discriminator="kind")]
AnyServerOptimizer = Annotated[Momentum | ServerAdam, Field(discriminator="kind")]
Facts = dict[str, Any]
AVERAGE = "average."


class FedAvgSpec(LocalTrainingMethod, ABC):
    """The fields of ``FedAvg``, which says what they mean."""

    kind: Literal["fedavg"] = "fedavg"
    participants: Int | None = Field(default=None, ge=1)
    keep_optimiser: bool = False
    proximal: Float = Field(default=0.0, ge=0, le=1e30)
    proximal_mode: Mode = "coupled"
    up: AnyCodec = Float32()
    down: AnyCodec = Float32()
    share: Share = "all"
    server_optimizer: AnyServerOptimizer | None = None
    kept: bool = False
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @field_validator("server_optimizer")
    @classmethod
    def _no_step_of_its_own(cls, told: AnyServerOptimizer | None) -> AnyServerOptimizer | None:
        return None if told == Momentum(rate=1.0, momentum=0.0) else told

    @field_validator("up", "down", "server_optimizer", mode="before")
    @classmethod
    def _by_name(cls, told: Any) -> Any:
        return {"kind": told} if isinstance(told, str) else told

    @model_validator(mode="after")
    def _has_what_is_fine(self) -> Self:
        for codec in (self.up, self.down):
            words = codec.fine if isinstance(codec, Updates) and codec.fine != Updates().fine else ()
            if bad := [
                word for word in words if not word or not any(word in name for name in state_spec_of(self.model))
            ]:
                raise ValueError(f"fine has {bad[0]!r}, which is in no name of the model's weights")
        return self

    @model_validator(mode="after")
    def _nothing_pulls_a_gan(self) -> Self:
        if isinstance(self.model, Gan) and self.proximal:
            raise ValueError("proximal is for one loss; a GAN has two")
        return self

    @model_validator(mode="after")
    def _whole_autoencoder(self) -> Self:
        if isinstance(self.model, Autoencoder) and self.share != "all":
            raise ValueError(f"share is {self.share!r}, but an autoencoder is shared whole")
        return self

    @property
    def downlink(self) -> Downlink:
        """How weights come to silos."""
        return Downlink(self.down, state_spec_of(self.model), self.layout_of(SHARED[self.share]))

    @property
    def personal(self) -> bool:
        """Whether parts of the network stay at their silo."""
        return SHARED[self.share] != ALL

    def layout_of(self, parts: str) -> StateSpec:
        """The names, shapes and types of the weights in parts of the network."""
        wanted = parts.split("+")
        return {name: like for name, like in state_spec_of(self.model).items() if self.model.part_of(name) in wanted}
