"""Runs a recipe between a Flower SuperLink and two SuperNodes on this machine, and in one process; compares weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import sha256

SMALL = ("partition.silos=2", "data.limit=80", "method.rounds=1", "evaluation.images=0")
APP, BIN, HOST = Path(__file__).resolve().parent, Path(sys.executable).parent, "127.0.0.1"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
MAX_SECONDS = 600


def main(recipe: str, out: Path, settings: Sequence[str]) -> None:
    began = time.monotonic()
    with flower_parties(out) as env:
        config = f"recipe='{recipe}' set='{' '.join(settings)}' silos=2 out='{out / 'flower'}'"
        app = ["flwr", "run", str(APP), "here", "--stream", "--run-config", config]
        subprocess.run(app, env=env, check=True, timeout=MAX_SECONDS)
    over_flower, between = weights_hash(out / "flower"), time.monotonic()
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "manyhands", "run", recipe, *options, "--out", str(out / "alone")]
    subprocess.run(command, check=True)
    print(f"{recipe}: {between - began:.0f} s over Flower, {time.monotonic() - between:.0f} s in one process")
    alone = weights_hash(out / "alone")
    if over_flower != alone:
        sys.exit(f"the weights differ: {over_flower} over Flower, {alone} in one process")
    print(f"the weights are the same, bit for bit: {alone}")


def weights_hash(run: Path) -> str:
    return sha256(RunFolder(run).state().server)


@contextmanager
def flower_parties(out: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink and two SuperNodes on the loopback, and end them; their log is parties.log."""
    link, *nodes = free_ports(3)
    home = out / "flower-home"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(f'[superlink.here]\naddress = "{HOST}:{link}"\ninsecure = true\n')
    env = {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    address = f"--host {HOST} --insecure --port"
    commands = [f"flower-superlink {address} {link} --disable-runtime-dependency-installation"]
    for number, port in enumerate(nodes):
        silo = f"--superlink {HOST}:{link} --node-config silo='silo-{number}'"
        commands.append(f"flower-supernode {address} {port} {silo}")
    with ExitStack() as stack, (out / "parties.log").open("w") as log:
        for command in commands:
            party = subprocess.Popen(command.split(), env=env, stdout=log, stderr=log)
            stack.callback(party.wait, MAX_SECONDS)
            stack.callback(party.terminate)
        wait_for(link)
        yield env


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(count)]


def wait_for(port: int) -> None:
    for _ in range(MAX_SECONDS):
        try:
            return socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
    sys.exit("the SuperLink did not start: see parties.log")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), [*SMALL, *sys.argv[3:]])
