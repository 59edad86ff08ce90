"""A cut GAN in one process and one graph: what silos and server together must come to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from manyhands import Silo
from manyhands.methods.huscf.method import HuSCF

Batch = dict[str, torch.Tensor]
Labels = dict[str, torch.Tensor | None]
States = dict[str, Batch]


def together(method: HuSCF, silos: Sequence[Silo]) -> States:
    """Both networks as each silo has them after a round: blocks at home each its own, all others on joined batches."""
    spec, names = method.model, [silo.name for silo in silos]
    own = {name: spec.build(0) for name in names}
    shared = spec.build(0)
    every = [*own.values(), shared]
    optimisers = [method.training.optimiser_of(network, 0) for network in every]

    def run(network: str, x: Batch, y: Labels) -> Batch:
        for b in range(spec.depth):
            away = [name for name in names if not method.cuts_of(name).of(network).at_home(b)]
            there = getattr(shared, network)[b]
            joined = there(torch.cat([x[name] for name in away])) if away else torch.empty(0)
            parts = dict(zip(away, joined.split([len(x[name]) for name in away]), strict=True)) if away else {}
            for name in names:
                block = getattr(own[name], network)[b]
                x = x | {name: parts[name] if name in parts else block(x[name], y[name]) if b == 0 else block(x[name])}
        return x

    def forget() -> None:
        for each in every:
            each.zero_grad()

    rngs = {silo.name: silo.rng(0) for silo in silos}
    batches = [list(method.training.batches(len(silo.images), rngs[silo.name])) for silo in silos]
    for numbers in zip(*batches, strict=True):
        x, y, z = Batch(), Labels(), Batch()
        for silo, mine in zip(silos, numbers, strict=True):
            x[silo.name], y[silo.name] = silo.images.batch(mine)
            z[silo.name] = torch.randn(len(mine), spec.latent, generator=rngs[silo.name])
        made = run("generator", z, y)
        forget()
        for image, real in (({name: m.detach() for name, m in made.items()}, False), (x, True)):
            logits = run("discriminator", image, y)
            torch.stack([spec.discriminator_loss(logits[name], real=real) for name in names]).sum().backward()
        for optimiser in optimisers:
            optimiser.step()
        forget()
        logits = run("discriminator", made, y)
        torch.stack([spec.generator_loss(logits[name]) for name in names]).sum().backward()
        for each in every:
            each.discriminator.zero_grad()
        for optimiser in optimisers:
            optimiser.step()
    whole = {}
    for name in names:
        at_home = {key: w for key, w in own[name].state_dict().items() if method.cuts_of(name).at_home(key)}
        whole[name] = shared.state_dict() | at_home
    return whole
