"""The protocol: the same real images whoever holds them, as many samples as real ones, nothing silently mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manyhands import Central, Experiment, Iid, Local, Sampling, Shards, Silo, UNet, split
from manyhands.data.images import Images, as_floats, checked
from manyhands.errors import DataError
from manyhands.evaluation import metrics, verdict
from manyhands.evaluation.evaluator import Evaluator
from manyhands.evaluation.spec import Evaluation
from manyhands.seed import seed_of
from tests.conftest import FEDAVG_ONLY, holding_silos, sharp_images, tiny_fedavg

FEW = Evaluation(images=60, bootstrap=3)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(FEW, holding_silos())


def test_real_images_score_like_real_images_and_noise_does_not(evaluator: Evaluator) -> None:
    floor = evaluator.floor()
    assert evaluator.measure(evaluator.embed(evaluator.held.pixels), cas=False) == pytest.approx(floor)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, evaluator.held.pixels.shape, dtype=torch.uint8, generator=rng)
    figures = evaluator.measure(evaluator.embed(noise))
    assert figures["fid"] > 5 * floor["fid"]
    assert figures["kid"] > floor["kid"]
    assert figures["coverage"] < floor["coverage"]
    assert figures["label_match"] < floor["label_match"] == 1


def test_who_holds_the_images_and_the_seed_of_the_deal_change_nothing(evaluator: Evaluator) -> None:
    images = sharp_images(200).hold_out(0.4)
    for silos in (split(images, Iid(silos=5), seed=3), split(images, Shards(silos=2, classes_per_silo=1), seed=1)):
        other = Evaluator(FEW, silos)
        assert other.data == evaluator.data
        assert torch.equal(other.held.pixels, evaluator.held.pixels)
        assert torch.equal(other.real.pixels, evaluator.real.pixels)
        assert other.classifier.name == evaluator.classifier.name
        assert other.floor() == evaluator.floor()


def test_counts_are_never_more_than_are_held_out_and_are_told(evaluator: Evaluator) -> None:
    assert len(evaluator.held) == 60
    assert len(Evaluator(Evaluation(images=1000), holding_silos()).held) == 80
    with pytest.raises(DataError, match="12 are needed"):
        Evaluator(FEW, [Silo("s", sharp_images(20), held_out=sharp_images(5, seed=1))])
    with pytest.raises(DataError, match="0 images are held out"):
        Evaluator(FEW, [Silo("s", sharp_images(20))])
    with pytest.raises(DataError, match="one for each held-out image"):
        evaluator.embed(evaluator.held.pixels[:10])


def test_training_images_handed_back_raise_the_alarm(evaluator: Evaluator) -> None:
    of_class = [np.flatnonzero(evaluator.real.labels == label) for label in (0, 1)]
    chosen = [of_class[label][i % 40] for i, label in enumerate(evaluator.labels.tolist())]
    copies = evaluator.measure(evaluator.embed(evaluator.real.pixels[chosen]), cas=False)
    assert copies["memorised"] == 1
    floor = evaluator.floor()
    assert "memorisation: 100%" in verdict.notes(copies, floor, images=80, dimensions=64)[0]
    assert not [note for note in verdict.notes(floor, floor, images=80, dimensions=64) if "memorisation" in note]
    assert floor["memorised"] < verdict.ALARM


def test_cas_trains_on_the_samples_alone(evaluator: Evaluator) -> None:
    real = evaluator.floor(cas=True)
    assert real["cas"] > 0.9
    wrong = evaluator.measure(evaluator.embed(evaluator.held.pixels.flip(2)), cas=True)  # above and below exchanged
    assert wrong["cas"] < 0.2
    assert wrong["cas_fpr"] > 0.8


def test_groups_are_silos_classes_and_domains_with_their_own_counts() -> None:
    images = sharp_images(300)
    images = replace(images, domain=(torch.arange(300) % 3 == 0).long(), domains=("day", "night")).hold_out(0.4)
    evaluator = Evaluator(Evaluation(images=100, bootstrap=0), split(images, Iid(silos=2)))
    groups = evaluator.groups([evaluator.embed(evaluator.held.pixels)])
    assert set(groups) == {"silos", "classes", "domains"}
    for rows in groups.values():
        assert sum(row["images"] for row in rows.values()) == 100
        assert sum(row["reference"] for row in rows.values()) == len(evaluator.real)
        for row in rows.values():
            assert row["metrics"] == pytest.approx(row["floor"])
    assert set(groups["classes"]) == {"above", "below"}
    assert set(groups["domains"]) == {"day", "night"}


def test_a_small_group_is_counted_but_not_measured() -> None:
    silos = [
        Silo("large", sharp_images(60), held_out=sharp_images(40, seed=1)),
        Silo("small", sharp_images(20, 2), held_out=sharp_images(3, seed=3)),
    ]
    evaluator = Evaluator(FEW, silos)
    groups = evaluator.groups([evaluator.embed(evaluator.held.pixels)])
    assert "metrics" not in groups["silos"]["small"]
    assert groups["silos"]["small"]["images"] == 3
    assert "metrics" in groups["silos"]["large"]


def ended(method: object, silos: list[Silo], every: int = 0, **options: object) -> Experiment:
    evaluation = FEW.model_copy(update={"every": every})
    experiment = Experiment(method, silos, device="cpu", sampling=Sampling(steps=3), evaluation=evaluation, **options)  # type: ignore[arg-type]
    for _ in experiment:
        pass
    return experiment


def test_a_verdict_has_floor_spread_protocol_and_repeats() -> None:
    experiment = ended(tiny_fedavg(), holding_silos())
    result = experiment.evaluate()
    assert set(result["metrics"]) == set(result["floor"])
    assert result["spread"]["fid"] > 0
    assert result["spread_of"] == "3 random halves of the samples"
    protocol = result["protocol"]
    assert protocol["images"] == 60
    assert protocol["sampling"]["steps"] == 3
    assert protocol["weights"] == "raw"
    assert experiment.evaluate()["metrics"] == result["metrics"]
    assert ended(tiny_fedavg(ema=0.5), holding_silos()).evaluate()["protocol"]["weights"] == "average over rounds"


def test_several_draws_give_a_mean_and_a_deviation_over_them() -> None:
    experiment = ended(tiny_fedavg(), holding_silos())
    generators, sampling = experiment.generators(), experiment.sampling
    evaluator = Evaluator(FEW.model_copy(update={"seeds": 3}), experiment.silos)
    result = evaluator(generators, sampling)
    draws = [evaluator.measure(evaluator.embed(evaluator.draw(generators, sampling, seed))) for seed in range(3)]
    fids = [draw["fid"] for draw in draws]
    assert len(set(fids)) == 3
    assert result["metrics"]["fid"] == pytest.approx(np.mean(fids))
    assert result["spread"]["fid"] == pytest.approx(np.std(fids, ddof=1))
    assert result["protocol"]["seeds"] == [0, 1, 2]


def test_silos_with_generators_of_their_own_are_judged_by_those() -> None:
    local = Local.model_validate(tiny_fedavg().model_dump(exclude=FEDAVG_ONLY))
    experiment = ended(local, holding_silos())
    generators = experiment.generators()
    evaluator = Evaluator(FEW, experiment.silos)
    samples = evaluator.draw(generators, experiment.sampling)
    for i, name in enumerate(evaluator.silos):
        is_own = evaluator.held_silo == i
        labels = evaluator.labels[is_own].tolist()
        own = generators[name].sample(labels=labels, seed=seed_of(0, name), sampling=experiment.sampling)
        assert torch.equal(samples[is_own], checked(own))
    with pytest.raises(DataError, match="silo-1: no generator"):
        evaluator.draw({"silo-0": generators["silo-0"]}, experiment.sampling)


def test_central_and_federated_are_held_against_the_same_images() -> None:
    images = sharp_images(200).hold_out(0.4)
    train, held = images.split_held_out()
    fields = tiny_fedavg().model_dump(exclude=FEDAVG_ONLY)
    central = ended(Central.model_validate(fields), [Silo("pooled", train, held_out=held)]).evaluate()
    federated = ended(tiny_fedavg(), split(images, Iid(silos=3))).evaluate()
    assert central["protocol"] == federated["protocol"]
    assert central["floor"] == federated["floor"]
    assert "silos" not in central["groups"]


def test_an_unconditional_generator_is_not_asked_for_classes() -> None:
    method = tiny_fedavg(model=UNet(size=4, channels=1, classes=0, widths=(8,)))
    result = ended(method, holding_silos()).evaluate()
    assert not {"label_match", "cas", "generation_score"} & set(result["metrics"])
    assert "classes" not in result["groups"]
    images = replace(sharp_images(200), labels=None, classes=()).hold_out(0.4)
    bare = split(images, Iid(silos=2))
    result = ended(method, bare).evaluate()
    assert result["classifier"]["labels"] is False
    assert result["metrics"]["fid"] > 0


def test_samples_that_are_not_images_are_an_error(evaluator: Evaluator) -> None:
    with pytest.raises(DataError, match=r"in \[-1, 1\] or uint8"):
        evaluator.embed(as_floats(evaluator.held.pixels) * 2)


def test_rounds_are_measured_and_pictured_as_the_recipe_says(tmp_path: Path) -> None:
    options = {"evaluation": FEW.model_copy(update={"every": 2}), "folder": tmp_path / "run", "device": "cpu"}
    experiment = Experiment(tiny_fedavg(rounds=4), holding_silos(), sampling=Sampling(steps=2), **options)  # type: ignore[arg-type]
    rounds = list(experiment)
    assert [bool(done.metrics) for done in rounds] == [False, True, False, False]
    folder = experiment.run_folder
    assert folder is not None
    assert [done.metrics for done in folder.rounds] == [done.metrics for done in rounds]
    assert [folder.round_picture(number).exists() for number in (1, 2, 3, 4)] == [False, True, False, True]
    assert folder.report["metrics"]["fid"] > 0
    assert folder.report["at_end"]["metrics"]["fid"] == folder.report["metrics"]["fid"]


def test_evaluating_on_the_way_changes_no_weight(tmp_path: Path) -> None:
    plain, options = tiny_fedavg(), {"evaluation": FEW.model_copy(update={"every": 1})}
    first = Experiment(plain, holding_silos(), device="cpu", sampling=Sampling(steps=2))
    second = Experiment(
        plain, holding_silos(), device="cpu", sampling=Sampling(steps=2), folder=tmp_path / "run", **options
    )  # type: ignore[arg-type]
    for experiment in (first, second):
        for _ in experiment:
            pass
    a, b = (experiment.generator().weights for experiment in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_cannot_be_measured_is_a_run_all_the_same(tmp_path: Path) -> None:
    silos = [Silo("s", sharp_images(20))]
    experiment = Experiment(tiny_fedavg(), silos, folder=tmp_path / "run", device="cpu", sampling=Sampling(steps=2))
    assert len(list(experiment)) == 3
    assert experiment.run_folder is not None
    assert "not evaluated" in experiment.run_folder.report["problems"][0]
    assert "not evaluated" in (tmp_path / "run" / "report.html").read_text()


def test_missing_weights_of_inception_are_told_before_the_run(tmp_path: Path) -> None:
    evaluation = Evaluation(features=f"inception:{tmp_path / 'none.pth'}")
    with pytest.raises(DataError, match="there are no Inception weights here"):
        Experiment(tiny_fedavg(), holding_silos(), evaluation=evaluation)


def test_a_generator_that_learnt_nothing_finite_is_named(evaluator: Evaluator) -> None:
    made = ended(tiny_fedavg(rounds=1), holding_silos()).generator()
    broken = replace(made, weights={name: t * float("nan") for name, t in made.weights.items()})
    with pytest.raises(DataError, match="not finite"):
        evaluator.draw(dict.fromkeys(evaluator.silos, broken), Sampling(steps=2))


def test_what_is_held_out_depends_on_the_images_alone_and_on_each_class() -> None:
    images = sharp_images(100)
    held = images.hold_out(0.25)
    assert held.held is not None
    again = images.hold_out(0.25).held
    assert again is not None
    assert torch.equal(held.held, again)
    assert images.labels is not None
    for label in (0, 1):
        of_class = images.labels == label
        assert int(held.held[of_class].sum()) == round(0.25 * int(of_class.sum()))
    train, out = held.split_held_out()
    assert len(train) + len(out) == 100
    assert not set(train.rows.tolist()) & set(out.rows.tolist())  # type: ignore[union-attr]


def test_silos_that_hold_nothing_out_take_no_image_of_another_one() -> None:
    silos = [Silo("a", sharp_images(40)), Silo("b", sharp_images(60, 1), held_out=sharp_images(40, 2))]
    evaluator = Evaluator(FEW, silos)
    rows = evaluator.groups([evaluator.embed(evaluator.held.pixels)])["silos"]
    assert {name: (row["images"], row["reference"]) for name, row in rows.items()} == {"a": (0, 40), "b": (40, 60)}


def test_the_figures_of_a_silo_are_those_of_its_own_images() -> None:
    silos = holding_silos()
    evaluator = Evaluator(Evaluation(images=80, bootstrap=0), silos)
    samples = evaluator.embed(evaluator.held.pixels.flip(2))
    row = evaluator.groups([samples])["silos"]["silo-0"]["metrics"]
    generated, reference = (
        samples.embedding.features[evaluator.held_silo == 0],
        evaluator._real.features[evaluator.real_silo == 0],
    )
    assert row["fid"] == pytest.approx(metrics.Fid(reference)(generated))
    assert row["label_match"] < 0.5
    own = {pixels.numpy().tobytes() for pixels in (silos[0].held_out or silos[0].images).pixels}
    assert {pixels.numpy().tobytes() for pixels in evaluator.held.pixels[evaluator.held_silo == 0]} == own


def test_nobody_is_measured_against_what_is_held_out(evaluator: Evaluator) -> None:
    def rows(images: Images) -> set[bytes]:
        return {pixels.numpy().tobytes() for pixels in images.pixels}

    assert not rows(evaluator.held) & rows(evaluator.real)


def test_the_spread_of_one_draw_is_that_of_fresh_draws() -> None:
    """Halves of one set vary as fresh sets do; with replacement they vary twice as much."""
    images = sharp_images(3000)
    silo = Silo("s", images.subset(np.arange(1500)), held_out=images.subset(np.arange(1500, 3000)))
    evaluator = Evaluator(Evaluation(images=150, bootstrap=60), [silo])
    spread = evaluator.verdict([evaluator.held.pixels])["spread"]["fid"]
    rest = evaluator.extractor(images.pixels[1500:]).features
    fresh = [evaluator._fid(part) for part in torch.split(rest, 150)]
    assert 0.5 < spread / float(np.std(fresh, ddof=1)) < 1.6


def test_images_that_differ_in_what_is_known_of_them_are_no_judge() -> None:
    blind = replace(sharp_images(40), labels=None)
    with pytest.raises(DataError, match="labels"):
        Evaluator(FEW, [Silo("s", sharp_images(40), held_out=blind)])


def test_which_way_up_an_image_is_makes_no_inception_score() -> None:
    blind = replace(sharp_images(100), labels=None, classes=()).hold_out(0.4)
    assert "inception_score" not in Evaluator(FEW, split(blind, Iid(silos=2))).floor()


@pytest.mark.parametrize("images", [1, 11])
def test_too_few_images_are_refused_before_the_run(images: int) -> None:
    with pytest.raises(ValueError, match="12 or more, or 0"):
        Evaluation(images=images)


def test_a_run_of_which_the_end_cannot_be_measured_ends_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("Input contains NaN")

    monkeypatch.setattr(Evaluator, "verdict", fails)
    experiment = ended(tiny_fedavg(), holding_silos(), folder=tmp_path / "run", every=1)
    assert "not evaluated: Input contains NaN" in experiment.run_folder.report["problems"]
    assert "Quality over rounds" in (tmp_path / "run" / "report.html").read_text()
