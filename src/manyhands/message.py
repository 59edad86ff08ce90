"""The only thing that leaves a silo, and its one encoding: a JSON header, then safetensors."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from manyhands.errors import MessageError

MAGIC = b"MHM1"
HEADER_LIMIT = 1 << 20
_OPERATION = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PREFIX = struct.Struct("<4sI")


@dataclass(frozen=True, slots=True)
class Message:
    """An operation, the tensors that it carries, and facts about them (JSON values, small)."""

    op: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """The message as bytes; nothing in them can be run."""
    header = _header(message)
    tensors = {name: _alone(tensor) for name, tensor in message.tensors.items()}
    return _PREFIX.pack(MAGIC, len(header)) + header + safetensors.torch.save(tensors)


def encoded_size(message: Message) -> int:
    """Exactly ``len(encode(message))``, without copying the tensors."""
    signature = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in message.tensors.items())
    return _PREFIX.size + len(_header(message)) + _tensors_size(signature)


def decode(blob: bytes) -> Message:
    """The message in the bytes, or a MessageError; foreign bytes raise nothing else."""
    if len(blob) < _PREFIX.size:
        raise MessageError(f"{len(blob)} bytes are too few for a message")
    magic, length = _PREFIX.unpack_from(blob)
    if magic != MAGIC:
        raise MessageError(f"starts with {magic!r}, not with {MAGIC!r}")
    if length > HEADER_LIMIT or _PREFIX.size + length > len(blob):
        raise MessageError(f"says that its header has {length} bytes; it has {len(blob)} in all")
    op, facts = _read_header(blob[_PREFIX.size : _PREFIX.size + length])
    try:
        tensors = safetensors.torch.load(blob[_PREFIX.size + length :])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise MessageError(f"its tensors cannot be read: {error}") from None
    return Message(op, tensors, facts)


def _alone(tensor: Tensor) -> Tensor:
    """A copy on the CPU that shares its memory with no other tensor, as safetensors asks."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _header(message: Message) -> bytes:
    try:
        text = json.dumps([message.op, dict(message.facts)], allow_nan=False, separators=(",", ":"), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise MessageError(f"{message.op}: a fact is no finite JSON value: {error}") from None
    raw = text.encode()
    if len(raw) > HEADER_LIMIT:
        raise MessageError(f"{message.op}: its facts take {len(raw):,} bytes, more than the {HEADER_LIMIT:,} allowed")
    return raw


def _read_header(raw: bytes) -> tuple[str, dict[str, Any]]:
    try:
        header = json.loads(
            raw.decode(), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as error:
        raise MessageError(f"its header is no strict JSON: {error}") from None
    match header:
        case [str(op), dict(facts)] if _OPERATION.fullmatch(op):
            return op, facts
    raise MessageError("its header is not [operation, {facts}]")


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


@lru_cache(maxsize=256)
def _tensors_size(signature: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> int:
    """The size depends on names, types and shapes only, so the library is asked once for each set of them."""
    return len(safetensors.torch.save({name: torch.empty(shape, dtype=dtype) for name, dtype, shape in signature}))
