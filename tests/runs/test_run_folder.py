"""Run folders: resume is exact, damage is noticed, and nothing of another run is touched."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kill import kill_and_resume
from manyhands import Experiment, Local
from manyhands.errors import CheckpointError, DiskError, RunFolderError
from manyhands.messages.message import Message
from manyhands.methods.base import Method
from manyhands.runs.checkpoint import drop_generations, generations, read_checkpoint, write_checkpoint
from manyhands.runs.citation import citations
from manyhands.runs.recipe_difference import first_difference
from manyhands.runs.recipe_file import specs_in
from manyhands.runs.run_folder import RunFolder
from tests.conftest import tiny_fedavg, tiny_silos
from torn import survives, trained


def run(folder: Path, method: Method | None = None, stop_after: int | None = None, **options: object) -> Experiment:
    options_of_run = {"folder": folder, "resume": True, "device": "cpu", **options}
    experiment = Experiment(method or tiny_fedavg(), tiny_silos(), **options_of_run)  # type: ignore[arg-type]
    for done in experiment:
        if done.number + 1 == stop_after:
            break
    return experiment


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    method = tiny_fedavg(ema=0.5, participants=2, keep_optimiser=True)
    run(tmp_path / "whole", method)
    run(tmp_path / "stopped", method, stop_after=stop)
    run(tmp_path / "stopped", method)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    journals = [RunFolder(tmp_path / name).rounds for name in ("whole", "stopped")]
    assert [r.losses for r in journals[0]] == [r.losses for r in journals[1]]
    assert RunFolder(tmp_path / "stopped").report["rounds"] == 3


def test_local_silos_resume_from_their_own_folders(tmp_path: Path) -> None:
    fields = tiny_fedavg().model_dump(include={"model", "training", "rounds"})
    run(tmp_path / "whole", Local(**fields))
    run(tmp_path / "stopped", Local(**fields), stop_after=2)
    assert generations(tmp_path / "stopped" / "silos" / "s1") == [2, 1]
    run(tmp_path / "stopped", Local(**fields))
    models = [
        load_file(next((tmp_path / name / "silos" / "s1").rglob("*.safetensors"))) for name in ("whole", "stopped")
    ]
    assert same(*models)
    assert not (tmp_path / "whole" / "model").exists()


def test_a_lost_silo_store_falls_back_to_the_round_that_all_have(tmp_path: Path) -> None:
    fields = tiny_fedavg().model_dump(include={"model", "training", "rounds"})
    run(tmp_path, Local(**fields), stop_after=3)
    (tmp_path / "silos" / "s1" / "checkpoint-000003.mh").unlink()
    folder = RunFolder(tmp_path)
    state = folder.resume({"s0": 5, "s1": 9, "s2": 3})
    assert state is not None
    assert state.round == 2
    assert "s1" in folder.problems[0]
    assert len(folder.rounds) == 2


@pytest.mark.slow
def test_killed_runs_end_in_the_same_weights() -> None:
    """4 times kill -9 at random moments, spread over the run; benchmarks/kill.py does the same 50 times."""
    same_weights, moments = kill_and_resume(4, seed=1)
    assert same_weights == 4
    assert len(set(moments)) > 1


def test_torn_checkpoints_are_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run")
    assert all(survives(folder, 30, "truncated"))
    assert all(survives(folder, 30, "flipped"))


def test_when_no_whole_checkpoint_is_left_the_run_stops_and_names_them_all(tmp_path: Path) -> None:
    run(tmp_path, stop_after=3)
    for path in (tmp_path / "server").glob("checkpoint-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"checkpoint-000003.mh.*checkpoint-000002.mh"):
        run(tmp_path)


def test_a_checkpoint_with_a_true_hash_but_no_message_is_refused(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "checkpoint-000001.mh").write_bytes(b"MHC1" + hashlib.sha256(b"x").digest() + b"x")
    with pytest.raises(CheckpointError, match="too few"):
        read_checkpoint(tmp_path, 1)


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        write_checkpoint(tmp_path, number, Message("state", {}, {"n": number}))
        drop_generations(tmp_path, number)
    assert generations(tmp_path) == [4, 3]
    assert read_checkpoint(tmp_path, 3).facts == {"n": 3}
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_another_runs_folder_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "run", stop_after=1)
    before = sorted(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    with pytest.raises(RunFolderError, match="holds a run already"):
        run(tmp_path / "run", resume=False)
    with pytest.raises(RunFolderError, match=r"another recipe: method.rounds was 3, is now 4"):
        run(tmp_path / "run", tiny_fedavg(rounds=4))
    with pytest.raises(RunFolderError, match=r"seed was 0, is now 1"):
        run(tmp_path / "run", seed=1)
    assert before == sorted(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty"):
        run(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_two_processes_never_share_a_run_folder(tmp_path: Path) -> None:
    running = iter(Experiment(tiny_fedavg(), tiny_silos(), folder=tmp_path, device="cpu"))
    next(running)
    with pytest.raises(RunFolderError, match="another process"):
        run(tmp_path)


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_what_was_kept_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "full", stop_after=1)
    size = (tmp_path / "full" / "server" / "checkpoint-000001.mh").stat().st_size
    with small_disk(size - 1000), pytest.raises(DiskError, match=r"checkpoint-000002.*cannot be written"):
        run(tmp_path / "full")
    assert generations(tmp_path / "full" / "server") == [1]
    run(tmp_path / "full")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "full"))


def test_the_run_folder_holds_what_it_should_and_the_report_its_figures(tmp_path: Path) -> None:
    experiment = run(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        "recipe.toml",
        "journal.jsonl",
        "ledger.json",
        "report.json",
        "report.html",
        "model/model_index.json",
    } <= names
    assert {f"figures/{name}.png" for name in ("samples", "partition", "loss")} <= names
    assert not any(name.startswith("silos/") for name in names)  # nothing is private in plain fedavg
    report = RunFolder(tmp_path).report
    assert report["silos"] == {"s0": 5, "s1": 9, "s2": 3}
    assert report["bytes_up"] == experiment.ledger.bytes("up")
    assert report["images_seen"] == sum(done.images_seen for done in RunFolder(tmp_path).rounds)
    assert report["parameters"] == sum(tensor.numel() for tensor in weights(tmp_path).values())
    assert {"method", "rounds", "seconds", "bytes_down", "metrics", "floor", "versions"} <= report.keys()
    rows = json.loads((tmp_path / "ledger.json").read_text())
    assert sum(row["bytes"] for row in rows) == report["bytes_up"] + report["bytes_down"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "0 images are held out" in page  # these silos hold nothing out


def test_a_journal_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=2)
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"number": 2, "rou')
    run(tmp_path / "cut", stop_after=3)
    journal.write_text(journal.read_text() + '{"losses": {}')
    run(tmp_path / "cut")
    assert len(RunFolder(tmp_path / "cut").rounds) == 3
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_no_other_silos_rounds_or_runs_checkpoint_can_stand_in(tmp_path: Path) -> None:
    fields = tiny_fedavg().model_dump(include={"model", "training", "rounds"})
    run(tmp_path / "a", Local(**fields), stop_after=3)
    run(tmp_path / "b", Local(**fields, ema=0.5), stop_after=3)
    own = tmp_path / "a" / "silos" / "s1" / "checkpoint-000003.mh"
    for other in (
        tmp_path / "a" / "silos" / "s0" / "checkpoint-000003.mh",
        tmp_path / "a" / "silos" / "s1" / "checkpoint-000002.mh",
        tmp_path / "b" / "silos" / "s1" / "checkpoint-000003.mh",
    ):
        whole = own.read_bytes()
        own.write_bytes(other.read_bytes())
        folder = RunFolder(tmp_path / "a")
        with pytest.raises(CheckpointError, match="another silo, round or run"):
            folder._read(3)
        own.write_bytes(whole)


def test_a_run_is_not_gone_on_with_on_other_data(tmp_path: Path) -> None:
    run(tmp_path, stop_after=2)
    for silos, said in [(tiny_silos([5, 8, 3]), "images.s1 was 9, is now 8"), (tiny_silos([5, 9]), "images.s2 was 3")]:
        with pytest.raises(RunFolderError, match=said):
            list(Experiment(tiny_fedavg(), silos, folder=tmp_path, resume=True, device="cpu"))


def test_a_run_that_lost_its_server_state_does_not_begin_again_silently(tmp_path: Path) -> None:
    run(tmp_path, stop_after=3)
    for path in (tmp_path / "server").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        run(tmp_path)
    assert len(RunFolder(tmp_path).rounds) == 3


def test_an_ended_run_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    run(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("report.json", "ledger.json", "journal.jsonl")}
    run(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


@pytest.mark.parametrize("leftover", [".lock", ".recipe.toml.tmp"])
def test_a_run_killed_before_its_first_file_can_begin(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).touch()
    run(tmp_path, stop_after=1)


def test_the_first_difference_is_told_by_its_path() -> None:
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {}}) == "a.b was 1, is now None"


def test_a_run_from_python_can_be_cited(tmp_path: Path) -> None:
    run(tmp_path, stop_after=1)
    references = citations(*specs_in(RunFolder(tmp_path).recipe, "run"))
    assert any("1602.05629" in paper for paper in references)
    assert len(references) == len(set(references))


@pytest.mark.parametrize("raw", [b"not json}\n", b'{"number":1}\n', b"\xff\xfe}\n"])
def test_a_damaged_journal_is_named_and_does_not_stop_the_run(tmp_path: Path, raw: bytes) -> None:
    run(tmp_path, stop_after=2)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(lines[0] + raw)
    experiment = run(tmp_path)
    assert experiment.run_folder is not None
    assert "has 1 of 2 rounds" in experiment.run_folder.problems[0]
    assert experiment.server.round == 3


def test_a_disk_that_is_full_at_the_export_is_named_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    experiment = run(tmp_path)
    with small_disk(2_000), pytest.raises(DiskError, match="model: cannot be written"):
        experiment.generator().save(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir() if "model" in path.name) == ["model"]
    assert weights(tmp_path)


def test_an_out_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file; choose a folder with --out"):
        run(tmp_path / "file")
