"""A site's secret: the key from which its noise is drawn. It is made once and never leaves the site."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from manyhands.errors import KitError
from manyhands.files.write import new_file
from manyhands.privacy.budget import RELEASES_FILE

if TYPE_CHECKING:
    from pathlib import Path

SECRET_FILE = "secret"
_SECRET = re.compile(rb"[0-9a-f]{64}")


def site_secret(folder: Path) -> str:
    """Return the secret in this folder; make one if the folder has neither a secret nor a ledger of releases.

    A secret that was lost or damaged is never replaced: see ``check_secret``.
    """
    if secret := check_secret(folder):
        return secret
    new_file(folder / SECRET_FILE, secrets.token_hex(32).encode())
    return check_secret(folder)


def check_secret(folder: Path) -> str:
    """Return the secret in this folder, or "" if none was made yet; make nothing.

    Raises:
        KitError: The secret is missing although the ledger has releases that were made with it, or it is damaged.
    """
    path = folder / SECRET_FILE
    try:
        content = path.read_bytes().strip()
    except FileNotFoundError:
        if (folder / RELEASES_FILE).exists():
            raise KitError(
                f"{path}: is missing, but {RELEASES_FILE} has releases that were made with it; restore it from a copy"
            ) from None
        return ""
    except OSError as error:
        raise KitError(f"{path}: cannot be read: {error.strerror}") from None
    if not _SECRET.fullmatch(content):
        raise KitError(
            f"{path}: must be a secret of 64 hexadecimal digits; nothing is released until it is restored from a copy"
        )
    return content.decode()
