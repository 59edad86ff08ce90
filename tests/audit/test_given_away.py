"""Whether a run gives its images away is told by theory where its images are there, and by epsilon where not."""

from __future__ import annotations

import torch

from manyhands import Images, Silo
from manyhands.audit.attacks.identity import equidistant
from manyhands.audit.given_away import Candidates, given_away
from manyhands.messages.outgoing import Labels, NoisedImages, OutgoingData

LOUD, FAINT = NoisedImages(snr=1.0, norm=8.0), NoisedImages(snr=1e-3, norm=8.0)


def silos(*counts: int) -> list[Silo]:
    rng = torch.Generator().manual_seed(0)
    pixels = (torch.randint(0, 256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8) for count in counts)
    return [Silo(f"s{i}", Images(images)) for i, images in enumerate(pixels)]


def left(*kinds: OutgoingData) -> dict[str, tuple[int, tuple[OutgoingData, ...]]]:
    return {f"s{i}": (600, (kind, Labels())) for i, kind in enumerate(kinds)}


def test_all_silos_that_give_away_as_much_are_one_line() -> None:
    (line,) = given_away(left(LOUD, LOUD), silos(600, 600))
    assert line.startswith("This run gives its images away: they leave noised to an SNR of 0.0 dB.")
    assert "somebody with 1,000 candidates picks the right one for" in line


def test_one_silo_that_does_is_named() -> None:
    (line,) = given_away(left(FAINT, LOUD), silos(600, 600))
    assert line.startswith("s1: This run gives its images away")


def test_of_many_silos_that_do_it_is_said_how_many_are_not_named() -> None:
    (line,) = given_away(left(FAINT, *[LOUD] * 10))
    assert line.startswith("s1, s2, s3, s4, s5, s6, s7, s8 and 2 more: This run gives its images away")


def test_without_images_it_is_told_by_epsilon() -> None:
    (line,) = given_away(left(LOUD))
    assert line.endswith("a value above 10 rules out next to nothing.")
    assert given_away(left(FAINT)) == []


def test_the_share_is_that_of_theory_on_images_of_all_silos() -> None:
    held = silos(1500, 600)
    picked = Candidates(held).picked(FAINT, 600)
    assert picked is not None
    assert picked.of == 1000
    assert picked.share == equidistant(Candidates(held).images, 10**1.5)
    assert Candidates(held).picked(Labels(), 600) is None
    assert Candidates([]).picked(LOUD, 600) is None


def test_images_that_are_squeezed_are_told_apart_as_they_are_released() -> None:
    candidates = Candidates(silos(1000))
    kinds = [NoisedImages(snr=0.05, norm=1.0, squeezed=squeezed) for squeezed in (False, True)]
    whole, squeezed = (candidates.picked(kind, 9) for kind in kinds)
    assert whole is not None
    assert squeezed is not None
    assert squeezed.share < whole.share / 5
