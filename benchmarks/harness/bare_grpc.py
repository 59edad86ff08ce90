"""gRPC alone, with the certificates of a federation: what two sites and a server that sums up could reach.

One party of it, as a process of its own: each site sends a megabyte and gets one, again and again.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import torch

from manyhands.federation.demo import LOOPBACK
from manyhands.silos.memory import release_memory

SITES = 2
OPTIONS = [("grpc.max_send_message_length", 1 << 22), ("grpc.max_receive_message_length", 1 << 22)]


def serve(startup: Path, port: int, numbers: int, count: int) -> None:
    """The server, until all have had so many answers."""
    lock = threading.Condition()
    waiting: list[tuple[torch.Tensor, queue.SimpleQueue[bytes]]] = []
    done = threading.Event()
    left = [count]

    def stream(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        mine: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for raw in requests:
            with lock:
                waiting.append((torch.frombuffer(bytearray(raw), dtype=torch.float32), mine))
                if len(waiting) == SITES:
                    answer = sum((x for x, _ in waiting), torch.zeros(numbers)).numpy().tobytes()
                    for _, other in waiting:
                        other.put(answer)
                    waiting.clear()
                    left[0] -= 1
                    if not left[0]:  # here: who has the last answer may be gone before this is asked to go on
                        done.set()
            yield mine.get()

    handler = grpc.method_handlers_generic_handler("bare", {"Stream": grpc.stream_stream_rpc_method_handler(stream)})
    server = grpc.server(ThreadPoolExecutor(8), handlers=[handler], options=OPTIONS)
    pair = [((startup / "server.key").read_bytes(), (startup / "server.crt").read_bytes())]
    held = grpc.ssl_server_credentials(pair, (startup / "rootCA.pem").read_bytes(), require_client_auth=True)
    server.add_secure_port(f"{LOOPBACK}:{port}", held)
    server.start()
    done.wait()
    server.stop(30).wait()  # the last answers go out, however busy the machine is


def call(startup: Path, port: int, numbers: int, count: int) -> list[float]:
    """The seconds of each."""
    taken = []
    held = grpc.ssl_channel_credentials(
        *((startup / name).read_bytes() for name in ("rootCA.pem", "client.key", "client.crt"))
    )
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.secure_channel(f"{LOOPBACK}:{port}", held, OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(60)
        answers = channel.stream_stream("/bare/Stream")(iter(asked.get, None))
        raw = torch.ones(numbers).numpy().tobytes()
        for _ in range(count):
            began = time.perf_counter()
            asked.put(raw)
            assert len(next(answers)) == len(raw)
            taken.append(time.perf_counter() - began)
        asked.put(None)
    return taken


def main() -> None:
    """What the arguments say: what to be, with which folder of a kit, at which port, how many numbers, how often."""
    torch.set_num_threads(1)
    role, startup, *counts = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    release_memory(at_once=role == "serve")  # as the real ones do
    does: dict[str, Any] = {"serve": serve, "call": call}
    print(json.dumps(does[role](startup, *counts)), flush=True)


if __name__ == "__main__":
    main()
