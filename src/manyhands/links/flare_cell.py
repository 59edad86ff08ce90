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

from manyhands.links.frame import Frame, OnFrame, OnPeerChange, read_frame

CHANNEL, TOPIC, FIELDS = "manyhands", "frame", "manyhands"


class CellConnection:
    """A connection over the cell of this party's job process.

    Args:
        on_frame: See ``OnFrame``.
        on_peer_change: See ``OnPeerChange``; a peer is connected from its first frame on.
        cell: The cell.
        peers: The name of each peer, and the name of its cell. Frames of other cells are dropped.
    """

    def __init__(
        self, on_frame: OnFrame, on_peer_change: OnPeerChange, *, cell: Cell, peers: Mapping[str, str]
    ) -> None:
        self._on_frame, self._on_peer_change = on_frame, on_peer_change
        self._cell, self._cells = cell.core_cell, dict(peers)
        self._names = {cell_name: name for name, cell_name in peers.items()}
        self._heard: set[str] = set()
        self._cell.register_request_cb(CHANNEL, TOPIC, self._receive)

    def send(self, peer: str, frames: Sequence[Frame]) -> bool:
        """Send frames; return False if the peer is not connected."""
        return all(self._send(self._cells[peer], frame) for frame in frames)

    def close(self) -> None:
        """Do nothing: the cell is FLARE's."""

    def _send(self, cell: str, frame: Frame) -> bool:
        message = FlareMessage({FIELDS: frame.fields}, frame.payload)
        return not self._cell.fire_and_forget(CHANNEL, TOPIC, cell, message, optional=True).get(cell)

    def _receive(self, request: FlareMessage, *_: Any, **__: Any) -> None:
        name = self._names.get(str(request.get_header(MessageHeaderKey.ORIGIN)))
        if name is None:
            return
        if name not in self._heard:
            self._heard.add(name)
            self._on_peer_change(name, True)
        self._on_frame(name, read_frame(request.get_header(FIELDS), request.payload or b""))
