"""The one place where data, silos, method, hub, link and run folder are put together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from manyhands.data.images import Images
from manyhands.data.partition import Partition, class_counts
from manyhands.diffusion.sample import Sampling
from manyhands.errors import QuorumLost, RecipeError
from manyhands.evaluation import figures, report
from manyhands.hub import Closed, Hub
from manyhands.journal import Round, RunFolder, State
from manyhands.ledger import Ledger
from manyhands.links.embedded import Embedded
from manyhands.methods.method import Method, Server
from manyhands.models.generator import Generator
from manyhands.plan import RESTING
from manyhands.recipe import Recipe
from manyhands.seed import numpy_rng
from manyhands.silo import Silo, Workbench, distinct


@dataclass
class Experiment:
    """Silos, a method that they agree on, and a link between them. Iterating over it runs it, round by round.

    Without a ``folder`` nothing is written. With one, a run that was stopped goes on where it was if ``resume``.
    """

    method: Method
    silos: Sequence[Silo]
    seed: int = 0
    folder: Path | str | None = None
    resume: bool = False
    device: str = "auto"
    quorum: int = 1
    link: Embedded = field(default_factory=Embedded)
    sampling: Sampling = field(default_factory=Sampling)
    recipe: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        bench = Workbench(chosen_device(self.device))
        mine = [replace(silo, seed=self.seed, bench=bench, memory=dict(silo.memory)) for silo in self.silos]
        self.silos = distinct(mine)
        for silo in self.silos:
            self.method.fits(silo)
        self.roster = {silo.name: len(silo.images) for silo in self.silos}
        if not 1 <= self.quorum <= len(self.roster):
            raise RecipeError(f"quorum is {self.quorum}, there are {len(self.roster)} silos")
        self.server: Server = self.method.server(self.seed, list(self.roster))
        self.run_folder = None if self.folder is None else RunFolder(Path(self.folder))
        self._ran = False

    def __iter__(self) -> Iterator[Round]:
        """Run to the end; each round is kept before it is given."""
        if self.run_folder is None:
            yield from self._rounds()
            return
        parts = {"method": self.method, "sampling": self.sampling, "link": self.link}
        plain = {name: part.model_dump(mode="json", exclude_none=True) for name, part in parts.items()}
        told = self.recipe or {"name": self.run_folder.path.name, "seed": self.seed, **plain}
        with self.run_folder.open(told, resume=self.resume):
            self._go_on(self.run_folder)
            for done in self._rounds():
                self._keep(self.run_folder, done)
                yield done
            self._save(self.run_folder)  # once more: the ledger holds the closing answers now
            self._export(self.run_folder)

    def _rounds(self) -> Iterator[Round]:
        if self._ran:
            raise RecipeError("this experiment has run; make another, with resume=True to go on in its folder")
        self._ran = True
        if self.server.round >= self.method.rounds:
            return
        hub = Hub(self.server, self.method.plan(), self.roster, self.quorum)
        conversations = {silo.name: self.method.silo(silo) for silo in self.silos}
        clock = _Clock(self.ledger)
        for closed in self.link.run(hub, conversations, self.ledger):
            done = clock.round_of(closed, self.method.rounds)
            if len(closed.facts) - len(done.missing.keys() & closed.facts.keys()) - done.resting < self.quorum:
                why = "; ".join(f"{silo}: {reason}" for silo, reason in done.missing.items())
                raise QuorumLost(f"round {done.number + 1}: fewer than {self.quorum} silos could send anything ({why})")
            yield done
            clock.start()

    def generator(self, silo: str | None = None) -> Generator:
        """The trained generator: the shared one, or the one that a silo has for itself."""
        if silo is None:
            found = self.server.generator()
        else:
            found = next((self.method.own_generator(each) for each in self.silos if each.name == silo), None)
        if found is None:
            raise RecipeError(f"there is no generator of {'the server' if silo is None else silo}")
        return self._ready(found)

    def _ready(self, generator: Generator) -> Generator:
        classes = self.silos[0].images.classes
        return replace(generator, sampling=self.sampling, classes=classes, device=str(self.silos[0].bench.device))

    def _go_on(self, folder: RunFolder) -> None:
        """Draw who holds what, and take up the newest round that is kept."""
        counts = class_counts([silo.images for silo in self.silos])
        figures.partition(folder.figures / "partition.png", [silo.name for silo in self.silos], counts)
        state = folder.resume(self.roster)
        if state is not None:
            self.server.round = state.round
            self.server.load_state_dict(state.server)
            self.ledger.load(state.ledger)
            for silo in self.silos:
                silo.memory = dict(state.memories.get(silo.name, {}))

    def _keep(self, folder: RunFolder, done: Round) -> None:
        folder.append(done)
        self._save(folder)

    def _save(self, folder: RunFolder) -> None:
        memories = {silo.name: silo.memory for silo in self.silos}
        server = self.server.state_dict()
        folder.save(State(self.server.round, server, memories, self.roster, self.ledger.entries()))

    def _export(self, folder: RunFolder) -> None:
        """Write what was trained, a picture of it, and the report."""
        shared = self.server.generator()
        own = {silo.name: generator for silo in self.silos if (generator := self.method.own_generator(silo))}
        for name, generator in own.items():
            self._ready(generator).save(folder.silo(name) / "model")
        if shared is not None:
            self._ready(shared).save(folder.model)
        drawn = shared or next(iter(own.values()), None)
        if drawn is not None:
            figures.grid(folder.figures / "samples.png", *_picture(self._ready(drawn)))
        folder.write("ledger.json", self.ledger.entries())
        folder.write("report.json", self._report(folder, drawn))
        report.write(folder)

    def _report(self, folder: RunFolder, drawn: Generator | None) -> dict[str, Any]:
        rounds = folder.rounds
        return {
            "method": self.method.model_dump()["kind"],
            "silos": self.roster,
            "rounds": len(rounds),
            "seconds": sum(done.seconds for done in rounds),
            "images_seen": sum(done.images for done in rounds),
            "parameters": sum(t.numel() for t in drawn.weights.values()) if drawn else 0,
            "bytes_up": self.ledger.bytes("up"),
            "bytes_down": self.ledger.bytes("down"),
            "metrics": {"loss": rounds[-1].loss if rounds and rounds[-1].losses else None},
            "floor": {},
            "skipped": list(self.skipped),
            "problems": folder.problems,
            "versions": report.versions(),
        }


def compose(recipe: Recipe, folder: Path | str | None = None, *, resume: bool = False) -> Experiment:
    """The experiment that a recipe describes, with its data loaded and dealt."""
    images = recipe.data.load(recipe.seed)
    pools = recipe.method.pools
    return Experiment(
        recipe.method,
        [Silo("pooled", images)] if pools else split(images, recipe.partition, recipe.seed),
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        device=recipe.device,
        quorum=1 if pools else recipe.quorum,
        link=recipe.link,
        sampling=recipe.sampling,
        recipe=recipe.resolved(),
        skipped=images.skipped,
    )


def split(images: Images, partition: Partition, seed: int = 0) -> list[Silo]:
    """Deal images to silos called silo-0, silo-1, ..."""
    parts = partition.parts(images, numpy_rng(seed, "partition"))
    width = len(str(len(parts) - 1))
    return [Silo(f"silo-{i:0{width}d}", images.subset(part)) for i, part in enumerate(parts)]


def chosen_device(asked: str) -> str:
    """The device to work on. CUDA is told, for the whole process, to repeat itself exactly."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if asked not in ("auto", "cpu", found):
        raise RecipeError(f"device {asked!r} is not here; this machine has {found}")
    name = found if asked == "auto" else asked
    if name == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return name


@dataclass
class _Clock:
    """Measures what a round took, in seconds and in bytes."""

    ledger: Ledger

    def __post_init__(self) -> None:
        self.up, self.down = self.ledger.bytes("up"), self.ledger.bytes("down")
        self.start()

    def start(self) -> None:
        self.began = time.perf_counter()

    def round_of(self, closed: Closed, rounds: int) -> Round:
        up, down = self.ledger.bytes("up"), self.ledger.bytes("down")
        said: dict[str, dict[str, Any]] = {silo: dict(facts) for silo, facts in closed.facts.items()}
        withheld = {silo: f["withheld"] for silo, f in said.items() if f.get("withheld", "") not in ("", RESTING)}
        done = Round(
            closed.round,
            rounds,
            time.perf_counter() - self.began,
            sum(facts.get("seen", 0) for facts in said.values()),
            up - self.up,
            down - self.down,
            {silo: facts["loss"] for silo, facts in said.items() if facts.get("loss") is not None},
            {**closed.missing, **withheld},
            sum(facts.get("withheld") == RESTING for facts in said.values()),
        )
        self.up, self.down = up, down
        return done


def _picture(generator: Generator) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Eight images of each class, at most ten classes, a column each; 64 images where there are no classes."""
    headings = generator.classes[:10] if generator.model.classes else ()
    columns = len(headings) or 8
    labels = [i % columns if headings else 0 for i in range(8 * columns)]
    return generator.sample(labels=labels), headings
