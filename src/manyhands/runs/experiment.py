"""The one place where silos, method, coordinator, link and run folder are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from manyhands.data.partition import class_counts
from manyhands.diffusion.sample import Sampling
from manyhands.errors import ManyhandsError, RecipeError
from manyhands.evaluation import figures, inception
from manyhands.evaluation.evaluator import Evaluation, Evaluator, ImageSource
from manyhands.formatting import names_text
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.gan import GanGenerator
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.messages.ledger import Ledger
from manyhands.methods.base import Method, Server, TrainedModel
from manyhands.models.autoencoder import CANNOT_SAMPLE, TrainedAutoencoder
from manyhands.report import page
from manyhands.runs import summary
from manyhands.runs.run_folder import Round, RunFolder, State
from manyhands.runs.timer import RoundTimer, check_quorum
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import FROM_THE_SEED, DeviceContext, Silo, distinct
from manyhands.tensors import Tensors

UNMEASURED = (ManyhandsError, RuntimeError, ValueError)
"""What measuring may come to: ours, PyTorch's, or that of the libraries of the metrics, which want finite numbers."""
NOT_EVALUATED = "not evaluated"


@dataclass
class Experiment:
    """Silos, a method that they agree on, and a link between them. Iterating over it runs it, round by round.

    Without a ``folder`` nothing is written. With one, a run that was stopped goes on where it was if ``resume``.
    ``ledger`` counts the bytes of training, ``drawn`` those of drawing, for methods whose silos ask the server then.
    """

    method: Method
    silos: Sequence[Silo]
    seed: int = 0
    folder: Path | str | None = None
    resume: bool = False
    device: str = "auto"
    quorum: int = 1
    link: InProcess = field(default_factory=InProcess)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)
    recipe: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    drawn: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        context = DeviceContext(chosen_device(self.device))
        mine = [replace(silo, seed=self.seed, device_context=context, memory=dict(silo.memory)) for silo in self.silos]
        self.silos = distinct(mine)
        for silo in self.silos:
            self.method.check_silo(silo)
        if self.evaluation.images and self.evaluation.inception:
            inception.verify(self.evaluation.inception)  # before the run, not after it
        self.roster = {silo.name: len(silo.images) for silo in self.silos}
        if not 1 <= self.quorum <= len(self.roster):
            raise RecipeError(f"quorum is {self.quorum}, there are {len(self.roster)} silos")
        self.server: Server = self.method.server(self.seed, self.roster)
        self.server.device = context.device
        self.run_folder = None if self.folder is None else RunFolder(Path(self.folder))
        self._ran = False

    def __iter__(self) -> Iterator[Round]:
        """Run to the end; each round is kept before it is given."""
        if self.run_folder is None:
            yield from self._rounds()
            return
        parts = {
            "method": self.method, "sampling": self.sampling, "link": self.link, "evaluation": self.evaluation
        }  # fmt: skip
        plain = {name: part.model_dump(mode="json", exclude_none=True) for name, part in parts.items()}
        told = self.recipe or {"name": self.run_folder.path.name, "seed": self.seed, **plain}
        with self.run_folder.open(told, resume=self.resume):
            self._go_on(self.run_folder)
            for line in (*self.method.warnings(self.roster), *_lacking(self.silos), *self.simulated()):
                self.run_folder.problem(line)
            if self.run_folder.ended and self.server.round >= self.method.rounds:
                return
            for closed in self._rounds():
                done = self._looked_at(self.run_folder, closed)
                self._keep(self.run_folder, done)
                yield done
            self._save(self.run_folder)  # once more: the ledger holds the closing answers now
            self._export(self.run_folder)

    def simulated(self) -> list[str]:
        """Whose noise, that must hide what they send, is no secret."""
        names = [silo.name for silo in self.silos if not silo.secret] if self.method.hides else []
        told = f"simulated: the noise of {names_text(names)} {FROM_THE_SEED}; Silo(secret=...) keeps it"
        return [told] if names else []

    def _rounds(self) -> Iterator[Round]:
        if self._ran:
            raise RecipeError("this experiment has run; make another, with resume=True to go on in its folder")
        self._ran = True
        earlier = None if self.run_folder is None else self._earlier
        hub = RoundCoordinator(self.server, self.method.plan(), self.roster, self.quorum, earlier=earlier)
        conversations = {silo.name: self.method.silo(silo) for silo in self.silos}
        clock = RoundTimer(self.ledger, self.server)
        for closed in self.link.run(hub, conversations, self.ledger):
            done = clock.round_of(closed, self.method.rounds)
            check_quorum(done, closed, self.quorum)
            yield done
            clock.start()

    def _earlier(self) -> Tensors:
        """The server's state before the newest round that is kept; its start where there is none."""
        assert self.run_folder is not None
        return self.run_folder.earlier() or self.method.server(self.seed, self.roster).state_dict()

    def generator(self, silo: str | None = None) -> DiffusionGenerator | GanGenerator:
        """The trained generator: the shared one, or the one that a silo has for itself, whole."""
        if silo is None:
            found = self.server.generator()
        else:
            found = next((self.method.silo_generator(each) for each in self.silos if each.name == silo), None)
        if found is None:
            raise RecipeError(f"there is no generator of {'the server' if silo is None else silo}")
        ready = self._ready(found)
        if isinstance(ready, TrainedAutoencoder):
            raise RecipeError(CANNOT_SAMPLE)
        if isinstance(ready, GanGenerator) and ready.cut:
            raise RecipeError(f"{silo} has both ends of a generator: drawing({silo!r}) draws with the server")
        return ready

    def generators(self) -> dict[str, ImageSource]:
        """What each silo draws from when all is done."""
        shared = self.server.generator()
        ready = None if shared is None else self._ready(shared)
        hub, found = RoundCoordinator(self.server, self.method.plan(), self.roster), {}
        for silo in self.silos:
            own = self.method.silo_generator(silo)
            ask = self.link.server_call(hub, silo.name, self.drawn)
            mine = self.method.generator_for(silo.name, ready, None if own is None else self._ready(own), ask)
            if mine is not None:
                found[silo.name] = mine
        return found

    def drawing(self, silo: str) -> ImageGenerator:
        """What a silo draws from when all is done: a network, or across a cut the server and its own."""
        found = self.generators().get(silo)
        if not isinstance(found, ImageGenerator):
            raise RecipeError(CANNOT_SAMPLE if found else f"there is no generator of {silo}")
        return found

    def evaluate(self) -> dict[str, Any]:
        """Hold what was trained against the images that the silos hold out."""
        return self.judge(self.generators(), self.sampling)

    @cached_property
    def judge(self) -> Evaluator:
        """Made when it is first needed: it looks at all real images."""
        return Evaluator(self.evaluation, self.silos, str(self.silos[0].device_context.device))

    def _looked_at(self, folder: RunFolder, done: Round) -> Round:
        """The round with its figures and a picture, where it is one of those to be evaluated."""
        every, number = self.evaluation.every, done.number + 1
        generators = self.generators() if every and number % every == 0 else {}
        if not generators:
            return done
        try:
            first = generators.get(self.silos[0].name)
            if first is not None and (picture := self._picture(first, rows=4)):
                figures.sheet(folder.round_picture(number), *picture)
            if number == done.rounds or not self.evaluation.images:
                return done  # the last one is measured whole, when the run ends
            return replace(done, metrics=self.judge.quick(generators, self.sampling))
        except UNMEASURED as error:
            folder.problem(f"round {number} was not measured: {error}")
            return done

    def _picture(self, trained: ImageSource, rows: int) -> tuple[Tensor, tuple[str, ...]] | None:
        """Of what was trained; nothing where it could only show the silos' own images."""
        if not isinstance(trained, TrainedAutoencoder):
            return summary.picture(trained, rows, self._labels_of(trained))
        return summary.before_and_after(trained, self.silos[0], rows) if self.method.pools else None

    def _labels_of(self, trained: ImageGenerator) -> list[int]:
        """What a picture may ask for: every class, or those of the one silo that draws with the help of others."""
        images = self.silos[0].images
        if isinstance(trained, DiffusionGenerator) or images.labels is None:
            return list(range(len(images.classes)))
        return [int(label) for label in images.labels.unique()]

    def _ready(self, trained: TrainedModel) -> TrainedModel:
        return summary.ready(
            trained, self.sampling, self.silos[0].images.classes, str(self.silos[0].device_context.device)
        )

    def _go_on(self, folder: RunFolder) -> None:
        """Draw who holds what, and take up the newest round that is kept."""
        counts = class_counts([silo.images for silo in self.silos])
        figures.partition(folder.figures / "partition.png", [silo.name for silo in self.silos], counts)
        state = folder.resume(self.roster)
        if state is not None:
            self.server.resume(state.round, state.stores, state.server)
            self.ledger.load(state.ledger)
            for silo in self.silos:
                silo.memory = dict(state.memories.get(silo.name, {}))

    def _keep(self, folder: RunFolder, done: Round) -> None:
        if done.note:
            folder.problem(f"round {done.number + 1}: {done.note}")
        folder.append(done)
        self._save(folder)

    def _save(self, folder: RunFolder) -> None:
        memories = {silo.name: silo.memory for silo in self.silos}
        server = self.server.state_dict()
        ledger, stores = self.ledger.entries(), self.server.stores()
        folder.save(State(self.server.round, server, memories, self.roster, ledger, stores))

    def _export(self, folder: RunFolder) -> None:
        """Write what was trained, a picture of it, and the report."""
        shared = self.server.generator()
        own = {silo.name: generator for silo in self.silos if (generator := self.method.silo_generator(silo))}
        for name, generator in own.items():
            self._ready(generator).save(folder.silo(name) / "model")
        if shared is not None:
            self._ready(shared).save(folder.model)
        drawn = shared or next(iter(own.values()), None)
        first = self.generators().get(self.silos[0].name)
        if first is not None and (picture := self._picture(first, rows=8)):
            figures.grid(folder.figures / "samples.png", *picture)
        folder.write("ledger.json", self.ledger.entries())
        told = summary.RunSummary(self.method, self.server, self.ledger, self.roster, self.sampling, self.evaluation)
        facts = summary.facts(told, folder, drawn, summary.images_of(self.silos, self.skipped), self.silos)
        page.write(folder, facts | self._verdict(folder))

    def _verdict(self, folder: RunFolder) -> dict[str, Any]:
        """What is measured at the end; a run whose figures cannot be had is a run all the same."""
        if not self.evaluation.images:
            return {}
        try:
            verdict = self.evaluate()
        except UNMEASURED as error:
            folder.problem(f"{NOT_EVALUATED}: {error}")
            return {"problems": folder.problems}
        ended = {name: verdict[name] for name in ("metrics", "floor", "protocol")}
        return summary.measured(verdict, folder.rounds) | {"at_end": ended}


def _lacking(silos: Sequence[Silo]) -> list[str]:
    """Classes that nobody has an image of."""
    counts, names = class_counts([silo.images for silo in silos]).sum(0), silos[0].images.classes
    none = [names[number] for number in np.flatnonzero(counts == 0)] if names else []
    return [f"no silo has an image of class {names_text(none)}: what is drawn of it means nothing"] if none else []
