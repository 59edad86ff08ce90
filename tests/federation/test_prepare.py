"""A kit is made ready in its ``local/`` alone, once, and put back as it was before to the byte."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tomli_w

pytest.importorskip("nvflare")

from harness.expired import expire
from manyhands.errors import KitError, RecipeError
from manyhands.federation.kit import ADMIN, KEPT, SERVER
from manyhands.federation.policy import Policy
from manyhands.federation.prepare import (
    ALLOWED,
    BEFORE,
    DEFAULT,
    GUARD,
    GUARD_ID,
    LAUNCHER,
    POLICY_FILE,
    RESOURCES,
    RESUMER,
    RESUMER_ID,
    RIGHTS,
    SHIPPED,
    STREAMS,
    prepare,
    prepare_site,
    undo,
)
from manyhands.federation.provision import new_kits
from manyhands.files.strict_json import finite_json
from manyhands.runs.recipe_file import read

CONTAINER = {"id": "process_launcher", "path": "nvflare.app_opt.job_launcher.docker_launcher.ClientDockerJobLauncher"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits as FLARE provisions them, which nobody has made ready."""
    out = tmp_path_factory.mktemp("kits")
    new_kits("train.example.org:8002", ["a"], out)
    for party in (SERVER, "a"):
        undo(out / party)
        (out / party / KEPT).rmdir()
    return out


@pytest.fixture
def kits(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "kits"))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of a site, in the folder in which its operator types commands."""
    (tmp_path / "here" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "images"


def resources(kit: Path) -> dict[str, Any]:
    return dict(json.loads((kit / "local" / RESOURCES).read_text()))


def paths(kit: Path) -> dict[str, str]:
    return {component["id"]: component["path"] for component in resources(kit)["components"]}


def content(kit: Path) -> dict[str, bytes]:
    return {str(path.relative_to(kit)): path.read_bytes() for path in sorted(kit.rglob("*")) if path.is_file()}


def own_resources(kit: Path, *components: dict[str, Any]) -> None:
    """What an operator has written before, as people write it."""
    (kit / "local" / RESOURCES).write_text(f'{{\n  "format_version": 2, "components": {finite_json(components)}\n}}\n')


@pytest.mark.parametrize(("party", "role"), [(SERVER, "server"), ("a", "site")])
def test_our_classes_are_allowed_and_our_launcher_and_resumer_are_named(kits: Path, party: str, role: str) -> None:
    before = json.loads((kits / party / "local" / (RESOURCES + DEFAULT)).read_text())
    prepare(kits / party)
    after = resources(kits / party)
    assert after["class_allow_list"] == [*before["class_allow_list"], ALLOWED[role]]
    assert {key for key in after if after[key] != before[key]} == {"class_allow_list", "components"}
    named = {c["id"]: LAUNCHER[role] if c["path"] == SHIPPED[role] else c["path"] for c in before["components"]}
    guard = {GUARD_ID: GUARD} if role == "server" else {}
    assert paths(kits / party) == named | {RESUMER_ID: RESUMER[role]} | guard
    assert LAUNCHER[role] in named.values(), "FLARE ships the launcher under another name now"


@pytest.mark.parametrize("path", [*LAUNCHER.values(), *RESUMER.values(), *SHIPPED.values(), GUARD])
def test_what_is_named_is_there(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(__import__(module, fromlist=[name]), name).__name__ == name


def test_what_it_says_that_it_changes_is_what_changes_and_a_second_time_nothing(kits: Path) -> None:
    before = content(kits / "a")
    changes = prepare(kits / "a")
    assert len(changes) == 2
    assert all(line.startswith(str(kits / "a" / "local" / RESOURCES)) for line in changes)
    after = content(kits / "a")
    assert after.keys() - before.keys() == {f"local/{RESOURCES}", f"local/{RESOURCES}{BEFORE}"}
    assert {name: after[name] for name in before} == before
    assert prepare(kits / "a") == []
    assert content(kits / "a") == after


def test_a_launcher_of_another_kind_is_left_alone(kits: Path) -> None:
    own_resources(kits / "a", CONTAINER)
    changes = prepare(kits / "a", launcher=True)
    assert paths(kits / "a") == {"process_launcher": CONTAINER["path"]}, "nothing would resume"
    assert changes[-1].endswith("its own launcher is kept, with which a killed process ends a job")


def test_without_a_launcher_only_the_classes_are_allowed(kits: Path) -> None:
    own_resources(kits / "a", {"id": "process_launcher", "path": SHIPPED["site"]})
    assert len(prepare(kits / "a", launcher=False)) == 1
    assert paths(kits / "a") == {"process_launcher": SHIPPED["site"]}
    assert resources(kits / "a")["class_allow_list"] == [ALLOWED["site"]]
    assert prepare(kits / "a") == [], "what an operator has chosen stays"
    for launcher, named in ((True, LAUNCHER), (False, SHIPPED)):
        assert len(prepare(kits / "a", launcher=launcher)) == 1
        assert paths(kits / "a")["process_launcher"] == named["site"]
        assert (RESUMER_ID in paths(kits / "a")) == launcher


def test_a_server_without_our_launcher_still_says_which_jobs_a_restart_has_ended(kits: Path) -> None:
    prepare(kits / "server", launcher=False)
    assert paths(kits / "server")["process_launcher"] == SHIPPED["server"]
    assert RESUMER_ID in paths(kits / "server")


@pytest.mark.parametrize("has_own", [False, True])
def test_undo_restores_to_the_byte(kits: Path, images: Path, has_own: bool) -> None:
    if has_own:
        own_resources(kits / "a", CONTAINER)
    before = content(kits / "a")
    for launcher in (False, True):  # the resources are changed twice
        prepare_site(kits / "a", None, "images", launcher=launcher)
        assert content(kits / "a") != before
    assert len(undo(kits / "a")) == 2
    assert content(kits / "a") == before
    assert undo(kits / "a") == []


def test_what_a_site_keeps_of_its_runs_survives_undo_and_is_its_owners_alone(kits: Path) -> None:
    prepare(kits / "a")
    assert (kits / "a" / KEPT).stat().st_mode & 0o077 == 0
    (kits / "a" / KEPT / "secret").write_text("mine")
    undo(kits / "a")
    assert (kits / "a" / KEPT / "secret").read_text() == "mine"


def test_a_policy_is_written_with_absolute_paths_and_stays(kits: Path, images: Path) -> None:
    """FLARE's processes run in the folder of the kit."""
    (images.parent / "policy.toml").write_text('labels = true\ndata = "images"\nledger = "spent"\n')
    changes = prepare_site(kits / "a", Path("policy.toml"), "")
    assert any(line.endswith("the policy of a") for line in changes)
    own = kits / "a" / "local" / POLICY_FILE
    expected = Policy(labels=True, data=str(images), ledger=str(images.parent / "spent"))
    assert read(Policy, own, "policy") == expected
    assert prepare_site(kits / "a", None, "") == []
    (images.parent / "others").mkdir()
    assert len(prepare_site(kits / "a", None, "others")) == 1
    assert read(Policy, own, "policy") == expected.model_copy(update={"data": str(images.parent / "others")})


def test_the_policy_of_a_site_that_says_nothing_is_the_strictest(kits: Path, images: Path) -> None:
    prepare_site(kits / "a", None, "images")
    assert read(Policy, kits / "a" / "local" / POLICY_FILE, "policy") == Policy(data=str(images))


def test_logs_leave_a_site_only_if_its_policy_says_so(kits: Path, images: Path) -> None:
    """FLARE ships with streaming allowed, and an error may name files."""
    assert json.loads((kits / "a" / "local" / (RESOURCES + DEFAULT)).read_text())[STREAMS] is True
    for logs in (False, True, False):
        (images.parent / "policy.toml").write_text(f'data = "images"\nlogs = {str(logs).lower()}\n')
        assert any(STREAMS in line for line in prepare_site(kits / "a", Path("policy.toml"), ""))
        assert resources(kits / "a")[STREAMS] is logs


def test_every_role_may_ask_how_runs_stand_and_undo_takes_it_back(kits: Path) -> None:
    before = content(kits / SERVER)
    rights = kits / SERVER / "local" / RIGHTS
    (default := json.loads((rights.parent / (RIGHTS + DEFAULT)).read_text()))["permissions"]["lead"]["app_command"] = (
        "none"
    )
    rights.write_text(finite_json(default))
    prepare(kits / SERVER)
    after = json.loads(rights.read_text())["permissions"]
    assert after["lead"] == default["permissions"]["lead"] | {"get_job_log": "n:submitter"}, (
        "an operator's choice stays"
    )
    assert after["member"]["app_command"] == "any"
    assert "get_job_log" not in after["member"]
    undo(kits / SERVER)
    assert json.loads(rights.read_text()) == default
    rights.write_bytes(before[f"local/{RIGHTS}"])
    assert content(kits / SERVER) == before


def test_a_list_of_classes_that_is_too_wide_is_narrowed(kits: Path) -> None:
    """With it, a job without code could name what changes the policy of a site."""
    path = kits / "a" / "local" / RESOURCES
    path.write_text(finite_json({"class_allow_list": ["manyhands."], "components": []}))
    assert any("no longer has 'manyhands.'" in line for line in prepare(kits / "a"))
    assert resources(kits / "a")["class_allow_list"] == [ALLOWED["site"]]


def test_a_server_has_no_policy(kits: Path, images: Path) -> None:
    prepare(kits / SERVER, Policy(data=str(images)))
    assert not (kits / SERVER / "local" / POLICY_FILE).exists()
    with pytest.raises(KitError, match="whose role is server; a kit of role site is needed"):
        prepare_site(kits / SERVER, None, "images")


def test_the_policy_keeps_a_source_with_paths_that_do_not_depend_on_where_flare_runs(kits: Path, images: Path) -> None:
    own = {"kind": "folder", "path": "images", "intensity": [-160, 240], "ids": "folder", "class_names": {"x": "y"}}
    policy = images.parent / "policy.toml"
    policy.write_text(tomli_w.dumps({"min_sites": 3, "data": own}))
    prepare_site(kits / "a", policy, "")
    assert prepare_site(kits / "a", None, "") == []
    written = read(Policy, kits / "a" / "local" / POLICY_FILE, "policy")
    expected = Policy.model_validate({"min_sites": 3, "data": own | {"path": str(images.resolve())}})
    assert written == expected


@pytest.mark.parametrize("local", [False, True])
def test_only_in_the_demo_may_a_recipe_say_which_images_are_read(tmp_path: Path, images: Path, local: bool) -> None:
    new_kits(f"{'127.0.0.1' if local else 'train.example.org'}:8002", ["a"], tmp_path / "kits")
    kit = tmp_path / "kits" / "a"
    prepare_site(kit, None, "images")
    with nullcontext() if local else pytest.raises(RecipeError, match="is only for the demo, .* is train.example.org"):
        prepare_site(kit, None, "recipe")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "--data: is missing; give the folder, zip file or table of this site's images"),
        ("gone", "--data .*gone: there is no such"),
    ],
)
def test_images_that_are_not_there_are_said_and_nothing_is_changed(
    kits: Path, images: Path, data: str, why: str
) -> None:
    before = content(kits / "a")
    with pytest.raises(RecipeError, match=why):
        prepare_site(kits / "a", None, data)
    assert content(kits / "a") == before


@pytest.mark.parametrize("act", [prepare, undo])
def test_a_kit_that_cannot_be_made_ready_is_an_error_that_says_so(kits: Path, tmp_path: Path, act: Any) -> None:
    old = tmp_path / "old" / "startup"
    old.mkdir(parents=True)
    (old / "kit.json").write_text("{}")
    expire(kits / "a" / "startup" / "client.crt", kits / "authority")
    for folder, why in {
        kits / ADMIN: "whose role is admin; a kit of role server or site is needed",
        old.parent: "it was made by an older version of Manyhands",
        kits / "a": "its certificate is valid from",
        tmp_path / "gone": "holds no start-up kit of FLARE",
    }.items():
        with pytest.raises(KitError, match=why):
            act(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"components": {}}', '{"components": 3}', "\udcff"])
def test_damaged_resources_are_an_error_and_are_left_as_they_are(kits: Path, text: str) -> None:
    path = kits / "a" / "local" / RESOURCES
    path.write_bytes(text.encode(errors="surrogateescape"))
    before = content(kits / "a")
    with pytest.raises(KitError, match=f"{path}: (are not the resources|cannot be read)"):
        prepare(kits / "a")
    assert content(kits / "a") == before
