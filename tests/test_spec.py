"""What is wrong with a configuration is said by class and field, in Python as in a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field, ValidationError, field_validator

from manyhands import Diffusion, FedAvg, Latent, Training, UNet
from manyhands.errors import RecipeError
from manyhands.spec import MAX_SHOWN, Int, Spec

FIELDS: dict[str, Any] = {"model": UNet(size=8, channels=1, classes=0, widths=(8,)), "training": Training(steps=1)}


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: FedAvg(**FIELDS, rounds=0), "FedAvg.rounds: is 0, but should be greater than or equal to 1"),
        (lambda: FedAvg(**FIELDS), "FedAvg.rounds: is missing"),
        (lambda: FedAvg(**FIELDS, rounds=1, round=2), "FedAvg: unknown key 'round'; did you mean 'rounds'?"),
        (lambda: FedAvg(**FIELDS, rounds=1, up="int8"), "FedAvg.up: kind 'int8' is not known; known: "),
        (lambda: FedAvg(UNet, 3), "FedAvg: takes its fields by name: "),
        (
            lambda: FedAvg(**FIELDS | {"model": torch.nn.Identity()}, rounds=1),
            "FedAvg.model: a table that names its kind is expected: kind = ...; from Python, Network(module=...)",
        ),
        (lambda: setattr(Training(steps=1), "steps", 2), "Training.steps: cannot be changed; make another Training"),
        (lambda: Training(steps=1, betas=(0.9,)), "Training.betas.1: is missing"),
        (lambda: Training(steps=1.5), "Training.steps: is 1.5, but should be a whole number"),
        (lambda: UNet(size=8, channels=1, classes=0, widths=-1), "UNet.widths: is -1, but should be a list"),
        (lambda: UNet(size=8, channels=1, classes=0, widths=()), "UNet.widths: is (), but should have 1 items or more"),
        (
            lambda: Diffusion(times=3),
            "Diffusion: unknown key 'times'; known: ",
        ),
        (lambda: FedAvg(**FIELDS, rounds=1, up=3), "FedAvg.up: a table that names its kind is expected"),
        (
            lambda: FedAvg(**FIELDS, rounds=1, diffusion={"schedule": {"steps": 0}}),
            "FedAvg.diffusion.schedule.steps: is 0, but should be ",
        ),
        (
            lambda: FedAvg(**FIELDS, rounds=1, up={"kind": "updates", "bits": "no"}),
            "FedAvg.up.bits: is 'no', but should be ",
        ),
        (lambda: Training(steps=1, epochs=1), "Training: set either steps or epochs"),
        (lambda: Diffusion(label_dropout=2), "Diffusion.label_dropout: is 2, but should be "),
        (lambda: UNet(size=8, channels=1, classes=0, widths=(12,)), "UNet: width 12 must be a multiple of groups"),
    ],
)
def test_a_wrong_field_is_named(build: Any, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build()
    assert str(caught.value).startswith(line)
    assert isinstance(caught.value, ValueError)


def test_every_wrong_field_has_a_line() -> None:
    with pytest.raises(RecipeError) as caught:
        FedAvg(**FIELDS, rounds=0, ema=1)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["FedAvg.rounds", "FedAvg.ema"]


def test_a_long_value_is_cut() -> None:
    with pytest.raises(RecipeError) as caught:
        Training(steps="9" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < MAX_SHOWN + 100


class Outer(Spec):
    inner: Int = Field(default=0, description="A number that another class accepts.")

    @field_validator("inner")
    @classmethod
    def _accepted(cls, value: int) -> int:
        return Training(steps=value).steps or 0


def test_plain_values_keep_the_error_of_pydantic_with_its_places() -> None:
    with pytest.raises(ValidationError) as caught:
        FedAvg.model_validate({**FIELDS, "rounds": 1, "up": {"kind": "updates", "bits": "no"}})
    assert caught.value.errors()[0]["loc"] == ("up", "bits")
    with pytest.raises(ValidationError, match=r"inner\n  Value error, Training.steps: is 0"):
        Outer.model_validate({"inner": 0})


def test_what_is_built_is_dumped_with_the_fields_of_its_own_class() -> None:
    method = FedAvg(**FIELDS, rounds=1, up={"kind": "updates", "bits": 4})  # type: ignore[arg-type]
    dumped = method.model_dump(mode="json", exclude_none=True)
    assert dumped["up"]["bits"] == 4
    assert "participants" not in dumped
    assert FedAvg.model_validate(dumped) == method


def test_a_latent_model_names_the_model_inside_it() -> None:
    with pytest.raises(RecipeError, match=r"^Latent\.autoencoder\.size: "):
        Latent(size=8, channels=1, classes=0, folder="x", autoencoder={"size": 1}, unet={})  # type: ignore[arg-type]
