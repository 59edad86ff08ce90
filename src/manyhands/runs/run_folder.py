"""The run folder: everything that a run writes, and from which it can resume."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import tomllib
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import tomli_w

from manyhands.errors import CheckpointError, RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.messages.message import Message
from manyhands.runs.checkpoint import (
    drop_generations,
    generations,
    read_checkpoint,
    read_kept,
    write_checkpoint,
    write_kept,
)
from manyhands.runs.recipe_difference import first_difference
from manyhands.runs.round import Round, State
from manyhands.tensors import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from manyhands.methods.base import Method
    from manyhands.tensors import Tensors


LOCK_SECONDS = 0.2
"""How often a process that waits for another one looks whether it has ended."""
NEEDED = frozenset({"data", "silos", "rounds", "metrics", "floor", "flops_silos", "problems"})
"""The keys of report.json without which a run can neither be evaluated again nor compared."""


class RunFolder:
    """``runs/<name>/``, with a folder for the server and one for each silo, as they are separate on a network.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = path / "server"
        self.model = path / "model"
        self.figures = path / "figures"
        self.problems: list[str] = []
        self._stored: dict[str, str] = {}

    def silo(self, name: str) -> Path:
        """The folder of a silo; on a network it exists at the silo only."""
        return self.path / "silos" / name

    def round_picture(self, number: int) -> Path:
        """The picture of the samples of a round."""
        return self.figures / "rounds" / f"{number:06d}.png"

    @contextmanager
    def open(self, recipe: Mapping[str, Any], *, resume: bool, patience: float = 0.0) -> Iterator[None]:
        """Begin a run here, or resume the same one; refuse another run, and other processes at the same time.

        Args:
            recipe: The resolved recipe.
            resume: Whether a run may be here already.
            patience: For how many seconds to wait for a process that is ending.
        """
        self._check(recipe, resume=resume)
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with self.alone(patience):
            self.write("recipe.toml", tomli_w.dumps(recipe))
            with disk_errors(self.figures):
                (self.figures / "rounds").mkdir(parents=True, exist_ok=True)
            yield

    @contextmanager
    def alone(self, patience: float = 0.0) -> Iterator[None]:
        """Lock the folder against other processes; the system releases the lock however this process ends."""
        end = time.monotonic() + patience
        with disk_errors(self.path):
            lock = self._file(".lock").open("w")
        with lock:
            while not _locks(lock):
                if time.monotonic() >= end:
                    raise RunFolderError(f"{self.path}: another process is running in it")
                time.sleep(LOCK_SECONDS)
            yield

    def problem(self, line: str) -> None:
        """Add a warning to the report, once."""
        if line not in self.problems:
            self.problems.append(line)

    def _check(self, recipe: Mapping[str, Any], *, resume: bool) -> None:
        if self._file("recipe.toml").exists():
            recipe_of_run = self.recipe
            if not resume:
                count = len(self.rounds)
                raise RunFolderError(
                    f"{self.path}: holds a run already ({count} round{'s' * (count != 1)} of "
                    f"{recipe_of_run.get('name', 'a run')!r}); continue it with --resume, or choose another folder "
                    "with --out"
                )
            if differs := first_difference(recipe_of_run, recipe):
                raise RunFolderError(
                    f"{self.path}: was started with another recipe: {differs}; --resume needs the --set options of the "
                    "first call"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path}: is a file; choose a folder with --out")
        elif self.path.exists() and self._has_files():
            raise RunFolderError(f"{self.path}: is not empty and holds no run; choose another folder with --out")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe that the run was started with."""
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path}: there is no such folder")
        try:
            return tomllib.loads(self._file("recipe.toml").read_text())
        except FileNotFoundError:
            raise RunFolderError(f"{self.path}: holds no run: there is no recipe.toml in it") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path}: holds no run: {error}") from None

    @property
    def rounds(self) -> list[Round]:
        """The rounds in the journal, up to a line that is incomplete because the process was killed."""
        path = self._file("journal.jsonl")
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        rounds: list[Round] = []
        for line in lines:
            try:
                rounds.append(Round(**json.loads(line)))
            except (ValueError, TypeError):
                break
        return rounds

    @property
    def kept(self) -> int:
        """How many rounds are on disk, which a resumed run does not repeat."""
        return next(iter(generations(self.server)), 0)

    @property
    def is_ended(self) -> bool:
        """Whether a run has ended here: its report is written last."""
        return (self.path / "report.json").exists()

    @property
    def report(self) -> dict[str, Any]:
        """The contents of report.json."""
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path}: there is no such folder")
        try:
            report = json.loads(self._file("report.json").read_text())
        except FileNotFoundError:
            raise RunFolderError(f"{self.path}: has no report.json: no run has ended here") from None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path}/report.json: cannot be read: {error}") from None
        missing = NEEDED - report.keys() if isinstance(report, dict) else NEEDED
        if missing:
            raise RunFolderError(f"{self.path}/report.json: was written by another version: it has no {min(missing)!r}")
        return report  # type: ignore[no-any-return]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The contents of ledger.json."""
        try:
            return list(json.loads(self._file("ledger.json").read_text()))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path}: holds no finished run: {error}") from None

    def write(self, name: str, content: Any) -> None:
        """Write a file of the folder: a string as it is, anything else as JSON."""
        text = content if isinstance(content, str) else finite_json(content, indent=1)
        replace_file(self._file(name), text.encode())

    def append(self, closed_round: Round) -> None:
        """Append a line to the journal, before the checkpoint is written; a line too many is removed at resume."""
        with disk_errors(self._file("journal.jsonl")), self._file("journal.jsonl").open("a") as file:
            file.write(finite_json(asdict(closed_round)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def save(self, state: State) -> None:
        """Write a closed round: the silos first, so that a server's checkpoint never lacks those of its silos."""
        silos_with_memory = sorted(silo for silo, memory in state.memories.items() if memory)
        for silo in silos_with_memory:
            self.save_silo(silo, state.round, state.memories[silo])
        stores = {name: self._store(name, tensors) for name, tensors in state.stores.items()}
        facts = {"silos": silos_with_memory, "roster": state.roster, "ledger": state.ledger, "stores": stores}
        write_checkpoint(self.server, state.round, self._sealed("server", state.round, state.server, **facts))
        self._drop_generations(state.round)

    def save_silo(self, silo: str, number: int, memory: Mapping[str, Tensor]) -> None:
        """Write the memory of a silo after ``number`` closed rounds."""
        write_checkpoint(self.silo(silo), number, self._sealed(silo, number, memory))

    def memory(self, silo: str, number: int) -> Tensors:
        """Read the memory of a silo after ``number`` closed rounds."""
        return dict(self._unsealed(self.silo(silo), silo, number).tensors)

    def resume(self, roster: dict[str, int]) -> State | None:
        """The newest closed round with whole checkpoints of the server and all silos; None where no round was closed.

        Damaged checkpoints are named in ``problems``; if no whole one is left, this is an error.
        """
        for state in self._whole():
            number = state.round
            if differs := first_difference(state.roster, roster, "images"):
                raise RunFolderError(f"{self.path}: was started with other data: {differs}")
            if len(self.rounds) < number:
                self.problems.append(f"{self.path}/journal.jsonl: has {len(self.rounds)} of {number} rounds")
            self._drop_generations(number)
            self._cut_journal(number)
            return state
        if self.problems or len(self.rounds) > 1:
            raise CheckpointError("; ".join([f"{self.path}: no whole checkpoint is left", *self.problems]))
        self._cut_journal(0)
        return None

    def earlier(self, method: Method, seed: int, roster: Mapping[str, int]) -> Tensors:
        """The server's tensors in the generation before the newest; its initial ones where there is none."""
        older = generations(self.server)[1:2]
        if not older:
            return method.server(seed, roster).state_dict()
        return dict(self._unsealed(self.server, "server", older[0]).tensors)

    def _store(self, name: str, tensors: Tensors) -> str:
        """Write a store of the server, if it is not on disk yet; every checkpoint contains its hash."""
        if name not in self._stored:
            write_kept(self._store_of(name), self._sealed(f"store {name}", 0, tensors))
            self._stored[name] = sha256(tensors)
        return self._stored[name]

    def _store_of(self, name: str) -> Path:
        return self.server / "releases" / f"{name}.mh"

    def _read_store(self, name: str, known: str) -> Tensors:
        path = self._store_of(name)
        kept = read_kept(path)
        tensors = dict(kept.tensors)
        if kept.facts.get("of") != self._sealed(f"store {name}", 0, {}).facts["of"] or sha256(tensors) != known:
            raise CheckpointError(f"{path}: belongs to another run, or was changed")
        self._stored[name] = known
        return tensors

    def state(self, number: int | None = None) -> State:
        """Read the newest closed round that is whole, or the one with this number."""
        if number is not None:
            return self._read(number)
        for state in self._whole():
            return state
        raise CheckpointError("; ".join([f"{self.path}: holds no whole checkpoint", *self.problems]))

    def _whole(self) -> Iterator[State]:
        """The rounds whose checkpoints are whole, the newest first; damaged ones are named in ``problems``."""
        for number in generations(self.server):
            try:
                yield self._read(number)
            except CheckpointError as error:
                self.problem(str(error))

    def _sealed(self, whose: str, number: int, tensors: Mapping[str, Tensor], **facts: Any) -> Message:
        """A checkpoint that says to whom, which round and which run it belongs, so that no other can replace it."""
        run = hashlib.sha256(self._file("recipe.toml").read_bytes()).hexdigest()
        return Message("checkpoint", tensors, {"of": [whose, number, run], **facts})

    def _unsealed(self, folder: Path, whose: str, number: int) -> Message:
        kept = read_checkpoint(folder, number)
        if kept.facts.get("of") != self._sealed(whose, number, {}).facts["of"]:
            raise CheckpointError(f"{folder}: generation {number} belongs to another silo, round or run")
        return kept

    def _read(self, number: int) -> State:
        kept = self._unsealed(self.server, "server", number)
        silos = kept.facts["silos"]
        memories = {silo: self.memory(silo, number) for silo in silos}
        stores = {name: self._read_store(name, known) for name, known in kept.facts["stores"].items()}
        return State(
            round=number,
            server=dict(kept.tensors),
            memories=memories,
            roster=kept.facts["roster"],
            ledger=kept.facts["ledger"],
            stores=stores,
        )

    def _drop_generations(self, newest: int) -> None:
        for folder in [self.server, *self.path.glob("silos/*")]:
            drop_generations(folder, newest)

    def _has_files(self) -> bool:
        """Whether the folder contains more than a lock or an unfinished file."""
        return any(not path.name.startswith(".") for path in self.path.iterdir())

    def _cut_journal(self, rounds: int) -> None:
        lines = [
            finite_json(asdict(closed_round)) + "\n" for closed_round in self.rounds if closed_round.number < rounds
        ]
        self.write("journal.jsonl", "".join(lines))

    def _file(self, name: str) -> Path:
        return self.path / name


def _locks(file: IO[str]) -> bool:
    """Lock a file against other processes; return False if one of them has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
