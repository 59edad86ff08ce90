"""The start-up kit of a party, as FLARE provisions it: its certificate and key, and the address of the server."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from manyhands.errors import KitError

Role = Literal["server", "site", "admin"]
CONFIGS: dict[Role, tuple[str, str]] = {
    "server": ("fed_server.json", "server.crt"),
    "site": ("fed_client.json", "client.crt"),
    "admin": ("fed_admin.json", "client.crt"),
}
"""The files of a kit by which its role is known: its configuration and its certificate."""
RUNS = "runs"
"""The folder of its runs in what a party keeps."""
SERVER, ADMIN = "server", "admin"
ROOT = "rootCA.pem"
KEPT = "_manyhands"
"""The folder in a kit with what its party keeps over all runs. No job can have its name: FLARE deletes what is in the
folder of a job, which lies beside it and is named by the server."""
RESULTS = "manyhands"
"""The folder in that of a job with its results."""


@dataclass(frozen=True)
class Kit:
    """A start-up kit.

    Args:
        folder: The folder of the kit, which is FLARE's workspace of the party.
        role: What the party is in the federation.
        party: Its name.
        host: The host name or address of the server.
        port: The port of the server.
    """

    folder: Path
    role: Role
    party: str
    host: str
    port: int

    @property
    def startup(self) -> Path:
        """The folder of the certificate, the key and FLARE's configuration."""
        return self.folder / "startup"

    @property
    def local(self) -> Path:
        """The folder of what the party decides for itself."""
        return self.folder / "local"

    @property
    def kept(self) -> Path:
        """The folder of what the party keeps over all runs."""
        return self.folder / KEPT

    @property
    def is_local(self) -> bool:
        """Whether its server is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def authority_fingerprint(self) -> str:
        """The SHA-256 of the certificate of the authority, by which this party knows the others."""
        authority = _certificate(self.startup / ROOT)
        return fingerprint(authority.public_bytes(Encoding.DER))


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 of a certificate, in the form in which people compare it."""
    digest = hashlib.sha256(certificate).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def load_kit(folder: Path, *roles: Role) -> Kit:
    """Load the kit in a folder; raise ``KitError`` if it has another role or has expired."""
    try:
        kit = _read(folder)
        certificate = _certificate(kit.startup / CONFIGS[kit.role][1])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise KitError(
            f"{folder}: holds no start-up kit of FLARE: {error}; `manyhands federation new` makes kits"
        ) from None
    if kit.role not in roles:
        raise KitError(
            f"{folder}: is the kit of {kit.party}, whose role is {kit.role}; "
            f"a kit of role {' or '.join(roles)} is needed"
        )
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise KitError(
            f"{folder}: its certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    return kit


def _read(folder: Path) -> Kit:
    startup = folder / "startup"
    role = next((role for role, (config, _) in CONFIGS.items() if (startup / config).exists()), None)
    if role is None:
        old = (startup / "kit.json").exists()
        raise ValueError("it was made by an older version of Manyhands" if old else "it has no startup/fed_*.json")
    config = json.loads((startup / CONFIGS[role][0]).read_bytes())
    if role == "admin":
        admin = config["admin"]
        return Kit(folder, role, str(admin["username"]), str(admin["host"]), int(admin["port"]))
    host, _, port = str(config["servers"][0]["service"]["target"]).rpartition(":")
    name = SERVER if role == "server" else _common_name(startup / CONFIGS[role][1])
    return Kit(folder, role, name, host, int(port))


def _common_name(certificate: Path) -> str:
    return str(_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())
