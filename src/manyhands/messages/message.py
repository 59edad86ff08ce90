"""A message, which is all that ever leaves a silo, and its encoding: a JSON header, then safetensors."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from manyhands.errors import MessageError
from manyhands.files.safetensors_index import DTYPE_NAMES, LENGTH, index_of, library_order, read_index
from manyhands.files.strict_json import strict_json
from manyhands.tensors import StateSpec, TensorSpec, state_spec

MAGIC = b"MHM1"
MAX_HEADER_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1 << 32
"""The most bytes of a message."""
MAX_DEPTH = 16
"""The deepest nesting of facts."""
_OPERATION = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PREFIX = struct.Struct("<4sI")
READ_ERRORS = (
    SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, OSError, struct.error, MemoryError
)  # fmt: skip
"""What reading tensors of another party may raise."""
Signature = tuple[tuple[str, torch.dtype, tuple[int | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """What a silo and the server send each other.

    Args:
        op: The operation that it is part of.
        tensors: Its tensors, by name.
        facts: Small JSON values, by name.
    """

    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Bounds(NamedTuple):
    """The largest size of a message.

    Args:
        size: The most bytes in all.
        header: The most bytes of its header.
        index_size: The most bytes of the index of its tensors.
        tensors: The most tensors.
    """

    size: int
    header: int
    index_size: int
    tensors: int

    @classmethod
    def of(cls, header: int, index_size: int = 16, tensors: int = 0, tensor_bytes: int = 0) -> Bounds:
        """Compute the bounds of a message from the sizes of its parts."""
        header = min(header, MAX_HEADER_BYTES)
        size = _PREFIX.size + header + LENGTH.size + index_size + tensor_bytes
        return cls(min(size, MAX_MESSAGE_BYTES), header, index_size, tensors)

    @classmethod
    def largest(cls, bounds: Iterable[Bounds]) -> Bounds:
        """The largest value of each bound."""
        return cls(*map(max, zip(cls.of(0), *bounds, strict=True)))

    def check_begin(self, begin: bytes) -> None:
        """Raise ``MessageError`` if the first bytes of a message announce more; nothing else of it is read."""
        length = _header_bytes(begin)
        if length > self.header:
            raise MessageError(f"its header has {length:,} bytes; at most {self.header:,} are allowed")
        if len(begin) >= _PREFIX.size + length + LENGTH.size:
            self.check_index(*LENGTH.unpack_from(begin, _PREFIX.size + length))

    def check_index(self, length: int, index: bytes = b"") -> None:
        """Raise ``MessageError`` if the index of the tensors is too long or lists too many (one brace for each)."""
        if length > self.index_size:
            raise MessageError(
                f"the index of its tensors has {length:,} bytes; at most {self.index_size:,} are allowed"
            )
        if index.count(b"{") - 1 > self.tensors:
            raise MessageError(f"it has {index.count(b'{') - 1:,} tensors; at most {self.tensors:,} are allowed")


UNBOUNDED = Bounds(MAX_MESSAGE_BYTES, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES)
"""The bounds of a message from a trusted party."""


def encode(message: Message) -> bytes:
    """Encode a message as bytes, which hold data only, no code."""
    return b"".join(pieces(message))


def pieces(message: Message) -> Iterator[bytes | memoryview]:
    """Encode a message in pieces; a tensor is copied only if it is on another device or not contiguous."""
    header = _header(message)
    index, order = _index(_signature(message))
    yield _PREFIX.pack(MAGIC, len(header)) + header + index
    for name in order:
        yield _raw(message.tensors[name])


def encoded_size(message: Message) -> int:
    """Compute ``len(encode(message))`` without copying the tensors."""
    index, _ = _index(_signature(message))
    tensor_bytes = sum(spec.size * spec.dtype.itemsize for spec in state_spec(message.tensors).values())
    return _PREFIX.size + len(_header(message)) + len(index) + tensor_bytes


def decode(blob: bytes, bounds: Bounds = UNBOUNDED) -> Message:
    """Decode a message; any bytes that are not a valid message raise ``MessageError`` and nothing else."""
    bounds.check_begin(blob)
    head = head_size(blob)
    if len(blob) >= head + LENGTH.size:
        (length,) = LENGTH.unpack_from(blob, head)
        bounds.check_index(length, blob[head + LENGTH.size : head + LENGTH.size + min(length, bounds.index_size)])
    op, facts = _read_header(blob[_PREFIX.size : head])
    try:
        tensors = safetensors.torch.load(blob[head:])
    except READ_ERRORS as error:
        raise MessageError(f"its tensors cannot be read: {error}") from None
    if bad := [name for name, tensor in tensors.items() if tensor.dtype not in DTYPE_NAMES]:
        raise MessageError(f"{bad[0]!r} is of a type that a message cannot hold: {tensors[bad[0]].dtype}")
    return Message(op, tensors, facts)


def head_size(blob: bytes) -> int:
    """Return how many bytes of a message come before its tensors; all of them must be in ``blob``."""
    length = _header_bytes(blob)
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(blob):
        raise MessageError(f"announces a header of {length} bytes; it has {len(blob)} bytes in all")
    return _PREFIX.size + length


def _header_bytes(begin: bytes) -> int:
    """Read the length of the header from the first bytes of a message."""
    if len(begin) < _PREFIX.size:
        raise MessageError(f"{len(begin)} bytes are too few for a message")
    magic, length = _PREFIX.unpack_from(begin)
    if magic != MAGIC:
        raise MessageError(f"starts with {magic!r}, not with {MAGIC!r}")
    return int(length)


def decode_from(head: bytes, file: OpenFile, bounds: Bounds = UNBOUNDED) -> Message:
    """Decode a message whose tensors are in a file; each is read when it is accessed.

    Args:
        head: The bytes before the tensors.
        file: The tensors, in the safetensors format.
        bounds: The largest size of the message.
    """
    op, facts = _read_header(head[_PREFIX.size :])
    return Message(op, LazyTensors(file, bounds), facts)


class OpenFile(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Its file descriptor."""
        ...


class LazyTensors(Mapping[str, Tensor]):
    """Tensors in a file, read one at a time; ``state_spec`` has their shapes without reading them."""

    def __init__(self, file: OpenFile, bounds: Bounds = UNBOUNDED) -> None:
        self.file = file  # a temporary file is deleted when no reference is left
        try:
            (length,) = LENGTH.unpack(os.pread(file.fileno(), LENGTH.size, 0))
            bounds.check_index(length)
            index = os.pread(file.fileno(), length, LENGTH.size)
            bounds.check_index(length, index)
            with safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="pt"):
                pass  # safetensors has checked all offsets
            entries = read_index(index)
            self.state_spec = {name: spec for name, (spec, _) in entries.items()}
            self._offsets = {name: offset for name, (_, offset) in entries.items()}
        except READ_ERRORS as error:
            raise MessageError(f"its tensors cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor; it does not refer to the file."""
        spec = self.state_spec[name]
        tensor = torch.empty([n or 0 for n in spec.shape], dtype=spec.dtype)
        buffer, offset = _raw(tensor), self._offsets[name]
        while buffer:
            count = os.preadv(self.file.fileno(), [buffer], offset)
            if not count:
                raise MessageError(f"its file ends within {name!r}")
            buffer, offset = buffer[count:], offset + count
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.state_spec)

    def __len__(self) -> int:
        return len(self.state_spec)


def _raw(tensor: Tensor) -> memoryview:
    """Return the memory of a tensor, after a copy to contiguous CPU memory if necessary."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(message: Message) -> bytes:
    try:
        raw = strict_json([message.op, dict(message.facts)], separators=(",", ":"), sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"{message.op}: a fact is not a finite JSON value: {error}") from None
    if len(raw) > MAX_HEADER_BYTES:
        raise MessageError(f"{message.op}: its facts take {len(raw):,} bytes; at most {MAX_HEADER_BYTES:,} are allowed")
    return raw


def _read_header(raw: bytes) -> tuple[str, dict[str, Any]]:
    try:
        header = json.loads(
            raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite_float
        )
        _check_depth(header, MAX_DEPTH + 2)
        if b"\\u" in raw:  # only an escape can encode half a character
            strict_json(header).encode()
    except (ValueError, RecursionError) as error:
        raise MessageError(f"its header is not strict JSON: {error}") from None
    match header:
        case [str(op), dict(facts)] if _OPERATION.fullmatch(op):
            return op, facts
    raise MessageError("its header is not [operation, {facts}]")


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"facts are nested more than {MAX_DEPTH} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON")


def _signature(message: Message) -> Signature:
    return tuple((name, spec.dtype, spec.shape) for name, spec in state_spec(message.tensors).items())


def index_bytes(specs: StateSpec) -> int:
    """Return the most bytes of the index of such tensors."""
    names = sum(len(strict_json(name).encode()) for name in specs)
    return 16 + names + sum(96 + 21 * len(spec.shape) for spec in specs.values())


@lru_cache(maxsize=256)
def _index(signature: Signature) -> tuple[bytes, tuple[str, ...]]:
    """Return the index of the tensors, exactly as safetensors writes it, and the order of the tensors after it."""
    ordered = library_order([(name, TensorSpec(shape, dtype)) for name, dtype, shape in signature])
    return index_of(ordered), tuple(name for name, _ in ordered)
