"""Write the tables of the committed results into README.md, the docs and recipes: ``python -m benchmarks.table``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where the programs find the harness

from harness.pages import PAGES, ROOT, with_table
from harness.tables import header, recipes

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_table(page))
        sys.stdout.write(f"{page.relative_to(ROOT)}\n")
    for recipe in recipes():
        recipe.write_text(header(recipe))
