"""Measures this machine for a cut GAN: how fast it is in each block, and how much memory is free."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import tomli_w
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from manyhands.errors import RecipeError
from manyhands.files.write import replace_file
from manyhands.models.block_cost import PASSES, block_flops
from manyhands.models.gan import NETWORKS, Gan, run_blocks
from manyhands.placement.devices import GIGA, Device, Profile, ServerMachine
from manyhands.placement.link_speed import Link
from manyhands.silos.training import GanTraining

SAMPLES, SPAN = 5, 0.1
"""How often a block is measured, and the seconds of each measurement."""
MAX_SERVED = 8
"""The most devices whose batches a server is measured with."""


class Speeds(NamedTuple):
    """The speed in GFLOP/s: overall, and in each block of both networks."""

    gflops: float
    blocks: dict[str, tuple[float, ...]]


def speeds(model: Gan, batch: int, *, serves: int = 0, device: str = "cpu", span: float = SPAN) -> Speeds:
    """Measure the speed of this machine in each block: the operations of ``block_flops`` per second.

    A block is used as in an iteration: its passes forward and backward, one of them in the discriminator with the
    gradient of the image, and then one optimiser step. A server has the batches of its devices at once, and computes no
    gradient of its weights in the last pass of the discriminator.

    Args:
        model: The specification of the GAN.
        batch: The images of a batch.
        serves: The number of devices of a server, of which at most ``MAX_SERVED`` are measured; 0 for a device.
        device: The device to measure: cpu, cuda or mps.
        span: The seconds of each measurement.
    """
    batch *= min(max(serves, 1), MAX_SERVED)
    blocks: dict[str, tuple[float, ...]] = {}
    operations = seconds = 0.0
    for network in NETWORKS:
        uses = _uses(model, network, batch, server=serves > 0, device=device)
        times = [_seconds_of(use, device, span) for use in uses]
        flops = [PASSES[network] * batch * (work.forward + work.backward) for work in block_flops(model, network)]
        blocks[network] = tuple(count / time / GIGA for count, time in zip(flops, times, strict=True))
        operations, seconds = operations + sum(flops), seconds + sum(times)
    return Speeds(operations / seconds / GIGA, blocks)


def _uses(model: Gan, network: str, batch: int, *, server: bool, device: str) -> list[Callable[[], None]]:
    """Return a function for each block of a network that uses it as an iteration does."""
    rng, uses = torch.Generator().manual_seed(0), []
    shape = (model.latent,) if network == NETWORKS[0] else (model.channels, model.size, model.size)
    x = torch.randn(batch, *shape, generator=rng).to(device)
    labels = torch.randint(model.classes, (batch,), generator=rng).to(device) if model.classes else None
    for number, block in enumerate(getattr(model.build(0).to(device), network)):
        needs = [number > 0] * PASSES[network]
        if network != NETWORKS[0]:
            needs[-1] = True  # the generator learns through it
        uses.append(_use(block, x, labels, needs, skip_weights=server and network != NETWORKS[0]))
        x = run_blocks([block], x, labels).detach()
    return uses


def _use(
    block: nn.Module, x: Tensor, labels: Tensor | None, needs: list[bool], *, skip_weights: bool
) -> Callable[[], None]:
    """Return a function that runs all passes of a block, and an optimiser step.

    ``needs`` says which passes need the gradient of the input. The last one may ``skip_weights``: it computes no
    gradient of the weights.
    """
    optimiser = GanTraining(steps=1).optimiser_of(block, 0.0)

    def use() -> None:
        for number, needed in enumerate(needs):
            inputs = x.clone().requires_grad_(needed)
            out = run_blocks([block], inputs, labels)
            out.backward(torch.ones_like(out), inputs=[inputs] if skip_weights and number == len(needs) - 1 else None)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return use


def _seconds_of(use: Callable[[], None], device: str, span: float) -> float:
    """Return the median seconds of one use, over ``SAMPLES`` times ``span`` seconds of uses."""

    def clock() -> float:  # PyTorch's own waits for CUDA alone in older versions
        _synchronise(device)
        return perf_counter()

    timer = Timer("use()", globals={"use": use}, num_threads=torch.get_num_threads(), timer=clock)
    return timer.blocked_autorange(min_run_time=SAMPLES * span).median


def _synchronise(device: str) -> None:
    if device in ("cuda", "mps"):
        getattr(torch, device).synchronize()


def free_memory(device: str = "cpu") -> float:
    """Return the bytes of memory that are free for training."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def profile_machine(
    work: Profile, name: str, link: Link | None, *, memory: float | None = None, serves: int = 0, device: str = "cpu"
) -> Profile:
    """Measure this machine, as a device or as the server.

    Args:
        work: The batch and the model to measure with.
        name: The name of the device.
        link: The link to the server; a server may have none.
        memory: The bytes of memory for training; None for what is free.
        serves: The number of devices of the server; 0 for a device.
        device: The device to measure: cpu, cuda or mps.
    """
    measured = speeds(work.model, work.batch, serves=serves, device=device)
    speed = {
        "gflops": _short(measured.gflops),
        "blocks": {network: [*map(_short, blocks)] for network, blocks in measured.blocks.items()},
    }
    shared: dict[str, Any] = {"batch": work.batch, "model": work.model}
    if serves:
        return Profile(**shared, server=ServerMachine(**speed, rate=_short(link.rate) if link else None))
    assert link is not None
    way = {"rate": _short(link.rate), "latency": _short(link.latency), "down": _short(link.down) if link.down else None}
    return Profile(**shared, devices={name: Device(**speed, **way, memory=_short(memory or free_memory(device)))})


def write(path: Path, profile: Profile, device: str) -> None:
    """Write a file that ``load_devices`` reads."""
    comment = f"# {device}: {platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}\n"
    machines = profile.model_dump(mode="json", exclude_defaults=True, exclude={"batch", "model"})
    network = {"batch": profile.batch, "model": profile.model.model_dump(mode="json", exclude_unset=True)}
    replace_file(path, (comment + tomli_w.dumps({**network, **machines})).encode())


def device_name(requested: str | None) -> str:
    """Return the name of a device: the requested one, or that of the machine."""
    name = re.sub(r"[^a-z0-9._-]+", "-", platform.node().lower()).strip("-._") if requested is None else requested
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        raise RecipeError(f"--name {name!r}: use a-z, 0-9, '.', '_' and '-', at most 63 of them")
    return name


def _short(value: float) -> float:
    return float(f"{value:.4g}")
