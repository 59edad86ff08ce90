"""The kit of a party in a federation: its certificate and key, and the address of the server."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from pydantic import Field

from manyhands.errors import KitError, RecipeError
from manyhands.files.write import disk_errors
from manyhands.spec import Int, Spec

if TYPE_CHECKING:
    from manyhands.links.frame import Connect

KIT_FILE = "kit.json"
SERVER, ADMIN = "server", "admin"
DAYS = 360
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
HANDSHAKE_SECONDS = 10.0
"""Seconds after which a server that does not answer is given up."""


class About(Spec):
    """Whose kit it is, who the sites are, and where the server listens."""

    party: str = Field(description="The name of the party that the kit belongs to.")
    role: Literal["server", "site", "admin"] = Field(description="What the party is in the federation.")
    host: str = Field(description="The host name or address of the server.")
    port: Int = Field(description="The TCP port of the server.")
    sites: tuple[str, ...] = Field(description="The names of all sites.")


@dataclass(frozen=True)
class Kit:
    """A kit.

    Args:
        folder: The folder of the kit.
        about: What the kit says about its party and the federation.
    """

    folder: Path
    about: About

    @property
    def startup(self) -> Path:
        """The folder of the certificate, the key and the authority's certificate."""
        return self.folder / "startup"

    @property
    def is_local(self) -> bool:
        """Whether its server is on this machine."""
        try:
            return ipaddress.ip_address(self.about.host).is_loopback
        except ValueError:
            return self.about.host == "localhost"

    @property
    def certificate(self) -> x509.Certificate:
        """This party's certificate."""
        kind = "server" if self.about.role == "server" else "client"
        return x509.load_pem_x509_certificate((self.startup / f"{kind}.crt").read_bytes())

    def connect(self, host: str = "", port: int = 0) -> Connect:
        """Return what opens this party's connection; a server listens at ``host`` and ``port``, if not at the kit's."""
        from manyhands.links.flare import FlareConnection

        return partial(
            FlareConnection,
            name=self.about.party,
            startup=self.startup,
            host=host or self.about.host,
            port=port or self.about.port,
            role="server" if self.about.role == "server" else "client",
        )

    def server_fingerprint(self) -> str:
        """The SHA-256 of the server's certificate, after the TLS handshake has verified it."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.startup / "rootCA.pem"))
        context.load_cert_chain(self.startup / "client.crt", self.startup / "client.key")
        context.set_alpn_protocols(["h2"])
        address = (self.about.host, self.about.port)
        try:
            with (
                socket.create_connection(address, timeout=HANDSHAKE_SECONDS) as connection,
                context.wrap_socket(connection, server_hostname=self.about.host) as secured,
            ):
                raw = secured.getpeercert(binary_form=True)
        except OSError as error:
            raise KitError(f"{self.about.host}:{self.about.port}: {_why(error)}") from None
        assert raw is not None
        return fingerprint(raw)


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 of a certificate, in the form in which people compare it."""
    digest = hashlib.sha256(certificate).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def new_kits(server: str, sites: list[str], out: Path, days: int = DAYS) -> Path:
    """Make kits for a server, its sites and an admin, and a page that says which kit goes to whom."""
    from manyhands.links.flare import provision

    host, port = _address(server)
    if bad := [name for name in sites if not _NAME.fullmatch(name) or name in (SERVER, ADMIN, "authority")]:
        raise RecipeError(
            f"--sites: {bad[0]!r}: use a-z, 0-9, '_' and '-', and commas between names, but not "
            f"{SERVER!r}, {ADMIN!r} or 'authority'"
        )
    if not sites or len(set(sites)) < len(sites):
        raise RecipeError("--sites: must name each site once, such as --sites a,b,c")
    if out.exists() and any(out.iterdir()):
        raise KitError(f"{out}: is not empty; give a new folder, so that no kit that is in use is overwritten")

    def about(party: str) -> str:
        role = party if party in (SERVER, ADMIN) else "site"
        return About(party=party, role=role, host=host, port=port, sites=tuple(sites)).model_dump_json(indent=1)

    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        provision(out, server=SERVER, host=host, clients=[*sites, ADMIN], days=days, file=KIT_FILE, content=about)
        for name in (SERVER, ADMIN, *sites):
            (out / name).chmod(0o700)
        page = out / "README.md"
        page.write_text(_page(out, server, sites))
        (out / ".gitignore").write_text("*\n")  # private keys are in here
    return page


def load_kit(folder: Path, role: str) -> Kit:
    """Load the kit in a folder; raise ``KitError`` if it has another role, was changed after signing or has expired."""
    from manyhands.links.flare import is_untouched

    startup = folder / "startup"
    try:
        kit = Kit(folder, About.model_validate_json((startup / KIT_FILE).read_bytes()))
        certificate = kit.certificate
    except (OSError, ValueError) as error:
        reason = "it has no startup/kit.json" if isinstance(error, FileNotFoundError) else error
        raise KitError(f"{folder}: holds no kit: {reason}; kits are made with `manyhands federation new`") from None
    if kit.about.role != role:
        raise KitError(
            f"{folder}: is the kit of {kit.about.party}, whose role is {kit.about.role}; a kit of role {role} is needed"
        )
    if not is_untouched(startup):
        raise KitError(f"{folder}: was changed since it was signed")
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise KitError(
            f"{folder}: its certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    return kit


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RecipeError(f"--server {text}: must be HOST:PORT, the address at which the sites reach the server")
    return host, int(port)


def _why(error: OSError) -> str:
    """What a failed TLS handshake means."""
    reason = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"is not the server of this federation: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return f"did not accept this kit's certificate: {reason}"
    return f"no server answers: {error.strerror or reason}"


def _page(out: Path, server: str, sites: list[str]) -> str:
    certificate = x509.load_pem_x509_certificate((out / SERVER / "startup" / "server.crt").read_bytes())
    expires = certificate.not_valid_after_utc
    from cryptography.hazmat.primitives.serialization import Encoding

    rows = "\n".join(
        f"| `{name}/` | whoever runs the site `{name}` | connects to the server; trains on its own images, under its "
        "own policy; nobody can connect to it |"
        for name in sites
    )
    return f"""# Kits of a federation

Each kit holds a private key. Send it to its party so that nobody else can read it, then delete it here.

| kit | who gets it | what it is for |
|---|---|---|
| `{SERVER}/` | whoever runs the server | listens at {server}; sees what sites send, and what follows from it |
{rows}
| `{ADMIN}/` | whoever starts runs | submits recipes, stops runs, fetches their results; cannot force a site in |
| `authority/` | nobody: keep it offline | signs certificates; whoever has it can pretend to be any party |

The certificates are valid until {expires:%Y-%m-%d}. `federation join` prints the fingerprint of the server that it
reaches, which must be this one:

    {fingerprint(certificate.public_bytes(Encoding.DER))}
"""
