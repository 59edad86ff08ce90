"""README tells the truth: its blocks run, its figures are the committed ones, its words are those of the code."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from typer.main import get_command

from harness.pages import PAGES, with_table
from manyhands import Autoencoder, Diffusion, Latent, Training, UNet
from manyhands.cli.app import app
from manyhands.errors import Reason
from manyhands.evaluation.spec import Evaluation
from manyhands.federation.plans import SITE_PLAN
from manyhands.federation.policy import Policy
from manyhands.registry import METHODS, PARTITIONS, SOURCES, imported
from manyhands.runs.data import Data
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe, parse_offer
from manyhands.spec import Spec
from tests.command import manyhands
from tests.shipped_recipes import complete_recipes

ROOT = Path(__file__).parents[1]
README, FIRST_STEPS = ROOT / "README.md", ROOT / "docs" / "first-steps.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))


SHELL = set("|&;<>$`*?~()")


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.stem)
def test_what_a_page_says_to_type_and_to_import_is_there(page: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for line in re.findall(r"^manyhands .*", page.read_text(), re.MULTILINE):
        _, *words = shlex.split(line, comments=True)
        understood(words)
        if words[0] == "run" and "--resume" not in words:
            planned = manyhands(*words, "--dry-run", where=tmp_path)
            assert planned.returncode == 0, f"{line}\n{planned.stderr}"
    for kind, text in blocks(page):
        for node in ast.walk(ast.parse(text if kind == "python" else "")):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def understood(words: list[str]) -> None:
    """Have the command read its words and options, and do nothing; it raises where it does not know one of them."""
    command = get_command(app)
    while words and words[0] in (commands := getattr(command, "commands", {})):
        command, words = commands[words[0]], words[1:]
    command.make_context("manyhands", list(words))


@pytest.mark.slow
def test_every_block_of_readme_runs(tmp_path: Path) -> None:
    run_blocks(README, tmp_path)
    assert (tmp_path / "digits.png").exists()


@pytest.mark.slow
def test_the_first_steps_run_in_order(tmp_path: Path) -> None:
    run_blocks(FIRST_STEPS, tmp_path)
    assert (tmp_path / "samples" / "grid.png").exists()


def run_blocks(page: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for kind, text in blocks(page):
        lines = [line for line in text.splitlines() if not line.startswith("source ")]
        if kind == "python":
            python(text, tmp_path, apart=page == README)
        elif lines[0].startswith("make "):
            process(["make", "--dry-run", "-C", str(ROOT), *[line.split()[1] for line in lines]], tmp_path)
        else:
            bash(lines, tmp_path)


def bash(lines: list[str], where: Path) -> None:
    """The first line in a shell; what follows is the same command with other words, and is called in this process."""
    process(["bash", "-euc", lines[0]], where)
    for line in lines[1:]:
        assert not SHELL & set(line), f"only a shell reads {line}"
        command, *words = shlex.split(line)
        assert command == "manyhands", line
        said = manyhands(*words, where=where)
        assert said.returncode == 0, f"{line}\n{said.stderr}"


def python(text: str, where: Path, *, apart: bool = False) -> None:
    """In a process of its own, as a script; or in this one."""
    if apart:
        process([sys.executable, "-W", "ignore", "-c", text], where)
        return
    with contextlib.chdir(where), warnings.catch_warnings(action="ignore"):
        exec(compile(text, "block", "exec"), {"__name__": "__main__"})


def process(command: list[str], where: Path) -> None:
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = subprocess.run(command, cwd=where, env=variables, capture_output=True, text=True, check=False)
    assert said.returncode == 0, f"{command}\n{said.stderr}"


@pytest.mark.parametrize("page", [page for page in DOCS if page != FIRST_STEPS], ids=lambda page: page.stem)
def test_the_python_of_the_docs_runs(page: Path, tmp_path: Path) -> None:
    for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        python(text, tmp_path)


def test_the_example_is_short() -> None:
    first = next(text for kind, text in blocks(README) if kind == "python")
    assert len(first.strip().splitlines()) <= 15


def test_readme_is_a_screen_and_a_half() -> None:
    assert len(README.read_text().splitlines()) <= 130


def test_the_recipe_and_the_policy_of_two_hospitals_are_whole() -> None:
    page = ROOT / "docs" / "two-hospitals.md"
    recipe, policy = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(parse_offer(recipe, page.name).silo_names) == 2
    assert Policy.model_validate(tomllib.loads(policy)).approve == "hash"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_committed_results(page: Path) -> None:
    assert with_table(page) == page.read_text(), "run: python -m benchmarks.table"


def test_links_lead_somewhere() -> None:
    for page in [README, *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_commands_and_options_that_docs_name_are_there() -> None:
    groups = get_command(app).commands  # type: ignore[attr-defined]
    commands = groups | {f"federation {name}": command for name, command in groups["federation"].commands.items()}
    call = re.compile(r"(?:^|`|/bin/)manyhands ((?:federation )?[a-z]+)([^`\n|#]*)", re.MULTILINE)
    for page in [README, *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for name, rest in call.findall(page.read_text()):
            assert name in commands, f"{page.name}: manyhands {name}"
            options = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
            assert set(re.findall(r"(?<=\s)--[\w-]+", rest)) <= options, f"{page.name}: manyhands {name}{rest}"


def test_every_field_of_a_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text() + (ROOT / "docs" / "methods.md").read_text()
    chosen = [imported(path) for table in (SOURCES, PARTITIONS, METHODS) for path in table.classes.values()]
    specs: list[type[Spec]] = [
        Recipe,
        Data,
        Evaluation,
        *chosen,
        *(UNet, Latent, Autoencoder, Training, Diffusion),
    ]
    for spec in specs:
        for name in spec.model_fields:
            assert re.search(rf"`[^`]*\b{name}\b[^`]*`|\[{name}\]", text), f"{spec.__name__}.{name} is not documented"


def test_every_field_of_a_policy_is_documented() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text().split("## The site's policy")[1]
    example, rest = text.split("```toml\n")[1].split("```", 1)
    table = rest.split("| field |")[1].split("\n\n")[0]
    for name in Policy.model_fields:
        assert re.search(rf"^{name} = ", example, re.MULTILINE), f"{name} is not in the example of a policy"
        assert f"`{name}`" in table, f"{name} is not in the table of a policy"


def test_every_reason_for_a_refusal_is_documented() -> None:
    text = " ".join((ROOT / "docs" / "concepts.md").read_text().split())
    for reason in Reason:
        assert str(reason) in text, reason


def test_tests_that_docs_name_are_there() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for path, name in re.findall(r"(tests/[\w/]+\.py)|`(test_\w+)", page.read_text()):
            assert (ROOT / path).exists() if path else f"def {name}(" in tests, f"{page.name}: {path or name}"


def test_modules_that_docs_name_are_there() -> None:
    folders = [ROOT, ROOT / "src", ROOT / "src" / "manyhands"]
    for page in [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        classes = re.findall(r"\b(manyhands(?:\.[a-z_]+)+)\.([A-Z]\w+)", text)
        for module, name in classes:
            assert f"class {name}" in (ROOT / f"src/{module.replace('.', '/')}.py").read_text(), f"{page.name}: {name}"
        modules = {module for module, _ in classes} | set(re.findall(r"`(manyhands(?:\.[a-z_]+)+)`", text))
        modules -= {"manyhands.toml"}  # the policy in a kit
        dotted = {f"src/{name.replace('.', '/')}.py" for name in modules}
        for path in dotted | set(re.findall(r"`((?:\w+/)+\w+\.py)`", text)):
            exists = any((folder / path).exists() for folder in folders)
            assert exists or (ROOT / path).with_suffix("").is_dir(), f"{page.name}: {path}"


def test_what_one_site_can_cost_is_said_of_every_operation() -> None:
    table = (ROOT / "docs" / "deployment.md").read_text().split("| what a site says |")[1].split("\n\n")[0]
    methods = [load_recipe(path).method for path in complete_recipes() if "[sweep" not in path.read_text()]
    plans = [SITE_PLAN, *(method.plan() for method in methods)]
    for op in {op for plan in plans for op in plan.operations}:
        name = re.sub(r"^.*(?=-(forward|backward)$)", "", op)
        assert f"`{name}`" in table, op
