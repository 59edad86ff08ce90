"""What a recipe chooses by ``kind``: one line for each class, and entry points of other packages."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from manyhands.formatting import names_text
from manyhands.spec import Spec, suggest


@dataclass(frozen=True, eq=False)
class Registry:
    """The classes of one base that a recipe chooses by kind. Each is imported when its kind is first asked for.

    Args:
        base: The class that all of them derive from, as "module:Class".
        classes: Our classes by kind, as "module:Class", which is also the form of an entry point.
        group: The group of entry points under which other packages register classes; empty for none.
    """

    base: str
    classes: Mapping[str, str]
    group: str = ""

    def kinds(self) -> list[str]:
        """All kinds: ours, then those of other packages."""
        return list(dict.fromkeys([*self.classes, *registered(self.group)]))

    def load(self, kind: str) -> type[Spec]:
        """Import the class of a kind.

        Raises:
            ValueError: The kind is not known, or the package that registers it cannot provide it.
        """
        others = registered(self.group).get(kind, [])
        if not others and kind not in self.classes:
            hint = " (or install the package that provides it)" if self.group else ""
            raise ValueError(f"kind {kind!r} is not known; {suggest(kind, self.kinds())}{hint}")
        if len(others) + (kind in self.classes) > 1:
            owners = [*(["manyhands"] if kind in self.classes else []), *map(_package, others)]
            raise ValueError(f"kind {kind!r} is registered by {' and by '.join(owners)}; uninstall all but one of them")
        return self._checked(kind, others[0]) if others else imported(self.classes[kind])

    def loadable(self) -> Iterator[tuple[str, type[Spec]]]:
        """All kinds with their classes, without those that another package cannot provide."""
        for kind in self.kinds():
            try:
                yield kind, self.load(kind)
            except ValueError:
                continue

    def _checked(self, kind: str, entry: EntryPoint) -> type[Spec]:
        """The class of another package."""
        where = f"kind {kind!r} is registered by the package {_package(entry)} as {entry.value}"
        try:
            spec = entry.load()
        except (Exception, SystemExit) as error:  # whatever the other package raises
            raise ValueError(f"{where}, which cannot be imported: {type(error).__name__}: {error}") from error
        base = imported(self.base)
        if not (isinstance(spec, type) and issubclass(spec, base)):
            raise ValueError(f"{where}, which is not a subclass of {base.__module__}.{base.__name__}")
        if inspect.isabstract(spec):
            raise ValueError(f"{where}, which lacks {names_text(sorted(spec.__abstractmethods__))}")
        field = spec.model_fields.get("kind")
        if field is None or field.default != kind:
            raise ValueError(f"{where}, which needs the field: kind: Literal[{kind!r}] = {kind!r}")
        return spec


@dataclass(frozen=True)
class OneOf:
    """The annotation of a field that takes any class of a registry: ``Annotated[Method, OneOf(METHODS)]``.

    Args:
        registry: The classes.
        by_name: Whether a text stands for a table that has only a kind.
    """

    registry: Registry
    by_name: bool = False

    def validate(self, value: Any) -> Spec:
        """Return an instance of the base as it is, and a table as an instance of the class of its kind."""
        if isinstance(value, imported(self.registry.base)):
            return value
        if self.by_name and isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping) or "kind" not in value:
            hint = "; from Python, Network(module=...) takes a torch module" * hasattr(value, "forward")
            raise ValueError(f"a table that names its kind is expected: kind = ...{hint}")
        return self.registry.load(str(value["kind"])).model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by the class of the kind; dumps are those of the value's own class."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schemas of all classes that are there."""
        tables = {kind: spec.__pydantic_core_schema__ for kind, spec in self.registry.loadable()}
        table = handler(core_schema.tagged_union_schema(tables, "kind"))
        return {"anyOf": [table, {"enum": list(tables)}]} if self.by_name else table


def imported(path: str) -> type[Spec]:
    """Import a class from "module:Class"."""
    module, _, name = path.partition(":")
    spec: type[Spec] = getattr(importlib.import_module(module), name)
    return spec


@cache
def registered(group: str) -> Mapping[str, list[EntryPoint]]:
    """The entry points of a group, by kind; several packages may claim one kind."""
    by_kind: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=group), key=_package) if group else ():
        by_kind.setdefault(entry.name, []).append(entry)
    return by_kind


def _package(entry: EntryPoint) -> str:
    return repr(entry.dist.name) if entry.dist else repr(entry.module)


METHODS = Registry(
    "manyhands.methods.base:Method",
    {
        "fedavg": "manyhands.methods.fedavg.method:FedAvg",
        "local": "manyhands.methods.baselines:Local",
        "central": "manyhands.methods.baselines:Central",
        "collafuse": "manyhands.methods.collafuse.method:CollaFuse",
        "huscf": "manyhands.methods.huscf.method:HuSCF",
        "mdgan": "manyhands.methods.gans.mdgan:MDGan",
        "splitgan": "manyhands.methods.gans.splitgan:SplitGan",
        "pflgan": "manyhands.methods.gans.pflgan:PFLGan",
        "hflgan": "manyhands.methods.gans.hflgan:HFLGan",
    },
    "manyhands.methods",
)
MODELS = Registry(
    "manyhands.models.base:Model",
    {
        "unet": "manyhands.models.unet:UNet",
        "dit": "manyhands.models.dit:DiT",
        "latent": "manyhands.models.latent:Latent",
        "autoencoder": "manyhands.models.autoencoder:Autoencoder",
        "gan": "manyhands.models.gan:Gan",
        "network": "manyhands.models.network:Network",
        "pretrained": "manyhands.models.pretrained:Pretrained",
    },
    "manyhands.models",
)
SOURCES = Registry(
    "manyhands.data.sources.base:Source",
    {
        "digits": "manyhands.data.sources.digits:Digits",
        "idx": "manyhands.data.sources.idx:Idx",
        "folder": "manyhands.data.sources.folder:Folder",
        "zip": "manyhands.data.sources.zip:Zip",
        "table": "manyhands.data.sources.table:Table",
        "huggingface": "manyhands.data.sources.huggingface:HuggingFace",
    },
    "manyhands.data",
)
PARTITIONS = Registry(
    "manyhands.data.partition.base:Partition",
    {
        "iid": "manyhands.data.partition.iid:Iid",
        "dirichlet": "manyhands.data.partition.dirichlet:Dirichlet",
        "shards": "manyhands.data.partition.shards:Shards",
        "quantity": "manyhands.data.partition.quantity:Quantity",
        "by_id": "manyhands.data.partition.by_id:ById",
        "attributes": "manyhands.data.partition.by_attributes:ByAttributes",
        "domains": "manyhands.data.partition.domains:Domains",
        "lacking": "manyhands.data.partition.lacking:Lacking",
    },
    "manyhands.partitions",
)
CODECS = Registry(
    "manyhands.messages.codec.codec:Codec",
    {
        "float32": "manyhands.messages.codec.codec:Float32",
        "float16": "manyhands.messages.codec.codec:Float16",
        "bfloat16": "manyhands.messages.codec.codec:BFloat16",
        "weights": "manyhands.messages.codec.quantised_weights:Weights",
        "updates": "manyhands.messages.codec.quantised_updates:Updates",
    },
)
SERVER_OPTIMIZERS = Registry(
    "manyhands.methods.fedavg.server_optimizer:ServerOptimizer",
    {
        "momentum": "manyhands.methods.fedavg.server_optimizer:Momentum",
        "adam": "manyhands.methods.fedavg.server_optimizer:ServerAdam",
    },
)
