"""The one place where data, silos, method, hub, link and run folder are put together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyhands import ending
from manyhands.clock import Clock, check_quorum
from manyhands.data.images import Images
from manyhands.data.partition import Partition, Parts, class_counts
from manyhands.data.sources import Folder
from manyhands.diffusion.sample import Sampling
from manyhands.errors import ManyhandsError, RecipeError, RunFolderError
from manyhands.evaluation import figures, inception, report
from manyhands.evaluation.judge import Evaluation, Judge
from manyhands.hub import Hub
from manyhands.journal import Round, RunFolder, State
from manyhands.ledger import Ledger
from manyhands.links.embedded import Embedded
from manyhands.message import Message
from manyhands.methods.method import Method, Server, Trained
from manyhands.models.autoencoder import DRAWS_NOTHING, TrainedAutoencoder
from manyhands.models.forger import Forger
from manyhands.models.generator import Drawing, Generator, load
from manyhands.plan import names_text
from manyhands.recipe import Recipe, parse_recipe, specs_in
from manyhands.seed import numpy_rng
from manyhands.silo import FROM_THE_SEED, Silo, Workbench, distinct
from manyhands.tensors import Tensors

Drawn = Drawing | TrainedAutoencoder
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
    link: Embedded = field(default_factory=Embedded)
    sampling: Sampling = field(default_factory=Sampling)
    evaluation: Evaluation = field(default_factory=Evaluation)
    recipe: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    drawn: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        bench = Workbench(chosen_device(self.device))
        mine = [replace(silo, seed=self.seed, bench=bench, memory=dict(silo.memory)) for silo in self.silos]
        self.silos = distinct(mine)
        for silo in self.silos:
            self.method.fits(silo)
        if self.evaluation.images and self.evaluation.inception:
            inception.verify(self.evaluation.inception)  # before the run, not after it
        self.roster = {silo.name: len(silo.images) for silo in self.silos}
        if not 1 <= self.quorum <= len(self.roster):
            raise RecipeError(f"quorum is {self.quorum}, there are {len(self.roster)} silos")
        self.server: Server = self.method.server(self.seed, self.roster)
        self.server.device = bench.device
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
        hub = Hub(self.server, self.method.plan(), self.roster, self.quorum, earlier=earlier)
        conversations = {silo.name: self.method.silo(silo) for silo in self.silos}
        clock = Clock(self.ledger, self.server)
        for closed in self.link.run(hub, conversations, self.ledger):
            done = clock.round_of(closed, self.method.rounds)
            check_quorum(done, closed, self.quorum)
            yield done
            clock.start()

    def _earlier(self) -> Tensors:
        """The server's state before the newest round that is kept; its start where there is none."""
        assert self.run_folder is not None
        return self.run_folder.earlier() or self.method.server(self.seed, self.roster).state_dict()

    def generator(self, silo: str | None = None) -> Generator | Forger:
        """The trained generator: the shared one, or the one that a silo has for itself, whole."""
        if silo is None:
            found = self.server.generator()
        else:
            found = next((self.method.own_generator(each) for each in self.silos if each.name == silo), None)
        if found is None:
            raise RecipeError(f"there is no generator of {'the server' if silo is None else silo}")
        ready = self._ready(found)
        if isinstance(ready, TrainedAutoencoder):
            raise RecipeError(DRAWS_NOTHING)
        if isinstance(ready, Forger) and ready.cut:
            raise RecipeError(f"{silo} has both ends of a generator: drawing({silo!r}) draws with the server")
        return ready

    def generators(self) -> dict[str, Drawn]:
        """What each silo draws from when all is done."""
        shared = self.server.generator()
        ready = None if shared is None else self._ready(shared)
        hub, found = Hub(self.server, self.method.plan(), self.roster), {}
        for silo in self.silos:
            own = self.method.own_generator(silo)
            ask = self.link.asking(hub, silo.name, self.drawn)
            mine = self.method.drawn_from(silo.name, ready, None if own is None else self._ready(own), ask)
            if mine is not None:
                found[silo.name] = mine
        return found

    def drawing(self, silo: str) -> Drawing:
        """What a silo draws from when all is done: a network, or across a cut the server and its own."""
        found = self.generators().get(silo)
        if not isinstance(found, Drawing):
            raise RecipeError(DRAWS_NOTHING if found else f"there is no generator of {silo}")
        return found

    def evaluate(self) -> dict[str, Any]:
        """Hold what was trained against the images that the silos hold out."""
        return self.judge(self.generators(), self.sampling)

    @cached_property
    def judge(self) -> Judge:
        """Made when it is first needed: it looks at all real images."""
        return Judge(self.evaluation, self.silos, str(self.silos[0].bench.device))

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

    def _picture(self, trained: Drawn, rows: int) -> tuple[Tensor, tuple[str, ...]] | None:
        """Of what was trained; nothing where it could only show the silos' own images."""
        if not isinstance(trained, TrainedAutoencoder):
            return ending.picture(trained, rows, self._labels_of(trained))
        return ending.before_and_after(trained, self.silos[0], rows) if self.method.pools else None

    def _labels_of(self, trained: Drawing) -> list[int]:
        """What a picture may ask for: every class, or those of the one silo that draws with the help of others."""
        images = self.silos[0].images
        if isinstance(trained, Generator) or images.labels is None:
            return list(range(len(images.classes)))
        return [int(label) for label in images.labels.unique()]

    def _ready(self, trained: Trained) -> Trained:
        return ending.ready(trained, self.sampling, self.silos[0].images.classes, str(self.silos[0].bench.device))

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
        own = {silo.name: generator for silo in self.silos if (generator := self.method.own_generator(silo))}
        for name, generator in own.items():
            self._ready(generator).save(folder.silo(name) / "model")
        if shared is not None:
            self._ready(shared).save(folder.model)
        drawn = shared or next(iter(own.values()), None)
        first = self.generators().get(self.silos[0].name)
        if first is not None and (picture := self._picture(first, rows=8)):
            figures.grid(folder.figures / "samples.png", *picture)
        folder.write("ledger.json", self.ledger.entries())
        told = ending.Told(self.method, self.server, self.ledger, self.roster, self.sampling, self.evaluation)
        facts = ending.facts(told, folder, drawn, ending.images_of(self.silos, self.skipped), self.silos)
        report.write(folder, facts | self._verdict(folder))

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
        return ending.measured(verdict, folder.rounds) | {"at_end": ended}


def _lacking(silos: Sequence[Silo]) -> list[str]:
    """Classes that nobody has an image of."""
    counts, names = class_counts([silo.images for silo in silos]).sum(0), silos[0].images.classes
    none = [names[number] for number in np.flatnonzero(counts == 0)] if names else []
    return [f"no silo has an image of class {names_text(none)}: what is drawn of it means nothing"] if none else []


def compose(recipe: Recipe, folder: Path | str | None = None, *, resume: bool = False) -> Experiment:
    """The experiment that a recipe describes, with its data loaded and dealt."""
    silos, skipped = silos_of(recipe)
    return Experiment(
        recipe.method,
        silos,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        device=recipe.device,
        quorum=1 if recipe.method.pools else recipe.quorum,
        link=recipe.link,
        sampling=recipe.sampling,
        evaluation=recipe.evaluation,
        recipe=recipe.resolved(),
        skipped=skipped,
    )


def silos_of(recipe: Recipe) -> tuple[list[Silo], tuple[str, ...]]:
    """The silos that a recipe describes, and the names of the images that could not be read.

    Pooled is what the silos would have, no more, and each image as often as it was dealt.
    """
    images = recipe.data.load()
    if not recipe.method.pools:
        return split(images, recipe.partition, recipe.seed), images.skipped
    dealt = np.sort(np.concatenate(_parts(images, recipe.partition, recipe.seed)))
    return [Silo("pooled", images.subset(dealt))], images.skipped


def evaluate(folder: RunFolder, told: Evaluation, data: str = "", **sampling: Any) -> dict[str, Any]:
    """Measure a finished run again, by another protocol, or on other ``data``; its report is written anew."""
    recipe, silos = held_silos(folder, data)
    kept = folder.report
    with folder.alone():
        if data:
            generators = dict.fromkeys((silo.name for silo in silos), drawn_by(folder, None))
        else:
            generators = kept_generators(folder, recipe.method, recipe.link)
        judge = Judge(told, silos, chosen_device(recipe.device))
        verdict = judge(generators, recipe.sampling.model_copy(update=sampling))
        old = [line for line in kept["problems"] if not line.startswith(NOT_EVALUATED)]
        anew = {"problems": old, "versions": report.versions()}
        report.write(folder, kept | ending.measured(verdict, folder.rounds) | anew)
    return folder.report


def held_silos(folder: RunFolder, data: str = "") -> tuple[Recipe, list[Silo]]:
    """The recipe of a finished run and its silos, with the images that they had.

    ``data`` brings others: a folder, or ``recipe`` for what the recipe deals, whoever has trained on what.
    """
    if "data" not in folder.recipe:
        raise RunFolderError(
            f"{folder.path}: was run from Python, so its recipe does not say where the images are; "
            "Experiment.evaluate() measures it there"
        )
    kept, recipe = folder.report, parse_recipe(folder.recipe, str(folder.path / "recipe.toml"))
    if data:
        return recipe, distinct(silos_of(recipe)[0]) if data == "recipe" else [silo_of("here", data, recipe)]
    if not kept["data"]:
        raise RunFolderError(
            f"{folder.path}: was trained between sites, and their images are theirs: evaluate --data measures it"
        )
    silos = distinct(silos_of(recipe)[0])
    if len(folder.rounds) != kept["rounds"]:
        raise RunFolderError(f"{folder.path}/journal.jsonl: tells of {len(folder.rounds)} of {kept['rounds']} rounds")
    if kept["data"] != ending.data_of(silos):
        raise RunFolderError(f"{folder.path}: the images are no longer those that it was trained on")
    return recipe, silos


def kept_generators(folder: RunFolder, method: Method, link: Embedded) -> dict[str, Drawn]:
    """What each silo of a finished run draws from."""
    device, ledger = chosen_device(folder.recipe.get("device", "auto")), Ledger()
    shared = _kept(folder.model, device)
    hub = cache(lambda: _restored(folder, method, device))
    found = {}
    for silo in folder.report["silos"]:

        def ask(message: Message, silo: str = silo) -> Message:
            return link.asking(hub(), silo, ledger)(message)

        if drawn := method.drawn_from(silo, shared, _kept(folder.silo(silo) / "model", device), ask):
            found[silo] = drawn
    return found


def drawn_by(folder: RunFolder, silo: str | None, *, alone: bool = False) -> Drawn:
    """What a silo of a finished run draws from, or without one what all do; ``alone``: one network, and no other."""
    method = next(spec for spec in specs_in(folder.recipe, str(folder.path)) if isinstance(spec, Method))
    generators = kept_generators(folder, method, Embedded())
    device = chosen_device(folder.recipe.get("device", "auto"))
    if silo is not None and silo not in generators:
        raise RunFolderError(f"{folder.path}: {silo} has no generator; there are those of {', '.join(generators)}")
    if alone:
        found: Drawn | None = _kept(folder.model if silo is None else folder.silo(silo) / "model", device)
        if found is None:
            raise RunFolderError(f"{folder.path}: {silo or 'the server'} has no network of its own")
        return found
    drawn = list({id(each): each for each in generators.values()}.values()) if silo is None else [generators[silo]]
    if len(drawn) != 1:
        own = f"these silos have one of their own (--silo): {', '.join(generators)}" if drawn else "has the run ended?"
        raise RunFolderError(f"{folder.path}: there is no one generator of all; {own}")
    return drawn[0]


def _kept(path: Path, device: str) -> Trained | None:
    return load(path, device) if path.exists() else None


def _restored(folder: RunFolder, method: Method, device: str) -> Hub:
    """The server of a finished run, ready to answer."""
    state = folder.state()
    server = restored(state, method, int(folder.recipe.get("seed", 0)), device)
    return Hub(server, method.plan(), state.roster)


def restored(state: State, method: Method, seed: int, device: str) -> Server:
    """The server of a run as it was kept."""
    server = method.server(seed, state.roster)
    server.device = torch.device(device)
    server.resume(state.round, state.stores, state.server)
    return server


def split(images: Images, partition: Partition, seed: int = 0) -> list[Silo]:
    """Deal images to silos, which have the names of their domains or are called silo-0, silo-1, ..."""
    parts, names = _parts(images, partition, seed), partition.names(images.domains)
    return [Silo(name, images.subset(part)) for name, part in zip(names, parts, strict=True)]


def silo_of(name: str, folder: str, recipe: Recipe) -> Silo:
    """A silo with the images of a folder, as the recipe wants them."""
    data = recipe.data
    images = Folder(path=folder).load(data.size, data.channels, data.known_classes())
    return Silo(name, images.hold_out(data.held_out))


def _parts(images: Images, partition: Partition, seed: int) -> Parts:
    return partition.parts(images, numpy_rng(seed, "partition"))


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
