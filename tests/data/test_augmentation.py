from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manyhands.data.augmentation import flipped, shifted


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 200, side: int = 6) -> Tensor:
    return torch.randn(count, 3, side, side + 1, generator=rng(1))


def test_about_half_of_the_images_are_mirrored_and_the_others_are_as_they_were() -> None:
    x = images()
    out = flipped(x, rng())
    mirrored = [bool(torch.equal(b, a.flip(-1))) for a, b in zip(x, out, strict=True)]
    kept = [bool(torch.equal(b, a)) for a, b in zip(x, out, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("pixels", [1, 3, 4])
def test_a_moved_image_is_a_crop_of_its_reflection_and_all_places_occur(pixels: int) -> None:
    x = images(400)
    out, wide = shifted(x, pixels, rng()), F.pad(x, [pixels] * 4, "reflect")
    places = set()
    for image, padded in zip(out, wide, strict=True):
        matches = [
            (top, left)
            for top in range(2 * pixels + 1)
            for left in range(2 * pixels + 1)
            if torch.equal(image, padded[:, top : top + 6, left : left + 7])
        ]
        assert matches
        places.add(matches[0])
    assert len({top for top, _ in places}) == len({left for _, left in places}) == 2 * pixels + 1


def test_the_same_numbers_give_the_same_images() -> None:
    x = images(20)
    assert torch.equal(shifted(x, 2, rng(3)), shifted(x, 2, rng(3)))
    assert not torch.equal(shifted(x, 2, rng(3)), shifted(x, 2, rng(4)))
