"""The index at the beginning of a safetensors file. The library reads and writes it with all tensors in memory only."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import torch

from manyhands.files.strict_json import strict_json
from manyhands.tensors import TensorSpec

LENGTH = struct.Struct("<Q")
"""The number of bytes of the index, which stands before it."""
DTYPE_NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The types of tensors with their names, in the order in which the library writes them."""
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPE_NAMES)}
Entries = Sequence[tuple[str, TensorSpec]]


def library_order(entries: Entries) -> Entries:
    """Sort names and specs as the library does: by type, then by name."""
    return sorted(entries, key=lambda entry: (_RANKS[entry[1].dtype], entry[0]))


def index_of(entries: Entries) -> bytes:
    """Encode the index of tensors that follow in this order, exactly as the library writes it."""
    index, end = {}, 0
    for name, spec in entries:
        begin, end = end, end + spec.size * spec.dtype.itemsize
        index[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (begin, end)}
    raw = strict_json(index, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return LENGTH.pack(len(raw)) + raw


def read_index(raw: bytes) -> dict[str, tuple[TensorSpec, int]]:
    """Read an index, without its length, that the library has checked: each tensor's spec and its place in the file."""
    entries = json.loads(raw)
    entries.pop("__metadata__", None)
    start = LENGTH.size + len(raw)
    return {
        name: (TensorSpec(tuple(entry["shape"]), _DTYPES[entry["dtype"]]), start + entry["data_offsets"][0])
        for name, entry in entries.items()
    }
