"""A job of FLARE for a benchmark of the network: each site sends a megabyte and gets one, again and again.

The frames, the connections and the coordinator are those of a run; only the server and the silo are simpler. When a
frame left, passed FLARE's own process of the server and arrived is in it, as FLARE notes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message as FlareMessage

from harness.job_parts import JobServer, JobSite, write
from manyhands.federation.kit import SERVER
from manyhands.federation.server_connection import ServerConnection
from manyhands.federation.site_connections import SiteConnections
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.flare_cell import FIELDS, CellConnection
from manyhands.messages.facts import Flag
from manyhands.messages.message import Message
from manyhands.messages.operation import Operation, Payload
from manyhands.messages.outgoing import Statistics
from manyhands.messages.plan import Plan
from manyhands.methods.server import Server
from manyhands.silos.memory import peak_memory, release_memory
from manyhands.tensors import Tensors, TensorSpec

RESULT = "rate.json"
"""The file in a party's workspace with what it has measured."""
Routes = dict[str, list[list[float]]]
"""The moments of each part, by the party that it came from."""


def plan(numbers: int) -> Plan:
    """One operation of so many float32 each way."""
    tensors = {"x": TensorSpec((numbers,), torch.float32)}
    up = Payload(tensors, {"last": Flag()})
    sums = Operation("sends numbers, gets their sum", "again and again", up, Payload(tensors),
                     barrier=True, outgoing=(Statistics(of=("ones",)),))  # fmt: skip
    return Plan({"sum": sums})


class Summing(Server):
    """Answers all with the sum."""

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """The same for each."""
        total = sum((message.tensors["x"] for message in messages.values()), torch.zeros(self.numbers))
        return dict.fromkeys(messages, Message(op, {"x": total}))

    def state_dict(self) -> Tensors:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Nothing was kept."""


class TimedCell(CellConnection):
    """Notes when each part left its origin, and when it came to every cell on its way."""

    def __init__(self, routes: Routes, *functions: Any, **options: Any) -> None:
        self.routes = routes
        super().__init__(*functions, **options)

    def _receive(self, request: FlareMessage, *_: Any, **__: Any) -> None:
        if (request.get_header(FIELDS) or {}).get("k") == "part":
            route = request.get_header(MessageHeaderKey.ROUTE)
            self.routes.setdefault(route[0][0].partition(".")[0], []).append([moment for _, moment in route])
        super()._receive(request)


class RateServer(JobServer):
    """Sums up ``count`` times."""

    def __init__(self, numbers: int, count: int) -> None:
        super().__init__()
        self.numbers, self.count = numbers, count

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Answer until all have had so many answers."""
        torch.set_num_threads(1)
        release_memory(at_once=True)
        engine, job = fl_ctx.get_engine(), fl_ctx.get_job_id()
        cells = {client.name: FQCN.join([client.get_fqcn(), job]) for client in engine.get_clients()}
        routes: Routes = {}
        connections = SiteConnections(partial(TimedCell, routes, cell=engine.get_cell(), peers=cells), cells)
        coordinator = RoundCoordinator(Summing(self.numbers), plan(self.numbers), dict.fromkeys(cells, 1))
        connections.allow(cells, plan(self.numbers).bounds("up"))
        left, pending = self.count * len(cells), {}
        while left and not abort_signal.triggered:
            call = connections.next(1.0)
            if call is None:
                continue
            coordinator.submit(call.peer, call.message, call.session, call.number)
            pending[call.peer] = call.session
            for site, session in list(pending.items()):
                if (reply := coordinator.collect(site, session)) is not None:
                    connections.answer(site, reply)
                    del pending[site]
                    left -= 1
        end = time.monotonic() + 3
        while time.monotonic() < end:
            connections.next(0.5)  # so that the last answers go out
        _write(fl_ctx, {"routes": routes, "peak_memory": peak_memory()})


class RateSite(JobSite):
    """Sends and receives ``count`` times, and notes how long each time took."""

    def __init__(self, numbers: int, count: int) -> None:
        super().__init__()
        self.numbers, self.count = numbers, count

    def work(self, fl_ctx: FLContext) -> None:
        """Send and get."""
        torch.set_num_threads(1)
        release_memory(at_once=False)
        server = FQCN.join([FQCN.ROOT_SERVER, fl_ctx.get_job_id()])
        routes: Routes = {}
        calls = ServerConnection(
            partial(TimedCell, routes, cell=fl_ctx.get_engine().get_cell(), peers={SERVER: server})
        )
        calls.bounds = plan(self.numbers).bounds("down")
        moments, x = [], torch.ones(self.numbers)
        for _ in range(self.count):
            began = time.time()
            answer = calls(Message("sum", {"x": x}, {"last": False}))
            moments.append([began, time.time()])
            assert answer.tensors["x"][0] >= 1
        _write(fl_ctx, {"moments": moments, "routes": routes, "peak_memory": peak_memory()})


def _write(fl_ctx: FLContext, measured: dict[str, Any]) -> None:
    (Path(fl_ctx.get_workspace().get_root_dir()) / RESULT).write_text(json.dumps(measured))


def write_job(out: Path, numbers: int, count: int) -> Path:
    """The folder of the job."""
    arguments = {"numbers": numbers, "count": count}
    server, site = (f"{__name__}.RateServer", arguments), (f"{__name__}.RateSite", arguments)
    return write(out, "rate", ["@ALL"], server, site)
