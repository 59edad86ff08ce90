"""The chain cut in time: its extremes, its laws, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.gaussian import norm_errors
from manyhands import DiffusionGenerator, Experiment, Message, Sampling, Silo, Training, UNet
from manyhands.data.images import as_floats, pooled
from manyhands.diffusion.norm_bound import stretched
from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.methods.base import Conversation
from manyhands.methods.baselines import Local
from manyhands.methods.collafuse.method import CollaFuse
from manyhands.methods.collafuse.release import joined
from manyhands.methods.collafuse.server import CollaFuseServer
from manyhands.methods.collafuse.silo import noising_of
from manyhands.methods.split_sampling import Relay
from manyhands.seed import torch_rng
from manyhands.silos.local_training import steps
from manyhands.tensors import sha256, strip_prefix
from tests.conftest import TINY, tiny_images, tiny_silos

SHORT = Sampling(steps=5)


def tiny_collafuse(**options: object) -> CollaFuse:
    training = Training(batch=4, steps=2, learning_rate=1e-2)
    fields = {"model": TINY, "training": training, "rounds": 3, "cut": 0.4, "labels": "share", **options}
    return CollaFuse.model_validate(fields)


def trained(method: CollaFuse, silos: list[Silo] | None = None, **options: Any) -> Experiment:
    experiment = Experiment(method, silos or tiny_silos(), device="cpu", sampling=SHORT, **options)
    for _ in experiment:
        pass
    return experiment


def server_of(experiment: Experiment) -> CollaFuseServer:
    assert isinstance(experiment.server, CollaFuseServer)
    return experiment.server


def everything(experiment: Experiment) -> str:
    parts = {f"{silo.name}.{name}": t for silo in experiment.silos for name, t in silo.memory.items()}
    return sha256(experiment.server.state_dict() | parts)


def test_at_cut_1_silos_are_alone_and_the_server_sees_nothing() -> None:
    method = tiny_collafuse(cut=1, ema=0.5)
    cut = trained(method)
    options = {name: getattr(method, name) for name in Local.model_fields if name not in {"kind"}}
    alone = Experiment(Local(**options), tiny_silos(), device="cpu")
    for _ in alone:
        pass
    for silo, lonely in zip(cut.silos, alone.silos, strict=True):
        assert sha256(silo.memory) == sha256(lonely.memory)
    assert not server_of(cut).held["s0"].count
    assert {row["op"] for row in cut.ledger.entries()} == {"enter", "ready", "join", "progress"}
    assert server_of(cut).flops == 0


def test_at_cut_0_the_server_trains_on_all_images_as_one_would_who_had_them() -> None:
    method = tiny_collafuse(cut=0, diffusion={"target": "eps"})
    experiment = trained(method)
    server = server_of(experiment)
    network = method.model.build(seed=0)
    x, y = pooled([silo.images for silo in tiny_silos()]).batch(torch.arange(17))
    training, optimiser = method.training.repeated(3), method.training.optimiser_of(network, 0)
    for number in range(method.rounds):
        rng = torch_rng(0, "server", number)

        def loss(numbers: torch.Tensor, rng: torch.Generator = rng) -> torch.Tensor:
            assert y is not None
            t = method.diffusion.steps(len(numbers), rng, torch.zeros(len(numbers), dtype=torch.long))
            eps = torch.randn(len(numbers), 1, 4, 4, generator=rng)
            labels = method.diffusion.hidden(y[numbers], 2, rng)
            alpha, sigma = method.diffusion.schedule.levels(t, x)
            return (network(alpha * x[numbers] + sigma * eps, t, labels) - eps).square().mean()

        for _ in steps(network, optimiser, list(training.batches(17, rng)), loss, clip=1.0):
            pass
    for name, weight in network.state_dict().items():
        assert torch.allclose(server.network.state_dict()[name], weight, atol=1e-5), name
    assert not any("weights" in name for silo in experiment.silos for name in silo.memory)


def test_a_step_of_the_server_is_as_much_work_at_any_cut_below_1() -> None:
    for done, same in zip(
        *(Experiment(tiny_collafuse(cut=cut), tiny_silos(), device="cpu") for cut in (0, 0.4)), strict=True
    ):
        assert done.server_images_seen == same.server_images_seen == 24
        assert done.server_flops == same.server_flops > 0


def test_the_same_run_twice_is_the_same_and_bytes_change_nothing() -> None:
    assert everything(trained(tiny_collafuse())) == everything(trained(tiny_collafuse(), link=InProcess(wire="bytes")))


def test_each_image_is_released_once_and_nothing_but_figures_goes_up_after_it() -> None:
    experiment = trained(tiny_collafuse(rounds=9))
    up = {(row["silo"], row["op"]): row for row in experiment.ledger.entries() if row["direction"] == "up"}
    for silo in experiment.silos:
        row = up[silo.name, "release"]
        assert row["messages"] == 1
        assert len(silo.images) * (16 * 4 + 8) < row["bytes"] < len(silo.images) * (16 * 4 + 8) + 400
        assert up[silo.name, "progress"]["bytes"] < 9 * 250


class Busy(InProcess):
    def _advance(self, coordinator: RoundCoordinator, *args: Any) -> bool:
        for _ in range(5):
            coordinator.train_step()
        return super()._advance(coordinator, *args)


@pytest.mark.parametrize("options", [{}, {"warm_start": 2}, {"federate_silos": True}])
def test_the_work_of_a_round_is_the_same_whenever_it_is_done(options: dict[str, Any]) -> None:
    assert everything(trained(tiny_collafuse(**options))) == everything(trained(tiny_collafuse(**options), link=Busy()))


def test_what_a_silo_released_is_learnt_above_its_own_cut_only() -> None:
    method = tiny_collafuse(cut=0.2, cuts={"s1": 0.7})
    server = server_of(trained(method))
    data = joined([server.held[name] for name in ("s0", "s1", "s2")], torch.device("cpu"))
    assert data.cuts.tolist() == [200] * 5 + [700] * 9 + [200] * 3
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert bool((method.diffusion.steps(17, rng, data.cuts) > data.cuts).all())


def test_what_is_answered_below_the_cut_of_another_depends_on_its_release_and_on_nothing_else_of_it() -> None:
    """So it is post-processing: whatever was released bounds what can come out, at any step that is asked for."""
    method = tiny_collafuse(cut=0.2, cuts={"s1": 0.7})
    one = server_of(trained(method))
    other = server_of(
        trained(method, [Silo(s.name, s.images, secret="other" * (s.name == "s1")) for s in tiny_silos()])
    )
    assert sha256(one.latest) != sha256(other.latest)
    again = server_of(Experiment(method, tiny_silos(), device="cpu"))  # with no image of anybody at hand
    again.load_stores(one.stores())
    again._open()
    for _ in range(method.rounds):
        while again._step():
            pass
        again._close()
        again.inner.round += 1
        again._open()
    assert sha256(again.latest) == sha256(one.latest)


def test_silos_draw_across_the_cut_and_each_half_alone() -> None:
    experiment = trained(tiny_collafuse())
    drawn = experiment.generators()
    assert set(drawn) == {"s0", "s1", "s2"}
    relay = drawn["s0"]
    assert isinstance(relay, Relay)
    images = relay.sample(labels=[0, 1, 0], seed=3)
    assert images.shape == (3, 1, 4, 4)
    assert torch.equal(images, relay.sample(labels=[0, 1, 0], seed=3))
    assert not torch.equal(images, relay.sample(labels=[0, 1, 0], seed=4))
    assert {row["op"] for row in experiment.sampling_ledger.entries()} == {"denoise"}
    assert experiment.generator().sample(2).shape == experiment.generator("s0").sample(2).shape
    first = next(relay.stream([0, 1] * 4, batch=2, first=2))[0]
    assert torch.equal(first, torch.cat([x for x, _ in relay.stream([0, 1] * 4, batch=2)])[2:4])


def hub_of(experiment: Experiment) -> RoundCoordinator:
    return RoundCoordinator(experiment.server, experiment.method.plan(), experiment.roster)


def denoise(labels: tuple[int, ...] = (0, 1), **options: object) -> Message:
    facts = {"count": 2, "to": 400, "seed": 1, "steps": 5, "guidance": 1.0, "sampler": "ddim", "clip": 1.0, **options}
    return Message("denoise", {"labels": torch.tensor(labels, dtype=torch.int64)}, facts)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (denoise(to=399), Reason.BELOW_CUT),
        (denoise(to=-1), Reason.WRONG_FACTS),
        (denoise(to=1001), Reason.WRONG_FACTS),
        (denoise(count=3), Reason.WRONG_FACTS),
        (denoise(count=0, labels=()), Reason.WRONG_FACTS),
        (denoise(steps=10**9), Reason.WRONG_FACTS),
        (denoise(labels=(0, 7)), Reason.FOREIGN_LABEL),
        (denoise(guidance=-1.0), Reason.WRONG_FACTS),
        (denoise(sampler="x"), Reason.WRONG_FACTS),
        (denoise(clip=-1.0), Reason.WRONG_FACTS),
        (Message("denoise", {}, denoise().facts), Reason.MISSING_TENSOR),
        (Message("enter", {}, {"images": 5, "cut": 400, "chain": "exact linear"}), Reason.OTHER_SCHEDULE),
        (Message("enter", {}, {"images": 5, "cut": 401, "chain": tiny_collafuse().chain}), Reason.OTHER_CUT),
        (Message("enter", {}, {"images": 6, "cut": 400, "chain": tiny_collafuse().chain}), Reason.WRONG_WEIGHT),
        (Message("ready"), Reason.STALE_ROUND),
        (
            Message(
                "release",
                {"images": torch.zeros(5, 1, 4, 4), "labels": torch.zeros(5).long()},
                {"first": 0, "cut": 400, "turn": 0},
            ),
            Reason.RELEASED,
        ),
        (
            Message(
                "release",
                {"images": torch.zeros(5, 1, 8, 8), "labels": torch.zeros(5).long()},
                {"first": 0, "cut": 400, "turn": 0},
            ),
            Reason.WRONG_SHAPE,
        ),
    ],
)
def test_what_a_silo_may_not_say_is_refused_by_name(message: Message, reason: Reason) -> None:
    experiment = trained(tiny_collafuse())
    before = everything(experiment)
    with pytest.raises(Refused) as refused:
        hub_of(experiment).submit("s0", message)
    assert refused.value.reason is reason
    assert everything(experiment) == before


def test_a_silo_asks_for_labels_that_it_has_unless_the_recipe_lets_it_ask_for_any() -> None:
    silos = [Silo("a", tiny_images(6)), Silo("b", tiny_images(6, seed=1))]
    assert silos[0].images.labels is not None
    silos[0] = Silo("a", silos[0].images.subset(np.flatnonzero(silos[0].images.labels.numpy() == 0)))
    own, every = (trained(tiny_collafuse(ask=ask), list(silos)) for ask in ("own", "any"))
    with pytest.raises(Refused, match="label of others: a asks for label 1"):
        own.generators()["a"].sample(labels=[1])  # type: ignore[union-attr]
    assert len(own.generators()["a"].sample(labels=[0])) == 1  # type: ignore[union-attr]
    assert len(every.generators()["a"].sample(labels=[1])) == 1  # type: ignore[union-attr]


def test_a_server_without_labels_is_asked_for_none() -> None:
    experiment = trained(tiny_collafuse(labels="withhold"))
    assert "labels" not in server_of(experiment).held["s0"].tensors()
    assert server_of(experiment).method.server_model.classes == 0
    assert len(experiment.drawing("s0").sample(labels=[0, 1])) == 2
    with pytest.raises(Refused, match="unexpected tensor"):
        hub_of(experiment).submit("s0", denoise())
    assert "labels" in experiment.method.plan().never_sent


def test_a_silo_that_is_gone_after_its_release_is_learnt_from_all_the_same() -> None:
    class Leaving(CollaFuse):
        def silo(self, silo: Silo) -> Conversation:
            talk = super().silo(silo)
            answer = None
            while True:
                try:
                    message = talk.send(answer)  # type: ignore[arg-type]
                except StopIteration:
                    return
                if silo.name == "s1" and message.op == "progress":
                    raise Refused(Reason.NOT_ASKED, "gone")
                answer = yield message

    experiment = trained(Leaving.model_validate(tiny_collafuse().model_dump()))
    assert server_of(experiment).held["s1"].whole
    assert server_of(experiment)._sources == ["s0", "s1", "s2"]
    assert experiment.server.round == 3


def rounds_of(experiment: Experiment, count: int) -> None:
    for done in experiment:
        if done.number + 1 == count:
            break


@pytest.mark.parametrize("options", [{}, {"warm_start": 1}, {"warm_start": 2, "rounds": 4}])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_and_releases_nothing_again(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    method = tiny_collafuse(ema=0.5, **options)
    whole = trained(method)
    rounds_of(Experiment(method, tiny_silos(), folder=tmp_path / "run", device="cpu", sampling=SHORT), 2)
    resumed = trained(method, folder=tmp_path / "run", resume=True)
    assert everything(resumed) == everything(whole)
    up = [row for row in resumed.ledger.entries() if row["op"] == "release" and row["direction"] == "up"]
    assert [row["messages"] for row in up] == [1, 1, 1]


@pytest.mark.parametrize("harm", ["missing", "changed", "swapped"])
def test_a_store_that_is_missing_or_changed_is_told(tmp_path: Path, harm: str) -> None:
    method, folder = tiny_collafuse(), tmp_path / "run"
    rounds_of(Experiment(method, tiny_silos(), folder=folder, device="cpu", sampling=SHORT), 2)
    path, other = (folder / "server" / "releases" / f"{name}.mh" for name in ("s1", "s0"))
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(other.read_bytes() if harm == "swapped" else path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"releases/s1\.mh"):
        trained(method, folder=folder, resume=True)


def test_a_silo_whose_secret_has_changed_does_not_release_a_second_time(tmp_path: Path) -> None:
    method, folder = tiny_collafuse(), tmp_path / "run"

    def silos(secret: str) -> list[Silo]:
        return [Silo(silo.name, silo.images, secret=secret) for silo in tiny_silos()]

    rounds_of(Experiment(method, silos("one"), folder=folder, device="cpu", sampling=SHORT), 2)
    with pytest.raises(CheckpointError, match="s0: its release would differ from the one it made before"):
        trained(method, silos("two"), folder=folder, resume=True)


def test_fresh_releases_are_of_the_images_of_each_round_with_noise_of_their_own() -> None:
    experiment = trained(tiny_collafuse(release="fresh"))
    up = [row for row in experiment.ledger.entries() if row["op"] == "release" and row["direction"] == "up"]
    assert [row["messages"] for row in up] == [3, 3, 3]
    assert experiment.method.releases(5) == pytest.approx(3 * 8 / 5)  # type: ignore[attr-defined]
    assert server_of(experiment).seen == 3 * 6 * 4
    assert everything(experiment) == everything(trained(tiny_collafuse(release="fresh")))


@pytest.mark.parametrize("mode", ["authors", "nested"])
def test_the_other_modes_run_and_differ(mode: str) -> None:
    one, other = trained(tiny_collafuse()), trained(tiny_collafuse(mode=mode))
    assert sha256(one.server.state_dict()) != sha256(other.server.state_dict())
    assert one.silos[0].memory.keys() == other.silos[0].memory.keys()
    assert len(other.generators()["s0"].sample(2)) == 2  # type: ignore[union-attr]


def test_the_authors_hand_over_at_their_higher_level_in_as_many_steps() -> None:
    method = tiny_collafuse(mode="authors", cut=0.2)
    relay = trained(method).generators()["s0"]
    assert isinstance(relay, Relay)
    assert (relay.cut, relay.silo_start, relay.silo_steps) == (200, 360, 1)


def test_silos_may_begin_from_what_the_server_has_learnt() -> None:
    experiment = trained(tiny_collafuse(warm_start=2, rounds=3, labels="share"))
    entries = experiment.ledger.entries()
    start = [row for row in entries if row["op"] == "start" and row["direction"] == "down"]
    assert [row["messages"] for row in start] == [1, 1, 1]
    assert all("average." + name in experiment.silos[0].memory for name in TINY.build(0).state_dict())


def test_the_networks_of_silos_can_be_averaged() -> None:
    experiment = trained(tiny_collafuse(federate_silos=True))
    own = [strip_prefix(silo.memory, "average.") for silo in experiment.silos]
    assert sha256(own[0]) == sha256(own[1]) == sha256(own[2])
    assert len(experiment.drawing("s1").sample(2)) == 2
    assert "weights" not in experiment.method.plan().never_sent


def test_a_silo_may_have_a_smaller_network() -> None:
    small = UNet(size=4, channels=1, classes=2, widths=(8,), groups=4)
    experiment = trained(tiny_collafuse(silo_model=small, silo_steps=1))
    assert experiment.drawing("s0").sample(2).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cut": 1.4}, "less than or equal to 1"),
        ({"cut": -0.1}, "greater than or equal to 0"),
        ({"cut": {"share": 0.2, "snr_db": 3}}, "set one of share, snr_db and epsilon, not share and snr_db"),
        ({"cut": {}}, "not none"),
        ({"mode": "authors", "cuts": {"s0": 0.2}}, "needs one cut for all silos"),
        ({"warm_start": 3}, "warm_start is 3, there are 3 rounds"),
        ({"warm_start": 1, "labels": "withhold"}, "equals the server's, with the same classes"),
        ({"federate_silos": True, "cut": 0}, "a silo at cut 0 has no network"),
        (
            {"silo_model": {"kind": "unet", "size": 8, "channels": 1, "classes": 2}},
            "size, channels and classes of model",
        ),
        ({"diffusion": {"max_timestep": 4}}, "diffusion.max_timestep follows from the cut"),
        ({"diffusion": {"norm": 4.0}}, "diffusion.norm follows from method.norm"),
        ({"release": "fresh", "cut": {"epsilon": 50}}, "a cut by epsilon assumes one release"),
        ({"release": "fresh", "warm_start": 1}, "warm_start needs releases"),
    ],
)
def test_what_does_not_go_together_is_told(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        tiny_collafuse(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cut": {"epsilon": 1e-3}}, "epsilon 0.001 is reached at no timestep"),
        ({"cut": {"snr_db": -150}}, "an SNR of -150 dB is reached at no timestep"),
        ({"cuts": {"s9": 0.3}}, "cuts names 's9', which is none of the silos"),
    ],
)
def test_a_cut_that_cannot_be_is_told(options: dict[str, object], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        trained(tiny_collafuse(**options))


def test_a_cut_near_an_end_is_not_the_end() -> None:
    assert [tiny_collafuse(cut=share).step_of("s0") for share in (0, 1e-9, 1 - 1e-9, 1)] == [0, 1, 999, 1000]


def test_a_norm_beyond_that_of_any_image_bounds_nothing() -> None:
    assert tiny_collafuse(norm=1e3).bound == tiny_collafuse().bound == 4
    assert tiny_collafuse(norm=2.0).bound == 2


def grey(silos: list[Silo]) -> list[Silo]:
    """The same, of images whose norms are small."""
    return [Silo(silo.name, replace(silo.images, stored=silo.images.pixels // 4 + 96)) for silo in silos]


@pytest.mark.parametrize("options", [{}, {"cut": 0}, {"distil": {"steps": 2, "rounds": 1}}, {"federate_silos": True}])
def test_a_norm_that_changes_no_image_changes_no_bit(options: dict[str, Any]) -> None:
    plain, bounded = (trained(tiny_collafuse(norm=norm, **options), grey(tiny_silos())) for norm in (None, 2.0))
    assert everything(plain) == everything(bounded)
    for run in (plain, bounded):
        assert max(float(as_floats(silo.images.pixels).flatten(1).norm(dim=1).max()) for silo in run.silos) < 1


def test_with_a_norm_both_sides_learn_the_same_images_and_drawn_ones_are_of_the_silo() -> None:
    for options in ({}, {"mode": "nested"}, {"cut": 0}):
        experiment = trained(tiny_collafuse(norm=1.0, **options))
        relay = experiment.generators()["s0"]
        assert isinstance(relay, Relay)
        raw = relay._squeezed(torch.tensor([0, 1]), torch_rng(0, "sample", 0), SHORT)
        assert torch.equal(relay.sample(labels=[0, 1]), stretched(raw, 1.0).clamp(-1, 1))
        assert not torch.equal(stretched(raw, 1.0), raw)
        own, shared = experiment.method.silo_generator(experiment.silos[0]), experiment.server.generator()
        assert isinstance(shared, DiffusionGenerator)
        assert shared.diffusion.norm == (None if options.get("mode") else 1.0)  # what nested draws there is noised
        assert own is None or (isinstance(own, DiffusionGenerator) and own.diffusion.norm == 1.0)


def test_a_norm_and_what_it_costs_are_told_before_a_run() -> None:
    lines = [line for line in tiny_collafuse(norm=2.0).cost_lines(3, SHORT) if "squeezed" in line]
    assert lines == [
        "images whose norm is between 1 and 4 are squeezed into the norm 2 before noise is added, and stretched back "
        "when they are drawn; that multiplies errors of the norm by 2"
    ]
    assert not [line for line in tiny_collafuse(norm=4.0).cost_lines(3, SHORT) if "squeezed" in line]


def test_a_silo_that_releases_nothing_squeezes_nothing() -> None:
    assert everything(trained(tiny_collafuse(cut=1, norm=1.0))) == everything(trained(tiny_collafuse(cut=1)))
    assert tiny_collafuse(cut=1, norm=1.0, federate_silos=True, cuts={"s0": 0.5}).norm_at(1000) == 1.0


@pytest.mark.parametrize("norm", [1.0, 1.5])
def test_a_hand_over_is_exact_with_a_norm_and_is_not_if_silos_learn_other_images(
    norm: float,
) -> None:
    joined, apart = (norm_errors(norm, 0.5, steps=200, apart=apart) for apart in (False, True))
    assert joined["squeezed"] > 0.7
    assert max(joined["hand-over"], joined["end"]) < 0.02
    assert min(apart["hand-over"], apart["end"]) > 0.05


@pytest.mark.parametrize("options", [{"silo_steps": 2000}, {"distil": {"steps": 4, "rounds": 1}, "cut": 0.002}])
def test_a_silo_takes_no_more_steps_than_there_are(options: dict[str, Any]) -> None:
    method = tiny_collafuse(**options)
    assert method.steps_below_cut(method.step_of("s0"), SHORT) == method.step_of("s0")


def test_a_silo_that_is_tried_on_a_class_that_it_may_not_ask_for_is_told_before_training() -> None:
    images = tiny_images(12)
    assert images.labels is not None
    first = images.subset(np.flatnonzero(images.labels.numpy() == 0))
    silo = Silo("a", first, held_out=images)
    with pytest.raises(RecipeError, match="a: holds out images of class 1 but trains on none.*method.ask = 'any'"):
        Experiment(tiny_collafuse(), [silo], device="cpu")
    Experiment(tiny_collafuse(ask="any"), [silo], device="cpu")


def test_a_cut_is_the_same_however_it_is_told() -> None:
    step = tiny_collafuse(cut={"snr_db": -3.0}).step_of("s0")
    snr = tiny_collafuse().diffusion.schedule.snr()
    assert snr[step] <= 10**-0.3 < snr[step - 1]
    tighter = tiny_collafuse(cut={"epsilon": 5.0}).step_of("s0")
    assert tighter > tiny_collafuse(cut={"epsilon": 50.0}).step_of("s0")
    assert tiny_collafuse(cut={"epsilon": 5.0}, norm=1.0).step_of("s0") < tighter


def test_networks_of_silos_are_averaged_within_their_cluster(tmp_path: Path) -> None:
    method = tiny_collafuse(federate_silos=True, clusters={"a": ["s0", "s2"], "b": ["s1"]})
    experiment = trained(method)
    own = {silo.name: sha256(strip_prefix(silo.memory, "average.")) for silo in experiment.silos}
    assert own["s0"] == own["s2"] != own["s1"]
    alone = trained(tiny_collafuse(federate_silos=True), [tiny_silos()[1]])
    assert own["s1"] == sha256(strip_prefix(alone.silos[0].memory, "average."))
    rounds_of(Experiment(method, tiny_silos(), folder=tmp_path / "run", device="cpu", sampling=SHORT), 2)
    assert everything(trained(method, folder=tmp_path / "run", resume=True)) == everything(experiment)
    with pytest.raises(RecipeError, match="clusters: 's1' is in no cluster"):
        trained(tiny_collafuse(federate_silos=True, clusters={"a": ["s0", "s2"]}))
    with pytest.raises(ValidationError, match="clusters need federate_silos"):
        tiny_collafuse(clusters={"a": ["s0"]})


def test_a_silo_taught_to_finish_in_a_few_steps_does_and_goes_on_where_it_was(tmp_path: Path) -> None:
    method = tiny_collafuse(rounds=4, ema=0.5, distil={"steps": 2, "rounds": 2, "teacher_steps": 2})
    whole = trained(method)
    relay = whole.generators()["s0"]
    assert isinstance(relay, Relay)
    assert (relay.silo_steps, relay.distilled) == (2, True)
    assert relay.sample(2).isfinite().all()
    taught, teacher = (strip_prefix(whole.silos[0].memory, prefix) for prefix in ("average.", "teacher."))
    before = trained(tiny_collafuse(rounds=2, ema=0.5)).silos[0].memory
    assert sha256(teacher) == sha256(strip_prefix(before, "average.")) != sha256(taught)
    rounds_of(Experiment(method, tiny_silos(), folder=tmp_path / "run", device="cpu", sampling=SHORT), 3)
    assert everything(trained(method, folder=tmp_path / "run", resume=True)) == everything(whole)


def test_who_releases_anew_is_told_how_often_and_what_that_comes_to(tmp_path: Path) -> None:
    warnings = tiny_collafuse(release="fresh", rounds=100).warnings({"s0": 8})
    assert warnings == [
        "s0: releases each image about 100 times, each time with new noise: whoever averages these copies gets an SNR "
        "of 22.6 dB instead of 2.6 dB; release = 'once' avoids that"
    ]
    experiment = trained(tiny_collafuse(cut=0), folder=tmp_path / "run")
    assert experiment.run_folder is not None
    assert "s0: its cut is step 0, so it sends its images to the server as they are" in experiment.run_folder.problems
    assert not tiny_collafuse().warnings({"s0": 5})


def test_a_network_of_another_schedule_is_refused() -> None:
    experiment, other = trained(tiny_collafuse()), tiny_collafuse(diffusion={"schedule": {"kind": "linear"}})
    own = experiment.method.silo_generator(experiment.silos[0])
    with pytest.raises(RecipeError, match="s0: a network was trained on another schedule"):
        other.generator_for("s0", experiment.server.generator(), own, lambda message: message)


def test_costs_are_those_of_the_networks_and_the_share_of_the_chain() -> None:
    method = tiny_collafuse(cut=0.4)
    costs = method.costs("s0", 100, Sampling(steps=50))
    assert costs["draw_flops"] / costs["draw_flops_whole"] == pytest.approx(0.4)
    assert costs["bytes"] == 100 * (64 + 8)
    assert tiny_collafuse(labels="withhold").costs("s0", 100, SHORT)["bytes"] == 100 * 64
    assert costs["weights"] == costs["weights_whole"]
    alone = tiny_collafuse(cut=1).costs("s0", 100, Sampling(steps=50))
    assert alone["draw_flops"] == alone["draw_flops_whole"]
    assert alone["bytes"] == 0
    assert tiny_collafuse(cut=0).costs("s0", 100, Sampling(steps=50))["train_flops"] == 0
    measured = trained(tiny_collafuse(rounds=3))
    assert method.model_copy(update={"rounds": 3}).costs("s0", 5, SHORT)["train_flops"] == 6 * 4 * (
        costs["train_flops"] / (3 * 8)
    )
    assert measured.server.flops > 0


def test_before_a_silo_has_entered_it_may_neither_release_nor_draw() -> None:
    for options in ({}, {"release": "fresh"}):
        experiment = Experiment(tiny_collafuse(**options), tiny_silos(), device="cpu")
        part = {"images": torch.zeros(5, 1, 4, 4), "labels": torch.zeros(5).long()}
        for message in (Message("release", part, {"first": 0, "cut": 400, "turn": 0}), denoise()):
            with pytest.raises(Refused, match="out of sequence"):
                hub_of(experiment).submit("s0", message)


def test_nested_asks_for_the_end_of_the_servers_own_chain_and_goes_on_at_the_cut() -> None:
    experiment = trained(tiny_collafuse(mode="nested"))
    relay = experiment.generators()["s0"]
    assert isinstance(relay, Relay)
    assert (relay.server_stop, relay.cut, relay.silo_start) == (0, 400, 400)
    assert len(relay.sample(2)) == 2


def test_a_fresh_run_remembers_which_labels_were_told(tmp_path: Path) -> None:
    silos = [Silo("a", tiny_images(6)), Silo("b", tiny_images(6, seed=1))]
    assert silos[0].images.labels is not None
    silos[0] = Silo("a", silos[0].images.subset(np.flatnonzero(silos[0].images.labels.numpy() == 0)))
    method = tiny_collafuse(release="fresh")
    trained(method, silos, folder=tmp_path / "run")
    ended = trained(method, silos, folder=tmp_path / "run", resume=True)
    with pytest.raises(Refused, match="label of others"):
        ended.generators()["a"].sample(labels=[1])  # type: ignore[union-attr]


def test_a_silo_gives_nothing_more_to_a_server_that_lies_about_the_round() -> None:
    method = tiny_collafuse(release="fresh")
    talk = method.silo(tiny_silos()[0])
    said, sent = iter([0, 1, 1, 1, 1]), []

    def answered(message: Message) -> Message:
        sent.append(message.op)
        if message.op == "enter":
            return Message("enter", {}, {"held": 0, "began": True, "round": 0})
        facts = {"round": next(said), "done": False, "seed": 0} if message.op != "release" else {"held": 1}
        return Message(message.op, {}, facts)

    def talked() -> None:
        message = next(talk)
        while True:
            message = talk.send(answered(message))

    with pytest.raises(Refused, match="stale round: the server says round 1 of 3 after round 1"):
        talked()
    assert sent.count("release") == 2


def test_randomised_labels_are_told_the_same_each_time() -> None:
    silo = tiny_silos((9,))[0]
    releases = [
        noising_of(tiny_collafuse(release="fresh", labels="randomised"), silo, turn).release(
            silo.images, torch.arange(9)
        )
        for turn in (0, 1)
    ]
    assert torch.equal(releases[0]["labels"], releases[1]["labels"])
    assert not torch.equal(releases[0]["images"], releases[1]["images"])
    twice = noising_of(tiny_collafuse(release="fresh"), silo).release(silo.images, torch.tensor([0, 0]))["images"]
    assert not torch.equal(twice[0], twice[1])
    once = noising_of(tiny_collafuse(), silo).release(silo.images, torch.tensor([0, 0]))["images"]
    assert torch.equal(once[0], once[1])


def test_two_silos_with_the_same_image_share_no_noise_and_no_secret_is_shown() -> None:
    silos = [Silo(name, tiny_images(1), secret=secret) for name, secret in (("a", ""), ("b", ""), ("c", "hidden"))]
    released = [noising_of(tiny_collafuse(), silo).release(silo.images, torch.arange(1))["images"] for silo in silos]
    assert not torch.equal(released[0], released[1])
    assert "hidden" not in repr(silos[2]) + repr(noising_of(tiny_collafuse(), silos[2]))


def test_a_server_whose_training_diverges_ends_the_run_by_name() -> None:
    server = server_of(trained(tiny_collafuse()))
    server._losses = [torch.tensor(float("nan"))]
    with pytest.raises(RecipeError, match="the server's loss or weights are not finite; lower its learning_rate"):
        server._close()
