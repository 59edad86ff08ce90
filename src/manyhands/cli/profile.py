from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.errors import RecipeError

if TYPE_CHECKING:
    pass


def profile(
    out: Annotated[Path | None, typer.Option(help="The TOML file to write, for advise.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A file with batch and [model], as advise reads; 28 x 28 x 1 if not given.")
    ] = None,
    peer: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Measure the link to who serves there.")] = None,
    rate: Annotated[float | None, typer.Option(help="Bytes a second each way, where no peer is asked.")] = None,
    name: Annotated[str | None, typer.Option(help="What the device is called; as the machine if not given.")] = None,
    memory: Annotated[float | None, typer.Option(help="MB for training; what is free if not given.")] = None,
    serves: Annotated[
        int, typer.Option("--server", metavar="N", min=0, help="This machine is to be the server of so many devices.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    serve: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Answer one peer instead; a port alone is on this machine.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long to serve.")] = 300,
) -> None:
    """Measure what this machine can do for a cut GAN, and write it down for advise."""
    from manyhands.placement.link_speed import Link, address, answer_one, link_to

    if (serve is None) == (out is None):
        raise RecipeError("profile: say either --out FILE, to measure, or --serve HOST:PORT, to answer who measures")
    if serve is not None:
        answer_one(*address(serve, "--serve"), seconds, typer.echo)
        return
    assert out is not None
    told = {"--rate": rate, "--memory": memory}
    if bad := [f"{option} {value:g}" for option, value in told.items() if value is not None and not 0 < value < 1e15]:
        raise RecipeError(f"{bad[0]}: is not above 0")
    if not (serves or peer or rate):
        raise RecipeError("profile: say --peer HOST:PORT to measure the link to the server, or its --rate")
    from manyhands.placement.devices import Profile, load_model
    from manyhands.placement.profiler import device_name, profile_machine, write
    from manyhands.silos.device import chosen_device

    called, where = device_name(name), chosen_device(device)
    work = load_model(model) if model else Profile()
    link = link_to(*address(peer, "--peer")) if peer else Link(rate, rate) if rate else None
    found = profile_machine(work, called, link, memory=memory and 1e6 * memory, serves=serves, device=where)
    write(out, found, where)
    typer.echo(f"{out}\n{out.read_text()}".rstrip())
