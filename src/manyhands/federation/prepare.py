"""Make a start-up kit of FLARE ready for Manyhands, and undo it: what changes is in ``local/`` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w

from manyhands.errors import KitError, RecipeError
from manyhands.federation.kit import Kit, load_kit
from manyhands.federation.policy import FROM_RECIPE, Policy
from manyhands.federation.secret import check_secret
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.runs.recipe_file import read

RESOURCES, DEFAULT, BEFORE = "resources.json", "resources.json.default", "resources.json.before-manyhands"
POLICY_FILE = "manyhands.toml"
"""The policy of a site, in ``local/`` of its kit."""
ALLOWED = "manyhands."
"""The classes that a job may name, by the beginning of their names."""
LAUNCHERS = "manyhands.federation.job.launchers."
LAUNCHER = {"server": LAUNCHERS + "ServerLauncher", "site": LAUNCHERS + "SiteLauncher"}
SHIPPED = {
    "server": "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
    "site": "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher",
}
"""The launchers that FLARE ships. One of another kind, for containers or a cluster, is left as it is."""
RESUMER = {"server": LAUNCHERS + "ServerResumer", "site": LAUNCHERS + "SiteResumer"}
RESUMER_ID = "manyhands_resumer"
STREAMS = "allow_log_streaming"
"""Whether a site of FLARE streams the errors of its jobs to the server."""


def prepare(folder: Path, policy: Policy | None = None, *, launcher: bool = True) -> list[str]:
    """Make a kit ready, and return what was changed.

    Args:
        folder: The folder of the kit of a server or a site.
        policy: The policy of a site; None leaves the one that it has.
        launcher: Whether a killed job is begun again.
    """
    kit = load_kit(folder, "server", "site")
    changes = []
    with disk_errors(kit.local):
        resources = _resources(kit)
        changed = _allow(resources) + (_keep(resources, kit.role) if launcher else [])
        if policy is not None and resources.get(STREAMS) is not policy.logs:
            resources[STREAMS] = policy.logs
            changed.append(f"{STREAMS} is {str(policy.logs).lower()}, as logs in the policy")
        if changed:
            _write_resources(kit, resources)
            changes += [f"{kit.local / RESOURCES}: {line}" for line in changed]
        if policy is not None and kit.role == "site":
            text = tomli_w.dumps(policy.model_dump(exclude_defaults=True))
            replace_file(kit.local / POLICY_FILE, text.encode())
            changes.append(f"{kit.local / POLICY_FILE}: the policy of {kit.party}")
        kit.kept.mkdir(mode=0o700, exist_ok=True)
    return changes


def undo(folder: Path) -> list[str]:
    """Put back what ``prepare`` has changed; what the party keeps of its runs stays."""
    kit = load_kit(folder, "server", "site")
    before, now, changes = kit.local / BEFORE, kit.local / RESOURCES, []
    with disk_errors(kit.local):
        if before.exists():
            text = before.read_bytes()
            if text:
                replace_file(now, text)
            else:
                now.unlink(missing_ok=True)
            before.unlink()
            changes.append(f"{now}: {'as it was before' if text else 'removed; FLARE uses ' + DEFAULT}")
        if (policy := kit.local / POLICY_FILE).exists():
            policy.unlink()
            changes.append(f"{policy}: removed")
    return changes


def _resources(kit: Kit) -> dict[str, Any]:
    """Read the resources of a party: its own, or else those with which FLARE provisioned it."""
    own = kit.local / RESOURCES
    path = own if own.exists() else kit.local / DEFAULT
    try:
        resources = json.loads(path.read_bytes())
        if not isinstance(resources["components"], list):
            raise TypeError("components is no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{path}: are not the resources of a party of FLARE: {error}") from None
    return dict(resources)


def _write_resources(kit: Kit, resources: dict[str, Any]) -> None:
    own, before = kit.local / RESOURCES, kit.local / BEFORE
    if not before.exists():
        replace_file(before, own.read_bytes() if own.exists() else b"")
    replace_file(own, finite_json(resources).encode())


def _allow(resources: dict[str, Any]) -> list[str]:
    allowed = resources.setdefault("class_allow_list", [])
    if ALLOWED in allowed:
        return []
    allowed.append(ALLOWED)
    return [f"class_allow_list has {ALLOWED!r}, so that jobs may name our classes"]


def _keep(resources: dict[str, Any], role: str) -> list[str]:
    components, changes = resources["components"], []
    for component in components:
        if component.get("path") == SHIPPED[role]:
            component["path"] = LAUNCHER[role]
            changes.append("the launcher begins a killed job again")
    if not any(component.get("id") == RESUMER_ID for component in components):
        components.append({"id": RESUMER_ID, "path": RESUMER[role], "args": {}})
        changes.append("jobs that were running go on after FLARE itself was restarted")
    return changes


def prepare_site(folder: Path, policy: Path | None, data: str, *, launcher: bool = True) -> list[str]:
    """Make the kit of a site ready, with the policy in a file, or else with the one that it has.

    Args:
        folder: The folder of the kit.
        policy: The file of the policy; None means the one of the kit, or else the strictest.
        data: The folder of the images, if the policy does not name it.
        launcher: Whether a killed job is begun again.
    """
    kit = load_kit(folder, "site")
    own = kit.local / POLICY_FILE
    file = policy or (own if own.exists() else None)
    rules = read(Policy, file, "policy") if file else Policy()
    rules = rules.model_copy(update={"data": _absolute(data or rules.data), "ledger": _absolute(rules.ledger)})
    _check_data(rules.data, kit)
    check_secret(Path(rules.ledger) if rules.ledger else kit.kept)
    is_new = not own.exists() or read(Policy, own, "policy") != rules
    return prepare(folder, rules if is_new else None, launcher=launcher)


def _absolute(path: str) -> str:
    """FLARE's processes run in the folder of the kit, so a path must not depend on where they are."""
    return path if path in ("", FROM_RECIPE) else str(Path(path).resolve())


def _check_data(data: str, kit: Kit) -> None:
    """Refuse to read the images that a recipe names, except in the demo, whose parties are all on this machine."""
    if not data:
        raise RecipeError("--data: is missing; give the folder of this site's images")
    if data == FROM_RECIPE and not kit.is_local:
        raise RecipeError(
            f"--data recipe: is only for the demo, with its server on this machine; this server is {kit.host}. "
            "Give the folder of this site's images"
        )
    if data != FROM_RECIPE and not Path(data).is_dir():
        raise RecipeError(f"--data {data}: there is no such folder")
