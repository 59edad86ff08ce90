"""A method that talks at every mini-batch fits the seam: a U-shaped split equals the network unsplit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from chatty import Unsplit, difference
from harness.toy_split import ToySplit, toy_silos
from manyhands import Experiment, Iid, Images, Partition, Silo, split
from manyhands.data.images import as_floats
from manyhands.data.partition.base import Parts
from manyhands.errors import DataError, ManyhandsError, RecipeError
from manyhands.evaluation.plots import grid
from manyhands.links.in_process import InProcess
from manyhands.messages.plan import Plan
from manyhands.tensors import sha256
from tests.conftest import tiny_images


def test_its_gradients_are_those_of_the_whole_network() -> None:
    assert difference(toy_silos(4, 16)) <= 1e-6


def test_many_steps_end_in_the_weights_of_the_whole_network_over_any_wire() -> None:
    silos, method = toy_silos(3, 16), ToySplit(rounds=2, steps=3, batch=4)
    unsplit = Unsplit(silos, method.batch, method.rate)
    for step in range(6):
        unsplit.step(step // 3)
    for wire in ("count", "bytes"):
        split = Experiment(method, silos, device="cpu", link=InProcess.model_validate({"wire": wire}))
        assert [done.number for done in split] == [0, 1]
        for name, tensor in unsplit.middle.state_dict().items():
            assert torch.allclose(split.server.state_dict()[name], tensor, atol=1e-6)


def test_what_an_experiment_is_made_of_is_checked(tmp_path: Path) -> None:
    silos, method = toy_silos(2, 8), ToySplit(rounds=1, steps=1, batch=4)
    images = silos[0].images
    wrong: dict[str, Callable[[], object]] = {
        "a Silo is expected, not an object of type Images": lambda: Experiment(method, [images]),  # type: ignore[list-item]
        "a Method is expected, not an object of type Iid": lambda: Experiment(Iid(), silos),  # type: ignore[arg-type]
        "seed is -1, a whole number from 0 on": lambda: Experiment(method, silos, seed=-1),
        "s: its images are of type Tensor": lambda: Silo("s", images.pixels),  # type: ignore[arg-type]
        "an object such as Iid": lambda: split(images, Iid),  # type: ignore[arg-type]
        r"images are \(2, 2\), not N x C": lambda: grid(tmp_path / "grid.png", torch.zeros(2, 2)),
    }
    for message, call in wrong.items():
        with pytest.raises(ManyhandsError, match=message):
            call()
    grid(tmp_path / "floats.png", as_floats(images.pixels))
    grid(tmp_path / "bytes.png", images.pixels)
    assert (tmp_path / "floats.png").read_bytes() == (tmp_path / "bytes.png").read_bytes()


def test_each_call_is_counted(tmp_path: Path) -> None:
    split = Experiment(ToySplit(rounds=1, steps=5, batch=4), toy_silos(2, 8), device="cpu", folder=tmp_path)
    list(split)
    calls = {(row["silo"], row["op"], row["direction"]): row["messages"] for row in split.ledger.entries()}
    assert calls["s0", "forward", "up"] == calls["s1", "backward", "down"] == 5
    assert sha256(split.silos[0].memory) != sha256(split.silos[1].memory)
    assert (tmp_path / "silos" / "s0" / "checkpoint-000001.mh").exists()
    assert not any("head." in name for name in split.server.state_dict())


def test_a_split_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    method, silos = ToySplit(rounds=4, steps=2, batch=4), toy_silos(2, 8)
    ends = []
    for name, stop in (("whole", 4), ("stopped", 2)):
        for done in Experiment(method, silos, device="cpu", folder=tmp_path / name):
            if done.number + 1 == stop:
                break
        split = Experiment(method, silos, device="cpu", folder=tmp_path / name, resume=True)
        list(split)
        ends.append([sha256(split.server.state_dict()), *[sha256(silo.memory) for silo in split.silos]])
    assert ends[0] == ends[1]


class Given(Partition):
    kind: Literal["given"] = "given"
    given: Any
    overlap: bool = False

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        return self.given  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, "returns a value of type NoneType, a list of 2 arrays is expected"),
        ([np.arange(3)], "returns 1, a list of 2 arrays is expected"),
        ([np.arange(3), [3, 4]], "gives silo 1 no one-dimensional array of whole numbers"),
        ([np.arange(3), np.arange(3.0)], "gives silo 1 no one-dimensional array of whole numbers"),
        ([np.arange(3), np.array([3, 9])], "gives silo 1 the images 3 to 9, but they are numbered 0 to 8"),
        ([np.arange(3), np.arange(2, 5)], "gives an image twice"),
    ],
)
def test_what_a_partition_gives_silos_is_checked(given: Any, error: str) -> None:
    with pytest.raises(DataError, match=rf"Given\.parts\(\) {error}"):
        split(tiny_images(9), Given(silos=2, given=given))


def test_parts_overlap_where_the_partition_says_so() -> None:
    overlapping = Given(silos=2, given=[np.arange(3), np.arange(2, 5)], overlap=True)
    assert [len(silo.images) for silo in split(tiny_images(9), overlapping)] == [3, 3]


class Planless(ToySplit):
    def plan(self) -> Plan:
        return None  # type: ignore[return-value]


def test_a_method_without_a_plan_is_told_before_it_trains() -> None:
    with pytest.raises(RecipeError, match=r"Planless\.plan\(\) returns a value of type NoneType, not a Plan"):
        list(Experiment(Planless(rounds=1), toy_silos(2, 8), device="cpu"))
