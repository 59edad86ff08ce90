"""The recipes that wait at a site for an approval, and the hashes of those that a person has approved."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from manyhands.errors import RecipeError, printable
from manyhands.federation.policy import describe_run, recipe_hash
from manyhands.files.strict_json import strict_json
from manyhands.files.toml_text import MAX_BYTES
from manyhands.files.write import disk_errors, new_file, replace_file
from manyhands.runs.recipe_file import parse_offer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from manyhands.runs.recipe import Recipe

OFFERS, APPROVED, ABOUT = "offers", "approved.txt", "site.json"
MAX_WAITING = 64
"""The most recipes that wait for an approval."""
MIN_PREFIX = 6
"""The fewest digits of a hash that name a recipe."""
_HASH = re.compile(r"[0-9a-f]{64}")


class Offer(NamedTuple):
    """The text of a waiting recipe and its hash."""

    digest: str
    text: str


def approved(site: Path) -> set[str]:
    """Return the hashes that were approved at this site."""
    path = site / APPROVED
    return set(_HASH.findall(path.read_text())) if path.exists() else set()


def approve(site: Path, digests: Iterable[str]) -> None:
    """Approve recipes by their whole hashes."""
    digests = set(digests)
    if bad := [digest for digest in digests if not _HASH.fullmatch(digest)]:
        raise RecipeError(f"{bad[0]}: is not the whole hash of a recipe, which has 64 hexadecimal digits")
    with disk_errors(site):
        site.mkdir(parents=True, exist_ok=True)
    replace_file(site / APPROVED, "".join(f"{digest}\n" for digest in sorted(approved(site) | digests)).encode())


def waiting(site: Path) -> list[str]:
    """Return the hashes of the recipes that wait for an approval."""
    listed = {path.stem for path in (site / OFFERS).glob("*.toml") if _HASH.fullmatch(path.stem)}
    return sorted(listed - approved(site))


def keep_offer(site: Path, text: str) -> str:
    """Write a recipe to a file that is named by its hash, and return the hash; no file is ever overwritten."""
    digest = recipe_hash(text)
    path = _path(site, digest)
    if not path.exists():
        if len(waiting(site)) >= MAX_WAITING:
            raise RecipeError(f"{MAX_WAITING} recipes wait for approval here already; approve or delete some of them")
        new_file(path, text.encode())
    _read(path)
    return digest


def find_offer(site: Path, prefix: str) -> Offer:
    """Return the waiting recipe with this hash, or with a hash that begins like this if there is only one."""
    prefix = prefix.lower()
    if len(prefix) < MIN_PREFIX or not re.fullmatch(r"[0-9a-f]{,64}", prefix):
        raise RecipeError(f"{printable(prefix)}: give the hash of a recipe, or at least its first {MIN_PREFIX} digits")
    listed = waiting(site) if len(prefix) < 64 or not _path(site, prefix).exists() else [prefix]
    matches = [digest for digest in listed if digest.startswith(prefix)]
    if len(matches) > 1:
        raise RecipeError(f"{prefix}: several hashes begin like this: {', '.join(matches)}; give more digits")
    if done := [digest for digest in approved(site) if not matches and digest.startswith(prefix)]:
        raise RecipeError(f"{done[0]}: is approved already")
    if not matches:
        raise RecipeError(
            f"{prefix}: no recipe with this hash waits in {site}; the waiting ones are: {', '.join(listed) or 'none'}"
        )
    return _read(_path(site, matches[0]))


def note_site(site: Path, name: str, files: int) -> None:
    """Write down for ``describe_offer`` what a description needs beside the recipe."""
    replace_file(site / ABOUT, strict_json({"site": name, "files": files}).encode())


def count_images(recipe: Recipe, files: int) -> int:
    """Return about how many images a recipe trains on at a site with this many files."""
    return files - round(recipe.data.held_out * files)


def describe_offer(site: Path, offer: Offer) -> list[str]:
    """Describe a run to the operator who is about to approve it, from the text that the hash stands for."""
    recipe = parse_offer(offer.text, f"{OFFERS}/{offer.digest}.toml")
    try:
        about = json.loads((site / ABOUT).read_bytes())
        name, files = str(about["site"]), int(about["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{site}: no recipe was offered here yet: {error}") from None
    return describe(recipe, offer.digest, name, count_images(recipe, files))


def describe(recipe: Recipe, digest: str, site: str, images: int) -> list[str]:
    """Describe a run in printable lines, so that no text of a recipe can hide what the operator reads."""
    lines = describe_run(recipe, site, max(images, 1))
    if not images:
        lines.append("this site does not read its images before the approval; the figures above are for one image")
    return [*(printable(line, len(line)) for line in lines), f"its hash is {digest}"]


def _path(site: Path, digest: str) -> Path:
    return site / OFFERS / f"{digest}.toml"


def _read(path: Path) -> Offer:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    if recipe_hash(text) != path.stem:
        raise RecipeError(f"{path}: was changed, since its text has another hash; delete it")
    return Offer(path.stem, text)
