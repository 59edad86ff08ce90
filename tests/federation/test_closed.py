"""Until a recipe is allowed, a site opens, lists and dials nothing but what is its own, whatever the recipe names."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import manyhands
from manyhands.data.sources import image_files
from manyhands.errors import ManyhandsError
from manyhands.federation.approval import approve, describe_offer, find_offer, waiting
from manyhands.federation.policy import Policy, recipe_hash
from manyhands.federation.released import Released
from manyhands.federation.secret import site_secret
from manyhands.federation.site import NotApproved, Site
from manyhands.models.latent import Latent
from manyhands.privacy.budget import Budget, Cost, Limits
from manyhands.spec import SpecError

LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(manyhands.__file__).parent))
FILES = {"open", "os.listdir", "os.scandir"}
OTHERS = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn"}
CLASSES = 'classes = ["0", "1"]'
SOURCES = {
    "folder": '{ kind = "folder", path = "OTHERS" }',
    "zip": '{ kind = "zip", path = "OTHERS/all.zip" }',
    "table": '{ kind = "table", path = "OTHERS/all.csv", files = "OTHERS/all.zip", id = "patient" }',
    "idx": '{ kind = "idx", images = "OTHERS/images", labels = "OTHERS/labels" }',
    "huggingface": '{ kind = "huggingface", name = "mnist" }',
}
_seen: dict[int, list[tuple[str, str]]] = {}
"""What threads that are looked at have done."""


def recipe(source: str, classes: str = CLASSES) -> str:
    data = f'name = "x"\n[data]\nsize = 8\nsource = {source}\ntest = {source}\n{classes}\n'
    method = '[method]\nkind = "fedavg"\nrounds = 1\n[method.training]\nsteps = 2\n[method.model]\nwidths = [8]\n'
    return f'{data}[partition]\nkind = "iid"\n{method}'


BASE = recipe(SOURCES["folder"])
OFFERS = {kind: recipe(source) for kind, source in SOURCES.items()} | {
    "ids": BASE.replace('kind = "iid"', 'kind = "by_id"\nids = "OTHERS/ids"'),
    "attributes": BASE.replace('kind = "iid"', 'kind = "attributes"\nfile = "OTHERS/a.csv"\ngroups = [["a"]]'),
    "evaluation": f'{BASE}[evaluation]\nfeatures = "inception:OTHERS/weights"\n',
    "autoencoder": BASE.replace("widths = [8]", 'kind = "latent"\nfolder = "OTHERS"'),
    "domains": BASE.replace("source", "domains.a").replace("test", "domains.b"),
}
UNSAID = {kind: recipe(source, "") for kind, source in SOURCES.items()}


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """What the interpreter tells of itself."""
    events = _seen.get(threading.get_ident())
    if events is not None and event in FILES | OTHERS:
        events.append((event, str(arguments[1] if event == "socket.connect" else arguments[0])))


@contextmanager
def looked_at() -> Iterator[list[tuple[str, str]]]:
    """What this thread does to files and sockets, but for what comes with Python and its packages."""
    if not _seen:
        sys.addaudithook(note)
    seen = _seen[threading.get_ident()] = []
    shown: list[tuple[str, str]] = []
    try:
        yield shown
    finally:
        del _seen[threading.get_ident()]
        _seen.setdefault(-1, [])  # the hook stays
        shown += [event for event in seen if not (event[0] in FILES and event[1].startswith(LIBRARIES))]


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Packages that are imported when a network is first built look about in the machine."""
    Latent.model_validate({"size": 8, "channels": 1, "classes": 2, "folder": "", "unet": {"widths": [8]}}).build(0)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    images = tmp_path / "images"
    for label in "01":
        (images / label).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (8, 8), number).save(images / label / f"{number}.png")
    (tmp_path / "others").mkdir()
    return {"images": images, "site": tmp_path / "site", "others": tmp_path / "others"}


def site_of(folders: dict[str, Path], **fields: object) -> Site:
    policy = Policy(data=str(folders["images"]), **fields)  # type: ignore[arg-type]
    return Site("a", policy, folders["site"], None, lambda _: None)  # type: ignore[arg-type] # it calls nobody


def strange(folders: dict[str, Path], seen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of what was seen, what is neither in the site's folder nor a listing of its images."""
    own, listed = str(folders["site"]), str(folders["images"])
    return [
        (event, name)
        for event, name in seen
        if not (event in FILES and (name.startswith(own) or name.isdigit()))  # a number is an open file's
        and not (event in FILES - {"open"} and name.startswith(listed))
    ]


@pytest.mark.parametrize("kind", OFFERS)
def test_nothing_is_read_loaded_or_fetched_before_somebody_allows_it(folders: dict[str, Path], kind: str) -> None:
    text = OFFERS[kind].replace("OTHERS", str(folders["others"]))
    with looked_at() as seen, pytest.raises((NotApproved, ManyhandsError)) as raised:
        site_of(folders).check_offer("run", text)
    assert strange(folders, seen) == []
    assert isinstance(raised.value, NotApproved) == (waiting(folders["site"]) == [recipe_hash(text)])
    if kind in SOURCES:
        assert isinstance(raised.value, NotApproved)


@pytest.mark.parametrize("kind", UNSAID)
def test_a_recipe_that_has_to_be_looked_up_is_declined_unread(folders: dict[str, Path], kind: str) -> None:
    text = UNSAID[kind].replace("OTHERS", str(folders["others"]))
    with looked_at() as seen, pytest.raises(ManyhandsError, match=r"data\.classes is missing"):
        site_of(folders, approve="limits").check_offer("run", text)
    assert seen == []


def test_who_reads_what_waits_reads_what_was_released_before(folders: dict[str, Path]) -> None:
    lines, site = list[str](), site_of(folders)
    site.log = lines.append
    for number in range(2):
        with pytest.raises(NotApproved):
            site.check_offer("run", BASE.replace('"x"', f'"x{number}"'))
        assert any("released of one image before" in line for line in lines) == bool(number)
        secret = site_secret(folders["site"])
        Budget(folders["site"], secret).charge([b"image"], [b"path"], Cost(0.1, 0.1, 1), Limits(), run="run")
    spent = Cost(0.1, 0.1, 1).words(1e-5)
    assert f"  released of one image before, over all runs: at most {spent}" in lines


def test_what_approve_shows_of_a_recipe_does_not_depend_on_what_was_offered_after_it(folders: dict[str, Path]) -> None:
    """Of one that holds out nearly all, epsilon of few images is shown; the next one would have had it of all."""
    lines, site = list[str](), site_of(folders)
    site.log = lines.append
    first, then = (BASE.replace("[partition]", f"held_out = {share}\n[partition]") for share in (0.8, 0.0))
    for text in (first, then):
        with pytest.raises(NotApproved):
            site.check_offer("run", text)
    for text, count in ((first, 2), (then, 10)):
        shown = describe_offer(folders["site"], find_offer(folders["site"], recipe_hash(text)))
        assert any(f"for its {count} images" in line for line in shown)
        assert {f"  {line}" for line in shown} <= set(lines)


def test_what_a_policy_refuses_is_declined_before_an_image_is_opened(folders: dict[str, Path]) -> None:
    with looked_at() as seen, pytest.raises(ManyhandsError, match="method 'fedavg' is not one of"):
        site_of(folders, approve="limits", methods=("local",)).check_offer("run", BASE)
    assert strange(folders, seen) == []


def test_what_is_allowed_reads_the_images_of_the_site_and_no_others(folders: dict[str, Path]) -> None:
    text = BASE.replace("OTHERS", str(folders["others"]))
    approve(folders["site"], [recipe_hash(text)])
    with looked_at() as seen:
        _, silo = site_of(folders).check_offer("run", text)
    assert len(silo.images) + len(silo.held_out or ()) == 10
    opened = [name for event, name in seen if event == "open" and name.startswith(str(folders["images"]))]
    assert len(set(opened)) == 10
    assert [event for event in seen if str(folders["others"]) in event[1] or event[0] in OTHERS] == []


@pytest.mark.parametrize("kind", ["zip", "table"])
def test_a_site_names_a_zip_file_or_a_table_of_its_own_and_no_image_is_opened_before_somebody_allows_it(
    folders: dict[str, Path], kind: str
) -> None:
    text, images = BASE.replace("OTHERS", str(folders["others"])), folders["images"]
    table, own = images / "all.csv", images / "all.zip"
    table.write_text("file,label,id\n" + "".join(f"{i % 2}/{i // 2}.png,{i % 2},{i // 2}\n" for i in range(10)))
    with zipfile.ZipFile(own, "w") as archive:
        for path in sorted(images.rglob("*.png")):
            archive.write(path, path.relative_to(images))
    source = {"kind": kind, "path": str(table if kind == "table" else own), "intensity": "range"}
    policy = Policy.model_validate({"data": source | ({"id": "id"} if kind == "table" else {})})
    site = Site("a", policy, folders["site"], None, lambda _: None)  # type: ignore[arg-type] # it calls nobody
    with looked_at() as seen, pytest.raises(NotApproved):
        site.check_offer("run", text)
    assert [name for event, name in seen if event == "open" and name.endswith(".png")] == []
    approve(folders["site"], [recipe_hash(text)])
    with looked_at() as seen:
        _, silo = site.check_offer("run", text)
    assert len(silo.images) + len(silo.held_out or ()) == 10
    assert (silo.images.ids is not None) == (kind == "table")
    assert [event for event in seen if str(folders["others"]) in event[1] or event[0] in OTHERS] == []
    digests = [Released(site._budget(), Limits(), silo, None, site.images.loaded_files)._record(i) for i in range(3)]  # type: ignore[arg-type]
    rows = silo.images.rows
    assert rows is not None
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    ordered = names if kind == "zip" else [f"{i % 2}/{i // 2}.png" for i in range(10)]
    assert digests == [hashlib.sha256((images / ordered[int(rows[i])]).read_bytes()).digest() for i in range(3)]


def test_a_site_logs_how_many_of_its_images_are_prepared_and_what_is_not_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MIN_STORED", 5)
    text, lines = BASE.replace("OTHERS", str(folders["others"])), list[str]()
    damaged = next(folders["images"].iterdir()) / "damaged.png"
    damaged.write_bytes(b"no picture")
    policy = Policy.model_validate({"data": {"kind": "folder", "path": str(folders["images"]), "unreadable": 0.5}})
    approve(folders["site"], [recipe_hash(text)])
    Site("a", policy, folders["site"], None, lines.append).check_offer("run", text)  # type: ignore[arg-type] # it calls nobody
    assert f"preparing {folders['images']}: 11 of 11, 0:00 left" in lines
    assert any(line.startswith(f"not read: {damaged}: ") for line in lines)


def test_a_site_names_files_and_nothing_that_is_fetched() -> None:
    with pytest.raises(SpecError, match=r"Policy\.data: kind 'huggingface' is not for sites; 'folder'"):
        Policy(data={"kind": "huggingface", "name": "mnist"})  # type: ignore[arg-type]


def test_whoever_looks_sees(folders: dict[str, Path]) -> None:
    with looked_at() as seen:
        (folders["others"] / "x").write_text("")
        list(folders["others"].iterdir())
    assert [event for event, _ in strange(folders, seen)] == ["open", "os.listdir"]
