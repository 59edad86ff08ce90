"""What the site has beside docs/: references made from the code, examples, and pages of the repository's root."""

from __future__ import annotations

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = get_plugin_logger("links")
ROOT = Path(__file__).resolve().parents[1]
PROJECT = {"CONTRIBUTING.md": "project/contributing.md", "CHANGELOG.md": "project/changelog.md"}
EXAMPLES = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "benchmarks" / "harness" / "toy_split.py"]
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "none"}
FIELDS = "# Fields of recipes\n\nMade from the code; [Recipes](../recipes.md) explains how a recipe is written.\n"
COMMANDS = "# Commands\n\nMade from the code: `manyhands COMMAND --help` prints the same.\n"
PYTHON = "# Python\n\nThe public names, all of which are imported from `manyhands`.\n"
EXTENSIONS = (
    "# Python, for extensions\n\nWhat authors of methods, models, sources and partitions use beside the [public "
    "names](python.md). Each name is imported from the module above it. [Write a method](../write-a-method.md) shows "
    "how they fit together.\n"
)
OF_EXTENSIONS = {
    "messages.facts": ["Fact", "Whole", "Number", "Text", "Flag", "Listed", "Table"],
    "messages.operation": ["round_facts", "next_round_facts", "IMAGES", "COUNT", "SEED", "FLOPS", "RESTING"],
    "messages.outgoing.kinds": [
        "OutgoingData",
        "Images",
        "NoisedImages",
        "Activations",
        "Gradients",
        "Labels",
        "Weights",
        "GeneratedImages",
        "Statistics",
        "Fresh",
    ],
    "tensors": ["TensorSpec", "snapshot", "sha256", "WeightedMean", "add_prefix", "strip_prefix", "find_not_finite"],
    "methods.base": ["Conversation", "ServerCall", "Release"],
    "methods.round_report": ["update_facts", "why_unusable", "why_bad_loss"],
    "methods.learners.base": ["Learner", "LocalRound", "LocalResult", "minimize"],
    "silos.silo_memory": ["SiloMemory"],
    "silos.silo": ["DeviceContext"],
    "silos.local_training": ["steps", "optimiser_state", "load_optimiser_state"],
    "silos.flops": ["Meter"],
    "generators.base": ["ImageGenerator"],
    "data.partition.base": ["top_up", "cut_by_shares", "labels_of", "domain_of", "check_labelled"],
    "seed": ["torch_rng", "numpy_rng", "seeded_globally"],
    "errors": ["Refused", "Reason", "RecipeError", "DataError"],
}
"""What an extension uses beside the public names, by module."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the pictures that pages show from elsewhere in the repository."""
    made = {
        "reference/recipes.md": fields_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
        "reference/extensions.md": extensions_page(),
        **{made: (ROOT / name).read_text() for name, made in PROJECT.items()},
        **{f"examples/{path.stem}.md": example_page(path) for path in EXAMPLES},
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links to files of the repository into links to their pages, or into plain text where there is none."""
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri in PROJECT.values():
        markdown = re.sub(r"\]\(docs/", "](../", markdown)

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match.groups(default="")
        path = posixpath.normpath(posixpath.join(here, target))
        if not path.startswith("../"):
            return match.group(0)
        path = path.removeprefix("../")
        if not (ROOT / path).exists():
            LOG.warning(f"{page.file.src_uri} links to {target}, which is not in the repository")
        path = PROJECT.get(path, re.sub(r"^(?:examples|benchmarks/harness)/(.*)\.py$", r"examples/\1.md", path))
        return f"[{words}]({posixpath.relpath(path, here or '.')}{anchor})" if files.get_file_from_path(path) else words

    return re.sub(r"(?<!\\)\[([^\]\n]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)", link, markdown)


def fields_page() -> str:
    """Every table of a recipe with its fields, from their types, defaults and descriptions."""
    from manyhands.runs.schema import recipe_schema

    schema = recipe_schema()
    parts = [FIELDS, "## Top of the file", *fields_table(schema)]
    for name in dict.fromkeys(names_in(schema["properties"], schema["$defs"])):
        table = schema["$defs"][name]
        table = next(form for form in table.get("anyOf", [table]) if "properties" in form)
        parts += [f"## {name}", table.get("description", ""), *fields_table(table)]
    return "\n\n".join(part for part in parts if part)


def names_in(value: Any, tables: dict[str, Any]) -> Iterator[str]:
    """The tables that a part of the schema leads to, in the order of the file."""
    if isinstance(value, list):
        for part in value:
            yield from names_in(part, tables)
    elif isinstance(value, dict):
        if "$ref" in value:
            name = value["$ref"].rsplit("/", 1)[-1]
            yield name
            yield from names_in(tables[name], tables)
        yield from names_in(list(value.values()), tables)


def fields_table(table: dict[str, Any]) -> Iterator[str]:
    """The fields of a table, one a line."""
    if not table["properties"]:
        return
    rows = ["| field | type | default | what it is |", "|---|---|---|---|"]
    for name, field in table["properties"].items():
        default = "" if "default" not in field else f"`{compact(field['default'])}`"
        words = " ".join(field.get("description", "").split())
        rows.append(f"| `{name}` | {type_words(field)} | {default} | {words} |".replace("\n", " "))
    yield "\n".join(rows)


def type_words(field: dict[str, Any]) -> str:
    """A type in words, with its range."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in field:
            return " or ".join(dict.fromkeys(type_words(choice) for choice in field[several]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items: dict[str, Any] = field.get("items") or next(iter(field.get("prefixItems", [])), {})
        return f"list of {type_words(items)}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"table of {type_words(field['additionalProperties'])}"
    return TYPES.get(field.get("type", ""), "table") + range_words(field)


def range_words(field: dict[str, Any]) -> str:
    """The range of a number."""
    signs = {"minimum": "&ge;", "exclusiveMinimum": "&gt;", "maximum": "&le;", "exclusiveMaximum": "&lt;"}
    bounds = [f"{sign} {field[key]:,}" for key, sign in signs.items() if key in field]
    return f" {', '.join(bounds)}" if bounds else ""


def compact(value: Any) -> str:
    """A default as a recipe says it; of a table, its kind, or that it has defaults of its own."""
    if isinstance(value, dict):
        return str(value.get("kind", "its defaults"))
    return "none" if value is None else json.dumps(value)


def commands_page() -> str:
    """Every command with its arguments and options."""
    from manyhands.cli.app import app

    return COMMANDS + "\n" + "\n".join(command_sections(typer.main.get_command(app), "manyhands"))


def command_sections(command: Any, name: str) -> Iterator[str]:
    """A command, and those below it."""
    context = typer.Context(command, info_name=name)
    if hasattr(command, "commands"):
        for below, inner in command.commands.items():
            yield from command_sections(inner, f"{name} {below}")
        return
    yield f"## `{name}`\n\n{command.help or ''}\n\n```\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    rows = []
    for option in command.get_params(context):
        if record := option.get_help_record(context):
            label, words = (" ".join(cell.split()).replace("|", "\\|") for cell in record)
            rows.append(f"| `{label}` | {words} |")
    if rows:
        yield "\n".join(["| argument or option | what it does |", "|---|---|", *rows]) + "\n"


def python_page() -> str:
    """The public names of ``__init__.pyi``, by the folder that they are from."""
    sections: dict[str, list[str]] = {}
    for line in ast.parse((ROOT / "src" / "manyhands" / "__init__.pyi").read_text()).body:
        if isinstance(line, ast.ImportFrom) and line.module:
            for name in line.names:
                sections.setdefault(line.module.split(".")[0], []).append(f"::: manyhands.{line.module}.{name.name}")
    return PYTHON + reference(sections)


def extensions_page() -> str:
    """What extensions use beside the public names, by module."""
    modules = {f"manyhands.{module}": names for module, names in OF_EXTENSIONS.items()}
    return EXTENSIONS + reference({module: [f"::: {module}.{name}" for name in modules[module]] for module in modules})


def reference(sections: dict[str, list[str]]) -> str:
    """Sections of names, each of which mkdocstrings replaces with its signature and docstring."""
    return "".join(f"\n## {heading}\n\n" + "\n\n".join(names) + "\n" for heading, names in sections.items())


def example_page(path: Path) -> str:
    """An example as a page."""
    return f"# {path.relative_to(ROOT)}\n\n```python\n{path.read_text()}```\n"
