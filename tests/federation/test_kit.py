"""A kit is its party's own, as it was signed, and for a while."""

from __future__ import annotations

import socket
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from harness.expired import expire
from manyhands.cli.federation.join import check_data
from manyhands.errors import KitError, RecipeError
from manyhands.federation.kit import About, Kit, load_kit, new_kits


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits")
    new_kits("train.example.org:8002", ["a", "b"], out)
    return out


@pytest.mark.parametrize(("party", "role"), [("server", "server"), ("admin", "admin"), ("a", "site"), ("b", "site")])
def test_each_party_has_a_kit_that_nobody_else_can_read(kits: Path, party: str, role: str) -> None:
    kit = load_kit(kits / party, role)
    assert (kit.about.party, kit.about.host, kit.about.port) == (party, "train.example.org", 8002)
    assert party in kit.certificate.subject.rfc4514_string()
    assert (kits / party).stat().st_mode & 0o077 == 0


def test_nobody_else_can_read_any_file_of_a_kit_or_of_the_authority(kits: Path) -> None:
    held = [kits / "authority", *(path for path in kits.glob("*/**/*"))]
    assert any(path.name == "cert.json" for path in held), "the authority's own key lies in it"
    assert [path for path in held if path.stat().st_mode & 0o077] == []


def test_the_page_says_whose_each_is_and_the_fingerprint(kits: Path) -> None:
    page = (kits / "README.md").read_text()
    assert all(f"`{party}/`" in page for party in ("server", "admin", "a", "b", "authority"))
    assert page.count(":") >= 31


def test_a_kit_of_another_role_is_named(kits: Path) -> None:
    with pytest.raises(KitError, match="is the kit of a, whose role is site; a kit of role server is needed"):
        load_kit(kits / "a", "server")


@pytest.mark.parametrize("file", ["kit.json", "client.crt", "client.key"])
def test_a_kit_that_was_changed_is_refused(kits: Path, tmp_path: Path, file: str) -> None:
    new_kits("127.0.0.1:8002", ["a"], tmp_path / "kits")
    path = tmp_path / "kits" / "a" / "startup" / file
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(KitError):
        load_kit(tmp_path / "kits" / "a", "site")


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_kits("127.0.0.1:8002", ["a"], tmp_path / "kits")
    expire(tmp_path / "kits" / "a" / "startup" / "client.crt", tmp_path / "kits" / "authority")
    monkeypatch.setattr("manyhands.links.flare.is_untouched", lambda _: True)
    with pytest.raises(KitError, match="its certificate is valid from .* to"):
        load_kit(tmp_path / "kits" / "a", "site")


@pytest.mark.parametrize(
    ("server", "sites", "why"),
    [
        ("8002", ["a"], "must be HOST:PORT"), ("h:x", ["a"], "must be HOST:PORT"),
        ("h:8002", [], "must name each site once"),
        ("h:8002", ["a", "a"], "must name each site once"), ("h:8002", ["a.b"], "use a-z"),
        ("h:8002", ["server"], "but not"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, server: str, sites: list[str], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        new_kits(server, sites, tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


def test_kits_are_never_made_anew_over_others(kits: Path) -> None:
    with pytest.raises(KitError, match="is not empty"):
        new_kits("h:8002", ["a"], kits)


def test_whoever_hangs_up_at_once_is_no_server_yet(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        new_kits(f"127.0.0.1:{door.getsockname()[1]}", ["a"], tmp_path / "kits")
        closing = threading.Thread(target=lambda: door.accept()[0].close())
        closing.start()
        with pytest.raises(KitError, match="no server answers"):
            load_kit(tmp_path / "kits" / "a", "site").server_fingerprint()
        closing.join()


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("localhost.example.org", False)],
)
def test_only_in_the_demo_may_a_recipe_say_which_images_are_read(tmp_path: Path, host: str, local: bool) -> None:
    kit = Kit(tmp_path, About(party="a", role="site", host=host, port=1, sites=("a",)))
    check_data(str(tmp_path), kit)
    with nullcontext() if local else pytest.raises(RecipeError, match="is only for the demo"):
        check_data("recipe", kit)
    with pytest.raises(RecipeError, match="give the folder of this site's images"):
        check_data("", kit)
    with pytest.raises(RecipeError, match="there is no such folder"):
        check_data(str(tmp_path / "other"), kit)
