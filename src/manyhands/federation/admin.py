"""The admin: submits runs, asks for their status, stops them, and fetches their run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyhands.errors import KitError
from manyhands.federation.kit import load_kit
from manyhands.federation.plans import ADMIN_PLAN
from manyhands.federation.server_connection import ServerConnection
from manyhands.files.write import replace_folder
from manyhands.links.exchange import SessionGone
from manyhands.messages.message import Message
from manyhands.runs.recipe import Recipe

MAX_SILENCES, MAX_SESSIONS = 30, 5
"""How many silences the admin waits through, and how often a request is repeated in a new session."""


class Admin:
    """A connection to the server with the admin's kit.

    Args:
        folder: The folder of the kit.
    """

    def __init__(self, folder: Path) -> None:
        kit = load_kit(folder, "admin")
        kit.server_fingerprint()  # raises an error, where the connection would only try again and again
        self._where = f"{kit.about.host}:{kit.about.port}"
        self._connection = ServerConnection(kit.connect(), max_silences=MAX_SILENCES, bounds=ADMIN_PLAN.bounds("down"))

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def submit(self, recipe: Recipe, sites: list[str]) -> dict[str, Any]:
        """Start a run; return its name and the hash of its recipe."""
        return self._ask("submit", recipe=recipe.resolved(), sites=sites)

    def status(self) -> dict[str, Any]:
        """Return the state of each site and of the newest run."""
        return self._ask("status")

    def stop(self, run: str) -> dict[str, Any]:
        """Stop a run; return its name."""
        return self._ask("stop", run=run)

    def fetch(self, run: str, out: Path) -> Path:
        """Download the server's run folder."""
        files = self._ask("files", run=run)["files"]
        with replace_folder(out) as fresh:
            for path, size in files.items():
                place = fresh / path
                if not place.resolve().is_relative_to(fresh.resolve()):
                    raise KitError(f"{self._where}: the server names a file outside the run folder: {path!r}")
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as file:
                    while file.tell() < size:
                        answer = self._send(Message("file", facts={"run": run, "path": path, "at": file.tell()}))
                        if "bytes" not in answer.tensors:
                            break
                        file.write(answer.tensors["bytes"].numpy().tobytes())
        return out

    def _ask(self, op: str, **facts: Any) -> dict[str, Any]:
        return dict(self._send(Message(op, facts=facts)).facts)

    def _send(self, message: Message) -> Message:
        for _ in range(MAX_SESSIONS):
            try:
                return self._connection(message)
            except SessionGone:
                self._connection.new_session()
            except TimeoutError:
                raise KitError(f"{self._where}: the server does not answer") from None
        raise KitError(f"{self._where}: another process uses the admin's kit at the same time")
