"""What runs between sites survive, as jobs of NVIDIA FLARE over mutual TLS on loopback: cuts, deaths, and strangers."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from harness import bench, hostile_job, parts
from harness.federations import (
    alone,
    between,
    change_json,
    completed,
    differing,
    end,
    job_process,
    planned,
    processes,
    recipe,
    stretched,
    submit,
    until,
    up,
)
from harness.strangers import begun, doctored, heard_plain, hears_without_certificate, may_speak
from manyhands import compose
from manyhands.errors import ManyhandsError
from manyhands.federation.approval import approve
from manyhands.federation.demo import LOOPBACK, LocalFederation
from manyhands.federation.job.folder import write_job
from manyhands.federation.kit import ADMIN, SERVER
from manyhands.federation.policy import Policy, recipe_hash, recipe_text
from manyhands.federation.run_session import OVER, SESSION_FILE
from manyhands.federation.site import Site
from manyhands.links.coordinator import RoundCoordinator
from manyhands.runs.recipe import Recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import sha256

Measured = tuple[dict[str, float], dict[str, Any]]
BARS = {
    "cuts": "<= 10", "half_gone": "<= 1", "half_gone_mean": "== 0", "rejoin": "<= 30", "malformed": "== 0",
    "forged": "== 0", "strangers": "== 0", "approval": "== 1", "sockets": "== 0",
}  # fmt: skip


def cuts(args: argparse.Namespace) -> Measured:
    """The seconds from the healing of a network that was cut to the end of the next round."""
    asked = recipe("digits-fedavg", 3, "federation.deadline=600", "method.rounds=4000", "method.training.steps=40")
    after = {}
    with stretched(3) as (federation, admin, stretch):
        run, job = admin.submit(asked)
        folder = RunFolder(federation.run(run))
        until(lambda: len(folder.rounds) >= 2)
        server = job_process(federation, SERVER, job)
        for seconds in (1,) if args.quick else (5, 30, 120):
            stretch.cut()
            time.sleep(seconds)
            done, began = len(folder.rounds), time.perf_counter()
            stretch.heal()
            until(lambda done=done: len(folder.rounds) > done + 1)  # type: ignore[misc]
            after[seconds] = time.perf_counter() - began
        if job_process(federation, SERVER, job) != server:
            raise SystemExit("the server's process was begun again")
        admin.stop(run)
    return {"cuts": max(after.values())}, {"seconds_after_a_cut": after}


def half_gone(_args: argparse.Namespace) -> Measured:
    """By how many seconds a round ends later than its deadline when half of eight sites die, and whose mean it has."""
    deadline, gone = 8.0, [f"silo-{i}" for i in range(4)]
    asked = recipe("digits-fedavg", 8, f"federation.deadline={deadline}", "method.training.steps=60")
    with up(8) as (federation, admin, _):
        run, job = admin.submit(asked)
        folder = RunFolder(federation.run(run))
        until(lambda: len(folder.rounds) >= 1)
        for party in gone:
            end(federation, party)
        until(lambda: _stage(folder) in OVER)  # FLARE waits for the dead up to 15 minutes before its job ends
        stage, rounds, state = _stage(folder), folder.rounds, folder.state()
        after = admin.job(job)["stage"]
    late = rounds[1].seconds - deadline
    missing = [sorted(done.missing) for done in rounds]
    with tempfile.TemporaryDirectory() as other:
        same = stage == "ended" and sha256(state.server) == _without(asked, missing, Path(other))
    shown = {"run": stage, "job": after, "rounds": [(one.missing, one.seconds) for one in rounds]}
    return {"half_gone": late, "half_gone_mean": float(not same)}, {"half_gone": shown}


def _stage(folder: RunFolder) -> str:
    """How far the run is, as its server keeps it."""
    return str(json.loads((folder.path / SESSION_FILE).read_text())["stage"])


def _without(asked: Recipe, missing: list[list[str]], folder: Path) -> str:
    """The server's weights of a run in one process in which these were missing."""
    experiment = compose(asked, folder)
    server, plan = experiment.server, asked.method.plan()
    for gone in missing:
        coordinator = RoundCoordinator(server, plan, experiment.roster)
        for name in gone:
            coordinator.drop(name, "gone")
        for silo in experiment.silos:
            if silo.name in gone:
                continue
            conversation = asked.method.silo(silo)
            coordinator.submit(silo.name, next(conversation))
            answer = coordinator.collect(silo.name)
            assert answer is not None
            coordinator.submit(silo.name, conversation.send(answer))
            conversation.close()
    return sha256(server.state_dict())


def rejoin(_args: argparse.Namespace) -> Measured:
    """The seconds from the moment a site is begun again, after it was left out, to the end of a round that has it."""
    asked = recipe("digits-fedavg", 3, "federation.deadline=3", "method.rounds=400", "method.training.steps=40")
    with up(3) as (federation, admin, _):
        run = admin.submit(asked)[0]
        folder = RunFolder(federation.run(run))
        until(lambda: len(folder.rounds) >= 2)
        party = "silo-1"
        end(federation, party)
        until(lambda: party in folder.rounds[-1].missing)
        began = time.perf_counter()
        federation.start(party)
        until(lambda: party not in folder.rounds[-1].missing)
        taken = time.perf_counter() - began
        admin.stop(run)
    return {"rejoin": taken}, {}


def malformed(args: argparse.Namespace) -> Measured:
    """Frames of two enrolled sites, one of them in the run, that were none and yet changed something of it."""
    count, rounds = (500, 100) if args.quick else (50_000, 600)
    asked = recipe("digits-fedavg", 3, f"method.rounds={rounds}", "method.training.steps=2")
    counts, outsider = {"silo-2": count, "silo-3": count}, "silo-3"
    with tempfile.TemporaryDirectory() as folder, up(4) as (federation, admin, sites):
        expected = alone(asked, Path(folder) / "one")
        flood = {"tasks": ["flood"], "executor": {"path": "harness.hostile_job.Flood",
                 "args": {"counts": counts, "outsiders": [outsider]}}}  # fmt: skip
        place = write_job(asked, Path(folder) / "job", (), asked.name)
        config = place / "app" / "config" / "config_fed_client.json"
        change_json(config, lambda parts: parts["executors"].append(flood))
        job, journal = submit(federation, place), RunFolder(federation.run(asked.name))
        until(lambda: len(journal.rounds) >= 1)
        server = job_process(federation, SERVER, job)
        for site in counts:
            (federation.kits / site / hostile_job.FLOOD).touch()
        until(lambda: all((federation.kits / site / hostile_job.FLOODED).exists() for site in counts), 600)
        during, same = len(journal.rounds), server == job_process(federation, SERVER, job)
        completed(federation, admin, job)
        sent = {site: _note(federation, site, hostile_job.FLOODED) for site in counts}
        log = admin.log(asked.name, SERVER)
        differ = differing(between(federation, asked.name, asked.method.rounds, sites[:3]), expected)
    named = [site for site in counts if f"{site}: its frame was dropped" in log]
    odd = differ + (not same) + sum(counts.values()) - sum(sent.values()) + len(counts) - len(named)
    shown = {
        "sent": sent,
        "until round": during,
        "named in the log": named,
        "hashes that differ": differ,
        "restarted": not same,
    }
    return {"malformed": float(odd + (during >= rounds))}, {"malformed": shown}


def _note(federation: LocalFederation, site: str, name: str) -> Any:
    path = federation.kits / site / name
    return json.loads(path.read_text()) if path.exists() else 0


USER = "member@example.org"
REFUSALS = {"FLARE": "auth token for client silo-1 is bound to origin silo-1", "our guard": "in the name of"}
"""What the log of the server says of a frame in the name of another party."""


def forged(args: argparse.Namespace) -> Measured:
    """Frames of another job and of a user, in their own names and in those of the run's parties, that changed a run."""
    count, rounds = 20 if args.quick else 1000, 600
    asked = recipe("digits-fedavg", 2, f"method.rounds={rounds}", "method.training.steps=2")
    with tempfile.TemporaryDirectory() as folder, up(2, users=[f"{USER}:member"]) as (federation, admin, sites):
        expected = alone(asked, Path(folder) / "one")
        run, job = admin.submit(asked)
        journal = RunFolder(federation.run(run))
        until(lambda: len(journal.rounds) >= 1)
        other = submit(federation, hostile_job.forging_job(Path(folder) / "job", "silo-1", job, count))
        until(lambda: (federation.kits / "silo-1" / hostile_job.FORGED).exists())
        hostile_job.forge_as_user(federation.kits / USER, USER, job, count)
        during = len(journal.rounds)
        admin.stop(other)
        completed(federation, admin, job)
        missing = [one.missing for one in journal.rounds if one.missing]
        differ = differing(between(federation, run, rounds, sites), expected)
        log = federation.log(SERVER)  # FLARE refuses some, and our guard the others
        refused = {who: log.count(words) for who, words in REFUSALS.items()}
        named = "silo-1: its frame was dropped" in admin.log(run, SERVER)
    shown = {"in each name": count, "refused by": refused, "during round": during,
             "in the name of its own site: dropped as that site's": named, "missing": missing}  # fmt: skip
    passed = max(0, 5 * count - sum(refused.values()))  # two names, each as it is and with a moved letter, and a user's
    return {"forged": float(differ + len(missing) + (during >= rounds) + passed)}, {"forged": shown}


def strangers(_args: argparse.Namespace) -> Measured:
    """Those who were let in, and should not have been."""
    with tempfile.TemporaryDirectory() as other, planned(3) as federation:
        federation.sites.remove("silo-2")  # it has a kit, and has not come yet
        with federation, federation.admin() as admin:
            job = admin.submit(recipe("digits-fedavg", 2))[1]
            let_in = dict.fromkeys(doctored(federation, Path(other)), False)
            with begun(federation, list(let_in), Path(other)):
                time.sleep(20)
                for name in let_in:
                    let_in[name] = "Successfully registered client" in (Path(other) / name / "log.txt").read_text()
                let_in["any as silo-2"] = "silo-2" in admin.sites()
            let_in["another authority's admin"] = may_speak(Path(other) / "kits" / ADMIN)
            let_in["plain TCP"] = heard_plain(federation.port, random.Random(0)) > 0
            let_in["no certificate"] = hears_without_certificate(
                federation.kits / "silo-0" / "startup", federation.port
            )
            completed(federation, admin, job)
            federation.start("silo-2")
            until(lambda: "silo-2" in admin.sites(), 20)
    return {"strangers": float(sum(let_in.values()))}, {"let_in": let_in}


def approval(args: argparse.Namespace) -> Measured:
    """The share of recipes, each changed by one byte since it was approved, that a site refuses."""
    text = recipe_text(recipe("digits-fedavg", 3))
    refused, count, chance = 0, 20 if args.quick else 200, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        site = Site("silo-0", Policy(data="recipe"), Path(folder), None, lambda _: None)  # type: ignore[arg-type] # it calls nobody
        approve(Path(folder), [recipe_hash(text)])
        site.check_offer("run", text)
        for _ in range(count):
            place = chance.randrange(len(text))
            other = chr(chance.choice([code for code in range(32, 127) if code != ord(text[place])]))
            try:
                site.check_offer("run", text[:place] + other + text[place + 1 :])
            except ManyhandsError:
                refused += 1
    return {"approval": refused / count}, {}


def sockets(args: argparse.Namespace) -> Measured:
    """The processes of a federation and of its job that listen beyond this machine."""
    count = 1 if args.quick else 3
    with up(count) as (federation, admin, sites):
        if not args.quick:
            run = admin.submit(recipe("digits-fedavg", count, "method.rounds=400"))[0]
            until(lambda: len(RunFolder(federation.run(run)).rounds) >= 1)
        listening = {party: sorted(_listening(federation, party)) for party in (SERVER, *sites)}
    beyond = [place for places in listening.values() for place in places if not place.startswith(f"{LOOPBACK}:")]
    return {"sockets": float(len(beyond))}, {"listening": listening}


def _listening(federation: LocalFederation, party: str) -> Iterator[str]:
    for process in processes(federation, party):
        for each in process.net_connections():
            if each.status == psutil.CONN_LISTEN:
                yield f"{each.laddr.ip.removeprefix('::ffff:')}:{each.laddr.port}"


PARTS = (cuts, half_gone, rejoin, malformed, forged, strangers, approval, sockets)
QUICK = (approval, sockets)
"""The faults of the others are in the tests, at small size."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """All parts, or those that --only names; some at toy size."""
    return parts.measure("network_faults", PARTS, QUICK, BARS, args)


if __name__ == "__main__":
    bench.main("network_faults", measure, BARS, only="")
