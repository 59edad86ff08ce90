"""Any PyTorch module as the denoiser, from Python."""

from __future__ import annotations

import copy
import inspect
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator
from torch import Tensor, nn

from manyhands.errors import RecipeError
from manyhands.models.base import Denoiser, Model
from manyhands.seed import seeded_globally
from manyhands.spec import Int

ONLY_FROM_PYTHON = (
    "{!r} names a network that was given in Python, which cannot be built from its name: load its generator in Python "
    "with DiffusionGenerator.from_pretrained(folder, model=...), or make it a subclass of Denoiser with a kind of its "
    "own, which a package registers as an entry point in the group manyhands.models"
)


def _not_a_name(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(ONLY_FROM_PYTHON.format(value))
    return value


def _module_or_factory(value: Any) -> Any:
    if not (isinstance(value, nn.Module) or callable(value)):
        raise ValueError(
            f"is of type {type(value).__name__}, a torch.nn.Module or a function without arguments that makes one is "
            "expected"
        )
    return value


def name_of(source: Any) -> str:
    """Return the dotted name of the class of a module, or of a function that makes one."""
    named = type(source) if isinstance(source, nn.Module) else source
    return f"{named.__module__}.{getattr(named, '__qualname__', type(named).__qualname__)}"


class Network(Denoiser):
    """Any ``torch.nn.Module`` as the denoiser, from Python.

    It is called with x_t, (B, C, H, W), with t from 1 to T, (B,), and with labels, (B,), which are None where
    ``classes`` is 0. The label ``classes`` means no label. It returns the predicted target, (B, C, H, W). It is tried
    once on a batch of two when this specification is made.

    Training never changes the module itself, but copies of it, and every silo starts from the weights that the module
    has now, whatever the seed. A function that makes a module is called with PyTorch's generator seeded by the run.
    Two specifications are equal where they hold the same object.

    Example:
        ``FedAvg(model=Network(module=MyNetwork(), size=28, channels=1, classes=10), ...)``
    """

    kind: Literal["network"] = Field(default="network", description="Selects this kind of model, from Python only.")
    size: Int = Field(ge=1, le=2048, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    classes: Int = Field(ge=0, le=100_000, description="The number of classes; 0 for an unconditional model.")
    module: Annotated[
        Any,
        AfterValidator(_module_or_factory),
        BeforeValidator(_not_a_name),
        PlainSerializer(name_of, return_type=str, when_used="json"),
        WithJsonSchema({"not": {}}),
    ] = Field(description="The module, or a function without arguments that makes one; a recipe cannot hold it.")

    @model_validator(mode="after")
    def _works(self) -> Self:
        network = self.build(seed=0)
        check_weights(network)
        check_call(network, self.noise_shape, self.classes)
        return self

    def build(self, seed: int) -> nn.Module:
        """Copy the module, or make one with this seed."""
        if isinstance(self.module, nn.Module):
            return copy.deepcopy(self.module).cpu()
        with seeded_globally(seed, "network"):
            network = copy.deepcopy(self.module())
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise ValueError(f"{name_of(self.module)} returns a value of type {kind}, a torch.nn.Module is expected")
        return network


def check_denoiser(model: Model | None) -> None:
    """Raise ``RecipeError`` where a denoiser of another package builds no network that can be trained as one.

    It is the trial of ``Network``. Our own denoisers need none, and a ``Network`` was tried when it was made.

    Args:
        model: The model of a method, if it has one.
    """
    if not isinstance(model, Denoiser) or type(model).__module__.startswith("manyhands."):
        return
    try:
        network = _built(model)
        check_weights(network)
        check_call(network, model.noise_shape, model.classes)
    except ValueError as error:
        raise RecipeError(f"method.model: {model.noun}: {error}") from error


def _built(model: Denoiser) -> nn.Module:
    try:
        with seeded_globally(0, "network"):
            network: object = model.build(seed=0)
    except Exception as error:  # whatever the other package raises
        raise ValueError(f"build(seed) raised {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"build(seed) returns a value of type {type(network).__name__}, a torch.nn.Module is expected")
    return network


def check_weights(network: nn.Module) -> None:
    """Raise ``ValueError`` where weights cannot be trained and averaged.

    Args:
        network: The module.
    """
    if not any(weight.requires_grad for weight in network.parameters()):
        raise ValueError(f"{type(network).__name__} has no parameter that can be trained")
    for name, tensor in network.state_dict().items():
        if tensor.dtype != torch.float32:
            hint = "; for batch norm use track_running_stats=False, or group norm" * name.endswith("batches_tracked")
            raise ValueError(f"{name} of {type(network).__name__} is {tensor.dtype}, torch.float32 is expected{hint}")


def check_call(network: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Raise ``ValueError`` where a module is no denoiser: it is tried on a batch of two black images.

    Args:
        network: The module.
        shape: The shape (C, H, W) of its images.
        classes: The number of classes; one of the images has no label.
    """
    name, x_t = type(network).__name__, torch.zeros(2, *shape)
    batch = x_t, torch.tensor([1, 2]), torch.tensor([0, classes]) if classes else None
    signature = inspect.signature(network.forward)
    try:
        signature.bind(*batch)
    except TypeError:
        raise ValueError(f"{name}.forward takes {signature}, (x_t, t, labels) is expected") from None
    labels = f"labels 0 and {classes}, which means no label," if classes else "no labels"
    where = f"with x_t of shape {tuple(x_t.shape)}, t of 1 and 2, and {labels}"
    out = _tried(network, batch, f"{name} was called {where}")
    expected = f"a tensor of shape {tuple(x_t.shape)}, that of x_t, is expected"
    if not isinstance(out, Tensor):
        raise ValueError(f"{name} returns a value of type {type(out).__name__}, {expected}")
    if out.shape != x_t.shape:
        raise ValueError(f"{name} returns shape {tuple(out.shape)}, {expected}")


@torch.no_grad()
def _tried(network: nn.Module, batch: tuple[Any, ...], where: str) -> object:
    try:
        with seeded_globally(0, "network"):
            return network.eval()(*batch)
    except Exception as error:  # whatever the module raises
        raise ValueError(f"{where} and raised {type(error).__name__}: {error}") from error
