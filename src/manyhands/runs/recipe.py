"""The recipe: one experiment as TOML. Errors name the field, and the known name that is most similar."""

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
from manyhands.silos.quorum import can_reach_quorum
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
    """The images: where they come from, and their common size and channels.

    Which images are kept by ``limit`` and held out by ``held_out`` is random, but does not depend on the run's seed.
    """

    size: Int = Field(ge=4, le=1024, description="The width and height in pixels to which all images are brought.")
    channels: Literal[1, 3] = Field(default=1, description="1 for grey images, 3 for RGB.")
    source: AnySource | None = Field(
        default=None, description="Where the images come from; None where domains are given instead."
    )
    domains: dict[str, AnySource] = Field(
        default_factory=dict,
        description="A source for each domain, by the name of the domain, which is also the name of its silo.",
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="The names of the classes, or their number; 0 means that the images have no labels, None takes the "
        "classes of the source.",
    )
    limit: Int | None = Field(
        default=None, ge=1, description="Keep only this many images, chosen at random; None keeps all."
    )
    origin: str = Field(
        default="", description="How to obtain the images: a text for the error message where they are missing."
    )
    test: AnySource | None = Field(
        default=None,
        description="A source of test images, which no silo trains on; None holds out a share of the images instead.",
    )
    held_out: Float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="The share of the images that no silo trains on, where there is no test source; they are used for "
        "evaluation and audits.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            fields = dict(fields)
            if isinstance(fields.get("source"), str):
                fields["source"] = {"kind": fields["source"]}
            count = fields.get("classes")
            if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_CLASSES:
                fields["classes"] = tuple(map(str, range(count)))
        return fields

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes names a class twice: {', '.join(self.classes)}")
        if (self.source is None) == (not self.domains):
            raise ValueError("either source or domains is expected, and not both")
        if self.test is not None and self.source is None:
            raise ValueError("test is for a single source; with domains, a share of each is held out")
        if bad_names := [name for name in self.domains if not is_name(name)]:
            raise ValueError(f"domain {bad_names[0]!r} gives its silo its name: {NAME_RULE}")
        return self

    @property
    def sources(self) -> list[Any]:
        """The source, or those of the domains in the order of their names."""
        return [self.source] if self.source is not None else [self.domains[name] for name in sorted(self.domains)]

    def known_classes(self) -> tuple[str, ...]:
        """The names of the classes, as declared or as the sources give them."""
        return self.classes if self.classes is not None else max((s.classes() for s in self.sources), key=len)

    def load(self) -> Images:
        """Load all images in the declared size; those that are held out are marked."""
        try:
            return self._loaded()
        except DataError as error:
            raise DataError(f"{error}; to obtain the images: {self.origin}" if self.origin else str(error)) from None

    def _loaded(self) -> Images:
        classes = self.known_classes()
        parts = [source.load(self.size, self.channels, classes) for source in self.sources]
        images = parts[0] if self.source is not None else join(parts, sorted(self.domains))
        if self.limit is not None and self.limit < len(images):
            images = images.subset(np.sort(numpy_rng(0, "limit").permutation(len(images))[: self.limit]))
        if self.test is None:
            return images.hold_out(self.held_out)
        test = self.test.load(self.size, self.channels, classes)
        all_images = join([images, test])
        return replace(all_images, domain=None, held=torch.arange(len(all_images)) >= len(images))


class Federation(Spec):
    """How a run between real sites waits for them, and what it accepts from them."""

    gather: Float = Field(
        default=600.0, ge=0, description="How many seconds the run waits, before it begins, for sites that are missing."
    )
    deadline: Float = Field(
        default=600.0,
        gt=0,
        description="How many seconds the other sites wait for a site in a round, in total; then the round goes on "
        "without it.",
    )
    lost: Literal["refuse", "admit"] = Field(
        default="refuse",
        description="What happens to a site that has lost its files of the run: 'refuse' excludes it, 'admit' accepts "
        "it as a new one.",
    )
    images: Int = Field(
        default=1_000_000,
        ge=1,
        description="The maximum number of images that a site may enrol; it limits what a site can release and its "
        "weight in averages.",
    )


class Recipe(Spec):
    """One experiment: the data, its partition over silos, the method, and how it is run and evaluated."""

    name: str = Field(pattern=f"^{NAME}$", description="The name of the run; without it, that of the recipe's file.")
    seed: Int = Field(
        default=0, ge=0, description="The seed of the partition, the initial weights, the batches and the noise."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="The device for training and sampling; 'auto' takes a GPU if there is one."
    )
    quorum: Int = Field(
        default=1,
        ge=1,
        description="The minimum number of silos that must send something in a round; with fewer, the run stops.",
    )
    data: Data = Field(description="Where the images come from, and their size.")
    partition: AnyPartition = Field(description="How the images are distributed over silos.")
    method: AnyMethod = Field(description="How the silos train together, and which model.")
    sampling: Sampling = Field(default=Sampling(), description="How a diffusion model draws samples.")
    evaluation: Evaluation = Field(default=Evaluation(), description="What is drawn and measured.")
    link: InProcess = Field(default=InProcess(), description="How messages are carried in a simulation.")
    federation: Federation = Field(
        default=Federation(), description="How a run between real sites waits for them; a simulation ignores it."
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        model, names, domains = self.method.model, self.silo_names, self.data.domains
        silos = len(names)
        if domains and self.partition.silos % len(domains):
            raise ValueError(
                f"partition.silos is {self.partition.silos}, a multiple of {len(domains)}, the number of domains, is "
                "expected"
            )
        if (model.size, model.channels) != (self.data.size, self.data.channels):
            raise ValueError(
                f"method.model is for {model.channels} x {model.size}, data is {self.data.channels} x {self.data.size}"
            )
        if isinstance(self.method, FedAvg) and (self.method.participants or 1) > silos:
            raise ValueError(f"method.participants is {self.method.participants}, partition.silos is only {silos}")
        if isinstance(clusters := getattr(self.method, "clusters", None), int) and clusters > silos:
            raise ValueError(f"method.clusters is {clusters}, partition.silos is only {silos}")
        a_round = (self.method.participants if isinstance(self.method, FedAvg) else None) or silos
        if not can_reach_quorum(self.quorum, a_round):
            raise ValueError(f"quorum is {self.quorum}, but only {a_round} silos take part in a round")
        diffusion = getattr(self.method, "diffusion", None)
        if self.sampling.guidance != 1 and model.classes and not (diffusion and diffusion.label_dropout):
            raise ValueError(
                "sampling.guidance needs a network that was also trained without labels: label_dropout > 0"
            )
        if unknown := _unknown_in(self.method, names):
            raise ValueError(f"method names {unknown!r}; {suggest(unknown, names[:20])}")
        if isinstance(self.partition, Dirichlet | Shards) and self.data.classes == ():
            raise ValueError(f"partition {self.partition.kind!r} distributes images by label, but data.classes is 0")
        if isinstance(self.partition, Domains) != bool(domains) and not isinstance(self.partition, Lacking):
            raise ValueError("partition 'domains' and [data.domains] need each other; only one of them is there")
        if domains and not is_name(long := max(names, key=len)):
            raise ValueError(f"a silo would be named {long!r}: {NAME_RULE}; give its domain a shorter name")
        return self

    @property
    def silo_names(self) -> list[str]:
        """The names of the silos, in the order of the recipe's domains where it has domains."""
        return self.partition.names(tuple(self.data.domains))

    def resolved(self) -> dict[str, Any]:
        """All fields with their values, as they are written to the run folder."""
        return self.model_dump(mode="json", exclude_none=True)


def _unknown_in(method: Method, names: Sequence[str]) -> str:
    """The first silo's name, or pattern, in a method that no silo matches; empty where there is none."""
    known = set(names)
    if isinstance(method, HuSCF):
        return next((name for name in method.cuts if name not in known and not fnmatch.filter(names, name)), "")
    if isinstance(method, CollaFuse):
        all_names = (*method.cuts, *(silo for cluster in method.clusters.values() for silo in cluster))
        return next((name for name in all_names if name not in known), "")
    return ""


def load_recipe(path: Path | str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The TOML file.
        changes: Changes of fields in the form ``a.b=c``, where c is a TOML value or a plain word.
    """
    fields = read_recipe(path, changes)
    if "sweep" in fields:
        raise RecipeError(f"{path}: has a [sweep], so it is several recipes: load_sweep() reads them all")
    return parse_recipe(fields, str(path))


def read_recipe(path: Path | str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read the fields of a recipe and apply the changes; a name is added, and nothing is validated."""
    path = Path(path)
    fields = read_toml(path, "recipe")
    fields.setdefault("name", re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "run")
    for change in changes:
        _apply(fields, change)
    return fields


def parse_offer(text: str, where: str) -> Recipe:
    """Parse a recipe that another party offers, without opening, listing or fetching anything that it names."""
    fields = parse_toml(text, where)
    data = fields.get("data")
    if isinstance(data, dict) and "classes" not in data and data.get("source") not in ("digits", {"kind": "digits"}):
        raise RecipeError(f"{where}: data.classes is missing; between sites a recipe must list the classes")
    with understood(where):
        return parse_recipe(fields, where)


@contextmanager
def understood(where: str) -> Iterator[None]:
    """Turn every unexpected exception into an error of the recipe that another party offered."""
    try:
        yield
    except ManyhandsError:
        raise
    except Exception as error:
        raise RecipeError(f"{where}: cannot be understood: {type(error).__name__}: {error}") from None


def parse_recipe(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Parse a recipe from plain values; what the data implies for the model is filled in."""
    if not isinstance(fields, Mapping):
        raise RecipeError(f"{where}: {fields!r} came, a table of fields is expected")
    complete = _filled_in(fields)
    try:
        return Recipe.model_validate(complete)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in _lines(error, complete))) from None


def read(kind: type[S], path: Path, file_kind: str) -> S:
    """Read a specification from a TOML file of its own."""
    fields = read_toml(path, file_kind)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {line}" for line in _lines(error, fields))) from None


def specs_in(fields: Mapping[str, Any], where: str) -> list[Spec]:
    """The method, data, sampling and evaluation of a run folder's recipe; a run from Python has no data there."""
    kinds: dict[str, Any] = {"method": AnyMethod, "data": Data, "sampling": Sampling, "evaluation": Evaluation}
    try:
        return [TypeAdapter(kind).validate_python(fields[name]) for name, kind in kinds.items() if name in fields]
    except ValidationError as error:
        raise RecipeError("\n".join(f"{where}: {line}" for line in _lines(error, fields))) from None


def _filled_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with fields that others imply: the model's kind, size, channels and classes, and numbers of silos."""
    complete = {**fields, **_with_silos(fields)}
    method, data = complete.get("method"), complete.get("data")
    if not isinstance(method, dict):
        return complete
    model, data = method.get("model", {}), data if isinstance(data, dict) else {}
    if isinstance(model, dict):
        image_shape = {key: data[key] for key in ("size", "channels") if key in data}
        model = {"kind": _model_kind(method.get("kind")), "channels": 1, **image_shape, **model}
        if "classes" not in model and model["kind"] != "autoencoder":
            model["classes"] = _count_classes(data)
        method = {**method, "model": model}
        if isinstance(silo_model := method.get("silo_model"), dict) and isinstance(model, dict):
            shared_fields = {key: model[key] for key in ("size", "channels", "classes") if key in model}
            method["silo_model"] = shared_fields | silo_model
    if method.get("kind") == "central":
        method = {"silos": _count_silos(complete.get("partition")), **method}
    return {**complete, "method": method}


def _with_silos(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The partition with one silo for each domain, where there are domains and no number of silos is given."""
    data, partition = fields.get("data"), fields.get("partition")
    domains = data.get("domains") if isinstance(data, dict) else None
    if not (isinstance(domains, dict) and domains and isinstance(partition, dict)):
        return {}
    return {"partition": {"silos": len(domains), **partition}}


def _model_kind(method: Any) -> str:
    """The kind of model that a kind of method trains; the first where there are several."""
    spec = next((candidate for candidate in METHODS if candidate.model_fields["kind"].default == method), FedAvg)
    model = spec.model_fields["model"].annotation
    kind: str = (get_args(model) or (model,))[0].model_fields["kind"].default
    return kind


def _count_silos(partition: Any) -> int:
    """The number of silos; errors of the partition are raised when the whole recipe is validated."""
    try:
        silos: int = TypeAdapter(AnyPartition).validate_python(partition).silos
    except ValidationError:
        return 1
    return silos


def _count_classes(data: Mapping[str, Any]) -> int:
    try:
        return len(Data.model_validate(data).known_classes())
    except ValidationError:
        return 0  # errors of the data are raised when the whole recipe is validated


def _apply(fields: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path or "\n" in change:
        raise RecipeError(f"--set {change}: is not of the form a.b=value")
    put(fields, path.strip(), _value(text), f"--set {change}")


def _value(text: str) -> Any:
    """A TOML value, where .4 stands for 0.4, or else a plain word."""
    for candidate in (text, re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)):
        try:
            return tomllib.loads(f"value = {candidate}")["value"]
        except (ValueError, RecursionError):
            continue
    return text.strip()


def put(fields: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set the value of a dotted name in nested tables."""
    *parents, last = name.split(".")
    table = fields
    for parent in parents:
        if isinstance(table.get(parent), str):
            table[parent] = {"kind": table[parent]}  # its short form
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{where}: {parent} is a value, not a table")
    table[last] = value


def _lines(error: ValidationError, fields: Mapping[str, Any]) -> list[str]:
    lines = []
    data_is_wrong = any(problem["loc"][:1] == ("data",) for problem in error.errors())
    for problem in error.errors():
        where = ".".join(_path(problem["loc"], fields))
        if data_is_wrong and where in FILLED_IN:
            continue  # the same error is listed for the data
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
            text = f"kind {context['tag']!r} is not known; {suggest(str(context['tag']), known)}"
        elif problem["type"] in {"union_tag_not_found", "model_attributes_type"}:
            text = "a table that names its kind is expected: kind = ..."
        elif problem["type"] not in {"unknown_key", "missing", "value_error"}:
            text = f"{problem['input']!r} came: {text[0].lower()}{text[1:]}"
        lines.append(f"{where}: {text}" if where else text)
    return lines


def _path(loc: Sequence[str | int], fields: Any) -> list[str]:
    """The dotted name of the place in the recipe, without the tags of unions that pydantic adds."""
    path, value = [], fields
    for i, step in enumerate(loc):
        tag = isinstance(value, Mapping) and step not in value and value.get("kind") == step
        if tag or (i and not isinstance(value, Mapping | list | tuple)):
            continue
        path.append(str(step))
        value = value.get(step) if isinstance(value, Mapping) and isinstance(step, str) else None
    return path
