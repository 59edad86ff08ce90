"""Imports point downward only, and a third party's engine is imported in its own file only."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "manyhands"
LAYERS = [
    {"errors", "spec", "registry", "seed", "tensors", "formatting", "subprocess_task", "files"},
    {"privacy.accountant", "privacy.noise"},
    {"messages"},
    {"data"},
    {"silos"},
    {"models"},
    {"diffusion"},
    {"generators"},
    {"methods"},
    {"privacy"},
    {"links"},
    {"evaluation"},
    {"report"},
    {"audit"},
    {"runs"},
    {"placement"},
    {"federation"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ENGINES = {
    "diffusers": {"models", "generators"},
    "sklearn": {"data", "evaluation", "methods", "report"},
    "torchmetrics": {"audit", "evaluation"},
    "prdc": {"evaluation"},
    "tensorboard": {"runs"},
    "matplotlib": {"evaluation", "report"},
    "pymoo": {"placement"},
    "peft": {"models"},
    "transformers": {"models"},
    "huggingface_hub": {"models"},
    "typer": {"cli"},
    "nvflare": {"federation", "links"},
    "rich": {"cli", "runs"},
    "pydicom": {"data"},
    "tifffile": {"data"},
    "pyarrow": {"data"},
    "jinja2": {"report"},
}
UPWARD_TYPES = {
    ("audit.replay", "runs.run_folder"),
    ("data.latents", "models.autoencoder"),
    ("messages.outgoing.kinds", "silos.training"),
    ("models.base", "generators.base"),
    ("models.base", "methods.learners.base"),
    ("report.clusters", "runs.round"),
    ("report.page", "runs.round"),
    ("report.page", "runs.run_folder"),
    ("report.quality", "runs.round"),
    ("report.silos", "runs.round"),
    ("report.silos", "runs.run_folder"),
}
"""Who imports a type from above, under TYPE_CHECKING only: these and no others."""

ARGUMENTS_NOT_YET_DOCUMENTED = {
    "audit", "data", "evaluation", "federation", "generators", "messages", "methods", "models", "placement"
}  # fmt: skip
"""The folders in which some public class has no ``Args:`` in its docstring; a folder that is complete leaves this."""


def imports(path: Path, *, typing_too: bool = False) -> set[str]:
    """The modules that a file imports, in functions too; those under TYPE_CHECKING only if asked."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            node.body = []
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module))
    return modules


def noun(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def level(module: str) -> int:
    """That of the module itself where it has one, else that of its folder."""
    return LEVEL.get(module, LEVEL[module.split(".")[0]])


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downward(path: Path) -> None:
    for module in imports(path):
        if module.startswith("manyhands."):
            assert level(module.removeprefix("manyhands.")) <= level(module_of(path)), f"{path.name} imports {module}"
        engine = module.split(".")[0]
        assert noun(path) in ENGINES.get(engine, {noun(path)}), f"{path.name} imports {module}"


def test_types_are_imported_from_above_only_where_that_is_listed() -> None:
    upward = set()
    for path in FILES:
        for module in imports(path, typing_too=True):
            name = module.removeprefix("manyhands.")
            if name != module and level(name) > level(module_of(path)):
                upward.add((module_of(path), name))
    assert upward == UPWARD_TYPES


def test_the_layers_are_those_that_contributing_tells_of() -> None:
    rows = re.findall(r"^\| (\d+) \| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    documented = {int(level): set(re.findall(r"`([\w.]+)`", modules)) for level, modules in rows}
    assert documented == {level: names for level, names in enumerate(LAYERS, 1) if names != {"__main__"}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_who_must_not_know_whom(path: Path) -> None:
    known = {module.split(".")[1] for module in imports(path) if module.startswith("manyhands.")}
    concrete = {module for module in imports(path, typing_too=True) if module.startswith("manyhands.methods.")}
    if noun(path) == "methods":
        assert not known & {"links", "evaluation", "audit"}
    if noun(path) == "links":
        assert concrete <= {"manyhands.methods.base", "manyhands.methods.server"}
    if noun(path) == "evaluation":
        assert not concrete


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_call_with_many_values_names_them(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [f"{path.name}:{call.lineno}" for call in calls if len(call.args) > 6]


def test_nothing_is_pickled_and_torchvision_is_no_requirement() -> None:
    one_by_its_hash = 'torch.load(path, map_location="cpu", weights_only=True)  # a pickle'
    text = "\n".join(path.read_text() for path in FILES).replace(one_by_its_hash, "")
    assert "pickle" not in text
    assert " torch.load(" not in text
    assert " torch.save(" not in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *[one for many in project["optional-dependencies"].values() for one in many]]
    assert not [one for one in wanted if "torchvision" in one or "torchaudio" in one]
    assert "torch>=2.6,<2.14" in wanted


def test_every_error_has_an_exit_code_and_a_page_of_its_own() -> None:
    from manyhands import errors

    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ManyhandsError)
    ]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    for kind in kinds:
        page = ROOT / "docs" / "errors" / f"{kind.page}.md"
        assert f"exit code {kind.exit_code}" in page.read_text().lower()


def test_the_public_names_are_there() -> None:
    import manyhands

    stub = ast.parse((SOURCE / "__init__.pyi").read_text())
    typed = {alias.asname for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(manyhands.__all__)
    for name in manyhands.__all__:
        assert getattr(manyhands, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = manyhands.nothing


def test_the_public_names_of_the_registry_are_written_by_their_tool() -> None:
    from tools.public_names import STUB, stub

    assert stub() == STUB.read_text(), "run: python tools/public_names.py"


def _takes_values(node: ast.ClassDef) -> bool:
    """Whether a class has an __init__ with arguments, or fields that are arguments."""
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    takes_arguments = any(init.args.args[1:] or init.args.kwonlyargs for init in inits)
    words = " ".join(ast.unparse(part) for part in [*node.decorator_list, *node.bases])
    has_fields = any(isinstance(item, ast.AnnAssign) for item in node.body)
    return takes_arguments or (has_fields and ("dataclass" in words or "NamedTuple" in words))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_public_class_documents_its_arguments(path: Path) -> None:
    if noun(path) in ARGUMENTS_NOT_YET_DOCUMENTED:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and _takes_values(node):
            assert "Args:" in (ast.get_docstring(node) or ""), f"{path.name}: {node.name}"


def test_json_is_written_in_one_place_which_writes_only_what_is_json() -> None:
    writers = [path.name for path in SOURCE.rglob("*.py") if re.search(r"json\.dumps?\(", path.read_text())]
    assert writers == ["strict_json.py"]


def test_every_test_that_a_page_names_is_there() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"`(test_\w+)", page.read_text()):
            assert f"def {name}(" in tests, f"{page.name}: {name}"
        for path in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text()):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"


def test_every_module_that_contributing_names_is_there() -> None:
    folders = ("src", "tests", "benchmarks", "tools", "examples")
    modules = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for name in re.findall(r"[\w/]+\.py\b", (ROOT / "CONTRIBUTING.md").read_text()):
        assert any(f"/{module}".endswith(f"/{name}") for module in modules), name
