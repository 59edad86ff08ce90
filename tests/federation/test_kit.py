"""A kit is known by its files: whose it is, of which role, for how long, and who vouches for the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from harness.expired import expire
from manyhands.errors import KitError
from manyhands.federation.kit import CONFIGS, KEPT, Kit, Role, load_kit
from manyhands.federation.provision import new_kits


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits")
    new_kits("train.example.org:8002", ["a", "b"], out)
    return out


@pytest.fixture
def own(kits: Path, tmp_path: Path) -> Path:
    """A kit of a site that a test may change."""
    return Path(shutil.copytree(kits / "a", tmp_path / "a"))


@pytest.mark.parametrize(
    ("party", "role", "name"),
    [("server", "server", "server"), ("admin", "admin", "admin@manyhands.org"), ("a", "site", "a"), ("b", "site", "b")],
)
def test_a_kit_says_whose_it_is_and_where_the_server_is(kits: Path, party: str, role: Role, name: str) -> None:
    kit = load_kit(kits / party, role)
    assert (kit.role, kit.party, kit.host, kit.port) == (role, name, "train.example.org", 8002)
    assert kit.startup.is_dir()
    assert kit.local.is_dir()
    assert kit.kept == kits / party / KEPT
    assert load_kit(kits / party, "server", "site", "admin") == kit


def test_all_parties_have_the_same_authority_and_those_of_another_federation_have_not(
    kits: Path, tmp_path: Path
) -> None:
    new_kits("train.example.org:8002", ["a"], tmp_path / "other")
    roles: dict[str, Role] = {"server": "server", "admin": "admin", "a": "site"}
    (ours,), (theirs,) = (
        {load_kit(folder / party, role).authority_fingerprint() for party, role in roles.items()}
        for folder in (kits, tmp_path / "other")
    )
    assert ours != theirs
    assert len(ours.split(":")) == 32


def test_a_kit_of_another_role_is_named(kits: Path) -> None:
    with pytest.raises(KitError, match="is the kit of a, whose role is site; a kit of role server or admin is needed"):
        load_kit(kits / "a", "server", "admin")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"servers": []}', b"\xff"])
@pytest.mark.parametrize("role", CONFIGS)
def test_a_damaged_configuration_is_an_error_with_the_folder(tmp_path: Path, role: Role, content: bytes) -> None:
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / CONFIGS[role][0]).write_bytes(content)
    with pytest.raises(KitError, match=f"{tmp_path}: holds no start-up kit of FLARE"):
        load_kit(tmp_path, role)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_damaged_certificate_is_an_error_with_the_folder(own: Path, content: bytes | None) -> None:
    certificate = own / "startup" / "client.crt"
    certificate.unlink()
    if content is not None:
        certificate.write_bytes(content)
    with pytest.raises(KitError, match=f"{own}: holds no start-up kit of FLARE"):
        load_kit(own, "site")


def test_a_folder_without_a_kit_or_with_one_of_an_older_version_is_named_so(tmp_path: Path) -> None:
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(KitError, match=r"it has no startup/fed_\*\.json; `manyhands federation new` makes kits"):
            load_kit(folder, "site")
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "kit.json").write_text('{"party": "a", "role": "site"}')
    with pytest.raises(KitError, match="it was made by an older version of Manyhands; .* makes kits"):
        load_kit(tmp_path, "site")


def test_a_certificate_that_has_expired_is_refused(kits: Path, own: Path) -> None:
    expire(own / "startup" / "client.crt", kits / "authority")
    with pytest.raises(KitError, match="its certificate is valid from .* to"):
        load_kit(own, "site")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("localhost.example.org", False)],
)
def test_a_server_is_on_this_machine_only_if_its_address_says_so(tmp_path: Path, host: str, local: bool) -> None:
    assert Kit(tmp_path, "site", "a", host, 1).is_local == local
