"""Packs codes of a few bits: eight codes take as many bytes as one code has bits."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes take."""
    return count if bits == 8 else -(-count // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes.

    Args:
        codes: The codes, uint8 and below 2 ** bits, of any shape.
        bits: The bits of a code.
    """
    codes = codes.flatten()
    if bits == 8:
        return codes
    words = torch.nn.functional.pad(codes, (0, -len(codes) % 8)).view(-1, 8).long()
    words = (words << _shifts(bits)).sum(1)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].flatten()


def unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    """Unpack ``count`` codes."""
    if bits == 8:
        return packed
    words = torch.nn.functional.pad(packed.view(-1, bits), (0, 8 - bits)).view(torch.int64)
    return (words >> _shifts(bits) & (1 << bits) - 1).to(torch.uint8).flatten()[:count]


def _shifts(bits: int) -> Tensor:
    return torch.arange(0, 8 * bits, bits)
