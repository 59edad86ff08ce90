"""What looks at images: seeded, kept, and strict about what it is shown."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manyhands import Digits
from manyhands.data.images import as_floats, checked
from manyhands.data.rows import Rows, RowsFile
from manyhands.errors import DataError
from manyhands.evaluation import features, inception
from tests.conftest import sharp_images, tiny_images


def test_bytes_and_floats_of_the_same_images_are_the_same() -> None:
    pixels = tiny_images(9).pixels
    assert torch.equal(checked(pixels), pixels)
    assert torch.equal(checked(as_floats(pixels)), pixels)
    assert torch.equal(checked(as_floats(pixels).double()), pixels)


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (torch.full((2, 1, 4, 4), 1.1), "from 1.1 to 1.1"),
        (torch.full((2, 1, 4, 4), -1.5), "from -1.5"),
        (torch.full((2, 1, 4, 4), float("nan")), "from nan"),
        (torch.linspace(0, 255, 32).reshape(2, 1, 4, 4), "to 255"),
        (torch.linspace(0, 1, 32).reshape(2, 1, 4, 4), "as if black were 0"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.bool), "bool"),
        (torch.zeros(2, 4, 4), "not N x C x H x W"),
        (torch.zeros(0, 1, 4, 4), "not N x C x H x W"),
    ],
)
def test_images_of_the_wrong_range_or_type_are_an_error_never_wrapped(images: torch.Tensor, why: str) -> None:
    with pytest.raises(DataError, match=why):
        checked(images)


@pytest.fixture(scope="module")
def halves() -> tuple[features.Images, features.Images]:
    return Digits().load(8).hold_out(0.3).split_held_out()


def test_the_classifier_is_good_kept_and_the_same_again(
    halves: tuple[features.Images, features.Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train, held = halves
    first = features.classifier(train, held)
    assert first.accuracy > 0.95
    embedding = first(train.pixels)
    assert float(embedding.features.square().mean()) == pytest.approx(1, rel=0.1)
    (kept,) = (tmp_path / "manyhands").iterdir()
    again = features.classifier(train, held)
    assert again.name == first.name
    assert again.accuracy == first.accuracy
    assert torch.equal(again(held.pixels).features, first(held.pixels).features)
    kept.write_bytes(kept.read_bytes()[:1000])
    assert features.classifier(train, held).name == first.name, "torn: trained anew, to the same weights"
    other = features.classifier(train.subset(torch.arange(600).numpy()), held)
    assert other.name != first.name


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manyhands").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    features.remember("kind", "key", {"a": torch.ones(1)})
    assert features.recall("kind", "key") is None


def test_images_without_labels_are_told_by_which_way_up_they_are(
    halves: tuple[features.Images, features.Images],
) -> None:
    bare = [replace(images, labels=None, classes=()) for images in halves]
    classifier = features.classifier(*bare)
    assert classifier(bare[0].pixels).logits.shape[1] == 4
    assert classifier.accuracy > 0.8


def test_any_size_fits_the_classifier() -> None:
    for size, channels in ((4, 1), (28, 1), (33, 3)):
        network = features.FeatureNetwork(size, channels, 3)
        assert network(torch.zeros(2, channels, size, size))[0].shape == (2, features.WIDTH)


def test_inception_names_the_file_that_is_missing_and_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no Inception weights here; download https://.*6726825d\.pth and give its path"
    ):
        inception.load(tmp_path / "none.pth")
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"something else")
    with pytest.raises(DataError, match="begins with [0-9a-f]{16}, 6726825d0af5f729 is expected"):
        inception.load(wrong)


def test_inception_has_the_names_and_sizes_of_the_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = inception.InceptionNetwork()
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 23_850_960  # 21.8 M, and the head of 1,008 classes
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["fc.weight"].shape == (1008, 2048)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    loaded = inception.load(path)
    grey = tiny_images(2, size=28).pixels
    embedding = loaded(grey)
    assert embedding.features.shape == (2, 2048)
    assert embedding.logits.shape == (2, 1008)
    assert torch.allclose(embedding.features, loaded(grey.expand(-1, 3, -1, -1)).features, atol=1e-6)


def test_enlarging_is_that_of_tensorflow_1() -> None:
    """Corner pixels stay where they are, and there is no half-pixel shift: y[i] = x[i * 2 / 299]."""
    ramp = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).expand(1, 1, 2, 2)
    large = inception.enlarged(ramp)[0, 0, 0]
    expected = (torch.arange(299) * 2 / 299).clamp(max=1)
    assert torch.allclose(large, expected, atol=1e-6)


def test_a_classifier_of_more_classes_is_another_one(halves: tuple[features.Images, features.Images]) -> None:
    train, held = (part.subset(np.arange(40)) for part in halves)
    few = features.classifier(train, held)
    more = tuple(map(str, range(12)))
    many = features.classifier(replace(train, classes=more), replace(held, classes=more))
    assert few(held.pixels).logits.shape[1] == 10
    assert many(held.pixels).logits.shape[1] == 12


@pytest.mark.parametrize("labelled", [True, False])
def test_images_in_a_file_are_embedded_and_hashed_as_those_in_memory(tmp_path: Path, labelled: bool) -> None:
    memory = sharp_images(60) if labelled else replace(sharp_images(60), labels=None, classes=())
    (tmp_path / "rows").write_bytes(memory.pixels.numpy().tobytes())
    file = replace(memory, stored=Rows([RowsFile(tmp_path / "rows", 60, (1, 4, 4))]))
    order = np.random.default_rng(0).permutation(60)
    assert features.fingerprint(file, file.subset(order)) == features.fingerprint(memory, memory.subset(order))
    pixels, labels, classes = features._task(file)
    whole = torch.cat([torch.rot90(memory.pixels, turns, (2, 3)) for turns in range(1 if labelled else 4)])
    assert (len(pixels), pixels.shape, len(labels)) == (len(whole), tuple(whole.shape), len(whole))
    assert torch.equal(pixels[torch.arange(len(whole))], whole)
    network = features.FeatureNetwork(4, 1, classes)
    for lazy, eager in zip(features.pixel_batches(pixels, 7), features.pixel_batches(whole, 7), strict=True):
        assert torch.equal(lazy, eager)
    lazy_embedding, embedding = features.embed(network, pixels), features.embed(network, whole)
    assert torch.equal(lazy_embedding.features, embedding.features)
