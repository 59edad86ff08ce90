"""The names, shapes and types of a network's weights, without any of them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from manyhands.tensors import Layout, layout

if TYPE_CHECKING:
    from manyhands.silo import Buildable


@cache
def layout_of(spec: Buildable) -> Layout:
    """Of a network that a specification builds."""
    with torch.device("meta"):
        return layout(spec.build(seed=0).state_dict())
