"""The command line. Each command imports what is slow to import itself, so that --help is fast."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from manyhands.cli.advise import advise
from manyhands.cli.audit import audit
from manyhands.cli.cite import cite
from manyhands.cli.compare import compare
from manyhands.cli.data import app as data
from manyhands.cli.evaluate import evaluate
from manyhands.cli.explain import explain
from manyhands.cli.federation.app import app as federation
from manyhands.cli.interrupt import INTERRUPTED, Interrupted, interrupt
from manyhands.cli.profile import profile
from manyhands.cli.recipes import recipes
from manyhands.cli.run import run
from manyhands.cli.sample import sample
from manyhands.cli.schema import schema
from manyhands.errors import DiskError, ManyhandsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train one image generator across parties that may not pool their images.",
)
for command in (run, evaluate, compare, sample, audit, advise, profile, recipes, schema, explain, cite):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(federation, name="federation")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from manyhands import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the command; an error is printed in words, and each kind has its own exit code (docs/errors)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except ManyhandsError as error:
        typer.echo(f"error: {error}\n       see: manyhands explain {error.page}", err=True)
        sys.exit(error.exit_code)
    except Interrupted as interrupted:
        typer.echo(f"interrupted{interrupted}", err=True)
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # at a normal exit libraries wait for seconds; files on disk survive a kill
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename:
            raise
        typer.echo(f"error: standard output: cannot be written: {error.strerror}", err=True)
        os._exit(DiskError.exit_code)  # a normal exit would try to write it again
    sys.exit(0)
