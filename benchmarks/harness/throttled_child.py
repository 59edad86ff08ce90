"""One machine of a throttled federation, a process of its own: told what to do by lines of JSON, which it answers."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.shares import Shaped
from manyhands.data.images import Images
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.stream import receive, send
from manyhands.messages.message import Message
from manyhands.methods.huscf.method import HuSCF
from manyhands.methods.huscf.operations import GENERATOR_FORWARD
from manyhands.placement.link_speed import answer, measure_link
from manyhands.placement.profiler import speeds
from manyhands.silos.silo import DeviceContext, Silo

MAX_MESSAGE_BYTES, TIMEOUT_SECONDS = 1 << 28, 120.0


def main() -> None:
    """Do what each line says."""
    torch.set_num_threads(1)
    say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        say(DOES[request.pop("do")](**request))


def say(words: Any) -> None:
    """One line of an answer."""
    print(json.dumps(words), flush=True)


def profiled(method: dict[str, Any], span: float, serves: int = 0) -> Any:
    """How fast this machine is."""
    huscf = HuSCF.model_validate(method)
    return speeds(huscf.model, huscf.training.batch, serves=serves, span=span)._asdict()


def answering(rates: list[float]) -> Any:
    """Answer so many who measure their links, each at its rate."""
    for rate, plain in zip(rates, _clients(len(rates)), strict=True):
        answer(Shaped(plain, rate), TIMEOUT_SECONDS)
    return {"answered": len(rates)}


def linked(port: int, rate: float) -> Any:
    """How fast the link to the server is."""
    with socket.create_connection(("127.0.0.1", port)) as stream:
        return measure_link(Shaped(stream, rate))._asdict()


def half(port: int, rate: float, name: str, method: dict[str, Any]) -> Any:
    """The silo's half of a run; the seconds of an iteration."""
    huscf = HuSCF.model_validate(method)
    conversation, plan, began = huscf.silo(_silo(name, huscf)), huscf.plan(), []
    with socket.create_connection(("127.0.0.1", port)) as plain:
        stream, reply = Shaped(plain, rate), None
        send(stream, Message("name", facts={"silo": name}))
        while True:
            try:
                message = conversation.send(reply)  # type: ignore[arg-type]
            except StopIteration:
                break
            if message.op in (GENERATOR_FORWARD, "segments"):
                began.append(time.perf_counter())
            send(stream, message)
            reply = receive(stream, MAX_MESSAGE_BYTES, TIMEOUT_SECONDS)
            assert reply is not None
            plan.check(reply, "down")
    return {"seconds": [after - before for before, after in itertools.pairwise(began)]}


def middle(method: dict[str, Any], rates: dict[str, float]) -> Any:
    """The server's half of a run."""
    huscf = HuSCF.model_validate(method)
    roster = {name: len(_silo(name, huscf).images) for name in rates}
    coordinator = RoundCoordinator(huscf.server(0, roster), huscf.plan(), roster)
    turn, threads = threading.Condition(), []

    def serve(stream: Shaped, name: str) -> None:
        while (message := receive(stream, MAX_MESSAGE_BYTES, TIMEOUT_SECONDS)) is not None:
            with turn:
                coordinator.submit(name, message)
                turn.notify_all()
                turn.wait_for(lambda: coordinator.collect(name) is not None, TIMEOUT_SECONDS)
                reply = coordinator.collect(name)
            assert reply is not None
            send(stream, reply)

    for plain in _clients(len(rates)):
        hello = receive(plain, MAX_MESSAGE_BYTES, TIMEOUT_SECONDS)
        assert hello is not None
        name = hello.facts["silo"]
        threads.append(threading.Thread(target=serve, args=(Shaped(plain, rates[name]), name)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return {"flops": coordinator.server.flops}


def _silo(name: str, method: HuSCF) -> Silo:
    model, count = method.model, method.training.batch
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, model.channels, model.size, model.size), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, model.classes, (count,), generator=rng)
    return Silo(name, Images(pixels, labels, tuple(map(str, range(model.classes)))), device_context=DeviceContext())


def _clients(count: int) -> Iterator[socket.socket]:
    """So many connections one after another, on a port that is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say({"port": listener.getsockname()[1]})
        for _ in range(count):
            yield listener.accept()[0]


DOES: dict[str, Callable[..., Any]] = {
    "speeds": profiled, "answer": answering, "link": linked, "silo": half, "server": middle,
}  # fmt: skip


if __name__ == "__main__":
    main()
