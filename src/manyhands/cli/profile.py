from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyhands.cli.options import DeviceOption
from manyhands.errors import RecipeError


def profile(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The TOML file to write, for manyhands advise.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A TOML file with batch and [model], the GAN to measure. Default: a GAN of 28 x 28 x 1.",
        ),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Also measure the link to this address, where another machine runs manyhands profile --serve.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="BYTES", help="Bytes per second of the link in each direction, instead of --peer."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of this device. Default: the name of the machine.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="MB", help="Memory for training, in MB. Default: all that is free.")
    ] = None,
    serves: Annotated[
        int,
        typer.Option(
            "--server",
            metavar="N",
            min=0,
            help="Measure this machine as the server that N devices share. 0: measure it as a device.",
        ),
    ] = 0,
    device: DeviceOption = "auto",
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Only be the other end for a machine that measures its link with --peer. A port alone can be reached "
            "only from this machine.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=1, max=86_400, help="Stop --serve after this many seconds.")
    ] = 300,
) -> None:
    """Measure how fast this machine trains the blocks of a GAN.

    The measured speeds, memory and link are written to a TOML file, from which manyhands advise chooses layer cuts.
    """
    from manyhands.placement.link_speed import Link, address, answer_one, link_to

    if (serve is None) == (out is None):
        raise RecipeError(
            "profile: needs either --out FILE, to measure this machine, or --serve HOST:PORT, to answer another one"
        )
    if serve is not None:
        answer_one(*address(serve, "--serve"), seconds, typer.echo)
        return
    assert out is not None
    options = {"--rate": rate, "--memory": memory}
    if bad := [
        f"{option} {value:g}" for option, value in options.items() if value is not None and not 0 < value < 1e15
    ]:
        raise RecipeError(f"{bad[0]}: is not between 0 and 1e15")
    if not (serves or peer or rate):
        raise RecipeError("profile: needs --peer HOST:PORT, to measure the link to the server, or its --rate")
    from manyhands.placement.devices import Profile, load_model
    from manyhands.placement.profiler import device_name, profile_machine, write
    from manyhands.silos.device import chosen_device

    own, where = device_name(name), chosen_device(device)
    work = load_model(model) if model else Profile()
    link = link_to(*address(peer, "--peer")) if peer else Link(rate, rate) if rate else None
    result = profile_machine(work, own, link, memory=memory and 1e6 * memory, serves=serves, device=where)
    write(out, result, where)
    typer.echo(f"{out}\n{out.read_text()}".rstrip())
