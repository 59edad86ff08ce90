"""An editor takes every shipped recipe as it is, and marks what is wrong."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from manyhands.runs.schema import recipe_schema
from manyhands.runs.shipped import recipe_path, shipped
from tests.command import manyhands

SCHEMA = recipe_schema()


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_a_shipped_recipe_fits_the_schema(path: Path) -> None:
    jsonschema.validate(tomllib.loads(path.read_text()), SCHEMA)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("rounds = 20", "rouds = 20"),
        ("rounds = 20", "rounds = 0"),
        ("ema = 0.8", "ema = 'much'"),
        ('kind = "iid"', 'kind = "idd"'),
        ("silos = 5", "silos = 5.5"),
        ('source = "digits"', 'source = "digit"'),
        ("batch = 32", "batsch = 32"),
    ],
)
def test_what_is_wrong_does_not_fit(right: str, wrong: str) -> None:
    text = recipe_path("digits-fedavg").read_text()
    assert right in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text.replace(right, wrong, 1)), SCHEMA)


@pytest.mark.parametrize("form", ['up = "updates"', "up = { kind = 'updates', bits = 4 }", 'server_optimizer = "adam"'])
def test_short_and_long_forms_fit(form: str) -> None:
    text = recipe_path("digits-fedavg").read_text().replace("ema = 0.8", form, 1)
    jsonschema.validate(tomllib.loads(text), SCHEMA)


def test_the_command_prints_it(tmp_path: Path) -> None:
    assert json.loads(manyhands("schema", where=tmp_path).stdout) == SCHEMA
