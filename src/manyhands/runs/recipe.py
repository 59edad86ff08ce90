"""The recipe: one experiment, as TOML; errors give the path and the nearest name."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from manyhands.data.images import Images, join
from manyhands.data.partition import AnyPartition, Dirichlet, Domains, Lacking, Shards
from manyhands.data.sources import MAX_CLASSES, AnySource
from manyhands.diffusion.sample import Sampling
from manyhands.errors import DataError, ManyhandsError, RecipeError
from manyhands.evaluation.evaluator import Evaluation
from manyhands.files.toml_text import parse_toml, read_toml
from manyhands.links.in_process import InProcess
from manyhands.methods.base import Method
from manyhands.methods.baselines import Central, Local
from manyhands.methods.collafuse.method import CollaFuse
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.gans.hflgan import HFLGan
from manyhands.methods.gans.mdgan import MDGan
from manyhands.methods.gans.pflgan import PFLGan
from manyhands.methods.gans.splitgan import SplitGan
from manyhands.methods.huscf.method import HuSCF
from manyhands.seed import numpy_rng
from manyhands.silos.silo import NAME, NAME_RULE, is_name
from manyhands.spec import Float, Int, Spec, suggest

S = TypeVar("S", bound=Spec)
FILLED_IN = {"method.model.size", "method.model.channels", "method.model.classes"}
AnyMethod = Annotated[
    FedAvg | Local | Central | CollaFuse | HuSCF | MDGan | SplitGan | PFLGan | HFLGan, Field(discriminator="kind")
]
METHODS: tuple[type[Method], ...] = get_args(get_args(AnyMethod)[0])
KINDS: list[str] = [spec.model_fields["kind"].default for spec in METHODS]


class Data(Spec):
    """Where the images come from, and the one form that they are all brought to.

    ``classes`` is a list of names or a number of classes; without it, the source says. ``limit`` keeps so many
    images, drawn at random. Nobody trains on the images of ``test``, or on a share ``held_out`` where there is no test
    source: what was trained is held against them. Neither draw depends on the run's seed. The silos of ``domains`` have
    their names. ``origin`` says how to get the images, where they are not there.
    """

    size: Int = Field(ge=4, le=1024)
    channels: Literal[1, 3] = 1
    source: AnySource | None = None
    domains: dict[str, AnySource] = Field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    limit: Int | None = Field(default=None, ge=1)
    origin: str = ""
    test: AnySource | None = None
    held_out: Float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, told: Any) -> Any:
        if isinstance(told, dict):
            told = dict(told)
            if isinstance(told.get("source"), str):
                told["source"] = {"kind": told["source"]}
            count = told.get("classes")
            if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_CLASSES:
                told["classes"] = tuple(map(str, range(count)))
        return told

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes names a class twice: {', '.join(self.classes)}")
        if (self.source is None) == (not self.domains):
            raise ValueError("say either source or domains, one of the two")
        if self.test is not None and self.source is None:
            raise ValueError("test goes with one source; domains hold a share out of each")
        if odd := [name for name in self.domains if not is_name(name)]:
            raise ValueError(f"domain {odd[0]!r} gives its silo its name: {NAME_RULE}")
        return self

    @property
    def sources(self) -> list[Any]:
        """The source, or those of the domains in the order of their names: what is drawn does not depend on another."""
        return [self.source] if self.source is not None else [self.domains[name] for name in sorted(self.domains)]

    def known_classes(self) -> tuple[str, ...]:
        """The names of the classes, as declared or as the sources have them."""
        return self.classes if self.classes is not None else max((s.classes() for s in self.sources), key=len)

    def load(self) -> Images:
        """All images, in the declared form, those held out among them and marked."""
        try:
            return self._loaded()
        except DataError as error:
            raise DataError(f"{error}; to get it: {self.origin}" if self.origin else str(error)) from None

    def _loaded(self) -> Images:
        classes = self.known_classes()
        parts = [source.load(self.size, self.channels, classes) for source in self.sources]
        images = parts[0] if self.source is not None else join(parts, sorted(self.domains))
        if self.limit is not None and self.limit < len(images):
            images = images.subset(np.sort(numpy_rng(0, "limit").permutation(len(images))[: self.limit]))
        if self.test is None:
            return images.hold_out(self.held_out)
        test = self.test.load(self.size, self.channels, classes)
        both = join([images, test])
        return replace(both, domain=None, held=torch.arange(len(both)) >= len(images))


class Federation(Spec):
    """How a run between real sites waits, in seconds.

    ``gather`` is how long it waits for sites that should be there before it begins, and ``deadline`` how long the
    others wait for a site in a round, in all. A site that has ``lost`` what it kept is refused, or admitted as if it
    were new. A site may enrol ``images`` at most, which bounds what it can release and how much it counts.
    """

    gather: Float = Field(default=600.0, ge=0)
    deadline: Float = Field(default=600.0, gt=0)
    lost: Literal["refuse", "admit"] = "refuse"
    images: Int = Field(default=1_000_000, ge=1)


class Recipe(Spec):
    """One experiment: data, how it is dealt, the method, the link and the draw."""

    name: str = Field(pattern=f"^{NAME}$")
    seed: Int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    quorum: Int = Field(default=1, ge=1)
    data: Data
    partition: AnyPartition
    method: AnyMethod
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    link: InProcess = InProcess()
    federation: Federation = Federation()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        model, names, domains = self.method.model, self.silo_names, self.data.domains
        silos = len(names)
        if domains and self.partition.silos % len(domains):
            raise ValueError(
                f"partition.silos is {self.partition.silos}, which {len(domains)} domains cannot share evenly"
            )
        if (model.size, model.channels) != (self.data.size, self.data.channels):
            raise ValueError(
                f"method.model is for {model.channels} x {model.size}, data is {self.data.channels} x {self.data.size}"
            )
        if isinstance(self.method, FedAvg) and (self.method.participants or 1) > silos:
            raise ValueError(f"method.participants is {self.method.participants}, partition.silos only {silos}")
        if isinstance(told := getattr(self.method, "clusters", None), int) and told > silos:
            raise ValueError(f"method.clusters is {told}, partition.silos only {silos}")
        a_round = (self.method.participants if isinstance(self.method, FedAvg) else None) or silos
        if self.quorum > a_round:
            raise ValueError(f"quorum is {self.quorum}, but only {a_round} silos take part in a round")
        diffusion = getattr(self.method, "diffusion", None)
        if self.sampling.guidance != 1 and model.classes and not (diffusion and diffusion.label_dropout):
            raise ValueError("sampling.guidance needs a network that learnt without labels too: label_dropout > 0")
        if odd := _unknown_in(self.method, names):
            raise ValueError(f"method names {odd!r}; {suggest(odd, names[:20])}")
        if isinstance(self.partition, Dirichlet | Shards) and self.data.classes == ():
            raise ValueError(f"partition {self.partition.kind!r} deals by label, and data.classes is 0")
        if isinstance(self.partition, Domains) != bool(domains) and not isinstance(self.partition, Lacking):
            raise ValueError("partition 'domains' and [data.domains] go together")
        if domains and not is_name(long := max(names, key=len)):
            raise ValueError(f"a silo would be called {long!r}: {NAME_RULE}; give its domain a shorter name")
        return self

    @property
    def silo_names(self) -> list[str]:
        """What the silos are called, in the order of the recipe's domains where it has such."""
        return self.partition.names(tuple(self.data.domains))

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, as it is kept in the run folder."""
        return self.model_dump(mode="json", exclude_none=True)


def _unknown_in(method: Method, names: Sequence[str]) -> str:
    """The first name, or pattern of names, by which a method tells of a silo that there is not; empty if none."""
    known = set(names)
    if isinstance(method, HuSCF):
        return next((name for name in method.cuts if name not in known and not fnmatch.filter(names, name)), "")
    if isinstance(method, CollaFuse):
        every = (*method.cuts, *(silo for mine in method.clusters.values() for silo in mine))
        return next((name for name in every if name not in known), "")
    return ""


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The one experiment of a recipe, with changes of the form ``a.b=c``, where c is a TOML value or a plain word."""
    told = read_recipe(path, changes)
    if "sweep" in told:
        raise RecipeError(f"{path}: has a [sweep], which makes it several recipes: load_sweep() gives them all")
    return parse_recipe(told, str(path))


def read_recipe(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe says, changed; it has a name, and nothing else is looked at."""
    told = read_toml(path, "recipe")
    told.setdefault("name", re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "run")
    for change in changes:
        _apply(told, change)
    return told


def parse_offer(text: str, where: str) -> Recipe:
    """The recipe that another party offers. Nothing that it names is opened, listed or fetched to understand it."""
    told = parse_toml(text, where)
    data = told.get("data")
    if isinstance(data, dict) and "classes" not in data and data.get("source") not in ("digits", {"kind": "digits"}):
        raise RecipeError(f"{where}: data.classes is missing; between sites a recipe says which classes there are")
    with understood(where):
        return parse_recipe(told, where)


@contextmanager
def understood(where: str) -> Iterator[None]:
    """Whatever a foreign recipe comes to that nobody thought of is an error of that recipe."""
    try:
        yield
    except ManyhandsError:
        raise
    except Exception as error:
        raise RecipeError(f"{where}: cannot be understood: {type(error).__name__}: {error}") from None


def parse_recipe(told: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values; what the data says of the model is filled in."""
    full = _filled_in(told)
    try:
        return Recipe.model_validate(full)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in _lines(error, full))) from None


def read(kind: type[S], path: Path, what: str) -> S:
    """A specification that is a whole TOML file."""
    told = read_toml(path, what)
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in _lines(error, told))) from None


def specs_in(told: Mapping[str, Any], where: str) -> list[Spec]:
    """What a run folder's recipe says of these parts; a run from Python says nothing of its data."""
    kinds: dict[str, Any] = {"method": AnyMethod, "data": Data, "sampling": Sampling, "evaluation": Evaluation}
    try:
        return [TypeAdapter(kind).validate_python(told[name]) for name, kind in kinds.items() if name in told]
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in _lines(error, told))) from None


def _filled_in(told: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its number of silos, the model's kind, size, channels and classes, and what a central run is."""
    full = {**told, **_with_silos(told)}
    method, data = full.get("method"), full.get("data")
    if not isinstance(method, dict):
        return full
    model, data = method.get("model", {}), data if isinstance(data, dict) else {}
    if isinstance(model, dict):
        form = {key: data[key] for key in ("size", "channels") if key in data}
        model = {"kind": _model_kind(method.get("kind")), "channels": 1, **form, **model}
        if "classes" not in model and model["kind"] != "autoencoder":
            model["classes"] = _count_classes(data)
        method = {**method, "model": model}
        if isinstance(own := method.get("silo_model"), dict) and isinstance(model, dict):
            known = {key: model[key] for key in ("size", "channels", "classes") if key in model}
            method["silo_model"] = known | own
    if method.get("kind") == "central":
        method = {"silos": _count_silos(full.get("partition")), **method}
    return {**full, "method": method}


def _with_silos(told: Mapping[str, Any]) -> dict[str, Any]:
    """The partition with one silo for each domain, where there are domains and no number of silos is said."""
    data, partition = told.get("data"), told.get("partition")
    domains = data.get("domains") if isinstance(data, dict) else None
    if not (isinstance(domains, dict) and domains and isinstance(partition, dict)):
        return {}
    return {"partition": {"silos": len(domains), **partition}}


def _model_kind(method: Any) -> str:
    """The kind of model that a kind of method trains: of several, the first."""
    spec = next((each for each in METHODS if each.model_fields["kind"].default == method), FedAvg)
    model = spec.model_fields["model"].annotation
    kind: str = (get_args(model) or (model,))[0].model_fields["kind"].default
    return kind


def _count_silos(partition: Any) -> int:
    """What is wrong with the partition is told when the whole recipe is read."""
    try:
        silos: int = TypeAdapter(AnyPartition).validate_python(partition).silos
    except ValidationError:
        return 1
    return silos


def _count_classes(data: Mapping[str, Any]) -> int:
    try:
        return len(Data.model_validate(data).known_classes())
    except ValidationError:
        return 0  # what is wrong with the data is told when the whole recipe is read


def _apply(told: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path or "\n" in change:
        raise RecipeError(f"--set {change}: is not of the form a.b=value")
    put(told, path.strip(), _value(text), f"--set {change}")


def _value(text: str) -> Any:
    """A TOML value, in which .4 is 0.4; else a plain word."""
    for written in (text, re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)):
        try:
            return tomllib.loads(f"value = {written}")["value"]
        except (ValueError, RecursionError):
            continue
    return text.strip()


def put(told: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Put a value into tables in tables, under a dotted name."""
    *parents, last = name.split(".")
    table = told
    for parent in parents:
        if isinstance(table.get(parent), str):
            table[parent] = {"kind": table[parent]}  # its short form
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{where}: {parent} is a value, not a table")
    table[last] = value


def _lines(error: ValidationError, told: Mapping[str, Any]) -> list[str]:
    lines = []
    data_is_wrong = any(problem["loc"][:1] == ("data",) for problem in error.errors())
    for problem in error.errors():
        where = ".".join(_path(problem["loc"], told))
        if data_is_wrong and where in FILLED_IN:
            continue  # told once, where it was said
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
            text = f"kind {context['tag']!r} is not known; {suggest(str(context['tag']), known)}"
        elif problem["type"] in {"union_tag_not_found", "model_attributes_type"}:
            text = "say its kind, in a table: kind = ..."
        elif problem["type"] not in {"unknown_key", "missing", "value_error"}:
            text = f"{problem['input']!r} came: {text[0].lower()}{text[1:]}"
        lines.append(f"{where}: {text}" if where else text)
    return lines


def _path(loc: Sequence[str | int], told: Any) -> list[str]:
    """The place in the recipe; pydantic puts the tags of unions into it, which stand nowhere in the file."""
    path, here = [], told
    for i, step in enumerate(loc):
        tag = isinstance(here, Mapping) and step not in here and here.get("kind") == step
        if tag or (i and not isinstance(here, Mapping | list | tuple)):
            continue
        path.append(str(step))
        here = here.get(step) if isinstance(here, Mapping) and isinstance(step, str) else None
    return path
