"""One party of a benchmark of the network, a process of its own: a megabyte up and one down, again and again.

Either over this project's connections and coordinator, or over gRPC alone, with the same certificates.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import torch

from manyhands.federation.kit import Kit, load_kit
from manyhands.federation.server_connection import ServerConnection
from manyhands.federation.site_connections import SiteConnections
from manyhands.links.coordinator import RoundCoordinator
from manyhands.messages.facts import Flag
from manyhands.messages.message import Message
from manyhands.messages.operation import Operation, Payload
from manyhands.messages.outgoing import Statistics
from manyhands.messages.plan import Plan
from manyhands.methods.server import Server
from manyhands.silos.memory import release_memory
from manyhands.tensors import Tensors, TensorSpec

NUMBERS = 250_000
MEGABYTE = {"x": TensorSpec((NUMBERS,), torch.float32)}
PLAN = Plan({"sum": Operation("sends a megabyte, gets one", "again and again", Payload(MEGABYTE, {"last": Flag()}),
                              Payload(MEGABYTE), barrier=True, outgoing=(Statistics(of=("ones",)),))})  # fmt: skip
OPTIONS = [("grpc.max_send_message_length", 1 << 22), ("grpc.max_receive_message_length", 1 << 22)]


class Summing(Server):
    """Answers all with the sum."""

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """A megabyte for each."""
        total = sum((message.tensors["x"] for message in messages.values()), torch.zeros(NUMBERS))
        return dict.fromkeys(messages, Message(op, {"x": total}))

    def state_dict(self) -> Tensors:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: Tensors) -> None:
        """Nothing was kept."""


def serve(kit: Kit, port: int, count: int) -> None:
    """The server, until all have had so many answers."""
    sites = kit.about.sites
    connections, coordinator = (
        SiteConnections(kit.connect("127.0.0.1", port), sites),
        RoundCoordinator(Summing(), PLAN, dict.fromkeys(sites, 1)),
    )
    connections.allow(sites, PLAN.bounds("up"))
    left, pending = count * len(sites), {}
    while left:
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
    connections.next(1.0)  # so that the last answers go out
    connections.close()


def call(kit: Kit, count: int) -> list[float]:
    """The seconds of each call."""
    calls, taken, x = ServerConnection(kit.connect(), bounds=PLAN.bounds("down")), [], torch.ones(NUMBERS)
    for _ in range(count):
        began = time.perf_counter()
        answer = calls(Message("sum", {"x": x}, {"last": False}))
        assert answer.tensors["x"][0] == len(kit.about.sites)
        taken.append(time.perf_counter() - began)
    calls.close()
    return taken


def serve_bare(kit: Kit, port: int, count: int) -> None:
    """The same barrier, with nothing but gRPC around it."""
    sites, lock = len(kit.about.sites), threading.Condition()
    waiting: list[tuple[torch.Tensor, queue.SimpleQueue[bytes]]] = []
    done = threading.Event()
    left = [count]

    def stream(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        mine: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for raw in requests:
            with lock:
                waiting.append((torch.frombuffer(bytearray(raw), dtype=torch.float32), mine))
                if len(waiting) == sites:
                    answer = sum((x for x, _ in waiting), torch.zeros(NUMBERS)).numpy().tobytes()
                    for _, other in waiting:
                        other.put(answer)
                    waiting.clear()
                    left[0] -= 1
                    if not left[0]:  # here: who has the last answer may be gone before this is asked to go on
                        done.set()
            yield mine.get()

    handler = grpc.method_handlers_generic_handler("bare", {"Stream": grpc.stream_stream_rpc_method_handler(stream)})
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler], options=OPTIONS)
    start = kit.startup
    pair = [((start / "server.key").read_bytes(), (start / "server.crt").read_bytes())]
    held = grpc.ssl_server_credentials(pair, (start / "rootCA.pem").read_bytes(), require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", held)
    server.start()
    done.wait()
    server.stop(30).wait()  # the last answers go out, however busy the machine is


def call_bare(kit: Kit, count: int) -> list[float]:
    """The seconds of each."""
    start, taken = kit.startup, []
    held = grpc.ssl_channel_credentials(
        *((start / name).read_bytes() for name in ("rootCA.pem", "client.key", "client.crt"))
    )
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.secure_channel(f"{kit.about.host}:{kit.about.port}", held, OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(60)
        answers = channel.stream_stream("/bare/Stream")(iter(asked.get, None))
        raw = torch.ones(NUMBERS).numpy().tobytes()
        for _ in range(count):
            began = time.perf_counter()
            asked.put(raw)
            assert len(next(answers)) == len(raw)
            taken.append(time.perf_counter() - began)
        asked.put(None)
    return taken


def main() -> None:
    """What the arguments say: what to be, with which kit, at which port, how often."""
    torch.set_num_threads(1)
    role, folder, port, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    release_memory(at_once=role == "serve")  # as the real ones do
    kit = load_kit(folder, "server" if role.startswith("serve") else "site")
    does: dict[str, Any] = {
        "serve": lambda: serve(kit, port, count), "serve-bare": lambda: serve_bare(kit, port, count),
        "call": lambda: call(kit, count), "call-bare": lambda: call_bare(kit, count),
    }  # fmt: skip
    print(json.dumps(does[role]()), flush=True)


if __name__ == "__main__":
    main()
