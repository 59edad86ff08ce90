"""The command as a user runs it: a real process where that matters, the same words in this one where it does not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.main import get_command

from manyhands.cli.app import app as app_of_manyhands
from manyhands.errors import ManyhandsError
from manyhands.runs.progress import round_line
from manyhands.runs.round import Round
from tests.command import manyhands

COMMAND = str(Path(sys.executable).with_name("manyhands"))
TINY = [
    "digits-fedavg", "--set", "method.rounds=2", "--set", "method.training.steps=1", "--set", "method.model.widths=[8]",
    "--set", "partition.silos=2", "--set", "sampling.steps=2", "--set", "device=cpu",
]  # fmt: skip


def process(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], cwd=where, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("cli")
    said = process("run", *TINY, "--json", where=where)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["rounds"] == 2
    return where


def test_a_process_of_its_own_has_the_words_and_the_code_of_this_one(ended: Path) -> None:
    arguments = ["run", *TINY]
    apart, here = process(*arguments, where=ended), manyhands(*arguments, where=ended)
    assert apart.returncode == here.returncode == 4
    assert apart.stderr == here.stderr
    assert apart.stdout == here.stdout == ""


def test_a_run_says_where_its_picture_and_report_lie(ended: Path) -> None:
    said = manyhands("run", *TINY, "--resume", where=ended)
    assert said.returncode == 0
    for name in ("samples", "report", "model"):
        path = re.search(rf"^{name}\s+(\S+)$", said.stdout, re.MULTILINE)
        assert path is not None
        assert (ended / path.group(1)).exists()


def test_samples_are_written_as_tensors_grid_and_pngs(ended: Path) -> None:
    asked = ["--count", "3", "--label", "7", "--steps", "3", "--png", "--out", "drawn", "--json"]
    said = manyhands("sample", "runs/digits-fedavg", *asked, where=ended)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["count"] == 3
    kept = load_file(ended / "drawn" / "samples.safetensors")
    assert kept["images"].shape == (3, 1, 8, 8)
    assert kept["images"].abs().max() <= 1
    assert kept["labels"].tolist() == [7, 7, 7]
    with Image.open(ended / "drawn" / "grid.png") as grid:
        assert grid.width > 100
    assert len(list((ended / "drawn").glob("0*.png"))) == 3


def test_recipes_cite_and_dry_run(ended: Path) -> None:
    assert "digits-fedavg" in manyhands("recipes", where=ended).stdout
    cited = json.loads(manyhands("cite", "runs/digits-fedavg", "--json", where=ended).stdout)
    assert any("2311.16538" in paper for paper in cited["papers"])
    planned = manyhands("run", *TINY, "--dry-run", "--out", "nowhere", where=ended)
    words = planned.stdout
    assert words.index("# leaves (2 times): the weights") < words.index("# in no message: ")
    assert not (ended / "nowhere").exists()
    assert (
        json.loads(manyhands("run", *TINY, "--dry-run", "--json", where=ended).stdout)["recipe"]["method"]["rounds"]
        == 2
    )


def test_what_gives_images_away_is_said_before_the_recipe_and_of_every_run_of_a_sweep(ended: Path) -> None:
    cut = ["run", "digits-collafuse", "--dry-run", "--set"]
    said = manyhands(*cut, "method.cut=.4", where=ended).stdout
    assert said.startswith("# This run gives its images away: ")
    assert said.count("gives its images away") == 1
    assert "share = 0.4" in said
    assert not manyhands(*cut, "method.cut=.99", where=ended).stdout.startswith("# ")
    swept = manyhands(*cut, "sweep.cut=[.4, .99]", where=ended).stdout
    assert swept.count("gives its images away") == 1
    assert "This run gives its images away" in manyhands("run", *TINY, "--resume", where=ended).stderr


def test_a_run_is_measured_and_evaluate_measures_it_again(ended: Path) -> None:
    first = json.loads((ended / "runs" / "digits-fedavg" / "report.json").read_text())
    assert first["metrics"]["fid"] > first["floor"]["fid"]
    assert "cas" not in first["metrics"]
    again = ["evaluate", "runs/digits-fedavg", "--images", "100", "--steps", "3", "--seeds", "2"]
    said = manyhands(*again, where=ended)
    assert said.returncode == 0, said.stderr
    assert re.search(r"^FID +\S+ +\S+ +\S+$", said.stdout, re.MULTILINE)
    assert re.search(r"^CAS accuracy", said.stdout, re.MULTILINE)
    assert re.match(r"FID is \S+ times that between real images: ", said.stdout)
    report = json.loads(manyhands(*again, "--json", where=ended).stdout)
    assert report["evaluation"]["protocol"]["images"] == 100
    assert report["evaluation"]["protocol"]["sampling"]["steps"] == 3
    assert report["evaluation"]["protocol"]["seeds"] == [0, 1]
    assert report == json.loads((ended / "runs" / "digits-fedavg" / "report.json").read_text())
    assert "100 samples" in (ended / "runs" / "digits-fedavg" / "report.html").read_text()


def test_a_run_is_not_measured_against_other_images_than_it_was_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    arguments = [*TINY, "--set", "data.source={kind='folder', path='pictures'}", "--set", "data.held_out=0.4"]
    assert manyhands("run", *arguments, "--out", "run", where=tmp_path).returncode == 0
    Image.new("L", (8, 8)).save(path)
    said = manyhands("evaluate", "run", where=tmp_path)
    assert said.returncode == 4
    assert "the images of its recipe are no longer those that it was trained on" in said.stderr


def test_several_seeds_are_trained_and_shown_as_one(tmp_path: Path) -> None:
    few = [*TINY, "--set", "evaluation.images=30"]
    said = manyhands("run", *few, "--seeds", "2", "--tensorboard", where=tmp_path)
    assert said.returncode == 0, said.stderr
    folders = [tmp_path / "runs" / "digits-fedavg" / f"seed-{seed}" for seed in (0, 1)]
    assert all((folder / "report.html").exists() for folder in folders)
    assert all(list((folder / "tensorboard").iterdir()) for folder in folders)
    assert re.search(r"^seeds +2$", said.stdout, re.MULTILINE)
    assert re.search(r"^FID +\S+ ± \S+ +\S+$", said.stdout, re.MULTILINE)
    assert re.match(r"digits-fedavg: FID is \S+ times that between real images: ", said.stdout)
    both = manyhands("compare", *map(str, folders), "--out", "side", "--json", where=tmp_path)
    comparison = json.loads(both.stdout)
    assert comparison["runs"][0]["seeds"] == 2
    assert all((tmp_path / file).exists() for file in comparison["files"])
    manyhands("evaluate", str(folders[0]), "--images", "20", "--no-cas", where=tmp_path)
    refused = manyhands("compare", *map(str, folders), where=tmp_path)
    assert refused.returncode == 10
    assert "protocol.images is 20 in" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["evaluate", "runs/none"], 4, "there is no such folder"),
        (["evaluate", "runs/digits-fedavg", "--data", "none"], 2, "--data none: there is no such folder"),
        (
            ["evaluate", "runs/digits-fedavg", "--features", "incepton"],
            2,
            "'incepton' is none of 'classifier'",
        ),
        (
            ["evaluate", "runs/digits-fedavg", "--features", "inception:none.pth"],
            3,
            "no Inception weights here; download http",
        ),
        (["compare", "runs/digits-fedavg", "runs/none"], 4, "there is no such folder"),
        (["compare", "runs/digits-fedavg"], 2, "needs two or more runs"),
        (["run", "digits-fedavgg"], 2, "did you mean 'digits-fedavg'?"),
        (["run", "none.toml"], 2, "no such recipe"),
        (["run", *TINY, "--set", "method.traning.x=1"], 2, "did you mean 'training'?"),
        (
            ["run", *TINY, "--set", "data.source={kind='folder', path='gone'}", "--set", "data.classes=10"],
            3,
            "no such folder",
        ),
        (["run", *TINY], 4, "holds a run already"),
        (["run", *TINY, "--resume", "--set", "method.ema=0.5"], 4, "method.ema was 0.8, is now 0.5"),
        (["sample", "runs/none", "--out", "x"], 4, "there is no such folder"),
        (["sample", "runs/digits-fedavg", "--out", "x", "--label", "10"], 2, "label 10 is not in 0 to 9"),
        (
            ["sample", "runs/digits-fedavg", "--out", "x", "--silo", "silo-9"],
            4,
            "there is no generator of a silo 'silo-9'; there are those of silo-0",
        ),
        (["sample", "runs/digits-fedavg", "--out", "x", "--alone"], 2, "--alone: changes nothing here"),
        (["run", *TINY, "--out", "runs/digits-fedavg/report.json"], 4, "report.json: is a file; choose a folder"),
        (["federation", "--demo", "digits-fedavg", "--out", "runs/digits-fedavg/report.json"], 2, "is a file; give a"),
        (
            ["federation", "--demo", "digits-fedavg", "--set", "data.source={kind='folder', path='gone'}"],
            2,
            "data.classes is missing",
        ),
        (["cite", "runs/none"], 4, "there is no such folder"),
        (["run", *TINY, "--out", "x", "--set", "device=cuda"], 2, "device 'cuda' is not available"),
    ],
)
def test_an_error_is_printed_in_words_with_its_exit_code(
    ended: Path, arguments: list[str], code: int, words: str
) -> None:
    said = manyhands(*arguments, where=ended)
    assert said.returncode == code
    assert words in said.stderr
    assert "Traceback" not in said.stderr
    assert "see: manyhands explain " in said.stderr


def test_an_interrupt_keeps_the_rounds_and_says_how_to_go_on(tmp_path: Path) -> None:
    endless = [*TINY, "--set", "method.rounds=1000"]
    running = subprocess.Popen([COMMAND, "run", *endless], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("round 2/"):
            break
    os.kill(running.pid, signal.SIGINT)
    rest = running.stderr.read()
    assert running.wait() == 130
    assert "--resume continues the run" in rest
    assert "Traceback" not in rest
    running.stderr.close()
    kept = int(re.search(r"(\d+) rounds are kept", rest).group(1))  # type: ignore[union-attr]
    assert kept >= 2
    assert (tmp_path / "runs" / "digits-fedavg" / "server" / f"checkpoint-{kept:06d}.mh").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", ["recipes", "schema"])
def test_an_output_that_is_full_is_said_in_words(command: str) -> None:
    with Path("/dev/full").open("w") as full:
        said = subprocess.run([COMMAND, command], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert said.returncode == 7
    assert said.stderr.startswith("error: standard output: cannot be written: No space left on device")
    assert "Traceback" not in said.stderr


def test_the_help_page_does_not_import_torch() -> None:
    code = "import sys; sys.argv = ['manyhands', '--help']\nfrom manyhands.cli.app import app\n"
    code += (
        "try: app()\nexcept SystemExit: pass\nassert not {'torch', 'diffusers', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_error_has_a_page_that_is_printed(tmp_path: Path) -> None:
    kinds = [ManyhandsError, *ManyhandsError.__subclasses__()]
    for kind in kinds:
        said = manyhands("explain", kind.page, where=tmp_path)
        assert said.returncode == 0, kind
        assert said.stdout.startswith("# ")
        assert f"Exit code {kind.exit_code}." in said.stdout
    listed = manyhands("explain", where=tmp_path).stdout
    assert all(f"{kind.page} " in listed for kind in kinds)
    assert "did you mean 'recipe'?" in manyhands("explain", "recip", where=tmp_path).stderr
    assert manyhands("explain", "errors", where=tmp_path).stdout.startswith("# Errors and exit codes")
    assert manyhands("explain", "index", where=tmp_path).stdout.startswith("# Manyhands")


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (["serve", "kits/server", "--out", "runs"], "--out: runs are kept in KIT/_manyhands now"),
        (["serve", "kits/server", "--host", "0.0.0.0"], "--host: the address is that of the kit; see federation new"),
        (["serve", "kits/server", "--port", "8002"], "--port: the port is that of the kit; see federation new"),
        (["join", "kits/a", "--data", "x", "--out", "site"], "--out: what a site keeps is in KIT/_manyhands now; move"),
    ],
)
def test_an_option_of_version_0_1_says_what_to_do_instead(arguments: list[str], instead: str, tmp_path: Path) -> None:
    said = manyhands("federation", *arguments, where=tmp_path)
    assert said.returncode == 2
    assert instead in said.stderr
    assert arguments[-2] not in manyhands("federation", arguments[0], "--help", where=tmp_path).stdout


def test_every_command_and_every_option_has_a_help_text_that_is_a_sentence() -> None:
    app = get_command(app_of_manyhands)
    commands = dict(app.commands) | {f"federation {name}": c for name, c in app.commands["federation"].commands.items()}  # type: ignore[attr-defined]
    for name, command in commands.items():
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]  # type: ignore[attr-defined]
        for text in [command.help, *(parameter.help for parameter in shown)]:  # type: ignore[attr-defined]
            assert text, name
            assert text.endswith("."), text
        assert "..." not in command.get_short_help_str(62), name  # the list of commands shows it whole


@pytest.mark.parametrize(
    ("line", "proposals"),
    [
        ("manyhands ru", ["run"]),
        ("manyhands run digits-fed", ["digits-fedavg"]),
        ("manyhands explain quo", ["quorum"]),
        ("manyhands advise --mode au", ["authors"]),
    ],
)
def test_a_shell_completes_commands_and_what_they_are_told(line: str, proposals: list[str]) -> None:
    words = {"_MANYHANDS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    completed = subprocess.run([COMMAND], env=os.environ | words, capture_output=True, text=True, check=False)
    assert completed.stdout.split() == proposals


def test_a_round_fits_in_a_terminal_of_80_columns() -> None:
    done = Round(
        number=999,
        rounds=1000,
        seconds=123.4,
        images_seen=60_000,
        bytes_up=10**9,
        bytes_down=10**9,
        losses={f"s{i}": 0.1 for i in range(100)},
    )
    assert len(round_line(done, 100)) <= 80


def test_an_autoencoder_is_trained_and_a_latent_model_on_top_of_it(tmp_path: Path) -> None:
    short = ["--set", "method.rounds=1", "--set", "method.training.steps=2", "--set", "device=cpu"]
    early = manyhands("run", "digits-latent", *short, where=tmp_path)
    assert early.returncode == 4
    assert "runs/digits-autoencoder/model: holds no autoencoder" in early.stderr
    first = manyhands("run", "digits-autoencoder", *short, where=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "reconstructed from the held-out images by an autoencoder" in first.stdout.lower()
    assert "figures/samples.png" not in first.stdout  # it could only show images of silos
    assert (
        "generates no images by itself"
        in manyhands("sample", "runs/digits-autoencoder", "--out", "s", where=tmp_path).stderr
    )
    measured = manyhands("evaluate", "runs/digits-autoencoder", "--images", "50", "--no-cas", "--json", where=tmp_path)
    assert json.loads(measured.stdout)["evaluation"]["protocol"]["sampling"] == {}
    second = manyhands("run", "digits-latent", *short, "--set", "sampling.steps=2", where=tmp_path)
    assert second.returncode == 0, second.stderr
    drawn = manyhands("sample", "runs/digits-latent", "--out", "s", "--count", "3", "--steps", "2", where=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert load_file(tmp_path / "s" / "samples.safetensors")["images"].shape == (3, 1, 8, 8)
