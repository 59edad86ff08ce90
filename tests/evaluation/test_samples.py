"""Samples are written while they are drawn, and read back as they were drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from manyhands import DiffusionGenerator, Experiment, Sampling, UNet
from manyhands.errors import DiskError
from manyhands.evaluation.samples import write_samples
from tests.conftest import tiny_fedavg, tiny_silos


def generator(classes: int = 2) -> DiffusionGenerator:
    method = tiny_fedavg(model=UNet(size=4, channels=1, classes=classes, widths=(8,)))
    return Experiment(method, tiny_silos(), device="cpu", sampling=Sampling(steps=2)).generator()


@pytest.mark.parametrize("classes", [2, 0])
def test_what_is_read_is_what_was_drawn(tmp_path: Path, classes: int) -> None:
    made = generator(classes)
    labels = made.labels(300)
    files = write_samples(tmp_path, made, labels, 5, made.sampling, png=True)
    kept = load_file(tmp_path / "samples.safetensors")
    assert torch.equal(kept["images"], made.sample(labels=labels, seed=5))
    assert kept["images"].dtype == torch.float32
    assert ("labels" in kept) == bool(classes)
    if classes:
        assert kept["labels"].tolist() == labels
    assert len(files) == 2 + 300
    assert all(file.exists() for file in files)
    assert not list(tmp_path.glob(".*"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = generator()
    with pytest.raises(DiskError, match="file"):
        write_samples(tmp_path / "file", made, [0], 0, made.sampling)


def test_a_draw_that_was_cut_off_goes_on_where_it_was_and_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generator()
    labels = made.labels(600)
    whole = write_samples(tmp_path / "whole", made, labels, 5, made.sampling)[0].read_bytes()
    firsts: list[int] = []
    stream = DiffusionGenerator.stream

    def cut_off(self: DiffusionGenerator, wanted: list[int], *, first: int = 0, **options: Any) -> Iterator[Any]:
        firsts.append(first)
        for number, part in enumerate(stream(self, wanted, first=first, **options)):
            if len(firsts) == 1 and number == 1:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(DiffusionGenerator, "stream", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "cut", made, labels, 5, made.sampling)
    assert not (tmp_path / "cut" / "samples.safetensors").exists()
    assert write_samples(tmp_path / "cut", made, labels, 5, made.sampling)[0].read_bytes() == whole
    assert firsts == [0, 256]
    firsts.clear()
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "other", made, labels, 5, made.sampling)
    write_samples(tmp_path / "other", made, labels, 6, made.sampling)
    assert firsts == [0, 0]
    firsts.clear()
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "older", made, labels, 5, made.sampling)
    unfinished = tmp_path / "older" / ".samples.tmp"
    unfinished.write_bytes(unfinished.read_bytes().replace(b'"images":', b'"images": '))
    assert write_samples(tmp_path / "older", made, labels, 5, made.sampling)[0].read_bytes() == whole
    assert firsts == [0, 0], "the header of another version is of another length"
