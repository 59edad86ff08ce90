"""Work in a process of its own: what it imports, and what it holds, goes with it."""

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
    """Does something elsewhere, and ends when this process does; what is given to it and what it gives must be small.

    What it does is a function of a module, by its name.
    """

    def __init__(self, do: Callable[P, T], *args: P.args, **named: P.kwargs) -> None:
        context = get_context("spawn")
        self._come, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(there, do, args, named), daemon=True)
        self._process.start()
        there.close()

    @property
    def is_done(self) -> bool:
        """Whether the result is there, or never will be."""
        return self._come.poll()

    def result(self) -> T:
        """What came of it; waits for it."""
        try:
            error, found = self._come.recv()
        except EOFError:
            error = "its process was ended"
        self._process.join()
        if error:
            raise ManyhandsError(error)
        return found  # type: ignore[no-any-return] # what the function gave

    def stop(self) -> None:
        """Whatever it is at."""
        self._process.terminate()
        self._process.join()


def _work(there: Connection, do: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        there.send(("", do(*args, **named)))
    except ManyhandsError as error:
        there.send((str(error), None))
    except Exception as error:
        there.send((f"{type(error).__name__}: {error}", None))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
