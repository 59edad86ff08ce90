"""The laws of federated averaging, on a network of a few thousand weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field

from manyhands import Central, Experiment, Local, Silo, Training, UNet
from manyhands.errors import QuorumLost, Reason, RecipeError, Refused
from manyhands.links.in_process import InProcess
from manyhands.messages.message import Message
from manyhands.methods.base import Conversation
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.learners.base import LocalResult
from manyhands.silos.local_training import load_optimiser_state, optimiser_state, steps
from manyhands.silos.silo import DeviceContext
from manyhands.tensors import sha256
from tests.conftest import tiny_fedavg, tiny_images, tiny_silos


def trained(method: FedAvg, silos: list[Silo], seed: int = 0, **options: Any) -> Experiment:
    experiment = Experiment(method, silos, seed, device="cpu", **options)
    for _ in experiment:
        pass
    return experiment


def weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    return experiment.server.weights  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("keep", [False, True])
def test_one_silo_is_local_training(keep: bool) -> None:
    method, silo = tiny_fedavg(keep_optimiser=keep), tiny_silos([9])[0]
    federated = weights(trained(method, [silo]))

    alone = method.model.build(seed=0)
    images = silo.images
    kept: dict[str, torch.Tensor] = {}
    for number in range(method.rounds):
        rng = Silo("s0", images, seed=0).rng(number)
        optimiser = method.training.optimiser_of(alone, number / method.rounds)
        load_optimiser_state(optimiser, kept)
        batches = list(method.training.batches(len(images), rng))
        for _ in steps(
            alone,
            optimiser,
            batches,
            lambda n, rng=rng: method.diffusion.loss(alone, *images.batch(n), 2, rng),
            clip=1.0,
        ):
            pass
        kept = optimiser_state(optimiser) if keep else {}
    assert sha256(federated) == sha256(alone.state_dict())


def test_the_same_run_twice_is_the_same_and_another_seed_is_not() -> None:
    first, again, other = (weights(trained(tiny_fedavg(), tiny_silos(), seed)) for seed in (0, 0, 1))
    assert sha256(first) == sha256(again) != sha256(other)


def test_the_order_of_silos_does_not_change_a_bit() -> None:
    silos = tiny_silos()
    hashes = {sha256(weights(trained(tiny_fedavg(), order))) for order in (silos, silos[::-1], silos[1:] + silos[:1])}
    assert len(hashes) == 1


def test_a_frozen_model_returns_itself() -> None:
    class Frozen(FedAvg):
        def train_round(
            self, network: Any, optimiser: Any, silo: Silo, number: int, proximal: Any = None
        ) -> LocalResult:
            return LocalResult(0.0)

    method = Frozen.model_validate(tiny_fedavg(ema=0.5).model_dump())
    start = method.server(0, ["s0"]).weights
    assert sha256(weights(trained(method, tiny_silos()))) == sha256(start)


def test_the_mean_is_weighted_by_images() -> None:
    method = tiny_fedavg(rounds=1)
    silos = tiny_silos([4, 12])
    alone = [weights(trained(method, [silo])) for silo in silos]
    both = weights(trained(method, silos))
    for name, tensor in both.items():
        expected = (4 * alone[0][name].double() + 12 * alone[1][name].double()) / 16
        assert torch.equal(tensor, expected.float())


def test_ema_is_what_is_drawn_from_and_never_what_silos_train_from() -> None:
    plain, smoothed = trained(tiny_fedavg(), tiny_silos()), trained(tiny_fedavg(ema=0.9), tiny_silos())
    assert sha256(weights(plain)) == sha256(weights(smoothed))
    assert sha256(plain.generator().weights) == sha256(weights(plain))
    assert sha256(smoothed.generator().weights) != sha256(weights(smoothed))


def test_participants_are_drawn_without_replacement_and_the_others_rest() -> None:
    silos = tiny_silos([4] * 7)
    experiment = Experiment(tiny_fedavg(rounds=12, participants=3), silos, device="cpu")
    seen = [set(done.losses) for done in experiment]
    assert all(len(each) == 3 for each in seen)
    assert set().union(*seen) == {silo.name for silo in silos}
    assert len({frozenset(each) for each in seen}) > 3
    model = sum(t.numel() * 4 for t in weights(experiment).values())
    up = [e for e in experiment.ledger.entries() if e["direction"] == "up" and e["op"] == "update"]
    assert sum(e["messages"] for e in up) == 12 * 7
    assert 36 * model < sum(e["bytes"] for e in up) < 36 * (model + 10_000) + 12 * 7 * 300


def test_a_silo_with_fewer_images_than_a_batch_works() -> None:
    done = list(Experiment(tiny_fedavg(), tiny_silos([1, 30]), device="cpu"))
    assert done[0].images_seen == 2 * (1 + 4)


def test_unconditional_models_train_and_labels_are_not_used() -> None:
    model = UNet(size=4, channels=1, classes=0, widths=(8,))
    silos = [Silo("s0", tiny_images(8))]
    blind = [Silo("s0", type(silos[0].images)(silos[0].images.pixels))]
    one, other = (trained(tiny_fedavg(model=model), each) for each in (silos, blind))
    assert sha256(weights(one)) == sha256(weights(other))
    assert one.generator().sample(3).shape == (3, 1, 4, 4)


class Bent(FedAvg):
    """Federated averaging in which one silo says something else than it should."""

    bend: Any = Field(default=None, exclude=True)
    who: str = "s1"

    def silo(self, silo: Silo) -> Conversation:
        inner, answer = super().silo(silo), None
        bent = silo.name == self.who
        while True:
            try:
                message = next(inner) if answer is None else inner.send(answer)
                while True:
                    try:
                        answer = yield self.bend(message) if bent and message.tensors else message
                        break
                    except Refused as refusal:
                        message = inner.throw(refusal)
            except StopIteration:
                return


def changed(message: Message, **facts: object) -> Message:
    return Message(message.op, message.tensors, {**message.facts, **facts})


def with_tensor(message: Message, change: Any) -> Message:
    name = min(message.tensors)
    return Message(message.op, {**message.tensors, name: change(message.tensors[name])}, message.facts)


BENDS = {
    Reason.MISSING_TENSOR: lambda m: Message(m.op, dict(list(m.tensors.items())[1:]), m.facts),
    Reason.UNEXPECTED_TENSOR: lambda m: Message(m.op, {**m.tensors, "extra": torch.zeros(1)}, m.facts),
    Reason.WRONG_SHAPE: lambda m: with_tensor(m, lambda t: t[:1].clone()),
    Reason.WRONG_DTYPE: lambda m: with_tensor(m, lambda t: t.double()),
    Reason.NOT_FINITE: lambda m: with_tensor(m, lambda t: t * float("nan")),
    Reason.WRONG_WEIGHT: lambda m: changed(m, images=10**9),
    Reason.WRONG_FACTS: lambda m: changed(m, extra=1),
}


@pytest.mark.parametrize("reason", list(BENDS), ids=str)
def test_a_refused_update_is_named_and_the_mean_of_the_others_is_the_same_to_the_bit(reason: Reason) -> None:
    options = tiny_fedavg(rounds=1).model_dump()
    method = Bent.model_validate({**options, "bend": BENDS[reason]})
    experiment = Experiment(method, tiny_silos(), device="cpu")
    done = list(experiment)
    assert str(reason) in done[0].missing["s1"]
    assert set(done[0].losses) == {"s0", "s2"}
    silos = tiny_silos()
    others = trained(tiny_fedavg(rounds=1), [silos[0], silos[2]])
    assert sha256(weights(experiment)) == sha256(weights(others))


def test_a_nan_loss_withholds_the_update_by_name_and_the_run_goes_on() -> None:
    class Sick(FedAvg):
        def train_round(
            self, network: Any, optimiser: Any, silo: Silo, number: int, proximal: Any = None
        ) -> LocalResult:
            result = super().train_round(network, optimiser, silo, number)
            return result._replace(loss=float("nan")) if silo.name == "s1" and number == 0 else result

    experiment = Experiment(Sick.model_validate(tiny_fedavg().model_dump()), tiny_silos(), device="cpu")
    done = list(experiment)
    assert done[0].missing == {"s1": "its loss is not finite"}
    assert set(done[0].losses) == {"s0", "s2"}
    assert set(done[1].losses) == {"s0", "s1", "s2"}
    assert all(torch.isfinite(t).all() for t in weights(experiment).values())


def test_weights_that_are_not_finite_are_withheld_and_leave_nothing_behind() -> None:
    class Broken(FedAvg):
        def train_round(
            self, network: Any, optimiser: Any, silo: Silo, number: int, proximal: Any = None
        ) -> LocalResult:
            result = super().train_round(network, optimiser, silo, number)
            if silo.name == "s1" and number == 1:
                next(network.parameters()).data.fill_(float("inf"))
            return result

    method = Broken.model_validate(tiny_fedavg(keep_optimiser=True).model_dump())
    experiment = Experiment(method, tiny_silos(), device="cpu")
    assert [done.missing for done in experiment] == [{}, {"s1": "its weights are not finite"}, {}]
    assert all(torch.isfinite(tensor).all() for tensor in weights(experiment).values())


def test_local_silos_exchange_nothing_and_are_each_on_their_own() -> None:
    options = {"model": tiny_fedavg().model, "training": tiny_fedavg().training, "rounds": 3}
    silos = tiny_silos()
    together = Experiment(Local(**options), silos, device="cpu")
    list(together)
    assert all(
        not operation.up.tensors and not operation.down.tensors
        for operation in Local(**options).plan().operations.values()
    )
    alone = Experiment(Local(**options), [silos[1]], device="cpu")
    list(alone)
    assert sha256(together.generator("s1").weights) == sha256(alone.generator("s1").weights)
    assert sha256(together.generator("s1").weights) != sha256(together.generator("s0").weights)
    kept = trained(tiny_fedavg(keep_optimiser=True), [silos[1]])
    assert sha256(alone.generator("s1").weights) == sha256(weights(kept))


def test_central_sees_as_many_images_as_all_silos_together() -> None:
    options = {"model": tiny_fedavg().model, "training": tiny_fedavg().training, "rounds": 3}
    central = list(Experiment(Central(**options, silos=3), [Silo("pooled", tiny_images(24))], device="cpu"))
    federated = list(Experiment(tiny_fedavg(), tiny_silos([8, 8, 8]), device="cpu"))
    assert [done.images_seen for done in central] == [done.images_seen for done in federated]


def test_half_precision_on_the_wire_halves_the_bytes_and_stays_close() -> None:
    full = trained(tiny_fedavg(), tiny_silos())
    half = trained(tiny_fedavg(up={"kind": "bfloat16"}, down={"kind": "float16"}), tiny_silos())
    model = sum(t.numel() * 4 for t in weights(full).values())
    for way in ("up", "down"):
        assert full.ledger.bytes(way) - half.ledger.bytes(way) == pytest.approx(9 * model / 2, rel=0.01)  # type: ignore[arg-type]
    assert sha256(weights(full)) != sha256(weights(half))
    distance = max((weights(full)[n] - weights(half)[n]).abs().max() for n in weights(full))
    assert distance < 0.15  # 6 steps of Adam at a rate of 0.01 move no weight further than 0.06


def test_the_plan_of_the_wire_names_every_tensor_and_never_an_image() -> None:
    plan = tiny_fedavg().plan()
    assert set(plan.operations) == {"join", "update"}
    assert plan.barriers == {"update"}
    words = "\n".join(plan.words())
    assert "in no message: images, labels, file names" in words


def test_a_workbench_keeps_one_copy_of_each_network() -> None:
    context, method = DeviceContext(), tiny_fedavg()
    assert context.network(method.model) is context.network(tiny_fedavg().model)
    assert context.network(method.model) is not context.network(method.model.model_copy(update={"widths": (16,)}))


def test_counted_and_encoded_runs_end_in_the_same_bits() -> None:
    runs = [
        trained(tiny_fedavg(), tiny_silos(), link=InProcess.model_validate({"wire": w})) for w in ("count", "bytes")
    ]
    assert sha256(weights(runs[0])) == sha256(weights(runs[1]))
    assert runs[0].ledger.entries() == runs[1].ledger.entries()


def test_an_update_of_a_silo_that_was_not_drawn_is_refused() -> None:
    server = tiny_fedavg(participants=1).server(0, ["s0", "s1"])
    asked = [bool(server.handle(name, Message("join")).tensors) for name in ("s0", "s1")]
    assert sorted(asked) == [False, True]
    resting = "s0" if asked[1] else "s1"
    with pytest.raises(Refused, match="not asked"):
        server.validate(resting, Message("update", {"x": torch.zeros(1)}))


def test_when_no_silo_has_anything_to_send_the_run_stops() -> None:
    class Sick(FedAvg):
        def train_round(
            self, network: Any, optimiser: Any, silo: Silo, number: int, proximal: Any = None
        ) -> LocalResult:
            return LocalResult(float("nan"))

    with pytest.raises(QuorumLost, match="s0: its loss is not finite"):
        trained(Sick.model_validate(tiny_fedavg().model_dump()), tiny_silos())


def test_a_nan_among_the_facts_is_refused_by_name() -> None:
    method = Bent.model_validate(
        {**tiny_fedavg(rounds=1).model_dump(), "bend": lambda m: changed(m, loss=float("nan"))}
    )
    done = list(Experiment(method, tiny_silos(), device="cpu"))
    assert "malformed" in done[0].missing["s1"]
    assert set(done[0].losses) == {"s0", "s2"}


def test_the_learning_rate_of_the_last_round_is_the_share_that_was_asked() -> None:
    method = tiny_fedavg(rounds=5, training=Training(batch=4, steps=1, learning_rate=0.1, learning_rate_end=0.05))
    assert method.training.rate(method.progress(0)) == pytest.approx(0.1)
    assert method.training.rate(method.progress(4)) == pytest.approx(0.005)


def test_silos_that_do_not_fit_the_model_are_told_before_any_training() -> None:
    images = tiny_images(4)
    for bad, said in [
        (tiny_images(0), "has no images"),
        (tiny_images(4, size=8), "has images of 1 x 8 x 8, the model is for 1 x 4"),
        (type(images)(images.pixels), "has no labels"),
        (tiny_images(4, classes=3), "has 3 classes, the model is for 2"),
    ]:
        with pytest.raises(RecipeError, match=f"s0: {said}"):
            Experiment(tiny_fedavg(), [Silo("s0", bad)], device="cpu")


def test_silos_must_have_names_of_their_own_that_can_be_folders() -> None:
    silos = [Silo("same", tiny_images(4)), Silo("same", tiny_images(4))]
    with pytest.raises(RecipeError, match="two silos are called 'same'"):
        Experiment(tiny_fedavg(), silos, device="cpu")
    for name in ("../up", "", "Big", "a/b", "a" * 64):
        with pytest.raises(RecipeError, match="silo name"):
            Silo(name, tiny_images(4))


def test_an_experiment_runs_once_and_with_as_many_silos_as_it_asks_for() -> None:
    experiment = trained(tiny_fedavg(), tiny_silos())
    with pytest.raises(RecipeError, match="has run"):
        list(experiment)
    for options, method in [({"quorum": 4}, tiny_fedavg()), ({}, tiny_fedavg(participants=4))]:
        with pytest.raises(RecipeError, match="is 4, but there are 3 silos"):
            Experiment(method, tiny_silos(), device="cpu", **options)
    with pytest.raises(RecipeError, match="there are 0 silos"):
        Experiment(tiny_fedavg(), [], device="cpu")
