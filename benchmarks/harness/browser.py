"""A real headless browser: Debian's chromium."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = "chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A page after its scripts have run, and what the console said that is an error."""

    dom: str
    errors: list[str]


def opened(page: Path, width: int = 1000) -> Seen:
    """Open a page from disk."""
    said = _run(page, "--dump-dom", "--enable-logging=stderr", f"--window-size={width},1200")
    return Seen(said.stdout, re.findall(r"CONSOLE.*?\"(.*)\", source", said.stderr))


def screenshot(page: Path, out: Path, *, dark: bool = False, size: tuple[int, int] = (1000, 1600)) -> Path:
    """A picture of a page, in one theme or the other."""
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(page, f"--screenshot={out}", f"--window-size={size[0]},{size[1]}", *theme)
    return out


def _run(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
