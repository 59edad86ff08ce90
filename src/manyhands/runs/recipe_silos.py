"""[silos.NAME] of a recipe: one line for each hospital, which stands for a domain and the partition ``domains``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from manyhands.data.sources.base import AnySource
from manyhands.spec import Spec

PLACE = "data.domains"


class SiloImages(Spec):
    """The images of one silo, such as a hospital."""

    source: AnySource = Field(description="Where its images come from: a table as [data.source] is.")


def with_domains(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the source of each silo as a domain; what is not of this form stays as it is.

    Raises:
        ValueError: The data has a source, or domains, as well.
    """
    silos, data = fields.get("silos"), fields.get("data")
    if not isinstance(silos, Mapping) or not silos or not isinstance(data, Mapping):
        return dict(fields)
    sources = {name: getattr(silo, "source", None) or _source_in(silo) for name, silo in silos.items()}
    if None in sources.values():
        return dict(fields)
    if both := [name for name in ("source", "domains") if data.get(name)]:
        raise ValueError(f"[silos] names a source for each silo, so data.{both[0]} is not expected")
    domains = {"data": {**data, "domains": sources}, "partition": fields.get("partition") or {"kind": "domains"}}
    return {name: value for name, value in fields.items() if name != "silos"} | domains


def _source_in(silo: Any) -> Any:
    return silo["source"] if isinstance(silo, Mapping) and set(silo) == {"source"} else None


def place_as_written(place: str, fields: Mapping[str, Any]) -> str:
    """Return the place of an error as a recipe with [silos] has it."""
    first, name, *rest = [*place.removeprefix(f"{PLACE}.").split(".", 1), ""]
    if "silos" not in fields or not place.startswith(f"{PLACE}.") or (not name and not first):
        return place
    return ".".join(filter(None, ("silos", first, "source", name, *rest)))
