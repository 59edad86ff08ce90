"""What this machine can do for a cut GAN, measured: how fast it is in each block, and what it holds."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import tomli_w
import torch
from torch import Tensor, nn

from manyhands.errors import RecipeError
from manyhands.files.write import replace_file
from manyhands.models.gan import NETWORKS, Gan, run_blocks
from manyhands.models.work import PASSES, block_flops
from manyhands.placement.devices import GIGA, Central, Device, Profile
from manyhands.placement.link_speed import Link
from manyhands.silos.training import GanTraining

SAMPLES, SPAN = 5, 0.1
"""So often a block is measured, for so many seconds."""
TOGETHER = 8
"""The most devices whose batches a server is measured with."""


class Speeds(NamedTuple):
    """GFLOP/s: in all, and in each block of both networks."""

    gflops: float
    blocks: dict[str, tuple[float, ...]]


def speeds(model: Gan, batch: int, *, serves: int = 0, device: str = "cpu", span: float = SPAN) -> Speeds:
    """How fast this machine is in each block: operations as ``block_flops`` counts them, by the seconds that they take.

    A block is used as in an iteration: so many times forward and backward, the discriminator's first block once for
    the gradient of its image, and then one step of the optimiser. A server, who ``serves`` so many devices, has their
    batches at once (of ``TOGETHER`` at most), and once leaves out the gradient of its weights.
    """
    batch *= min(max(serves, 1), TOGETHER)
    found: dict[str, tuple[float, ...]] = {}
    operations = seconds = 0.0
    for network in NETWORKS:
        uses = _uses(model, network, batch, server=serves > 0, device=device)
        taken = [_seconds_of(use, device, span) for use in uses]
        done = [PASSES[network] * batch * (work.forward + work.backward) for work in block_flops(model, network)]
        found[network] = tuple(count / each / GIGA for count, each in zip(done, taken, strict=True))
        operations, seconds = operations + sum(done), seconds + sum(taken)
    return Speeds(operations / seconds / GIGA, found)


def _uses(model: Gan, network: str, batch: int, *, server: bool, device: str) -> list[Callable[[], None]]:
    """What an iteration does with each block of a network."""
    rng, found = torch.Generator().manual_seed(0), []
    shape = (model.latent,) if network == NETWORKS[0] else (model.channels, model.size, model.size)
    x = torch.randn(batch, *shape, generator=rng).to(device)
    labels = torch.randint(model.classes, (batch,), generator=rng).to(device) if model.classes else None
    for number, block in enumerate(getattr(model.build(0).to(device), network)):
        needs = [number > 0] * PASSES[network]
        if network != NETWORKS[0]:
            needs[-1] = True  # the generator learns through it
        found.append(_use(block, x, labels, needs, spared=server and network != NETWORKS[0]))
        x = run_blocks([block], x, labels).detach()
    return found


def _use(block: nn.Module, x: Tensor, labels: Tensor | None, needs: list[bool], *, spared: bool) -> Callable[[], None]:
    """Passes, some of which need the gradient of what comes in, the last of which may be ``spared`` that of weights."""
    optimiser = GanTraining(steps=1).optimiser_of(block, 0.0)

    def use() -> None:
        for number, needed in enumerate(needs):
            mine = x.clone().requires_grad_(needed)
            out = run_blocks([block], mine, labels)
            out.backward(torch.ones_like(out), inputs=[mine] if spared and number == len(needs) - 1 else None)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return use


def _seconds_of(use: Callable[[], None], device: str, span: float) -> float:
    """The median seconds of one use, once it is warm."""
    use()
    times, taken = 1, 0.0
    while (taken := _timed(use, times, device)) < span:
        times = max(times + 1, min(10 * times, round(1.2 * times * span / max(taken, 1e-9))))
    return median([taken, *(_timed(use, times, device) for _ in range(SAMPLES - 1))]) / times


def _timed(use: Callable[[], None], times: int, device: str) -> float:
    _synchronise(device)
    began = perf_counter()
    for _ in range(times):
        use()
    _synchronise(device)
    return perf_counter() - began


def _synchronise(device: str) -> None:
    if device in ("cuda", "mps"):
        getattr(torch, device).synchronize()


def free_memory(device: str = "cpu") -> float:
    """The bytes that training could take now."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":", 1) for line in told.read_text().splitlines())
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def profile_machine(
    work: Profile, name: str, link: Link | None, *, memory: float | None = None, serves: int = 0, device: str = "cpu"
) -> Profile:
    """This machine under a name, or as the server of so many; memory is what is free if it is not told."""
    found = speeds(work.model, work.batch, serves=serves, device=device)
    speed = {
        "gflops": _short(found.gflops),
        "blocks": {net: [*map(_short, all_)] for net, all_ in found.blocks.items()},
    }
    told: dict[str, Any] = {"batch": work.batch, "model": work.model}
    if serves:
        return Profile(**told, server=Central(**speed, rate=_short(link.rate) if link else None))
    assert link is not None
    way = {"rate": _short(link.rate), "latency": _short(link.latency), "down": _short(link.down) if link.down else None}
    return Profile(**told, devices={name: Device(**speed, **way, memory=_short(memory or free_memory(device)))})


def write(path: Path, profile: Profile, device: str) -> None:
    """As a file that ``load_devices`` reads."""
    words = f"# {device}: {platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}\n"
    told = profile.model_dump(mode="json", exclude_defaults=True, exclude={"batch", "model"})
    network = {"batch": profile.batch, "model": profile.model.model_dump(mode="json", exclude_unset=True)}
    replace_file(path, (words + tomli_w.dumps({**network, **told})).encode())


def device_name(told: str | None) -> str:
    """What a device is called: as it was told, or as the machine is."""
    name = re.sub(r"[^a-z0-9._-]+", "-", platform.node().lower()).strip("-._") if told is None else told
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        raise RecipeError(f"--name {name!r}: use a-z, 0-9, '.', '_' and '-', at most 63 of them")
    return name


def _short(value: float) -> float:
    return float(f"{value:.4g}")
