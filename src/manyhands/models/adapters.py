"""Low-rank adapters (LoRA) of a frozen network, by PEFT, and what federated averaging does with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from manyhands.errors import RecipeError
from manyhands.seed import seeded_globally, torch_rng
from manyhands.spec import Float, Int, Spec, suggest
from manyhands.tensors import StateSpec, Tensors

FIELD = "method.model.adapter"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
A, B = ".lora_A.default.weight", ".lora_B.default.weight"
"""What follows a layer's name in the names of the two factors of its adapter, as PEFT names them."""
BASE, DELTA = ".base_layer.weight", ".delta"
"""What follows a layer's name in the names of its frozen weight, and of the products that were added to it."""
INSTALL = "pip install 'manyhands[adapters]'"


class Adapter(Spec):
    """Low-rank adapters: a layer's weight becomes W + alpha / rank * B A, where only A and B can be trained.

    The product begins at 0, so that the network begins as the pretrained one. What silos train, and what is averaged:

    * ``ffa``: A is drawn from ``seed`` and frozen, equal at all silos; B is trained and averaged. Then the mean of the
      products is the product of the mean, exactly, and the bytes are half of those of A and B.
    * ``stacked``: A and B are trained. A round's mean of products is exact: the silos' factors are stacked to one
      adapter, whose rank is the sum of theirs. It is sent to all, added to the base, and the next round begins with new
      A and B.
    * ``naive``: A and B are trained, and averaged each by itself, which is not the mean of the products. It is the
      control that shows this bias.

    References:
        LoRA: Low-Rank Adaptation of Large Language Models, Hu et al., 2021, arXiv 2106.09685
        Improving LoRA in Privacy-preserving Federated Learning, Sun et al., 2024, arXiv 2403.12313
        FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations, Wang et al., 2024,
            arXiv 2409.05976
    """

    kind: Literal["ffa", "stacked", "naive"] = Field(
        default="ffa",
        description="What is averaged: 'ffa' (B alone, A is frozen and equal at all silos), 'stacked' (the products, "
        "exactly, as one adapter of all silos), or 'naive' (A and B by themselves, which is biased).",
    )
    rank: Int = Field(default=4, ge=1, le=4096, description="The rank of the adapters.")
    alpha: Float | None = Field(
        default=None, gt=0, description="Adapters are multiplied by alpha / rank; None takes the rank, a factor of 1."
    )
    targets: tuple[str, ...] = Field(
        default=ATTENTION,
        min_length=1,
        description="The layers that have adapters, by the last part of their names: the default are those of "
        "attention; 'conv1' and 'conv2' are those of residual blocks.",
    )
    whole: tuple[str, ...] = Field(
        default=(),
        description="Layers that are trained and sent whole beside the adapters (modules_to_save of PEFT), by the last "
        "part of their names: 'class_embedding' where the classes are new, 'norm1' and 'norm2' for group norms.",
    )
    seed: Int = Field(default=0, ge=0, description="The seed of A, where it is not trained, or drawn anew in rounds.")

    @field_validator("targets", "whole", mode="before")
    @classmethod
    def _as_a_list(cls, layers: Any) -> Any:
        return (layers,) if isinstance(layers, str) else layers

    @model_validator(mode="after")
    def _stacks_factors_alone(self) -> Self:
        if self.kind == "stacked" and self.whole:
            raise ValueError("whole is for kind 'ffa' or 'naive'; of stacked adapters, silos send the factors alone")
        return self

    @property
    def scaling(self) -> float:
        """What the product of B and A is multiplied by."""
        return (self.alpha or self.rank) / self.rank

    def inject(self, network: nn.Module) -> None:
        """Put adapters on a network, and freeze what they do not train.

        Args:
            network: The network. Its layers that are in ``targets`` get an adapter each.
        """
        peft = _peft()
        layers, whole = self.layers(network), self.whole_layers(network)
        config = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha or self.rank, target_modules=layers)
        with seeded_globally(self.seed, "adapter"):
            peft.inject_adapter_in_model(config, network)
        if self.kind == "ffa":
            for name, weight in network.named_parameters():
                weight.requires_grad_(name.endswith(B))
        for name in whole:
            network.get_submodule(name).requires_grad_()

    def layers(self, network: nn.Module) -> list[str]:
        """Return the names of the layers that get adapters.

        Raises:
            RecipeError: One of ``targets`` is the name of no layer that can have an adapter.
        """
        known = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        names = _chosen(known, self.targets, f"{FIELD}.targets: no layer of the U-Net that can have an adapter")
        layers: list[Any] = [network.get_submodule(name) for name in names]
        if self.rank > (largest := max(min(layer.weight.shape[:2]) for layer in layers)):
            raise RecipeError(f"{FIELD}.rank: is {self.rank}, but no layer in targets has a rank above {largest}")
        return names

    def whole_layers(self, network: nn.Module) -> list[str]:
        """Return the names of the layers that are trained whole.

        Raises:
            RecipeError: One of ``whole`` is the name of no layer with weights.
        """
        known = [name for name, layer in network.named_modules() if list(layer.parameters(recurse=False))]
        return _chosen(known, self.whole, f"{FIELD}.whole: no layer of the U-Net that has weights")

    def fresh(self, spec: StateSpec, number: int) -> Tensors:
        """Return new factors for a round: A is drawn for it, and B is 0, so that the product is 0.

        Args:
            spec: The names and shapes of a network's tensors, of which the factors are drawn.
            number: The round.
        """
        factors = {}
        for name, tensor in spec.items():
            shape = [length or 0 for length in tensor.shape]
            if name.endswith(A):
                rng, bound = torch_rng(self.seed, "adapter", number, name), math.prod(shape[1:]) ** -0.5
                factors[name] = torch.empty(shape).uniform_(-bound, bound, generator=rng)
            elif name.endswith(B):
                factors[name] = torch.zeros(shape)
        return factors

    def changes(self, factors: Mapping[str, Tensor]) -> Tensors:
        """Return how much factors change the weights of their layers, by the names of the sums of products.

        Args:
            factors: The factors of a silo.
        """
        return {layer + DELTA: value.float() for layer, value in products(factors, self.scaling).items()}


def _chosen(known: Sequence[str], wanted: Iterable[str], none: str) -> list[str]:
    """The layers with these last parts of their names; ``none`` begins the error where there is none of a name."""
    for last in wanted:
        if not any(_is_named(name, last) for name in known):
            raise RecipeError(f"{none} is called {last!r}; {suggest(last, sorted(set(map(_short, known))))}")
    return [name for name in known if any(_is_named(name, last) for last in wanted)]


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _short(name: str) -> str:
    """Return the end of a layer's name that says which layer of its block it is: ``to_q``, or ``to_out.0``."""
    *_, parent, last = ["", *name.split(".")]
    return f"{parent}.{last}" if last.isdigit() else last


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise RecipeError(f"{FIELD}: needs the package peft: {INSTALL}") from None
    return peft


def layers_of(names: Iterable[str]) -> list[str]:
    """Return the names of the layers whose factors are among these names of tensors."""
    return [name.removesuffix(A) for name in names if name.endswith(A)]


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return B A in float64, of the shape of the layer's weight.

    Args:
        a: The factor A, (rank, in) or for a convolution (rank, in, k, k).
        b: The factor B, (out, rank) or for a convolution (out, rank, 1, 1).
    """
    whole: Tensor = torch.tensordot(b.double().flatten(1), a.double(), dims=1)
    return whole


def is_factor(name: str) -> bool:
    """Whether this is the name of a factor of an adapter."""
    return name.endswith((A, B))


def products(factors: Mapping[str, Tensor], scaling: float = 1.0) -> Tensors:
    """Return scaling * B A of each layer, in float64, by the name of the layer.

    Args:
        factors: The factors of all layers, by PEFT's names.
        scaling: What products are multiplied by.
    """
    return {layer: scaling * product(factors[layer + A], factors[layer + B]) for layer in layers_of(factors)}


def stacked(factors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Return one adapter whose products are the weighted mean of the products of several; its rank is their sum.

    Args:
        factors: The factors of each silo, by PEFT's names.
        weights: The weight of each silo; the mean is over their sum.

    References:
        FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations, Wang et al., 2024,
            arXiv 2409.05976
    """
    total, stack = sum(weights), {}
    for layer in layers_of(factors[0] if factors else ()):
        stack[layer + A] = torch.cat([one[layer + A] for one in factors])
        shares = [one[layer + B] * (weight / total) for one, weight in zip(factors, weights, strict=True)]
        stack[layer + B] = torch.cat(shares, dim=1)
    return stack


def mean_of_products(factors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensors:
    """Return the weighted mean of the products of several adapters, in float64, by the name of the layer.

    Args:
        factors: The factors of each silo, by PEFT's names.
        weights: The weight of each silo.
    """
    total, pairs = sum(weights), list(zip(map(products, factors), weights, strict=True))
    layers = pairs[0][0]
    return {layer: torch.stack([one[layer] * (weight / total) for one, weight in pairs]).sum(0) for layer in layers}


def averaging_bias(factors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> float:
    """Return how far the product of the mean A and the mean B is from the mean of the products, as a share of that.

    It is the length of the difference over all layers, divided by that of the mean of the products: 0 where all silos
    have the same A.

    Args:
        factors: The factors of each silo, by PEFT's names.
        weights: The weight of each silo.
    """
    total = sum(weights)
    pairs = list(zip(factors, weights, strict=True))
    mean = {name: torch.stack([one[name].double() * (weight / total) for one, weight in pairs]).sum(0)
            for name in factors[0]}  # fmt: skip
    exact, naive = mean_of_products(factors, weights), products(mean)
    difference = sum(float((naive[layer] - exact[layer]).square().sum()) for layer in exact)
    length = sum(float(tensor.square().sum()) for tensor in exact.values())
    return (difference / length) ** 0.5 if length else 0.0
