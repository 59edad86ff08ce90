"""New kits: one for each party, unreadable to others, and from a project to which FLARE itself can add a party."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

import yaml
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from manyhands.errors import KitError, RecipeError
from manyhands.federation.kit import KEPT, load_kit
from manyhands.federation.provision import AUTHORITY, FIRST_ADMIN, PROJECT_FILE, new_kits

USERS = ["ann@a.org:lead", "bob@b.example.org:member"]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits")
    new_kits("train.example.org:8002", ["a", "b"], out, 30, USERS)
    return out


def test_there_is_a_kit_for_each_party_and_each_user(kits: Path) -> None:
    folders = {path.name for path in kits.iterdir() if path.is_dir()}
    assert folders == {"server", "a", "b", "admin", AUTHORITY, "ann@a.org", "bob@b.example.org"}
    assert load_kit(kits / "server", "server").party == "server"
    assert [load_kit(kits / site, "site").party for site in "ab"] == ["a", "b"]
    users = {"admin": FIRST_ADMIN, "ann@a.org": "ann@a.org", "bob@b.example.org": "bob@b.example.org"}
    assert {name: load_kit(kits / name, "admin").party for name in users} == users


def test_servers_and_sites_are_ready_for_manyhands(kits: Path) -> None:
    for party in ("server", "a", "b"):
        assert "federation.job." in (kits / party / "local" / "resources.json").read_text()
        assert (kits / party / KEPT).is_dir()


def test_nobody_else_can_read_any_file_of_a_kit_or_of_the_authority(kits: Path) -> None:
    held = [path for folder in kits.iterdir() if folder.is_dir() for path in (folder, *folder.rglob("*"))]
    assert {"cert.json", "server.key", "client.key"} <= {path.name for path in held}
    scripts = {".sh"}  # FLARE makes them executable; they hold nothing secret, and nobody else can enter their folder
    assert [path for path in held if path.stat().st_mode & 0o077 and path.suffix not in scripts] == []


def test_the_page_says_whose_each_is_and_the_fingerprint(kits: Path) -> None:
    page = (kits / "README.md").read_text()
    assert all(f"`{folder.name}/`" in page for folder in kits.iterdir() if folder.is_dir())
    assert "`lead`" in page
    assert load_kit(kits / "a", "site").authority_fingerprint() in page
    assert (kits / ".gitignore").read_text() == "*\n"


def test_flare_can_add_a_site_and_a_user_to_the_project_later(kits: Path) -> None:
    """As ``nvflare provision -p authority/project.yml -w authority --add-client FILE`` does."""
    project = yaml.safe_load((kits / AUTHORITY / PROJECT_FILE).read_text())
    new = [
        {"name": "c", "type": "client", "org": "elsewhere"},
        {"name": "eve@c.org", "type": "admin", "org": "elsewhere", "role": "lead"},
    ]
    project["participants"] += new
    provisioner = Provisioner(str(kits / AUTHORITY), prepare_builders(project))
    provisioner.provision(prepare_project(project), logger=logging.getLogger(__name__))
    (made,) = kits.glob(f"{AUTHORITY}/*/prod_01")
    site, user = load_kit(made / "c", "site"), load_kit(made / "eve@c.org", "admin")
    assert (site.party, site.host, user.party) == ("c", "train.example.org", "eve@c.org")
    ours = load_kit(kits / "server", "server").authority_fingerprint()
    assert site.authority_fingerprint() == user.authority_fingerprint() == ours


@pytest.mark.parametrize(
    ("server", "sites", "users", "why"),
    [
        ("8002", ["a"], [], "must be HOST:PORT"), ("h:x", ["a"], [], "must be HOST:PORT"),
        ("h:0", ["a"], [], "must be HOST:PORT"), ("h:65536", ["a"], [], "must be HOST:PORT"),
        ("h:8002", [], [], "must name each site once"), ("h:8002", ["a", "a"], [], "must name each site once"),
        ("h:8002", ["a.b"], [], "use a-z"), ("h:8002", ["A"], [], "use a-z"), ("h:8002", ["../a"], [], "use a-z"),
        ("h:8002", ["server"], [], "but not"), ("h:8002", ["admin"], [], "but not"),
        ("h:8002", ["authority"], [], "but not"),
        ("h:8002", ["a"], ["ann@a.org"], "must be EMAIL:ROLE"), ("h:8002", ["a"], ["ann:lead"], "must be EMAIL:ROLE"),
        ("h:8002", ["a"], ["ann@a.org:boss"], "must be EMAIL:ROLE"),
        ("h:8002", ["a"], ["../x@a.org:lead"], "must be EMAIL:ROLE"),
        ("h:8002", ["a"], [f"{FIRST_ADMIN}:lead"], "must be EMAIL:ROLE"),
        ("h:8002", ["a"], [USERS[0], USERS[0]], "already has a participant with the name 'ann@a.org'"),
        ("a:8002", ["a"], [], "already has a participant with the name 'a'"), ("h_h:8002", ["a"], [], "ill-formatted"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, server: str, sites: list[str], users: list[str], why: str
) -> None:
    with pytest.raises(RecipeError, match=why):
        new_kits(server, sites, tmp_path / "kits", users=users)
    assert not (tmp_path / "kits").exists()


def test_kits_are_never_made_anew_over_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(KitError, match="is not empty"):
        new_kits("h:8002", ["a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
