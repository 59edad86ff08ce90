"""Components of FLARE jobs that do what they should not: frames that are none, and frames in the name of others."""

from __future__ import annotations

import io
import json
import random
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message as FlareMessage
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.private.defs import CellMessageHeaderKeys as Key

from harness.job_parts import JobServer, JobSite, write
from manyhands.links.flare_cell import CHANNEL, FIELDS, TOPIC
from manyhands.messages.message import Message, encode

FLOOD, FLOODED, FORGED = "flood", "flooded.json", "forged"
"""Files in a site's workspace: the flood may begin, so many frames were sent, and all forged ones were sent."""
ODD: list[Any] = [
    None,
    -1,
    0,
    1 << 60,
    1 << 70,
    "x",
    "",
    [],
    {"a": 1},
    0.5,
    True,
    b"\x00\xff",
    "k" * 5000,
    [[[[[]]]]],
    "\u0007\ud7ff",
]
WHOLE = encode(Message("update", {"x": torch.ones(64)}, {"round": 0, "images": 3, "loss": 0.5}))


def malformed(number: int, chance: random.Random, *, begins: bool) -> tuple[Any, bytes]:
    """The fields and the payload of a frame that is none, or of one whose message is none.

    Args:
        number: The number of the frame.
        chance: From where the odd values come.
        begins: Whether it may begin a session, which ends the one that its site has.
    """
    raw = bytearray(WHOLE)
    for _ in range(chance.randint(1, 8)):
        raw[chance.randrange(len(raw))] ^= chance.randint(1, 255)
    del raw[chance.randint(1, len(raw)) if chance.random() < 0.3 else len(raw) :]
    fields: dict[str, Any] = {"k": "part", "s": f"s{number}", "n": 1 if begins else 2, "i": 0, "size": len(raw)}
    if not begins or chance.random() < 0.5:
        fields[chance.choice(list(fields) if begins else ["k", "s", "i", "size"])] = chance.choice(ODD)
    if chance.random() < 0.1:
        fields[chance.choice(["k", "reason", "another"])] = chance.choice(ODD)
    return (chance.choice(ODD) if chance.random() < 0.1 else fields), bytes(raw)


class Flood(JobSite):
    """Sends frames that are none to the server's process of its own job, as fast as it can, beside what the site does.

    Args:
        counts: How many frames each site sends; the others send none.
        outsiders: The sites that have no part in the run, whose frames may begin sessions.
    """

    def __init__(self, counts: dict[str, int], outsiders: list[str]) -> None:
        super().__init__()
        self.counts, self.outsiders = counts, outsiders

    def work(self, fl_ctx: FLContext) -> None:
        """Wait until the flood may begin, and send it."""
        site = fl_ctx.get_identity_name()
        if site not in self.counts:
            return
        cell, chance = fl_ctx.get_engine().get_cell().core_cell, random.Random(site)
        server = FQCN.join([FQCN.ROOT_SERVER, fl_ctx.get_job_id()])
        sent, place = 0, Path(fl_ctx.get_workspace().get_root_dir())
        while not (place / FLOOD).exists() and not self.over.wait(0.1):
            pass
        while sent < self.counts[site] and not self.over.is_set():
            fields, payload = malformed(sent, chance, begins=site in self.outsiders)
            message = FlareMessage({FIELDS: fields}, payload)
            try:
                failed = cell.fire_and_forget(CHANNEL, TOPIC, server, message, optional=True).get(server)
            except (OverflowError, ValueError, TypeError):  # FLARE cannot write these fields itself
                continue
            sent += not failed
            time.sleep(0.05 if failed else 0)
        (place / FLOODED).write_text(json.dumps(sent))


class Idle(JobServer):
    """The server of a job that only lasts."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Wait for its end."""
        while not abort_signal.triggered:
            time.sleep(0.2)


class Forge(JobSite):
    """Sends frames to the server's process of another job: in its own name, and in those of that job's sites.

    Args:
        job: The id of the other job.
        count: How many frames, in each name.
    """

    def __init__(self, job: str, count: int) -> None:
        super().__init__()
        self.job, self.count = job, count
        self._origin, self._moved = "", False

    def work(self, fl_ctx: FLContext) -> None:
        """Send the frames."""
        cell = fl_ctx.get_engine().get_cell().core_cell
        cell.add_outgoing_request_filter("*", "*", self._rename)  # after that which adds this site's token
        server = FQCN.join([FQCN.ROOT_SERVER, self.job])
        for origin, moved in self._names(server):
            self._origin, self._moved = origin, moved
            for number in range(self.count):
                message = FlareMessage({FIELDS: _ending(number)}, b"")
                cell.fire_and_forget(CHANNEL, TOPIC, server, message, optional=True)
        self._moved = False
        self._origin = FQCN.join([fl_ctx.get_identity_name(), self.job])  # FLARE knows sites, not their jobs
        cell.fire_and_forget(CHANNEL, TOPIC, server, FlareMessage({FIELDS: "no frame"}, b""), optional=True)
        (Path(fl_ctx.get_workspace().get_root_dir()) / FORGED).touch()

    def _names(self, server: str) -> list[tuple[str, bool]]:
        """The origins under which it sends, and whether a letter of its token is moved to its name."""
        another = f"silo-0.{self.job}"
        return [("", False), (another, False), (server, False), (another, True), (server, True)]

    def _rename(self, message: FlareMessage) -> None:
        if not self._origin or message.get_header(MessageHeaderKey.CHANNEL) != CHANNEL:
            return
        _claim(message, self._origin)
        if self._moved:  # the text that FLARE signs stays the same, and it knows no such token
            name, token = (message.get_header(key) for key in (Key.CLIENT_NAME, Key.TOKEN))
            message.set_header(Key.CLIENT_NAME, name + token[:1])
            message.set_header(Key.TOKEN, token[1:])


def forge_as_user(kit: Path, user: str, job: str, count: int) -> None:
    """Send frames to the server's process of a job, as a user whose session claims to be a site of that job."""
    with redirect_stdout(io.StringIO()):
        session = new_secure_session(user, str(kit.resolve()))
    try:
        cell = session.api.cell.core_cell
        cell.add_outgoing_request_filter("*", "*", lambda message: _claim(message, f"silo-0.{job}"))
        for number in range(count):
            message = FlareMessage({FIELDS: _ending(number)}, b"")
            cell.fire_and_forget(CHANNEL, TOPIC, FQCN.join([FQCN.ROOT_SERVER, job]), message, optional=True)
    finally:
        with redirect_stdout(io.StringIO()):
            session.close()


def _claim(message: FlareMessage, origin: str) -> None:
    if message.get_header(MessageHeaderKey.CHANNEL) == CHANNEL:
        message.set_header(MessageHeaderKey.ORIGIN, origin)


def _ending(number: int) -> dict[str, Any]:
    """A frame that is in order and, were it taken for a site's, would end the call that this site waits for."""
    return {"k": "part", "s": f"forged{number}", "n": 1, "i": 0, "size": 1 << 10}


def forging_job(out: Path, site: str, job: str, count: int) -> Path:
    """The folder of a job whose site forges."""
    forge = (f"{__name__}.Forge", {"job": job, "count": count})
    return write(out, "idle", ["server", site], (f"{__name__}.Idle", {}), forge)
