"""Strangers at the port of a federation: with certificates that they should not have, with none, and without TLS."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.expired import expire
from manyhands.errors import KitError
from manyhands.federation import parent
from manyhands.federation.admin import Admin
from manyhands.federation.demo import LOOPBACK, LocalFederation
from manyhands.federation.kit import ADMIN, load_kit
from manyhands.federation.provision import new_kits


def doctored(federation: LocalFederation, folder: Path) -> list[str]:
    """Kits in the name of a site, with certificates that it should not have."""
    kits, made = federation.kits, folder / "kits"
    new_kits(f"{LOOPBACK}:{federation.port}", ["silo-2"], made)
    keys = {
        "another authority": made / "silo-2", "expired": kits / "silo-2", "another site": kits / "silo-1",
        "the admin": kits / ADMIN,
    }  # fmt: skip
    for name, source in keys.items():
        shutil.copytree(kits / "silo-2", folder / name)
        for file in ("client.crt", "client.key", *(["rootCA.pem"] if name == "another authority" else [])):
            shutil.copy(source / "startup" / file, folder / name / "startup" / file)
    expire(folder / "expired" / "startup" / "client.crt", kits / "authority")
    return list(keys)


@contextlib.contextmanager
def begun(federation: LocalFederation, names: list[str], folder: Path) -> Iterator[None]:
    """FLARE's processes of these kits."""
    kit, begun = load_kit(federation.kits / "silo-2", "site"), []
    try:
        for name in names:
            with (folder / f"{name}.log").open("wb") as log:
                begun.append(parent.start(replace(kit, folder=folder / name), log))
        yield
    finally:
        for process in begun:
            parent.end(process)


def may_speak(kit: Path) -> bool:
    """Whether the server lets a user in with this kit."""
    try:
        Admin(kit, seconds=3.0).close()
    except KitError:
        return False
    return True


def heard_plain(port: int, chance: random.Random) -> int:
    """How many strangers without TLS got an answer that is more than a refusal of TLS."""
    got = 0
    for _ in range(100):
        with socket.create_connection((LOOPBACK, port), timeout=10) as plain, contextlib.suppress(OSError):
            plain.sendall(chance.randbytes(chance.randint(1, 4000)))
            plain.shutdown(socket.SHUT_WR)
            while heard := plain.recv(1 << 16):
                got += len(heard) > 100
    return got


def hears_without_certificate(startup: Path, port: int) -> bool:
    """Whether somebody who knows the authority and has no certificate hears a word."""
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((LOOPBACK, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=LOOPBACK) as secured,
        ):
            secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return len(secured.recv(1 << 16)) > 0
    except OSError:
        return False
