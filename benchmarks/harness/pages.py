"""The pages that have tables of the committed results between marks."""

from __future__ import annotations

from pathlib import Path

from harness import readme_tables, tables

ROOT = tables.ROOT
DOCS = ROOT / "docs"
TABLES = {
    "which method": readme_tables.which_method,
    "eight claims": readme_tables.eight_claims,
    "figures": tables.figures,
    "tradeoff": tables.tradeoff,
    "cases": tables.cases,
    "collafuse": tables.cuts,
    "huscf": tables.rivals,
    "clinics": tables.clinics,
    "training options": tables.training_options,
}
PAGES = {
    ROOT / "README.md": ("which method", "eight claims"),
    DOCS / "which-method.md": ("which method",),
    DOCS / "claims.md": ("figures",),
    DOCS / "server-learns.md": ("tradeoff",),
    DOCS / "three-clinics.md": ("clinics",),
    DOCS / "methods.md": ("training options", "cases", "collafuse", "huscf"),
}


def with_table(page: Path) -> str:
    """A page with its tables put between their marks."""
    text = page.read_text()
    for name in PAGES[page]:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{TABLES[name]()}\n{end}{rest.split(end)[1]}"
    return text
