"""A site's secret is whole or not there, nobody else's to read, and never made a second time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer

from manyhands import CollaFuse, Experiment, FedAvg, Silo, Training, UNet
from manyhands.cli.federation.join import join
from manyhands.errors import DiskError, KitError
from manyhands.federation.kit import KEPT
from manyhands.federation.secret import site_secret
from manyhands.files.write import new_file
from manyhands.privacy.budget import RELEASES_FILE, Budget, Cost, Limits
from tests.conftest import tiny_images


def test_it_is_made_once_at_mode_600_and_stays(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = site_secret(tmp_path / "site")
    finally:
        os.umask(before)
    assert len(made) == 64
    assert site_secret(tmp_path / "site") == made != site_secret(tmp_path / "another")
    assert (tmp_path / "site" / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["secret"]


@pytest.mark.parametrize("content", [b"", b"abc", b"0" * 63, b"0" * 65, b"g" * 64, b"\xff" * 64])
def test_one_that_was_cut_short_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(KitError, match="must be a secret of 64 hexadecimal digits"):
        site_secret(tmp_path)
    assert (tmp_path / "secret").read_bytes() == content


@pytest.mark.parametrize("step", ["write", "fsync", "link"])
def test_a_failure_while_it_is_made_leaves_none(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr("manyhands.files.write.os.fdopen", full)
    else:
        monkeypatch.setattr(f"manyhands.files.write.os.{step}", full)
    with pytest.raises(DiskError, match="No space left"):
        site_secret(tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_lost_one_is_not_made_anew_over_what_was_released_under_it(tmp_path: Path) -> None:
    Budget(tmp_path, site_secret(tmp_path)).charge([b"image"], [b"noised"], Cost(1, 1, 1), Limits(), run="run")
    (tmp_path / "secret").unlink()
    with pytest.raises(KitError, match=f"is missing, but {RELEASES_FILE} has releases that were made with it"):
        site_secret(tmp_path)


@pytest.mark.parametrize("in_policy", [False, True])
def test_join_ends_before_it_connects_if_the_secret_is_damaged_or_lost(
    tmp_path: Path, in_policy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvflare")
    from manyhands.federation import parent
    from manyhands.federation.provision import new_kits

    new_kits("127.0.0.1:1", ["a"], tmp_path / "kits")
    kit, policy, ledger = tmp_path / "kits" / "a", tmp_path / "policy.toml", tmp_path / "ledger"
    started: list[str] = []
    monkeypatch.setattr(parent, "run", lambda kit: started.append(kit.party) or 0)
    policy.write_text(f"ledger = '{ledger}'\n" if in_policy else "")
    folder = ledger if in_policy else kit / KEPT
    with pytest.raises(typer.Exit):
        join(kit, data="recipe", policy=policy)
    assert not (folder / "secret").exists()
    site_secret(folder)
    with pytest.raises(typer.Exit):
        join(kit)
    assert started == ["a", "a"]
    (folder / "secret").write_text("cut short")
    with pytest.raises(KitError, match="must be a secret of 64 hexadecimal digits"):
        join(kit, data="recipe", policy=policy)
    (folder / "secret").unlink()
    (folder / RELEASES_FILE).write_text("")
    with pytest.raises(KitError, match="is missing, but"):
        join(kit)
    assert started == ["a", "a"]


def test_a_new_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    assert new_file(tmp_path / "file", b"first")
    assert not new_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("secrets", "named"), [(("", ""), "s0, s1"), (("", "x" * 64), "s0"), (("x" * 64,) * 2, "")])
def test_noise_that_is_no_secret_is_called_so(secrets: tuple[str, str], named: str) -> None:
    model = UNet(size=4, channels=1, classes=2, widths=(8,))
    silos = [Silo(f"s{i}", tiny_images(5), secret=secret) for i, secret in enumerate(secrets)]
    training, cuts = Training(batch=4, steps=1), {"cut": 0.5, "rounds": 1}
    noised = Experiment(CollaFuse.model_validate({"model": model, "training": training, **cuts}), silos)
    expected = [f"simulated: the noise of {named}"] if named else []
    assert [line.split(" is generated")[0] for line in noised.simulated()] == expected
    assert Experiment(FedAvg(model=model, training=training, rounds=1), silos).simulated() == []
