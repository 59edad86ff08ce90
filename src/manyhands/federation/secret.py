"""What a site's noise is drawn from: made once, and told to nobody."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from manyhands.errors import KitError
from manyhands.files.write import new_file
from manyhands.privacy.budget import FILE as LEDGER

if TYPE_CHECKING:
    from pathlib import Path

FILE = "secret"
_SECRET = re.compile(rb"[0-9a-f]{64}")


def site_secret(folder: Path) -> str:
    """The secret of a folder; it is made where there is none, and never made anew where it was lost or cut short."""
    path = folder / FILE
    if not path.exists():
        if (folder / LEDGER).exists():
            raise KitError(f"{path}: is gone, and {LEDGER} tells of what was released under it: bring it back")
        new_file(path, secrets.token_hex(32).encode())
    try:
        content = path.read_bytes().strip()
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from None
    if not _SECRET.fullmatch(content):
        raise KitError(f"{path}: holds no secret of 64 hexadecimal digits; nothing is released by what it holds")
    return content.decode()
