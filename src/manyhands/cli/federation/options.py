"""An argument that several commands of a federation have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KitArgument = Annotated[
    Path, typer.Argument(metavar="KIT", help="The folder of this party's kit (see federation new).")
]
