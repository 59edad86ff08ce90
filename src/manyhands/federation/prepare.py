"""Make a start-up kit of FLARE ready for Manyhands, and undo it: what changes is in ``local/`` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w

from manyhands.data.sources.base import Source
from manyhands.data.sources.folder import Folder
from manyhands.errors import KitError, RecipeError
from manyhands.federation.job.folder import SERVER_COMPONENT, SITE_COMPONENT
from manyhands.federation.kit import Kit, load_kit
from manyhands.federation.policy import FROM_RECIPE, Policy
from manyhands.federation.secret import check_secret
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.runs.recipe_file import read

RESOURCES, RIGHTS, POLICY_FILE = "resources.json", "authorization.json", "manyhands.toml"
"""The files in ``local/`` of a kit that change: what FLARE starts with, what users may do, and the policy of a site."""
DEFAULT, BEFORE = ".default", ".before-manyhands"
"""What follows the name of a file as FLARE provisioned it, and of one as it was before; an empty one was not there."""
ALLOWED = {"server": SERVER_COMPONENT, "site": SITE_COMPONENT}
"""The class of ours that a job may name, and no other."""
LAUNCHERS = "manyhands.federation.job.launchers."
LAUNCHER = {"server": LAUNCHERS + "ServerLauncher", "site": LAUNCHERS + "SiteLauncher"}
SHIPPED = {
    "server": "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
    "site": "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher",
}
"""The launchers that FLARE ships. One of another kind, for containers or a cluster, is left as it is."""
RESUMER = {"server": LAUNCHERS + "ServerResumer", "site": LAUNCHERS + "SiteResumer"}
RESUMER_ID, GUARD_ID = "manyhands_resumer", "manyhands_guard"
GUARD = "manyhands.federation.job.origin_guard.OriginGuard"
OWN_FOLDER_MODE = 0o700
STREAMS = "allow_log_streaming"
"""Whether a site of FLARE streams the errors of its jobs to the server."""
STATUS_RIGHTS = {
    "org_admin": {"app_command": "any", "get_job_log": "o:submitter"},
    "lead": {"app_command": "any", "get_job_log": "n:submitter"},
    "member": {"app_command": "any"},
}
"""What ``federation status`` and ``logs`` need, by role; FLARE gives it to the project_admin alone."""


def prepare(folder: Path, policy: Policy | None = None, *, launcher: bool | None = None) -> list[str]:
    """Make a kit ready, and return what was changed.

    Args:
        folder: The folder of the kit of a server or a site.
        policy: The policy of a site; None leaves the one that it has.
        launcher: Whether killed processes of jobs are restarted. None leaves it as it is in a kit that is ready.
    """
    kit = load_kit(folder, "server", "site")
    with disk_errors(kit.local):
        for own in (kit.kept, kit.local):
            own.mkdir(mode=OWN_FOLDER_MODE, exist_ok=True)
            own.chmod(OWN_FOLDER_MODE)
        resources, changes = _read(kit, RESOURCES), list[str]()
        if not isinstance(resources.get("components"), list):
            raise KitError(f"{kit.local / RESOURCES}: are not the resources of a party of FLARE: it has no components")
        if _allow(resources, ALLOWED[kit.role], changes) or launcher is not None:
            _set_launcher(resources, kit.role, launcher is not False, changes)
        if kit.role == "server":
            _guard(resources, changes)
        if policy is not None and resources.get(STREAMS) is not policy.logs:
            resources[STREAMS] = policy.logs
            changes.append(f"{STREAMS} is {str(policy.logs).lower()}, as logs in the policy")
        if changes:
            _write(kit, RESOURCES, finite_json(resources))
        changes = [f"{kit.local / RESOURCES}: {line}" for line in changes]
        if kit.role == "server" and _allow_status(rights := _read(kit, RIGHTS)):
            _write(kit, RIGHTS, finite_json(rights))
            changes.append(f"{kit.local / RIGHTS}: users may ask how runs stand")
        if policy is not None and kit.role == "site":
            _write(
                kit, POLICY_FILE, tomli_w.dumps(policy.model_dump(mode="json", exclude_unset=True, exclude_none=True))
            )
            changes.append(f"{kit.local / POLICY_FILE}: the policy of {kit.party}")
    return changes


def undo(folder: Path) -> list[str]:
    """Put back what ``prepare`` has changed; what the party keeps of its runs stays."""
    kit, changes = load_kit(folder, "server", "site"), []
    with disk_errors(kit.local):
        for before in sorted(kit.local.glob(f"*{BEFORE}")):
            now, content = before.with_name(before.name.removesuffix(BEFORE)), before.read_bytes()
            if content:
                replace_file(now, content)
            else:
                now.unlink(missing_ok=True)
            before.unlink()
            changes.append(f"{now}: {'as it was before' if content else 'removed'}")
    return changes


def _read(kit: Kit, name: str) -> dict[str, Any]:
    """Read a file of a party: its own, or else the one with which FLARE provisioned it."""
    own = kit.local / name
    path = own if own.exists() else own.with_name(name + DEFAULT)
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("it is no object")
    except (OSError, ValueError, TypeError) as error:
        raise KitError(f"{path}: cannot be read as FLARE's {name}: {error}") from None
    return content


def _write(kit: Kit, name: str, text: str) -> None:
    """Write a file of a party, and keep what was there before."""
    own = kit.local / name
    before = own.with_name(name + BEFORE)
    if not before.exists():
        replace_file(before, own.read_bytes() if own.exists() else b"")
    replace_file(own, text.encode())


def _allow(resources: dict[str, Any], component: str, changes: list[str]) -> bool:
    """Allow our component in jobs; return whether it was not allowed yet."""
    allowed = resources.setdefault("class_allow_list", [])
    for too_wide in {"manyhands.", "manyhands.federation.job."} & set(allowed):
        allowed.remove(too_wide)
        changes.append(
            f"class_allow_list no longer has {too_wide!r}, with which a job could change the policy of a site"
        )
    if component in allowed:
        return False
    allowed.append(component)
    changes.append(f"class_allow_list has {component}, so that a job may name it")
    return True


def _guard(resources: dict[str, Any], changes: list[str]) -> None:
    """Have the server refuse what comes in the name of another party."""
    if not any(component.get("id") == GUARD_ID for component in resources["components"]):
        resources["components"].append({"id": GUARD_ID, "path": GUARD, "args": {}})
        changes.append("messages in the name of another party are refused")


def _set_launcher(resources: dict[str, Any], role: str, ours: bool, changes: list[str]) -> None:
    """Name our launcher and what resumes jobs, or FLARE's launcher; another kind of launcher stays.

    At a server with FLARE's launcher there is nothing to resume, but jobs that a restart has ended are called so.
    """
    components = resources["components"]
    wanted, other = (LAUNCHER[role], SHIPPED[role]) if ours else (SHIPPED[role], LAUNCHER[role])
    for component in components:
        if component.get("path") == other:
            component["path"] = wanted
            changes.append("killed processes of jobs are restarted" if ours else "a killed process of a job ends it")
    paths = {component.get("path") for component in components}
    resumes = LAUNCHER[role] in paths or (role == "server" and SHIPPED[role] in paths)
    kept = [component for component in components if component.get("id") != RESUMER_ID]
    resources["components"] = kept + [{"id": RESUMER_ID, "path": RESUMER[role], "args": {}}] * resumes
    if ours and LAUNCHER[role] not in paths:
        changes.append("its own launcher is kept, with which a killed process ends a job")


def _allow_status(rights: dict[str, Any]) -> bool:
    """Let every role ask how runs stand; return whether anything was changed."""
    changed = False
    for role, commands in STATUS_RIGHTS.items():
        own = rights.get("permissions", {}).get(role)
        if isinstance(own, dict) and (missing := commands.keys() - own.keys()):
            own.update({command: commands[command] for command in missing})
            changed = True
    return changed


def prepare_site(folder: Path, policy: Path | None, data: str, *, launcher: bool | None = None) -> list[str]:
    """Make the kit of a site ready, with the policy in a file, or else with the one that it has.

    Args:
        folder: The folder of the kit.
        policy: The file of the policy; None means the one of the kit, or else the strictest.
        data: The folder, zip file or table of the images, if the policy does not name it.
        launcher: See ``prepare``.
    """
    kit = load_kit(folder, "site")
    own = kit.local / POLICY_FILE
    file = policy or (own if own.exists() else None)
    rules = read(Policy, file, "policy") if file else Policy()
    rules = rules.model_copy(update={"data": _absolute_data(data or rules.data), "ledger": _absolute(rules.ledger)})
    _check_data(rules, kit)
    check_secret(Path(rules.ledger) if rules.ledger else kit.kept)
    is_new = not own.exists() or read(Policy, own, "policy") != rules
    return prepare(folder, rules if is_new else None, launcher=launcher)


def _absolute(path: str) -> str:
    """FLARE's processes run in the folder of the kit, so a path must not depend on where they are."""
    return path if path in ("", FROM_RECIPE) else str(Path(path).resolve())


def _absolute_data(data: str | Source) -> str | Source:
    """A path, or a source whose paths are those."""
    if isinstance(data, str):
        return _absolute(data)
    paths = {name: value.resolve() for name, value in data if isinstance(value, Path)}
    return data.model_copy(update=paths)


def _check_data(policy: Policy, kit: Kit) -> None:
    """Refuse to read the images that a recipe names, except in the demo, whose parties are all on this machine."""
    data = policy.data
    if not data:
        raise RecipeError("--data: is missing; give the folder, zip file or table of this site's images")
    if data == FROM_RECIPE and not kit.is_local:
        raise RecipeError(
            f"--data recipe: is only for the demo, with its server on this machine; this server is {kit.host}. "
            "Give the folder of this site's images"
        )
    if isinstance(policy.source, Folder) and not policy.source.path.is_dir():
        raise RecipeError(f"--data {policy.source.path}: there is no such folder")
    if policy.source is not None:
        policy.source.count()
