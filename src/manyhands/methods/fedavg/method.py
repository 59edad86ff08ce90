"""Federated averaging of an image generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from manyhands.diffusion.sampling import Sampling
from manyhands.errors import RecipeError
from manyhands.formatting import size_text
from manyhands.generators.load import TrainedModel
from manyhands.messages import outgoing
from manyhands.messages.codec.codec import max_wire_bytes
from manyhands.messages.facts import Whole
from manyhands.messages.operation import IMAGES, WORD, Operation, Payload, next_round_facts, round_facts
from manyhands.messages.plan import Plan
from manyhands.methods.base import AVERAGE, Conversation
from manyhands.methods.fedavg.server import FedAvgServer
from manyhands.methods.fedavg.sharing import ALL, PART_NAMES, SHARED, assigned_parts, possible_uploads
from manyhands.methods.fedavg.silo import converse
from manyhands.methods.fedavg.spec import Facts, FedAvgSpec
from manyhands.methods.proximal import Proximal
from manyhands.methods.server import Server
from manyhands.silos.silo import Silo
from manyhands.tensors import strip_prefix


class FedAvg(FedAvgSpec):
    """Each round, silos train the shared network on their own images, and the server averages their weights.

    The mean is weighted by the silos' numbers of images. The model may be a U-Net, a latent model, an autoencoder or a
    GAN, of which both networks are averaged. Silos go on from the weights that they were sent last; the average over
    rounds (``ema``) is for sampling images only.

    References:
        Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., 2017,
            arXiv 1602.05629
        Federated Learning with Diffusion Models for Privacy-Sensitive Vision Tasks, Tun et al., 2023, arXiv 2311.16538
        FedGAN: Federated Generative Adversarial Networks for Distributed Data, Rasouli, Sun, Rajagopal, 2020, arXiv
            2006.07228
    """

    def silo(self, silo: Silo) -> Conversation:
        """Join, then train whenever weights come, until the server says that the run is done."""
        return converse(self, silo)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """Return the server, with a freshly initialised network."""
        if (self.participants or 1) > len(silos):
            raise RecipeError(f"participants is {self.participants}, but there are {len(silos)} silos")
        return self.learner.wrap_server(FedAvgServer(self, seed, silos))

    def silos_per_round(self, silos: int) -> int:
        """Return the number of participants."""
        return self.participants or silos

    def check_partition(self, silos: Sequence[str]) -> None:
        """Check that there are as many silos as take part in a round."""
        if (self.participants or 1) > len(silos):
            raise ValueError(f"method.participants is {self.participants}, partition.silos is only {len(silos)}")

    def plan(self) -> Plan:
        """Weights down and up, once a round; no image and no label."""
        holds: Facts = {"holds": Whole(-1, self.rounds)} if self.downlink.tracks else {}
        facts_down: Facts = {**next_round_facts(self.rounds)} | ({"kind": WORD} if self.downlink.tracks else {})
        step, *others = self.downlink.wire_specs().values()
        down = Payload(step, facts_down | ({"send": WORD} if self.share == "usplit" else {}), (*others, {}))
        sent, *other_parts = (self.up.wire_spec(self.spec_of(parts)) for parts in possible_uploads(self.share))
        up = Payload(sent, {**round_facts(self.rounds), **holds}, (*other_parts, {}))
        participants = f"{self.participants} silos a round" if self.participants else "every silo, every round"
        return Plan(
            self.learner.operations()
            | {
                "join": Operation(
                    "says how many images it has, gets the model",
                    "once",
                    Payload(facts={"images": IMAGES} | holds),
                    down,
                ),
                "update": Operation(
                    f"sends {'its model' if not self.personal else 'the shared parts'} after local training, gets the "
                    f"mean of the silos' ({participants})",
                    f"{self.rounds} times",
                    up,
                    down,
                    barrier=True,
                    closes_round=True,
                    outgoing=(self._outgoing,),
                ),
            },
        )

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return the size of each part of the network, and the traffic of a round against plain float32."""
        count = min(self.participants or silos, silos)
        parts = {part: sum(spec.size for spec in self.spec_of(part).values()) for part in ALL.split("+")}
        total = sum(parts.values())
        shared = max_wire_bytes(self.up, self.spec_of(SHARED[self.share]))
        up = shared / 2 if self.share == "usplit" else shared
        down = self.downlink.bytes(count / silos, count)
        shares = ", ".join(f"{size / total:.1%} {PART_NAMES[part]}" for part, size in parts.items() if 0 < size < total)
        plain = up + down == 8 * total
        saving = "all weights in float32" if plain else f"{8 * total / (up + down):.2f} x fewer bytes than in float32"
        rounds = "the only round" if self.rounds == 1 else f"all {self.rounds:,} rounds"
        return [
            f"{total:,} weights: {shares} of the network" if shares else f"{total:,} weights",
            *self.learner.cost_lines(),
            f"a round of {count} silo{'s' * (count != 1)}: {size_text(count * up)} sent and "
            f"{size_text(count * down)} received by them, {saving}",
            f"{rounds}: {size_text(self.rounds * count * (up + down))}",
        ]

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """Return the network as the silo has it, where it keeps parts or all of it; None otherwise."""
        return self.learner.silo_generator(silo, strip_prefix(silo.memory, AVERAGE))

    @property
    def _outgoing(self) -> outgoing.Weights:
        """What leaves in an update: weights that the server can read."""
        of = self.model.weights_of
        parts = " and ".join(f"the {PART_NAMES[part]}" for part in SHARED[self.share].split("+"))
        kept = tuple(PART_NAMES[part] for part in self._private)
        return outgoing.Weights(of=f"{parts} of {of}" if kept else of, training=self.training, kept=kept)

    @property
    def _private(self) -> list[str]:
        return [part for part in ALL.split("+") if part not in SHARED[self.share].split("+")]

    def cited_parts(self) -> list[object]:
        """Return the parts of the method whose papers are cited."""
        return [
            *super().cited_parts(),
            *([Proximal] if self.proximal else []),
            *([assigned_parts] if self.share != "all" else []),
        ]
