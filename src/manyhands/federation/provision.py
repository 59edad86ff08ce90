"""New kits for a federation, by FLARE's provisioning."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from manyhands.errors import KitError, RecipeError
from manyhands.federation.kit import ADMIN, SERVER, load_kit
from manyhands.federation.prepare import RIGHTS as RIGHTS_FILE
from manyhands.federation.prepare import prepare
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors

PROJECT, ORGANISATION = "manyhands", "manyhands"
AUTHORITY, PROJECT_FILE = "authority", "project.yml"
FIRST_ADMIN = "admin@manyhands.org"
"""The user of ``kits/admin``, who may do everything that FLARE lets an admin do."""
ROLES = ("project_admin", "org_admin", "lead", "member")
"""The roles of users; what each may do is in ``local/authorization.json`` of a kit."""
EVERYTHING = ["submit_job", "clone_job", "manage_job", "download_job", "view", "operate", "app_command", "get_job_log"]
RIGHTS = {
    "project_admin": dict.fromkeys(EVERYTHING, "any"),
    "org_admin": {"manage_job": "o:submitter", "download_job": "o:submitter", "view": "any", "operate": "o:site"},
    "lead": {
        "submit_job": "any", "clone_job": "n:submitter", "manage_job": "n:submitter", "download_job": "n:submitter",
        "view": "any",
    },
    "member": {"view": "any"},
}  # fmt: skip
"""What users may do in a federation that we have made. As FLARE ships it, they may also run shell commands at parties,
and bring code of their own in jobs, which Manyhands does not need."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
BUILDERS = "nvflare.lighter.impl."


def new_kits(
    server: str, sites: Sequence[str], out: Path, days: int = 360, users: Sequence[str] = (), *, launcher: bool = True
) -> Path:
    """Make kits for a server, its sites and its users, and a page that says which kit goes to whom.

    Args:
        server: The address at which the sites reach the server, as HOST:PORT.
        sites: The names of the sites.
        out: The folder of the kits.
        days: The days that the certificates are valid.
        users: Further users, as EMAIL:ROLE.
        launcher: Whether killed processes of jobs are restarted.
    """
    host, port = _address(server)
    _check_sites(sites)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        state = "not empty" if out.is_dir() else "a file"
        raise KitError(f"{out}: is {state}; give a new folder, so that no kit that is in use is overwritten")
    people = [(FIRST_ADMIN, ROLES[0]), *map(_user, users)]
    with disk_errors(out), _unreadable_to_others():
        rights = finite_json({"format_version": "1.0", "permissions": RIGHTS})
        made = _provision(_project(host, port, sites, people, days), out / AUTHORITY)
        for name, folder in {SERVER: host, ADMIN: FIRST_ADMIN}.items():
            shutil.copytree(made / folder, out / name)
        for name in (*sites, *(email for email, _ in people[1:])):
            shutil.copytree(made / name, out / name)
        for name in (SERVER, *sites):
            (out / name / "local" / RIGHTS_FILE).write_text(rights)
            prepare(out / name, launcher=launcher)
        page = out / "README.md"
        page.write_text(_page(out, server, sites, people))
        (out / ".gitignore").write_text("*\n")  # private keys are in here
    return page


def _project(host: str, port: int, sites: Sequence[str], people: list[tuple[str, str]], days: int) -> dict[str, Any]:
    """What FLARE calls a project: the parties, and how their kits are built."""
    org = {"org": ORGANISATION}  # a site has one of its own: FLARE lets an organisation's people operate its sites
    builders: dict[str, dict[str, Any]] = {
        "workspace.WorkspaceBuilder": {},
        "static_file.StaticFileBuilder": {"config_folder": "config", "scheme": "grpc"},
        "cert.CertBuilder": {"root_valid_days": days},
        "signature.SignatureBuilder": {},
    }
    return {
        "api_version": 3,
        "name": PROJECT,
        "description": "a federation of Manyhands",
        "participants": [
            {"name": host, "type": "server", "fed_learn_port": port, "default_host": host, **org},
            *({"name": name, "type": "client", "org": f"site_{name.replace('-', '_')}"} for name in sites),
            *({"name": email, "type": "admin", "role": role, **org} for email, role in people),
        ],
        "builders": [{"path": BUILDERS + path, "args": args} for path, args in builders.items()],
    }


def _provision(project: dict[str, Any], authority: Path) -> Path:
    """Let FLARE make the kits; return their folder. The authority's key stays in ``authority``."""
    text = finite_json(project)  # FLARE adds to the project what it would not read again
    try:
        parties = prepare_project(project)
    except ValueError as error:  # a name twice, or one that is no host name
        raise RecipeError(f"FLARE cannot make these kits: {error}") from None
    authority.mkdir(parents=True, exist_ok=True)
    (authority / PROJECT_FILE).write_text(text)
    provisioner = Provisioner(str(authority), prepare_builders(project))
    context = provisioner.provision(parties, logger=logging.getLogger(__name__))
    if context.get(CtxKey.BUILD_ERROR):
        raise RecipeError(f"FLARE could not make the kits: {'; '.join(context.get_errors())}")
    return Path(context[CtxKey.CURRENT_PROD_DIR])


def _check_sites(sites: Sequence[str]) -> None:
    taken = (SERVER, ADMIN, AUTHORITY)
    if bad := [name for name in sites if not _NAME.fullmatch(name) or name in taken]:
        raise RecipeError(
            f"--sites: {bad[0]!r}: use a-z, 0-9, '_' and '-', and commas between names, but not "
            f"{SERVER!r}, {ADMIN!r} or {AUTHORITY!r}"
        )
    if not sites or len(set(sites)) < len(sites):
        raise RecipeError("--sites: must name each site once, such as --sites a,b,c")


def _user(text: str) -> tuple[str, str]:
    email, _, role = text.partition(":")
    if role not in ROLES or not re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", email) or email == FIRST_ADMIN:
        raise RecipeError(f"--users {text}: must be EMAIL:ROLE, where ROLE is one of {', '.join(ROLES)}")
    return email, role


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RecipeError(f"--server {text}: must be HOST:PORT, the address at which the sites reach the server")
    return host, int(port)


@contextmanager
def _unreadable_to_others() -> Iterator[None]:
    """Files written meanwhile can only be read by their owner, from their first byte."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _page(out: Path, server: str, sites: Sequence[str], people: list[tuple[str, str]]) -> str:
    at_site = "connects to the server; trains on its own images, under its own policy; nobody can connect to it"
    rows = [
        (SERVER, "whoever runs the server", f"listens at {server}; sees what sites send, and what follows from it"),
        *((name, f"whoever runs the site `{name}`", at_site) for name in sites),
        (ADMIN, "whoever starts runs", "submits recipes, stops runs, fetches their results; cannot force a site in"),
        *((email, f"`{email}`", f"what the role `{role}` may do") for email, role in people[1:]),
        (AUTHORITY, "nobody: keep it offline", "makes further kits; whoever has it can pretend to be any party"),
    ]
    kit = load_kit(out / SERVER, "server")
    table = "\n".join(f"| `{name}/` | {who} | {what} |" for name, who, what in rows)
    return f"""# Kits of a federation

They are start-up kits of NVIDIA FLARE, made ready for Manyhands. Each holds a private key. Send it to its party so that
nobody else can read it, then delete it here.

| kit | who gets it | what it is for |
|---|---|---|
{table}

`federation serve` and `join` print the fingerprint of the authority by which they know the others. It must be this one:

    {kit.authority_fingerprint()}

A further site or user: `nvflare provision -p {AUTHORITY}/{PROJECT_FILE} -w {AUTHORITY} --add-client FILE`, or
`--add-user`, then `manyhands federation prepare KIT`.
"""
