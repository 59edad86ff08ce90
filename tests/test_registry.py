"""A kind is found in one place, which other packages extend; what is wrong with theirs harms nobody else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manyhands import registry
from manyhands.errors import RecipeError, RunFolderError
from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.generators.load import load
from manyhands.models.gan import Gan
from manyhands.models.state_spec import initial_weights
from manyhands.registry import CODECS, METHODS, MODELS, PARTITIONS, SERVER_OPTIMIZERS, SOURCES, Registry, imported
from manyhands.runs.recipe_file import parse_recipe
from manyhands.runs.schema import recipe_schema

ALL = (METHODS, MODELS, SOURCES, PARTITIONS, CODECS, SERVER_OPTIMIZERS)
RECIPE: dict[str, Any] = {
    "name": "x",
    "data": {"source": "digits", "size": 8},
    "partition": {"kind": "iid"},
    "method": {"kind": "fedavg", "rounds": 1, "training": {"steps": 1}, "model": {"widths": [8]}},
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on the path, as pip would."""

    def put(name: str, text: str, group: str, **entries: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        lines = "".join(f"{kind} = {value}\n" for kind, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        registry.registered.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield put  # type: ignore[misc]
    registry.registered.cache_clear()


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.base)
def test_every_class_has_the_kind_of_its_line(table: Registry) -> None:
    for kind, path in table.classes.items():
        spec = table.load(kind)
        assert spec is imported(path)
        assert spec.model_fields["kind"].default == kind
        assert issubclass(spec, imported(table.base))


SOURCE = """
from typing import Literal
import numpy as np
from manyhands import Images, Source

class Noise(Source):
    kind: Literal["noise"] = "noise"
    count: int = 20

    def classes(self):
        return ("a", "b")

    def load(self, size, channels=1, classes=None):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (self.count, channels, size, size), dtype=np.uint8)
        return Images.from_arrays(pixels, np.arange(self.count) % 2, self.classes() if classes is None else classes)
"""


def test_a_class_of_another_package_is_taken_checked_and_documented(install: Install) -> None:
    install("noises", SOURCE, "manyhands.data", noise="noises:Noise")
    recipe = RECIPE | {"data": {"size": 8, "source": {"kind": "noise", "count": 12}}}
    parsed = parse_recipe(recipe)
    assert parsed.method.image_model is not None
    assert (len(parsed.data.load()), parsed.method.image_model.classes) == (12, 2)
    assert parse_recipe(parsed.resolved()) == parsed
    assert parsed.resolved()["data"]["source"] == {"kind": "noise", "count": 12}
    with pytest.raises(RecipeError, match=r"data\.source: unknown key 'cuont'; did you mean 'count'"):
        parse_recipe(recipe | {"data": {"size": 8, "source": {"kind": "noise", "cuont": 12}}})
    unknown = (
        r"data\.source: kind 'niose' is not known; did you mean 'noise'\? .or install the package that provides it"
    )
    with pytest.raises(RecipeError, match=unknown):
        parse_recipe(recipe | {"data": {"size": 8, "source": "niose"}})
    assert "count" in recipe_schema()["$defs"]["Noise"]["properties"]


@pytest.mark.parametrize(
    ("value", "text", "why"),
    [
        ("nowhere:Noise", "", "which cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("bad:Noise", "1 / 0", "which cannot be imported: ZeroDivisionError: division by zero"),
        ("bad:Noise", "import sys; sys.exit(3)", "which cannot be imported: SystemExit: 3"),
        ("bad:Other", "", "which cannot be imported: AttributeError: "),
        ("bad:Noise", "class Noise: pass", "which is not a subclass of manyhands.data.sources.base.Source"),
        ("bad:Noise", "Noise = 3", "which is not a subclass of manyhands.data.sources.base.Source"),
        ("bad:Noise", SOURCE.replace("def load", "def read"), "which lacks load"),
        ("bad:Noise", SOURCE.replace('"noise"', '"noises"'), "which needs the field: kind: Literal['noise'] = 'noise'"),
    ],
)
def test_a_package_that_cannot_provide_its_class_is_named_when_it_is_asked_for(
    install: Install, value: str, text: str, why: str
) -> None:
    install("bad", text, "manyhands.data", noise=value)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE | {"data": {"size": 8, "source": "noise"}})
    line = str(caught.value)
    assert line.startswith(f"recipe: data.source: kind 'noise' is registered by the package 'bad' as {value}, {why}")
    assert "\n" not in line
    assert parse_recipe(RECIPE).data.source is not None
    assert "Digits" in recipe_schema()["$defs"]


def test_a_kind_that_two_packages_have_is_neither_ones(install: Install) -> None:
    install("mine", SOURCE, "manyhands.data", noise="mine:Noise", digits="mine:Noise")
    install("yours", SOURCE, "manyhands.data", noise="yours:Noise")
    with pytest.raises(RecipeError, match=r"kind 'noise' is registered by 'mine' and by 'yours'; uninstall all but"):
        parse_recipe(RECIPE | {"data": {"size": 8, "source": "noise"}})
    with pytest.raises(RecipeError, match=r"kind 'digits' is registered by manyhands and by 'mine'; uninstall"):
        parse_recipe(RECIPE)
    folder = {"size": 8, "source": {"kind": "folder", "path": "x"}, "classes": ["a"]}
    assert parse_recipe(RECIPE | {"data": folder}).name == "x"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "a table that names its kind is expected"),
        (3, "a table that names its kind is expected"),
        ([], "a table that names its kind is expected"),
        ({"kind": 3}, "kind '3' is not known"),
        ({"kind": ["iid"]}, "is not known"),
        ({"kind": "idi"}, "kind 'idi' is not known; did you mean 'iid'?"),
        ("iid", "a table that names its kind is expected"),
    ],
)
def test_what_is_no_kind_is_said_so(table: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE | {"partition": table})
    assert str(caught.value).startswith("recipe: partition: ")
    assert said in str(caught.value)


GAN = """
from typing import Literal
from manyhands import Gan

class Other(Gan):
    kind: Literal["other"] = "other"
"""


def test_a_gan_of_another_package_is_stored_and_loaded_as_a_gan(install: Install, tmp_path: Path) -> None:
    install("gans", GAN, "manyhands.models", other="gans:Other")
    spec = MODELS.load("other")
    model = spec(size=8, channels=1, classes=0, latent=4, width=4)
    assert isinstance(model, Gan)
    GanGenerator(model, generator_weights(initial_weights(model, 0))).save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, GanGenerator)
    assert loaded.model == model
    (tmp_path / "gans-1.dist-info" / "entry_points.txt").unlink()
    registry.registered.cache_clear()
    with pytest.raises(RunFolderError, match="holds no trained generator: kind 'other' is not known"):
        load(tmp_path / "model")
