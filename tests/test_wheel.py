"""What an installed user has: the package, its types, the recipes, and the pages that errors name."""

from __future__ import annotations

import email
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import manyhands

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    builder = WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return zipfile.ZipFile(path)


def test_it_holds_the_package_its_types_the_recipes_and_the_pages(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = ROOT / "src"
    package = {path.relative_to(sources).as_posix() for path in sources.rglob("*.py")}
    templates = (sources / "manyhands" / "report" / "templates").iterdir()
    beside = {f"manyhands/{name}" for name in ("py.typed", "__init__.pyi")}
    beside |= {path.relative_to(sources).as_posix() for path in templates}
    assert "manyhands/report/templates/page.html" in beside
    recipes = {f"manyhands/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    pages = {f"manyhands/docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")}
    assert package
    assert recipes
    assert pages
    assert not (package | beside | recipes | pages) - names
    folders = {name.split("/")[0] for name in names}
    assert folders == {"manyhands", f"manyhands-{version(wheel)}.dist-info"}


def test_its_version_is_the_package_s(wheel: zipfile.ZipFile) -> None:
    assert version(wheel) == manyhands.__version__


def version(wheel: zipfile.ZipFile) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return str(email.message_from_bytes(wheel.read(name))["Version"])
