"""The index of a safetensors file, written without the tensors: the library's bytes."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from manyhands.files.safetensors_index import DTYPE_NAMES, LENGTH, index_of, library_order, read_index
from manyhands.tensors import TensorSpec, state_spec


@pytest.mark.parametrize("names", [[], ["b", "a", "é"], [f"t{i}" for i in range(9)]])
def test_it_is_what_the_library_writes_and_is_read_back(names: list[str]) -> None:
    dtypes = list(DTYPE_NAMES)
    tensors = {name: torch.ones(i, 3, dtype=dtypes[-i]) for i, name in enumerate(names)}
    entries = library_order(list(state_spec(tensors).items()))
    index, file = index_of(entries), safetensors.torch.save(tensors)
    assert file.startswith(index)
    read = read_index(index[LENGTH.size :])
    assert {name: spec for name, (spec, _) in read.items()} == state_spec(tensors)
    for name, (spec, offset) in read.items():
        raw = file[offset : offset + spec.size * spec.dtype.itemsize]
        assert (
            raw == tensors[name].numpy().tobytes()
            if spec.dtype != torch.bfloat16
            else len(raw) == 6 * len(tensors[name])
        )


def test_tensors_follow_in_the_order_in_which_they_are_named() -> None:
    first, second = TensorSpec((2,), torch.float32), TensorSpec((3,), torch.int64)
    index = index_of([("images", first), ("labels", second)])
    file = index + torch.tensor([1.0, 2.0]).numpy().tobytes() + torch.tensor([3, 4, 5]).numpy().tobytes()
    tensors = safetensors.torch.load(file)
    assert tensors["images"].tolist() == [1, 2]
    assert tensors["labels"].tolist() == [3, 4, 5]
