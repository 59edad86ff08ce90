"""The commands about prepared images in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from manyhands.cli.console import print_table
from manyhands.cli.options import JsonOption, RecipeArgument, SetOption
from manyhands.files.strict_json import finite_json
from manyhands.formatting import TextTable, size_text
from manyhands.runs.shipped import recipe_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.data.image_store import ImageStore
    from manyhands.data.images import Images

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Prepare images once: decoded and resized, in the cache."
)
HEADS = ("source", "pixels", "images", "size")
NOTHING = "no images are prepared"
NOT_KEPT = "nothing is kept: only sets of 500 pictures or more of a folder, a zip file, a table or the hub are"


@app.command()
def prepare(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> None:
    """Decode and resize the images of a recipe now, so that its runs start at once.

    A run does this itself if it was not done before. Sets of fewer than 500 pictures are not kept in the cache.
    """
    from manyhands.data.image_store import stores
    from manyhands.data.image_warnings import image_warnings
    from manyhands.runs.preparation_progress import shown_preparation
    from manyhands.runs.sweep import load_sweep

    with shown_preparation(quiet=as_json):
        runs = load_sweep(recipe_path(recipe), changes or []).variants
        sets = [run.recipe.data.load() for run in runs]
    used = {part.path for images in sets for part in images.files}
    lines = [f"skipped {name}" for images in sets for name in images.skipped]
    lines += [] if as_json else [_contents(images) for images in sets]
    lines += [f"warning: {line}" for images in sets for line in image_warnings({"this recipe": images})]
    for line in dict.fromkeys(lines):
        typer.echo(line, err=True)
    _show([store for store in stores() if store.path in used], NOT_KEPT, as_json=as_json)


@app.command("list")
def list_prepared(as_json: JsonOption = False) -> None:
    """List the images that are prepared, with the sizes of their files."""
    from manyhands.data.image_store import stores

    _show(stores(), NOTHING, as_json=as_json)


@app.command()
def clear(as_json: JsonOption = False) -> None:
    """Delete all prepared images; the next run prepares what it needs.

    A run that uses them goes on, and what is being prepared is kept.
    """
    from manyhands.data.image_store import clear as clear_stores

    freed = clear_stores()
    typer.echo(finite_json({"freed_bytes": freed}) if as_json else f"{size_text(freed)} freed")


def _contents(images: Images) -> str:
    """How many images, classes and ids there are, and how many images are held out."""
    held = 0 if images.held is None else int(images.held.sum())
    ids = "" if images.ids is None else f", {len(images.ids.unique()):,} ids"
    return f"{len(images):,} images, {len(images.classes)} classes{ids}; {held:,} are held out"


def _show(stores: Sequence[ImageStore], nothing: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(finite_json({"prepared": [_entry(store) for store in stores]}))
        return
    rows = [_row(store) for store in stores]
    print_table(TextTable(HEADS, rows, left=2)) if rows else typer.echo(nothing)


def _entry(store: ImageStore) -> dict[str, Any]:
    skipped = len(store.skipped)
    return {
        "source": store.name,
        "shape": store.shape,
        "skipped": skipped,
        "bytes": store.size,
        "file": str(store.path),
    }


def _row(store: ImageStore) -> tuple[str, ...]:
    count, channels, height, width = store.shape
    images = f"{count - len(store.skipped):,}"
    return store.name, f"{height} x {width} x {channels}", images, size_text(store.size)
