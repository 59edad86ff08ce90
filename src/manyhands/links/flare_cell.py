"""Frames over the cell of a FLARE job: FLARE's own processes authenticate the parties and relay between them.

``fire_and_forget`` of the cell is internal to FLARE, so its minor version is pinned. A cell's requests would take twice
the memory, and what FLARE retries may be applied twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message as FlareMessage

from manyhands.links.frame import Frame, OnFrame, read_frame

CHANNEL, TOPIC, FIELDS = "manyhands", "frame", "manyhands"


class CellConnection:
    """A connection over the cell of this party's job process.

    Args:
        on_frame: See ``OnFrame``.
        cell: The cell.
        peers: The name of each peer, and the name of its cell. Frames of other cells are dropped.
    """

    def __init__(self, on_frame: OnFrame, *, cell: Cell, peers: Mapping[str, str]) -> None:
        self._on_frame, self._cell, self._cells = on_frame, cell.core_cell, dict(peers)
        self._names = {cell_name: name for name, cell_name in peers.items()}
        self._cell.register_request_cb(CHANNEL, TOPIC, self._receive)

    def send(self, peer: str, frames: Sequence[Frame]) -> None:
        """Send frames; those that do not arrive are asked for again."""
        for frame in frames:
            message = FlareMessage({FIELDS: frame.fields}, frame.payload)
            self._cell.fire_and_forget(CHANNEL, TOPIC, self._cells[peer], message, optional=True)

    def _receive(self, request: FlareMessage, *_: Any, **__: Any) -> None:
        name = self._names.get(str(request.get_header(MessageHeaderKey.ORIGIN)))
        if name is not None:
            self._on_frame(name, read_frame(request.get_header(FIELDS), request.payload or b""))
