"""The model of time against slow machines that are there: throttled processes, shaped links, real iterations."""

from __future__ import annotations

import argparse
import json
import random
import sys
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

from harness.bench import Measured, main
from harness.fork_server import ForkedModule
from harness.shares import Shares
from manyhands.methods.huscf.method import HuSCF
from manyhands.models.gan import Gan
from manyhands.models.layer_cut import LayerCuts, every_cut
from manyhands.placement.devices import Device, PlacementSpec, ServerMachine
from manyhands.placement.planner import Planner
from manyhands.silos.training import GanTraining

BARS = {"predicted": "<= 0.3", "predicted_choice": "<= 1.1"}
SERVER = 0.3


class Effort(NamedTuple):
    """So many other cuts, each run so often, after blocks were measured for so many seconds at a time."""

    tried: int
    sweeps: int
    span: float


QUICK, FULL = Effort(1, 1, 0.02), Effort(8, 2, 0.15)


class Slow(NamedTuple):
    """A machine: its share of a core, and its link in MB/s each way."""

    share: float
    rate: float


MIXES = {
    "alike": [Slow(0.3, 30), Slow(0.3, 30), Slow(0.3, 30)],
    "one slow machine": [Slow(0.1, 40), Slow(0.4, 40), Slow(0.4, 40)],
    "slow links": [Slow(0.4, 6), Slow(0.4, 6), Slow(0.15, 6)],
    "one slow link": [Slow(0.3, 5), Slow(0.3, 60), Slow(0.3, 60)],
    "strong and weak": [Slow(0.8, 60), Slow(0.15, 60)],
}


class Child:
    """A process that does what it is told."""

    def __init__(self) -> None:
        self.process = ForkedModule("harness.throttled_child")

    def tell(self, do: str, **arguments: Any) -> None:
        """Without waiting."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The next answer."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a throttled process has gone")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Farm:
    """A server and some silos, each at its share of a core."""

    def __init__(self, silos: int, stack: ExitStack) -> None:
        self.shares = stack.enter_context(Shares())
        self.server, *self.silos = [Child() for _ in range(silos + 1)]
        for child in (self.server, *self.silos):
            stack.callback(child.close)
        for child in (self.server, *self.silos):
            child.hear()
        self.shares.set(self.server.process.pid, SERVER)

    def throttle(self, mix: list[Slow]) -> None:
        """The silos are these machines from now on."""
        for child, slow in zip(self.silos, mix, strict=False):
            self.shares.set(child.process.pid, slow.share)

    def profiled(self, method: HuSCF, mix: list[Slow], span: float) -> PlacementSpec:
        """What all machines are measured to be, at the same time."""
        arguments, here = {"method": method.model_dump(mode="json"), "span": span}, self.silos[: len(mix)]
        self.server.tell("speeds", serves=len(mix), **arguments)
        for child in here:
            child.tell("speeds", **arguments)
        server, *speeds = [child.hear() for child in (self.server, *here)]
        self.server.tell("answer", rates=[1e6 * slow.rate for slow in mix])
        port, links = self.server.hear()["port"], []
        for child, slow in zip(here, mix, strict=True):
            child.tell("link", port=port, rate=1e6 * slow.rate)
            links.append(child.hear())
        self.server.hear()
        devices = {f"s{i}": Device(**each, **link) for i, (each, link) in enumerate(zip(speeds, links, strict=True))}
        return PlacementSpec(
            batch=method.training.batch, model=method.model, server=ServerMachine(**server), devices=devices
        )

    def seconds(self, method: HuSCF, mix: list[Slow]) -> list[float]:
        """Each iteration of a run but the first, as the slowest silo has it."""
        fields = method.model_dump(mode="json")
        self.server.tell("server", method=fields, rates={f"s{i}": 1e6 * slow.rate for i, slow in enumerate(mix)})
        port, here = self.server.hear()["port"], self.silos[: len(mix)]
        for i, (child, slow) in enumerate(zip(here, mix, strict=True)):
            child.tell("silo", port=port, rate=1e6 * slow.rate, name=f"s{i}", method=fields)
        taken = [child.hear()["seconds"][1:] for child in here]
        self.server.hear()
        return [max(each) for each in zip(*taken, strict=True)]


def others(
    model: Gan, names: list[str], chosen: dict[str, LayerCuts], count: int, seed: int
) -> list[dict[str, LayerCuts]]:
    """Other cuts: all as little at home as may be, all as much, both mixed, and random ones."""
    least, most = every_cut(model)[0], every_cut(model)[-1]
    same = [LayerCuts(generator=g, discriminator=d) for g in (least, most) for d in (least, most)]
    drawn_cuts: list[dict[str, LayerCuts]] = [dict.fromkeys(names, cuts) for cuts in same]
    rng = random.Random(seed)
    every = [LayerCuts(generator=g, discriminator=d) for g in every_cut(model) for d in every_cut(model)]
    while len(drawn_cuts) < count + 1:
        drawn = {name: rng.choice(every) for name in names}
        drawn_cuts += [drawn] * (drawn not in drawn_cuts)
    return [cuts for cuts in drawn_cuts if cuts != chosen][:count]


def predicted(quick: bool = False) -> tuple[dict[str, float], dict[str, Any]]:
    """The worst relative error of the model of time, over mixes and all cuts tried, and over the chosen cuts alone.

    And the worst of chosen against fastest cuts.
    """
    size = {"size": 8, "width": 8} if quick else {"size": 28, "width": 32}
    method = HuSCF(
        model=Gan(channels=1, classes=10, **size),
        training=GanTraining(batch=16, steps=3), rounds=1, min_head=0,
    )  # fmt: skip
    mixes = {"strong and weak": MIXES["strong and weak"]} if quick else MIXES
    rows = []
    with ExitStack() as stack:
        farm = Farm(max(map(len, mixes.values())), stack)
        for number, (name, mix) in enumerate(mixes.items()):
            rows.append(_mix(farm, method, name, mix, number, QUICK if quick else FULL))
        way = farm.shares.way
    chosen = [(row["tried"][0], min(each["seconds"] for each in row["tried"])) for row in rows]
    figures = {
        "predicted": max(_off(each) for row in rows for each in row["tried"]),
        "predicted_chosen": max(_off(each) for each, _ in chosen),
        "predicted_choice": max(each["seconds"] / fastest for each, fastest in chosen),
    }
    return figures, {"way": way, "server_share": SERVER, "mixes": rows}


def _mix(farm: Farm, method: HuSCF, name: str, mix: list[Slow], seed: int, effort: Effort) -> dict[str, Any]:
    farm.seconds(method, mix)  # so that nothing is done for the first time
    farm.throttle(mix)
    advice = farm.profiled(method, mix, effort.span)
    planner = Planner(advice.model, advice, min_head=method.min_head)
    chosen = planner.cuts()
    every = [chosen, *others(method.model, planner.names, chosen, effort.tried, seed)]
    taken: list[list[float]] = [[] for _ in every]
    for _ in range(effort.sweeps):
        for cuts, each in zip(every, taken, strict=True):
            each += farm.seconds(method.model_copy(update={"cuts": cuts}), mix)
    rows = []
    for cuts, each in zip(every, taken, strict=True):
        named = {silo: str(each) for silo, each in cuts.items()}
        rows.append({"cuts": named, "seconds": median(each), "predicted": planner.seconds(cuts), "iterations": each})
        print(name, rows[-1], file=sys.stderr)
    devices = {silo: [*slow, *_facts(advice.devices[silo])] for silo, slow in zip(planner.names, mix, strict=True)}
    return {"mix": name, "devices": devices, "server_gflops": advice.server.gflops, "tried": rows}


def _off(tried: dict[str, Any]) -> float:
    """The relative error of what was predicted."""
    return abs(float(tried["predicted"]) / float(tried["seconds"]) - 1)


def _facts(device: Device) -> list[float | None]:
    return [device.gflops, device.rate, device.down, device.latency]


def measure(args: argparse.Namespace) -> Measured:
    """The figures of the model of time against what is there."""
    figures, beside = predicted(args.quick)
    return {"figures": figures, **beside}


if __name__ == "__main__":
    main("throttled", measure, BARS)
