"""Runs a function in its own process, so that its imports and its memory end with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from manyhands.errors import ManyhandsError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
P = ParamSpec("P")


class SubprocessTask(Generic[P, T]):
    """A function that runs in a subprocess, which ends when this process ends.

    Args:
        function: A module-level function, which the subprocess imports by name.
        args: Its positional arguments. They and the result are copied between processes, so they should be small.
        kwargs: Its keyword arguments.
    """

    def __init__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        context = get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(sender, function, args, kwargs), daemon=True)
        self._process.start()
        sender.close()

    @property
    def is_done(self) -> bool:
        """Whether the function has returned or failed."""
        return self._receiver.poll()

    def result(self) -> T:
        """Wait for the function and return its result; raise ``ManyhandsError`` if it failed."""
        try:
            error, value = self._receiver.recv()
        except EOFError:
            error = "its process was killed"
        self._process.join()
        if error:
            raise ManyhandsError(error)
        return value  # type: ignore[no-any-return] # the result of the function

    def stop(self) -> None:
        """Stop the subprocess, whatever it is doing."""
        self._process.terminate()
        self._process.join()


def _work(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(("", function(*args, **kwargs)))
    except ManyhandsError as error:
        sender.send((str(error), None))
    except Exception as error:
        sender.send((f"{type(error).__name__}: {error}", None))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
