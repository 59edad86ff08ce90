"""A method of one's own: the median of the silos' weights, which one silo that sends garbage hardly moves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

import manyhands as mh
from manyhands.methods.base import Conversation


class MedianServer(mh.ServerWrapper):
    def accumulate(self, silo: str, message: mh.Message) -> mh.Accumulated:
        return mh.Accumulated(message)  # a median needs all of them at once

    def handle_barrier(self, op: str, messages: Mapping[str, mh.Message]) -> Mapping[str, mh.Message]:
        if sent := {silo: message.tensors for silo, message in messages.items() if message.tensors}:
            silo = min(sent)
            median = {name: torch.stack([sent[s][name] for s in sent]).median(0).values for name in sent[silo]}
            self.inner.accumulate(silo, mh.Message(op, median, messages[silo].facts))
        return self.inner.handle_barrier(op, messages)


class Median(mh.Method):
    kind: Literal["median"] = "median"
    model: mh.UNet
    training: mh.Training

    @property
    def fedavg(self) -> mh.FedAvg:
        return mh.FedAvg(model=self.model, training=self.training, rounds=self.rounds, max_update_ratio=0)

    def silo(self, silo: mh.Silo) -> Conversation:
        return self.fedavg.silo(silo)

    def plan(self) -> mh.Plan:
        return self.fedavg.plan()

    def server(self, seed: int, silos: Mapping[str, int]) -> mh.Server:
        return MedianServer(self.fedavg.server(seed, silos))


def main(out: Path = Path("median.png"), rounds: int = 10) -> None:
    digits = mh.Digits().load(size=8).hold_out(0.2)  # Setup
    model = mh.UNet(size=8, channels=1, classes=10, widths=(16, 32))
    method = Median(model=model, training=mh.Training(steps=20, learning_rate=2e-3), rounds=rounds)
    experiment = mh.Experiment(method, mh.split(digits, mh.Iid(silos=5)))

    for closed_round in experiment:  # Train
        print(f"round {closed_round.number + 1}: loss {closed_round.loss:.3f}")

    print(f"FID {experiment.evaluate()['metrics']['fid']:.2f}")  # Sample
    mh.grid(out, experiment.generator().sample(labels=list(range(10))), headings=digits.classes)


if __name__ == "__main__":
    main()
