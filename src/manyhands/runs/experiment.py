"""An experiment: silos, a method, a link and a run folder, put together and run round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from manyhands.data.image_warnings import image_warnings
from manyhands.data.partition.base import class_counts
from manyhands.diffusion.sampling import Sampling
from manyhands.errors import ManyhandsError, RecipeError
from manyhands.evaluation import inception, plots
from manyhands.evaluation.drawing import ImageSource
from manyhands.evaluation.evaluator import Evaluator
from manyhands.evaluation.spec import Evaluation
from manyhands.formatting import names_text
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.gan import GanGenerator
from manyhands.generators.load import TrainedModel
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.messages.ledger import Ledger
from manyhands.methods.base import Method, plan_of
from manyhands.methods.server import Server
from manyhands.models.autoencoder import CANNOT_SAMPLE, TrainedAutoencoder
from manyhands.models.network import check_denoiser
from manyhands.report import page
from manyhands.runs import summary
from manyhands.runs.round import Round, State
from manyhands.runs.round_timer import RoundTimer, check_quorum
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.device import chosen_device
from manyhands.silos.quorum import can_reach_quorum
from manyhands.silos.silo import FROM_THE_SEED, DeviceContext, Silo, distinct
from manyhands.silos.silo_memory import SiloMemory

UNMEASURED = (ManyhandsError, RuntimeError, ValueError)
"""The errors that evaluation may raise: our own, and those of PyTorch and the metrics' libraries about odd numbers."""
NOT_EVALUATED = "not evaluated"


@dataclass
class Experiment:
    """Silos that train with a method, in one process. Iterating over an experiment runs it, and gives each ``Round``.

    Args:
        method: How the silos train together.
        silos: The silos, with their images.
        seed: The seed of the run: of initial weights, batches and noise.
        folder: The run folder; None writes no files.
        resume: Whether to continue a stopped run in this folder from its last round.
        device: "auto", "cpu", "cuda" or "mps".
        repeatable: Whether CUDA takes deterministic algorithms, so that a repeated or resumed run has the same bits.
        quorum: The minimum number of silos that must send something in a round; with fewer, the run stops.
        link: How messages are carried.
        sampling: How a diffusion model samples.
        evaluation: What is generated and measured.
        recipe: The resolved recipe that is written to the run folder; empty writes one of the other arguments.
        skipped: Names of images that could not be read, for the report.
        ledger: Counts the bytes of training.
        sampling_ledger: Counts the bytes of sampling, for methods whose silos use the server for it.
    """

    method: Method
    silos: Sequence[Silo]
    seed: int = 0
    folder: Path | str | None = None
    resume: bool = False
    device: str = "auto"
    repeatable: bool = True
    quorum: int = 1
    link: InProcess = field(default_factory=InProcess)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)
    recipe: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    sampling_ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self._check_types()
        device_context = DeviceContext(chosen_device(self.device, repeatable=self.repeatable))
        own_silos = [
            replace(silo, seed=self.seed, device_context=device_context, memory=SiloMemory(silo.memory))
            for silo in self.silos
        ]
        self.silos = distinct(own_silos)
        check_denoiser(self.method.image_model)
        for silo in self.silos:
            self.method.check_silo(silo)
        if self.evaluation.images and self.evaluation.inception:
            inception.check_weights_file(self.evaluation.inception)  # before the run, not after it
        self.roster = {silo.name: len(silo.images) for silo in self.silos}
        if not can_reach_quorum(self.quorum, len(self.roster)):
            raise RecipeError(f"quorum is {self.quorum}, but there are {len(self.roster)} silos")
        self.server: Server = self.method.server(self.seed, self.roster)
        self.server.device = device_context.device
        self.run_folder = None if self.folder is None else RunFolder(Path(self.folder))
        self._ran = False

    def _check_types(self) -> None:
        for kind, values in ((Method, [self.method]), (Silo, self.silos)):
            if wrong := [value for value in values if not isinstance(value, kind)]:
                raise RecipeError(f"a {kind.__name__} is expected, not an object of type {type(wrong[0]).__name__}")
        if not (isinstance(self.seed, int) and self.seed >= 0):
            raise RecipeError(f"seed is {self.seed!r}, a whole number from 0 on is expected")

    def __iter__(self) -> Iterator[Round]:
        """Run to the end; each round is written to the folder before it is yielded."""
        if self.run_folder is None:
            yield from self._rounds()
            return
        parts = {
            "method": self.method, "sampling": self.sampling, "link": self.link, "evaluation": self.evaluation
        }  # fmt: skip
        plain_parts = {name: part.model_dump(mode="json", exclude_none=True) for name, part in parts.items()}
        recipe = self.recipe or {"name": self.run_folder.path.name, "seed": self.seed, **plain_parts}
        with self.run_folder.open(recipe, resume=self.resume):
            self._go_on(self.run_folder)
            for line in self.warnings:
                self.run_folder.problem(line)
            if self.run_folder.is_ended and self.server.round >= self.method.rounds:
                return
            for closed_round in self._rounds():
                evaluated = self._evaluate_round(self.run_folder, closed_round)
                self._keep(self.run_folder, evaluated)
                yield evaluated
            self._save(self.run_folder)  # once more, since the ledger now has the last answers
            self._export(self.run_folder)

    @cached_property
    def warnings(self) -> list[str]:
        """What is doubtful before the first round: of the method, of the images, and of where noise comes from."""
        doubts = image_warnings({silo.name: silo.images for silo in self.silos})
        return [*self.method.warnings(self.roster), *_lacking(self.silos), *doubts, *self.simulated()]

    def simulated(self) -> list[str]:
        """A warning where the noise that hides what silos send comes from the seed, which is no secret."""
        names = [silo.name for silo in self.silos if not silo.secret] if self.method.needs_secret else []
        warning = f"simulated: the noise of {names_text(names)} {FROM_THE_SEED}; Silo(secret=...) prevents this"
        return [warning] if names else []

    def _rounds(self) -> Iterator[Round]:
        if self._ran:
            raise RecipeError(
                "this experiment has run already; make another one, with resume=True to continue in its folder"
            )
        self._ran = True
        folder = self.run_folder
        earlier = None if folder is None else partial(folder.earlier, self.method, self.seed, self.roster)
        coordinator = RoundCoordinator(
            self.server, plan_of(self.method), self.roster, quorum=self.quorum, earlier=earlier
        )
        conversations = {silo.name: self.method.silo(silo) for silo in self.silos}
        timer = RoundTimer(self.ledger, self.server)
        for closed in self.link.run(coordinator, conversations, self.ledger):
            entry = timer.round_of(closed, self.method.rounds)
            check_quorum(entry, closed, self.quorum)
            yield entry
            timer.start()

    def generator(self, silo: str | None = None) -> ImageGenerator:
        """The trained generator: the shared one, or with ``silo`` the complete one that this silo has for itself."""
        if silo is None:
            trained = self.server.generator()
        else:
            trained = next(
                (self.method.silo_generator(candidate) for candidate in self.silos if candidate.name == silo), None
            )
        if trained is None:
            raise RecipeError(f"there is no generator of {'the server' if silo is None else silo}")
        ready = self._prepared(trained)
        if isinstance(ready, TrainedAutoencoder):
            raise RecipeError(CANNOT_SAMPLE)
        if isinstance(ready, GanGenerator) and ready.cut:
            raise RecipeError(f"{silo} has only some layers of a generator: drawing({silo!r}) samples with the server")
        return ready

    def generators(self) -> dict[str, ImageSource]:
        """The generator that each silo uses after training."""
        shared = self.server.generator()
        ready = None if shared is None else self._prepared(shared)
        coordinator, generators = RoundCoordinator(self.server, self.method.plan(), self.roster), {}
        for silo in self.silos:
            own = self.method.silo_generator(silo)
            call = self.link.server_call(coordinator, silo.name, self.sampling_ledger)
            generator = self.method.generator_for(silo.name, ready, None if own is None else self._prepared(own), call)
            if generator is not None:
                generators[silo.name] = generator
        return generators

    def drawing(self, silo: str) -> ImageGenerator:
        """The generator that a silo uses after training: a network, or its own part together with the server's."""
        generator = self.generators().get(silo)
        if not isinstance(generator, ImageGenerator):
            raise RecipeError(CANNOT_SAMPLE if generator else f"there is no generator of {silo}")
        return generator

    def evaluate(self) -> dict[str, Any]:
        """Compare samples of the trained generators with the held-out images."""
        return self.evaluator(self.generators(), self.sampling)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator, made when it is first needed, since it embeds all real images."""
        return Evaluator(self.evaluation, self.silos, str(self.silos[0].device_context.device))

    def _evaluate_round(self, folder: RunFolder, closed_round: Round) -> Round:
        """The round with its figures, and a picture of samples, if it is one that is evaluated."""
        every, number = self.evaluation.every, closed_round.number + 1
        generators = self.generators() if every and number % every == 0 else {}
        if not generators:
            return closed_round
        try:
            first = generators.get(self.silos[0].name)
            if first is not None and (picture := self._picture(first, rows=4)):
                plots.sheet(folder.round_picture(number), *picture)
            if number == closed_round.rounds or not self.evaluation.images:
                return closed_round  # the last round is evaluated completely at the end of the run
            return replace(closed_round, metrics=self.evaluator.quick(generators, self.sampling))
        except UNMEASURED as error:
            folder.problem(f"round {number} was not measured: {error}")
            return closed_round

    def _picture(self, trained: ImageSource, rows: int) -> tuple[Tensor, tuple[str, ...]] | None:
        """A picture of samples; None where it could only show the silos' own images."""
        if not isinstance(trained, TrainedAutoencoder):
            return summary.picture(trained, rows, self._labels_of(trained))
        return summary.before_and_after(trained, self.silos[0], rows) if self.method.pools_images else None

    def _labels_of(self, trained: ImageGenerator) -> list[int]:
        """The classes of a picture: all, or those of the first silo where the server takes part in sampling."""
        images = self.silos[0].images
        if isinstance(trained, DiffusionGenerator) or images.labels is None:
            return list(range(len(images.classes)))
        return [int(label) for label in images.labels.unique()]

    def _prepared(self, trained: TrainedModel) -> TrainedModel:
        return summary.prepare_for_sampling(
            trained, self.sampling, self.silos[0].images.classes, str(self.silos[0].device_context.device)
        )

    def _go_on(self, folder: RunFolder) -> None:
        """Draw the partition, and restore the newest round on disk."""
        counts = class_counts([silo.images for silo in self.silos])
        plots.partition(folder.figures / "partition.png", [silo.name for silo in self.silos], counts)
        state = folder.resume(self.roster)
        if state is not None:
            state.restore(self.server, self.ledger)
            for silo in self.silos:
                silo.memory = SiloMemory(state.memories.get(silo.name, {}))

    def _keep(self, folder: RunFolder, closed_round: Round) -> None:
        if closed_round.note:
            folder.problem(f"round {closed_round.number + 1}: {closed_round.note}")
        folder.append(closed_round)
        self._save(folder)

    def _save(self, folder: RunFolder) -> None:
        memories = {silo.name: silo.memory for silo in self.silos}
        folder.save(State.of(self.server, self.roster, self.ledger, memories))

    def _export(self, folder: RunFolder) -> None:
        """Write the trained models, a picture of samples, and the report."""
        shared = self.server.generator()
        own = {silo.name: generator for silo in self.silos if (generator := self.method.silo_generator(silo))}
        for name, generator in own.items():
            self._prepared(generator).save(folder.silo(name) / "model")
        if shared is not None:
            self._prepared(shared).save(folder.model)
        generator_of_report = shared or next(iter(own.values()), None)
        first = self.generators().get(self.silos[0].name)
        if first is not None and (picture := self._picture(first, rows=8)):
            plots.grid(folder.figures / "samples.png", *picture)
        folder.write("ledger.json", self.ledger.entries())
        run = summary.RunSummary(
            method=self.method,
            server=self.server,
            ledger=self.ledger,
            roster=self.roster,
            sampling=self.sampling,
            evaluation=self.evaluation,
        )
        report = summary.build_report(
            run, folder, generator_of_report, summary.images_of(self.silos, self.skipped), self.silos
        )
        page.write(folder, report | self._verdict(folder))

    def _verdict(self, folder: RunFolder) -> dict[str, Any]:
        """The evaluation at the end; where it fails, the run ends without figures and with a warning."""
        if not self.evaluation.images:
            return {}
        try:
            verdict = self.evaluate()
        except UNMEASURED as error:
            folder.problem(f"{NOT_EVALUATED}: {error}")
            return {"problems": folder.problems}
        at_end = {name: verdict[name] for name in ("metrics", "floor", "protocol")}
        return summary.measured(verdict, folder.rounds) | {"at_end": at_end}


def _lacking(silos: Sequence[Silo]) -> list[str]:
    """A warning about classes of which no silo has an image."""
    counts, names = class_counts([silo.images for silo in silos]).sum(0), silos[0].images.classes
    absent = [names[number] for number in np.flatnonzero(counts == 0)] if names else []
    return [f"no silo has an image of class {names_text(absent)}: samples of it mean nothing"] if absent else []
