"""What is sent comes back as was promised, in the layout that the plan expects, and nothing foreign gets in."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch

from manyhands.errors import Reason, Refused
from manyhands.messages.codec.codec import BFloat16, Codec, Float16, Float32
from manyhands.messages.codec.packing import pack, packed_size, unpack
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.messages.codec.quantised_weights import Weights
from manyhands.seed import torch_rng
from manyhands.tensors import Tensors, state_spec, zeros

CODECS: list[Codec] = [
    Float32(),
    Float16(),
    BFloat16(),
    *[Weights(bits=bits) for bits in (8, 4, 3, 2)],  # type: ignore[arg-type]
    *[Updates(bits=bits, entropy=entropy) for bits in (8, 4, 3, 2) for entropy in (False, True)],  # type: ignore[arg-type]
]


def some(seed: int = 0, by: float = 1.0) -> Tensors:
    rng = torch_rng(seed, "tensors")
    shapes = {"a.weight": (6, 5, 3, 3), "a.bias": (6,), "conv_in.weight": (4, 1, 3, 3), "b.weight": (7, 3)}
    return {name: by * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def moved(base: Tensors, by: float = 1e-3) -> Tensors:
    return {name: base[name] + step for name, step in some(1, by).items()}


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 101])
def test_packing_is_undone_exactly_and_takes_the_bits_it_says(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch_rng(0, "codes"))
    raw = pack(codes, bits)
    assert len(raw) == packed_size(count, bits) <= count * bits / 8 + bits
    assert torch.equal(unpack(raw, count, bits), codes)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_what_travels_is_of_the_layout_that_the_plan_expects(codec: Codec) -> None:
    base = some()
    wire = codec.encode(moved(base), base, {}, torch_rng(0, "codec")).wire
    codec.check(wire, state_spec(base))
    decoded = codec.decode(wire, base)
    assert state_spec(decoded) == state_spec(base)
    assert all(bool(tensor.isfinite().all()) for tensor in decoded.values())


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_order_of_names_is_of_no_account(codec: Codec) -> None:
    base = some()
    wire = codec.encode(moved(base), base, {}, torch_rng(0, "codec")).wire
    turned = dict(reversed(base.items()))
    again = codec.encode(dict(reversed(moved(base).items())), turned, {}, torch_rng(0, "codec")).wire
    assert all(torch.equal(wire[name], again[name]) for name in wire)
    one, other = codec.decode(wire, base), codec.decode(again, turned)
    assert all(torch.equal(one[name], other[name]) for name in base)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_weights_come_back_within_half_a_step(bits: Any) -> None:
    weights = some() | {"same": torch.full((4,), 0.7), "none": torch.zeros(3), "far": torch.tensor([98.0, 98.5, 99.0])}
    codec = Weights(bits=bits)
    decoded = codec.decode(codec.encode(weights, {}, {}, torch_rng(0, "codec")).wire, zeros(state_spec(weights)))
    for name, tensor in weights.items():
        step = (tensor.max() - tensor.min()) / (2**bits - 1)
        assert bool(((decoded[name] - tensor).abs() <= step / 2 + 1e-5 * tensor.abs().max()).all()), name
    assert torch.equal(decoded["same"], weights["same"])


def test_weights_have_a_dead_zone_and_updates_have_none() -> None:
    base = {"w.weight": torch.linspace(0, 1, 64).view(8, 8)}
    step = torch.full((64,), 1e-4)
    step[0] = step[-1] = 0  # the range stays
    rounded, updates, rng = Weights(bits=8), Updates(bits=8), torch_rng(0, "codec")
    decoded = rounded.decode(rounded.encode(base, {}, {}, rng).wire, base)
    for _ in range(20):
        trained = {"w.weight": decoded["w.weight"] + step.view(8, 8)}
        again = rounded.decode(rounded.encode(trained, {}, {}, rng).wire, base)
        assert torch.allclose(again["w.weight"], decoded["w.weight"], atol=1e-6)
    trained = {"w.weight": base["w.weight"] + step.view(8, 8)}
    said = updates.decode(updates.encode(trained, base, {}, rng).wire, base)
    assert torch.allclose(said["w.weight"], trained["w.weight"], atol=2e-6)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_by_chance_the_mean_is_right(bits: Any) -> None:
    base = some()
    weights, codec = moved(base), Updates(bits=bits, reach=100.0, feedback=False)
    mean = {name: torch.zeros_like(tensor, dtype=torch.double) for name, tensor in base.items()}
    for seed in range(400):
        decoded = codec.decode(codec.encode(weights, base, {}, torch_rng(seed, "codec")).wire, base)
        mean = {name: mean[name] + decoded[name] / 400 for name in mean}
    for name, tensor in mean.items():
        step = 2 * (weights[name] - base[name]).abs().max() / (2**bits - 2)
        assert float((tensor - weights[name]).abs().max()) < 4 * float(step) / 2 / 400**0.5 + 1e-6


NORMAL = {"w.weight": torch.randn(4, 20_000, generator=torch_rng(0, "normal"))}
"""Four channels of an update whose numbers are normal."""


def slope(said: torch.Tensor, meant: torch.Tensor) -> float:
    return float((said * meant).sum() / meant.square().sum())


def said_once(codec: Updates, seed: int = 0) -> torch.Tensor:
    base = zeros(state_spec(NORMAL))
    return codec.decode(codec.encode(NORMAL, base, {}, torch_rng(seed, "codec")).wire, base)["w.weight"]


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_without_feedback_the_mean_of_what_is_said_is_right(bits: Any) -> None:
    """Of what has a reach, 4 and 3 bits said .984 and .928 of what was meant."""
    mean = sum(said_once(Updates(bits=bits, feedback=False), seed) for seed in range(8)) / 8
    assert isinstance(mean, torch.Tensor)
    assert slope(mean, NORMAL["w.weight"]) == pytest.approx(1, abs=0.003)
    outer = NORMAL["w.weight"].abs() > 2.5
    assert slope(mean[outer], NORMAL["w.weight"][outer]) == pytest.approx(1, abs=0.006)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize(("bits", "reach"), [(8, 1.0), (4, 2.4), (3, 1.8)])
def test_what_is_beyond_the_reach_is_cut_off(bits: Any, reach: float, feedback: bool) -> None:
    """Of normal numbers, erf(reach / sqrt 2) is left of what was meant (Stein's lemma); within the reach all is."""
    codec, meant = Updates(bits=bits, reach=reach, feedback=feedback), NORMAL["w.weight"]
    said = said_once(codec)
    assert slope(said, meant) == pytest.approx(math.erf(reach / 2**0.5), abs=0.004)
    inner = meant.abs() < reach * 0.99
    assert slope(said[inner], meant[inner]) == pytest.approx(1, abs=0.004)
    assert bool((said.abs() <= reach * 1.02).all())


def test_two_bits_say_less_than_is_meant() -> None:
    assert slope(said_once(Updates(bits=2, feedback=False)), NORMAL["w.weight"]) == pytest.approx(0.905, abs=0.01)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_feedback_says_later_what_was_cut_off(bits: Any) -> None:
    """What was said in all, over rounds, has the slope 1, however little a single round says."""
    codec, base, left, sums = Updates(bits=bits, reach=1.5), zeros(state_spec(NORMAL)), {}, []
    for number in range(30):
        wire, left = codec.encode(NORMAL, base, left, torch_rng(number, "codec"))
        sums.append(codec.decode(wire, base)["w.weight"] + (sums[-1] if sums else 0))
    meant = NORMAL["w.weight"]
    assert slope(sums[0], meant) < 0.92
    assert slope(sums[-1] / 30, meant) == pytest.approx(1, abs=0.015)
    assert slope(sums[-1] - sums[-11], meant) == pytest.approx(10, abs=0.1)  # what is left hardly grows
    assert torch.allclose(sums[-1] + left["w.weight"], 30 * meant, atol=1e-3)  # and the rest is what is left


def test_what_is_without_feedback_is_as_long_on_the_wire() -> None:
    base = some()
    for bits in (8, 4, 3, 2):
        one, other = (
            Updates(bits=bits, feedback=feedback).encode(moved(base), base, {}, torch_rng(0, "codec")).wire  # type: ignore[arg-type]
            for feedback in (True, False)
        )
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in one.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in other.items()
        }


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_what_is_said_and_what_is_left_are_the_update(bits: Any) -> None:
    base = some()
    weights, codec, left = moved(base), Updates(bits=bits), some(2, 1e-4)
    wire, unsaid = codec.encode(weights, base, left, torch_rng(0, "codec"))
    decoded = codec.decode(wire, base)
    for name in base:
        assert torch.allclose(decoded[name] + unsaid[name], weights[name] + left[name], atol=1e-6)


def missing_in_the_long_run(codec: Updates) -> float:
    """The share of an update, said fifty times, that has not arrived."""
    base = some()
    step, left, arrived = some(3, 1e-3), {}, base
    for number in range(50):
        aim = {name: arrived[name] + step[name] for name in base}
        wire, left = codec.encode(aim, arrived, left, torch_rng(number, "codec"))
        arrived = codec.decode(wire, arrived)
    off = [(base[name] + 50 * step[name] - arrived[name]).norm() / (50 * step[name]).norm() for name in base]
    return float(max(off))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_with_feedback_nothing_is_lost_in_the_long_run(bits: Any) -> None:
    options = {"bits": bits, "stochastic": False}
    fed_back, lost = (missing_in_the_long_run(Updates(**options, feedback=feedback)) for feedback in (True, False))
    assert fed_back < 0.03
    assert lost > 5 * fed_back


def test_nothing_that_changed_sends_nothing() -> None:
    base = some()
    for bits, feedback in product((8, 4, 3, 2), (True, False)):
        codec = Updates(bits=bits, feedback=feedback)  # type: ignore[arg-type]
        decoded = codec.decode(codec.encode(base, base, {}, torch_rng(0, "codec")).wire, base)
        assert all(torch.equal(decoded[name], base[name]) for name in base)


def test_squeezing_changes_the_bytes_and_nothing_else() -> None:
    base = {"w.weight": torch.randn(64, 64, generator=torch_rng(0, "w"))}
    weights = {"w.weight": base["w.weight"] + 1e-3 * torch.randn(64, 64, generator=torch_rng(1, "w"))}
    plain, short = (Updates(bits=4, entropy=entropy) for entropy in (False, True))
    one, other = (codec.encode(weights, base, {}, torch_rng(0, "codec")).wire for codec in (plain, short))
    assert len(other["codes"]) < 0.95 * len(one["codes"])
    assert torch.equal(plain.decode(one, base)["w.weight"], short.decode(other, base)["w.weight"])


@pytest.mark.parametrize(
    "bad",
    [
        lambda codes: codes[:-3],
        lambda codes: torch.cat([codes, codes[:2]]),
        lambda codes: torch.randint(0, 256, codes.shape, dtype=torch.uint8),
        lambda codes: codes[:0],
    ],
)
def test_codes_that_were_tampered_with_are_refused(bad: Any) -> None:
    base, codec = some(), Updates(entropy=True)
    wire = codec.encode(moved(base), base, {}, torch_rng(0, "codec")).wire
    with pytest.raises(Refused) as refused:
        codec.check({**wire, "codes": bad(wire["codes"])}, state_spec(base))
    assert refused.value.reason in (Reason.MALFORMED, Reason.WRONG_SHAPE)


@pytest.mark.parametrize(("size", "why"), [(200_000, "bytes of codes were sent, not 291"), (50_000_000, "are allowed")])
def test_a_small_message_cannot_grow_without_bound(size: int, why: str) -> None:
    import zlib

    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = coder.compress(bytes(size)) + coder.flush()
    codec, base = Updates(entropy=True), some()
    wire = codec.encode(moved(base), base, {}, torch_rng(0, "codec")).wire
    with pytest.raises(Refused, match=why):
        codec.check({**wire, "codes": torch.frombuffer(bytearray(bomb), dtype=torch.uint8)}, state_spec(base))


@pytest.mark.parametrize(
    ("codec", "lie"),
    [
        (Float32(), {"b.weight": 1e30}),
        (Weights(), {"steps": 3e38}),
        (Weights(), {"leasts": -1e5}),
        (Updates(), {"scales": 1e6}),
        (Updates(), {"fine": 65_504.0}),
    ],
    ids=str,
)
def test_what_weights_cannot_be_is_refused(codec: Codec, lie: dict[str, float]) -> None:
    base = some()
    wire = codec.encode(moved(base), base, {}, torch_rng(0, "codec")).wire
    codec.check(wire, state_spec(base))
    ((name, number),) = lie.items()
    with pytest.raises(Refused, match="reaches beyond 60000"):
        codec.check({**wire, name: torch.full_like(wire[name], number)}, state_spec(base))
