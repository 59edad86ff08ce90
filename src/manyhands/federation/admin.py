"""The admin: submits runs, asks how they stand, stops them, and fetches what was trained."""

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

PATIENCE, TRIES = 30, 5


class Admin:
    """A line to the server, under the admin's kit."""

    def __init__(self, folder: Path) -> None:
        kit = load_kit(folder, "admin")
        kit.server_fingerprint()  # says what is wrong, where the line would only go on dialling
        self._where = f"{kit.about.host}:{kit.about.port}"
        self._connection = ServerConnection(kit, patience=PATIENCE, bounds=ADMIN_PLAN.bounds("down"))

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def submit(self, recipe: Recipe, sites: list[str]) -> dict[str, Any]:
        """Start a run; its name and hash."""
        return self._ask("submit", recipe=recipe.resolved(), sites=sites)

    def status(self) -> dict[str, Any]:
        """The sites, and how the newest run stands."""
        return self._ask("status")

    def stop(self, run: str) -> dict[str, Any]:
        """End a run."""
        return self._ask("stop", run=run)

    def fetch(self, run: str, out: Path) -> Path:
        """Bring the server's run folder here."""
        files = self._ask("files", run=run)["files"]
        with replace_folder(out) as fresh:
            for path, size in files.items():
                place = fresh / path
                if not place.resolve().is_relative_to(fresh.resolve()):
                    raise KitError(f"{self._where}: names a file outside its folder: {path!r}")
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
        for _ in range(TRIES):
            try:
                return self._connection(message)
            except SessionGone:
                self._connection.new_session()
            except TimeoutError:
                raise KitError(f"{self._where}: the server does not answer") from None
        raise KitError(f"{self._where}: somebody else has the admin's name")
