"""The only thing that leaves a silo, and its one encoding: a JSON header, then safetensors."""

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
from manyhands.files.strict_json import strict_json
from manyhands.tensors import StateSpec, TensorSpec, state_spec

MAGIC = b"MHM1"
MAX_HEADER_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1 << 32
"""Bytes of a message, at most."""
MAX_DEPTH = 16
"""So deep facts may be nested."""
_OPERATION = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PREFIX, _LENGTH = struct.Struct("<4sI"), struct.Struct("<Q")
_NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The types that travel, by their names in the format, in the order in which its library writes them."""
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_NAMES)}
READ_ERRORS = (
    SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, OSError, struct.error, MemoryError
)  # fmt: skip
"""What reading foreign tensors may come to."""
Signature = tuple[tuple[str, torch.dtype, tuple[int | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """An operation, the tensors that it carries, and facts about them (JSON values, small)."""

    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Bounds(NamedTuple):
    """What a message may take: bytes in all, of its header and of the index of its tensors, and how many of those."""

    size: int
    head: int
    listing: int
    tensors: int

    @classmethod
    def of(cls, head: int, listing: int = 16, tensors: int = 0, weight: int = 0) -> Bounds:
        """Those of a message whose header, index (``listing``) and tensors take so much."""
        head = min(head, MAX_HEADER_BYTES)
        return cls(
            min(_PREFIX.size + head + _LENGTH.size + listing + weight, MAX_MESSAGE_BYTES), head, listing, tensors
        )

    @classmethod
    def largest(cls, bounds: Iterable[Bounds]) -> Bounds:
        """The largest of each."""
        return cls(*map(max, zip(cls.of(0), *bounds, strict=True)))

    def check_begin(self, begin: bytes) -> None:
        """Raise MessageError where the beginning of a message says that it takes more; nothing is read of it."""
        length = _header_bytes(begin)
        if length > self.head:
            raise MessageError(f"its header has {length:,} bytes, {self.head:,} are the most")
        if len(begin) >= _PREFIX.size + length + _LENGTH.size:
            self.check_index(*_LENGTH.unpack_from(begin, _PREFIX.size + length))

    def check_index(self, length: int, index: bytes = b"") -> None:
        """The same of the index of its tensors, of each of which there is a brace in it."""
        if length > self.listing:
            raise MessageError(f"the index of its tensors has {length:,} bytes, {self.listing:,} are the most")
        if index.count(b"{") - 1 > self.tensors:
            raise MessageError(f"it has {index.count(b'{') - 1:,} tensors, {self.tensors:,} are the most")


UNBOUNDED = Bounds(MAX_MESSAGE_BYTES, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES)
"""What a message of one's own may take."""


def encode(message: Message) -> bytes:
    """The message as bytes; nothing in them can be run."""
    return b"".join(pieces(message))


def pieces(message: Message) -> Iterator[bytes | memoryview]:
    """The same in pieces, of which none is a copy but where a tensor lies elsewhere or in strides."""
    header = _header(message)
    index, order = _index(_signature(message))
    yield _PREFIX.pack(MAGIC, len(header)) + header + index
    for name in order:
        yield _raw(message.tensors[name])


def encoded_size(message: Message) -> int:
    """Exactly ``len(encode(message))``, without copying the tensors."""
    index, _ = _index(_signature(message))
    weight = sum(like.size * like.dtype.itemsize for like in state_spec(message.tensors).values())
    return _PREFIX.size + len(_header(message)) + len(index) + weight


def decode(blob: bytes, bounds: Bounds = UNBOUNDED) -> Message:
    """The message in the bytes, or a MessageError; foreign bytes raise nothing else."""
    bounds.check_begin(blob)
    head = head_size(blob)
    if len(blob) >= head + _LENGTH.size:
        (length,) = _LENGTH.unpack_from(blob, head)
        bounds.check_index(length, blob[head + _LENGTH.size : head + _LENGTH.size + min(length, bounds.listing)])
    op, facts = _read_header(blob[_PREFIX.size : head])
    try:
        tensors = safetensors.torch.load(blob[head:])
    except READ_ERRORS as error:
        raise MessageError(f"its tensors cannot be read: {error}") from None
    if odd := [name for name, tensor in tensors.items() if tensor.dtype not in _NAMES]:
        raise MessageError(f"{odd[0]!r} is of a type that does not travel: {tensors[odd[0]].dtype}")
    return Message(op, tensors, facts)


def head_size(blob: bytes) -> int:
    """How many of a message's first bytes come before its tensors; all of them must be there."""
    length = _header_bytes(blob)
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(blob):
        raise MessageError(f"says that its header has {length} bytes; it has {len(blob)} in all")
    return _PREFIX.size + length


def _header_bytes(begin: bytes) -> int:
    """How many bytes a message says that its header has."""
    if len(begin) < _PREFIX.size:
        raise MessageError(f"{len(begin)} bytes are too few for a message")
    magic, length = _PREFIX.unpack_from(begin)
    if magic != MAGIC:
        raise MessageError(f"starts with {magic!r}, not with {MAGIC!r}")
    return int(length)


def decode_from(head: bytes, file: OpenFile, bounds: Bounds = UNBOUNDED) -> Message:
    """The message with this beginning, whose tensors are in a file: each is read whenever it is asked for."""
    op, facts = _read_header(head[_PREFIX.size :])
    return Message(op, LazyTensors(file, bounds), facts)


class OpenFile(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class LazyTensors(Mapping[str, Tensor]):
    """Tensors in a file, read one at a time; their ``state_spec`` is known without."""

    def __init__(self, file: OpenFile, bounds: Bounds = UNBOUNDED) -> None:
        self.file = file  # held, since a temporary one is gone when nobody does
        try:
            (length,) = _LENGTH.unpack(os.pread(file.fileno(), _LENGTH.size, 0))
            bounds.check_index(length)
            index = os.pread(file.fileno(), length, _LENGTH.size)
            bounds.check_index(length, index)
            with safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="pt"):
                pass  # the library has looked at every bound
            told = json.loads(index)
            told.pop("__metadata__", None)
            self.state_spec = {
                name: TensorSpec(tuple(each["shape"]), _TYPES[each["dtype"]]) for name, each in told.items()
            }
            self._begins = {name: _LENGTH.size + length + each["data_offsets"][0] for name, each in told.items()}
        except READ_ERRORS as error:
            raise MessageError(f"its tensors cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        """A tensor of its own, which holds nothing of the file."""
        like = self.state_spec[name]
        found = torch.empty([n or 0 for n in like.shape], dtype=like.dtype)
        into, at = _raw(found), self._begins[name]
        while into:
            got = os.preadv(self.file.fileno(), [into], at)
            if not got:
                raise MessageError(f"its file ends within {name!r}")
            into, at = into[got:], at + got
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.state_spec)

    def __len__(self) -> int:
        return len(self.state_spec)


def _raw(tensor: Tensor) -> memoryview:
    """The memory of a tensor, which is on the CPU and without gaps then."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


def _header(message: Message) -> bytes:
    try:
        raw = strict_json([message.op, dict(message.facts)], separators=(",", ":"), sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"{message.op}: a fact is no finite JSON value: {error}") from None
    if len(raw) > MAX_HEADER_BYTES:
        raise MessageError(
            f"{message.op}: its facts take {len(raw):,} bytes, more than the {MAX_HEADER_BYTES:,} allowed"
        )
    return raw


def _read_header(raw: bytes) -> tuple[str, dict[str, Any]]:
    try:
        header = json.loads(
            raw.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite_float
        )
        _check_depth(header, MAX_DEPTH + 2)
        if b"\\u" in raw:  # only so can half of a character be told
            strict_json(header).encode()
    except (ValueError, RecursionError) as error:
        raise MessageError(f"its header is no strict JSON: {error}") from None
    match header:
        case [str(op), dict(facts)] if _OPERATION.fullmatch(op):
            return op, facts
    raise MessageError("its header is not [operation, {facts}]")


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"facts are nested more than {MAX_DEPTH} deep")
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, left - 1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _signature(message: Message) -> Signature:
    return tuple((name, like.dtype, like.shape) for name, like in state_spec(message.tensors).items())


def index_bytes(state_spec: StateSpec) -> int:
    """The most bytes that the index of such tensors takes."""
    names = sum(len(strict_json(name).encode()) for name in state_spec)
    return 16 + names + sum(96 + 21 * len(like.shape) for like in state_spec.values())


@lru_cache(maxsize=256)
def _index(signature: Signature) -> tuple[bytes, tuple[str, ...]]:
    """What the safetensors format has before the tensors, as its library writes it, and the order that they come in."""
    order = sorted(signature, key=lambda each: (_RANK[each[1]], each[0]))
    told, end = {}, 0
    for name, dtype, shape in order:
        begin, end = end, end + TensorSpec(shape, dtype).size * dtype.itemsize
        told[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (begin, end)}
    raw = strict_json(told, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return _LENGTH.pack(len(raw)) + raw, tuple(name for name, _, _ in order)
