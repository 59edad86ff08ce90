"""The admin fetches the files of a run folder, and nothing beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhands.errors import Refused
from manyhands.federation import run_files
from manyhands.federation.run_files import file_sizes, read_piece


def test_files_come_in_pieces_and_hidden_ones_do_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "PIECE_BYTES", 4)
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"0123456789")
    (folder / ".lock").write_bytes(b"hidden")
    (tmp_path / "secret").write_bytes(b"beside it")
    assert file_sizes(folder) == {"model/weights": 10}
    pieces = [bytes(read_piece(folder, "model/weights", start).tensors["bytes"].numpy()) for start in (0, 4, 8)]
    assert b"".join(pieces) == b"0123456789"
    assert read_piece(folder, "model/weights", 10).tensors == {}
    for path in ("../secret", ".lock", str(tmp_path / "secret"), "model", ""):
        with pytest.raises(Refused, match="is not a file of run"):
            read_piece(folder, path, 0)
