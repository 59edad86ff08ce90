"""All attacks together, as numbers that can be kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from manyhands import Images
from manyhands.audit.attacks.attributes import KnownAttributes
from manyhands.audit.collafuse import attack_releases, guarantee
from manyhands.audit.collafuse_attackers import ServerDenoiser
from manyhands.audit.effort import Effort
from manyhands.errors import RecipeError
from manyhands.evaluation.plots import disclosure as draw_figure
from manyhands.models.unet import UNet
from tests.audit.crowd import DIFFUSION
from tests.conftest import sharp_images

EFFORT = Effort(denoiser=20, regressor=20, classifier=60, widths=(8,), batch=16)
CUTS = (1, 700, 1000)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    own = ServerDenoiser(
        UNet(size=4, channels=1, classes=2, widths=(8,)).build(0).eval(), cut=700, no_label=2, labels=True
    )
    private, public = sharp_images(40), sharp_images(60, seed=1)
    return attack_releases(private, public, DIFFUSION, CUTS, releases=5, server_denoiser=own, effort=EFFORT)


def test_it_is_plain_json_with_the_words_that_a_guarantee_needs(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for cut in report["cuts"]:
        for scores in (cut["one_release"], cut["all_releases"]):
            assert scores["guarantee"].keys() >= {"epsilon", "delta", "unit", "neighbouring", "model"}
        assert cut["one_release"]["guarantee"]["epsilon"] < cut["all_releases"]["guarantee"]["epsilon"]


def test_at_the_first_step_all_is_known_and_at_the_last_nothing(report: dict[str, Any]) -> None:
    first, last = report["cuts"][0]["one_release"], report["cuts"][-1]["one_release"]
    assert first["identity"]["top_1"]["value"] == 1
    assert first["class_inference"]["accuracy"]["value"] > 0.9
    assert first["reconstruction"]["wiener"]["explained"]["value"] > 0.95
    assert last["identity"]["top_1"]["low"] <= 1 / 40
    assert last["reconstruction"]["wiener"]["explained"]["value"] < 0.05
    assert last["class_inference"]["accuracy"]["low"] < 0.75


def test_what_the_server_has_is_tried_where_it_was_trained(report: dict[str, Any]) -> None:
    tried = ["own_denoised" in cut["one_release"]["reconstruction"] for cut in report["cuts"]]
    assert tried == [False, True, True]
    assert report["membership"]["auc"]["low"] < 0.6
    assert min(report["membership"]["levels"]) > 700


def test_the_same_seed_says_the_same(report: dict[str, Any]) -> None:
    private, public = sharp_images(40), sharp_images(60, seed=1)
    once, again = (attack_releases(private, public, DIFFUSION, CUTS[:1], effort=EFFORT, seed=3) for _ in range(2))
    assert once == again
    assert "all_releases" not in once["cuts"][0]
    assert "membership" not in once


def test_what_is_not_tried_is_told_with_its_reason(tmp_path: Path, report: dict[str, Any]) -> None:
    assert report["skipped"].keys() == {"attribute_inference"}
    private, public = Images(sharp_images(20).pixels), Images(sharp_images(20, seed=1).pixels)
    without_classes = attack_releases(private, public, DIFFUSION, [500], effort=EFFORT)
    assert "class_inference" not in without_classes["cuts"][0]["one_release"]
    assert "no classes" in without_classes["skipped"]["class_inference"]
    assert without_classes["skipped"].keys() == {"class_inference", "attribute_inference"}
    draw_figure(tmp_path / "without.png", without_classes)


def test_attributes_are_inferred_beside_the_class() -> None:
    private, public = sharp_images(40), sharp_images(60, seed=1)
    assert private.labels is not None
    assert public.labels is not None
    above, never = private.labels == 0, torch.zeros(40, dtype=torch.bool)
    known = KnownAttributes(
        ("above", "never"), torch.stack([above, never], 1), torch.stack([public.labels == 0] * 2, 1)
    )
    ends, few = (1, 1000), replace(EFFORT, denoiser=1, regressor=1)
    both = attack_releases(private, public, DIFFUSION, ends, effort=few, known_attributes=known)
    plain = attack_releases(private, public, DIFFUSION, ends, effort=few)
    first, last = (cut["one_release"]["attribute_inference"]["auc"] for cut in both["cuts"])
    assert first["value"] > 0.9 > last["low"]
    assert both["floor"]["attribute_inference"]["auc"]["value"] == 0.5
    assert (both["attributes"], both["skipped"]) == (["above", "never"], {})
    for cut, other in zip(both["cuts"], plain["cuts"], strict=True):  # what is asked beside moves nothing before it
        assert cut["one_release"]["class_inference"] == other["one_release"]["class_inference"]


def test_the_raw_image_is_no_cut() -> None:
    with pytest.raises(RecipeError, match="cut 0: a step of the chain is expected, 1 to 1000"):
        attack_releases(sharp_images(4), sharp_images(4), DIFFUSION, [0])


def test_a_smaller_norm_and_fewer_releases_guarantee_more() -> None:
    epsilons = [guarantee(0.01, norm, count)["epsilon"] for norm, count in ((2.0, 1), (4.0, 1), (4.0, 10))]
    assert epsilons == sorted(epsilons)


def test_it_is_drawn(report: dict[str, Any], tmp_path: Path) -> None:
    draw_figure(tmp_path / "disclosure.png", report)
    with Image.open(tmp_path / "disclosure.png") as picture:
        assert torch.tensor(picture.size).min() > 300
