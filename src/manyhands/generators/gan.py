"""The trained generator of a GAN: the whole network, or a head and a tail whose middle is on the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from manyhands.diffusion.sampling import Sampling
from manyhands.errors import RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.generators.base import ImageGenerator
from manyhands.models.autoencoder import FACTS, stored_facts
from manyhands.models.gan import Gan, run_blocks
from manyhands.models.layer_cut import LayerCut
from manyhands.registry import MODELS
from manyhands.tensors import Tensors

WEIGHTS = "gan.safetensors"
MAX_MIDDLE_IMAGES = 256
"""The most images of one call of the middle."""


@dataclass(frozen=True)
class GanGenerator(ImageGenerator):
    """Samples images with the generator of a GAN.

    Args:
        model: The specification of the GAN.
        weights: The weights of the generator, or of its head and tail, by name.
        cut: Where the generator is cut; None for a whole one.
        classes: The names of the classes; empty for an unconditional model.
        sampling: Not used by a GAN; stored with the generator.
        device: The device to sample on.
        ema: The decay of the average over rounds that the weights are; 0 for the weights of the last round.
        ask: Runs the middle of a cut generator on the server: the activations of the head, (B, ...), to those that the
            tail takes. Without it, a cut generator cannot sample.
    """

    is_diffusion: ClassVar[bool] = False
    sampler: ClassVar[str] = "at once"
    model: Gan
    weights: Tensors
    cut: LayerCut | None = None
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    ema: float = 0.0
    ask: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def network(self) -> Any:
        """The blocks of the generator that are here, with their weights, in evaluation mode."""
        cut = self.cut
        network = self.model.build(0).keep(lambda name, block: name == "generator" and (not cut or cut.at_home(block)))
        network.load_state_dict(self.weights)
        return network.to(self.device).eval()

    @torch.no_grad()
    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        z = torch.randn(len(labels), self.model.latent, generator=rng, device=self.device)
        blocks, known = list(self.network.generator), labels if self.model.classes else None
        if self.cut is None:
            return run_blocks(blocks, z, known)
        if self.ask is None:
            raise RunFolderError("the middle of this generator is on the server, and there is no connection to it")
        head, _, tail = self.cut.parts(blocks)
        answers = [self.ask(part.cpu()) for part in run_blocks(head, z, known).split(MAX_MIDDLE_IMAGES)]
        return run_blocks(tail, torch.cat(answers).to(self.device))

    def save(self, folder: Path | str) -> None:
        """Write the weights and the specification.

        Args:
            folder: The folder; an older one is replaced once everything is written.
        """
        import safetensors.torch

        specs = {"model": self.model, "sampling": self.sampling, **({"cut": self.cut} if self.cut else {})}
        facts = {name: spec.model_dump(mode="json") for name, spec in specs.items()}
        with replace_folder(Path(folder)) as fresh:
            safetensors.torch.save_file({name: w.contiguous() for name, w in self.weights.items()}, fresh / WEIGHTS)
            (fresh / FACTS).write_text(finite_json({**facts, "classes": self.classes, "ema": self.ema}, indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> Self:
        """Load a folder that ``save`` wrote.

        Args:
            folder: The folder.
            device: The device to sample on.

        Raises:
            RunFolderError: The folder holds no trained generator.
        """
        import safetensors.torch

        folder = Path(folder)
        try:
            facts = stored_facts(folder)
            cut = LayerCut(**facts["cut"]) if "cut" in facts else None
            weights = safetensors.torch.load_file(folder / WEIGHTS)
            sampling, classes = Sampling(**facts["sampling"]), tuple(facts["classes"])
            spec = MODELS.load(str(facts["model"]["kind"]))
            if not issubclass(spec, Gan):
                raise ValueError(f"it holds a model of kind {facts['model']['kind']!r}, no GAN")
            loaded = cls(
                spec(**facts["model"]),
                weights,
                cut,
                classes=classes,
                sampling=sampling,
                device=device,
                ema=facts["ema"],
            )
            _ = loaded.network  # raises an error if the weights do not fit the model
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise RunFolderError(f"{folder}: holds no trained generator: {error}") from None
        return loaded


def generator_weights(weights: Tensors) -> Tensors:
    """Select the weights of the generator from the weights of both networks."""
    return {name: tensor for name, tensor in weights.items() if name.startswith("generator.")}
