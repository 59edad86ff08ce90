"""A site reads a pretrained model only below the folder in which it runs, whatever a recipe names."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhands import FedAvg, Training
from manyhands.errors import RecipeError
from manyhands.federation.site import check_pretrained
from tests.models.toy_pretrained import of_run, save_run_model


def method(folder: Path) -> FedAvg:
    return FedAvg(model=of_run(folder, adapter={"rank": 2}), training=Training(steps=1), rounds=1)


def test_a_folder_elsewhere_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "site"
    save_run_model(here / "models" / "base")
    monkeypatch.chdir(here)
    check_pretrained(method(Path("models/base")))
    (here / "link").symlink_to(tmp_path)
    for other in ("../site2", "/etc", "owner/name", str(tmp_path), "link", "~"):
        with pytest.raises(RecipeError, match="is no folder below the one in which this site runs"):
            check_pretrained(method(Path(other)))
