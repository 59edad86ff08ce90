"""What holds for every rival of a cut GAN: it stops and goes on, leaves out who is sick, and cites its paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Evaluation, Experiment, Images, Message, Silo, load_recipe
from manyhands.errors import ManyhandsError, RecipeError
from manyhands.generators.base import ImageGenerator
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.gans.hflgan import HFLGan
from manyhands.methods.gans.mdgan import MDGan
from manyhands.methods.gans.pflgan import PFLGan
from manyhands.methods.gans.splitgan import SplitGan
from manyhands.runs.citation import citations
from manyhands.runs.finished import loaded_generator
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import Tensors
from tests.methods.huscf.test_method import SMALL, Broken, gan_silos, trained

QUIET: dict[str, Any] = {"evaluation": Evaluation(images=0)}
PAPERS = {"mdgan": "1811.03850", "splitgan": "2207.01750", "pflgan": "2308.12454", "hflgan": "s10489-024-05924-x"}


def every(**options: Any) -> list[GanMethod]:
    """Each of them, so that all that it does it does in a few rounds."""
    base = {"model": SMALL, "training": {"batch": 4, "steps": 3, "learning_rate": 1e-3}, "rounds": 4, **options}
    return [
        MDGan.model_validate(base),
        SplitGan.model_validate(base),
        PFLGan.model_validate({**base, "every": 2}),
        HFLGan.model_validate({**base, "regroup": 1, "globally": 3}),
    ]


every_method = pytest.mark.parametrize("method", every(ema=0.5), ids=lambda method: method.kind)


def kept(experiment: Experiment) -> Tensors:
    """All that is left of a run."""
    memories = {f"{silo.name}/{name}": t for silo in experiment.silos for name, t in silo.memory.items()}
    return memories | experiment.server.state_dict()


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@every_method
@pytest.mark.parametrize("stops", [0, 1, 2])
def test_a_run_that_stopped_goes_on_to_the_same_bits(method: GanMethod, stops: int, tmp_path: Path) -> None:
    whole = trained(method, gan_silos(), **QUIET)
    stopped = Experiment(method, gan_silos(), device="cpu", folder=tmp_path / "run", **QUIET)
    for done in stopped:
        if done.number == stops:
            break
    again = Experiment(method, gan_silos(), device="cpu", folder=tmp_path / "run", resume=True, **QUIET)
    assert len(list(again)) == 3 - stops
    assert same(kept(whole), kept(again))
    drawn = whole.drawing("s1").sample(labels=[0, 1, 1])
    assert torch.equal(drawn_by_silo(tmp_path / "run").sample(labels=[0, 1, 1]), drawn)


def drawn_by_silo(folder: Path) -> ImageGenerator:
    drawing = loaded_generator(RunFolder(folder), "s1")
    assert isinstance(drawing, ImageGenerator)
    return drawing


@every_method
def test_what_is_really_encoded_gives_the_same(method: GanMethod) -> None:
    counted, encoded = (trained(method, gan_silos(), link=InProcess(wire=wire)) for wire in ("count", "bytes"))
    assert same(kept(counted), kept(encoded))
    assert counted.ledger.entries() == encoded.ledger.entries()


@every_method
@pytest.mark.parametrize("bad", [[0], [2], [0, 1]])
def test_a_sick_silo_is_left_out_and_the_others_go_on(method: GanMethod, bad: list[int]) -> None:
    silos = gan_silos()
    for i in bad:
        was = silos[i].images
        silos[i].images = Broken(was.pixels, was.labels, was.classes)
    experiment = Experiment(method, silos, device="cpu")
    rounds = list(experiment)
    assert [sorted(done.losses) for done in rounds] == [[f"s{i}" for i in range(3) if i not in bad]] * 4
    assert all("finite" in done.missing[f"s{i}"] or "NaN" in done.missing[f"s{i}"] for done in rounds for i in bad)
    assert all(tensor.isfinite().all() for tensor in kept(experiment).values())


@every_method
def test_work_and_bytes_are_counted(method: GanMethod) -> None:
    rounds = list(Experiment(method, gan_silos(), device="cpu"))
    assert all(set(done.flops) == {"s0", "s1", "s2"} and done.images_seen == 36 for done in rounds)
    assert any(done.server_flops for done in rounds) == (method.model_dump()["kind"] != "hflgan")
    assert all(done.bytes_up and done.bytes_down for done in rounds)


@every_method
def test_no_other_operation_and_nothing_more_is_taken(method: GanMethod) -> None:
    coordinator = RoundCoordinator(method.server(0, ["s0"]), method.plan(), {"s0": 9})
    image = torch.zeros(2, 1, 16, 16)
    for message in (Message("images2", {}, {}), Message("join", {"x": image}, {"images": 9}), Message("labels", {})):
        with pytest.raises(ManyhandsError):
            coordinator.submit("s0", message)
    assert {"images", "labels"} <= set(method.plan().never_sent)


@every_method
def test_weights_that_none_can_be_or_that_come_too_early_are_refused(method: GanMethod) -> None:
    op, part = {
        "mdgan": ("discriminator", "discriminator."),
        "splitgan": ("discriminator", "discriminator."),
        "pflgan": ("progress", "generator."),
        "hflgan": ("update", ""),
    }[method.model_dump()["kind"]]
    weights = {name: t for name, t in SMALL.build(0).state_dict().items() if name.startswith(part)}
    known = {"known": torch.tensor([True, True])} if op == "progress" else {}
    huge = {name: torch.full_like(t, 1e30) for name, t in weights.items()}
    facts = {"round": 0, "images": 9, "loss": 1.0, "seen": 9, "flops": 1, "withheld": ""}
    server = method.server(0, ["s0"])
    coordinator = RoundCoordinator(server, method.plan(), {"s0": 9})
    server.round = 1  # in which each of them asks for weights
    with pytest.raises(ManyhandsError, match="reaches beyond"):
        coordinator.submit("s0", Message(op, huge | known, facts | {"round": 1}))
    if op != "update":
        server.round = 3  # the last one, which asks for none
        with pytest.raises(ManyhandsError, match="none"):
            coordinator.submit("s0", Message(op, weights | known, facts | {"round": 3}))


@every_method
def test_it_needs_images_that_fit(method: GanMethod) -> None:
    with pytest.raises(RecipeError, match="at least 2"):
        Experiment(method, gan_silos(1, images=1), device="cpu")
    pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(RecipeError, match="1 x 8 x 8"):
        Experiment(method, [Silo("s0", Images(pixels, torch.zeros(3, dtype=torch.long), ("a", "b")))], device="cpu")


@pytest.mark.parametrize("kind", sorted(PAPERS))
def test_it_is_the_recipe_of_huscf_with_one_word_changed(kind: str) -> None:
    path = Path(__file__).parents[3] / "recipes" / "digits-huscf.toml"
    method = load_recipe(path, [f"method.kind={kind}"]).method
    assert method.kind == kind
    assert PAPERS[kind] in " ".join(citations(method))
    assert not any("diffusion" in paper.lower() for paper in citations(method))
