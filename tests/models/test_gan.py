"""A GAN in blocks: the networks of the paper, to the parameter, and cut anywhere it is the same."""

from __future__ import annotations

import itertools

import pytest
import torch

from manyhands.errors import RecipeError
from manyhands.methods.huscf.middle import MiddlePass
from manyhands.models.gan import Gan, GanModule, iteration, run_blocks
from manyhands.models.layer_cut import LayerCut, LayerCuts, block_outputs, every_cut

SMALL = Gan(size=16, channels=2, classes=3, latent=5, width=4)


def batch(spec: Gan, count: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(count, spec.channels, spec.size, spec.size, generator=rng) * 2 - 1
    return x, torch.randint(spec.classes, (count,), generator=rng), torch.randn(count, spec.latent, generator=rng)


def test_at_28_it_is_that_of_the_paper() -> None:
    networks = Gan(size=28, channels=1, classes=10).build(0)
    counts = [sum(w.numel() for w in part.parameters()) for part in (networks.generator, networks.discriminator)]
    assert counts == [2_221_925, 816_737]
    spec = Gan(size=28, channels=1, classes=10)
    shapes = [[like.shape[1:] for like in block_outputs(spec, name)] for name in ("generator", "discriminator")]
    assert shapes[0] == [(256, 7, 7), (128, 14, 14), (128, 14, 14), (64, 28, 28), (1, 28, 28)]
    assert shapes[1] == [(64, 14, 14), (128, 7, 7), (128, 7, 7), (256, 3, 3), (1,)]


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("options", [{}, {"norm": "group"}, {"spectral": True}, {"classes": 0}])
def test_any_size_has_its_middle_and_ends(size: int, options: dict[str, object]) -> None:
    spec = Gan.model_validate({"size": size, "channels": 3, "classes": 2, "width": 8, **options})
    made = block_outputs(spec, "generator")
    assert made[-1].shape == (None, 3, size, size)
    assert block_outputs(spec, "discriminator")[-1].shape == (None, 1)
    assert len(made) == spec.depth
    assert made[spec.middle].shape == made[spec.middle - 1].shape


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(RecipeError, match="is not a multiple of"):
        Gan(size=30, channels=1, classes=0)
    with pytest.raises(RecipeError, match="not a multiple of 8"):
        Gan(size=32, channels=1, classes=0, norm="group", width=12)
    for head, tail in ((2, 4), (1, 2), (0, 5), (3, 3)):
        with pytest.raises(ValueError, match="head must be below block 2"):
            LayerCut(head=head, tail=tail).check(SMALL, "generator")


def split_iteration(
    spec: Gan,
    home: GanModule,
    server: GanModule,
    cuts: LayerCuts,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """The same iteration, by a silo that has both ends and a server that has the middle."""
    (x, labels, z), (ours, theirs) = data, (torch.optim.Adam(part.parameters(), 1e-2) for part in (home, server))

    def forward(network: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, MiddlePass]:
        cut = cuts.of(network)
        first, _, last = cut.parts(list(getattr(home, network)))
        sent = run_blocks(first, x, labels)
        passing = MiddlePass(getattr(server, network), {"s": cut}, {"s": sent})
        got = passing.answers()["s"].requires_grad_()
        return sent, got, run_blocks(last, got), passing

    def back(sent: torch.Tensor, got: torch.Tensor, passing: MiddlePass, *, learns: bool) -> None:
        assert got.grad is not None
        sent.backward(passing.backward({"s": got.grad}, learns=learns)["s"])

    sent_g, got_g, made, passing_g = forward("generator", z)
    for image, real in ((made.detach(), False), (x, True)):
        sent, got, logits, passing = forward("discriminator", image)
        spec.discriminator_loss(logits, real=real).backward()
        back(sent, got, passing, learns=True)
    ours.step()
    theirs.step()
    home.zero_grad()
    server.zero_grad()
    sent, got, logits, passing = forward("discriminator", made)
    spec.generator_loss(logits).backward()
    back(sent, got, passing, learns=False)
    back(sent_g, got_g, passing_g, learns=True)
    home.discriminator.zero_grad()
    ours.step()
    theirs.step()


@pytest.mark.parametrize(
    "cuts", list(itertools.product(every_cut(SMALL), repeat=2)), ids=lambda cuts: f"{cuts[0]} {cuts[1]}"
)
def test_cut_anywhere_it_learns_the_same(cuts: tuple[LayerCut, LayerCut]) -> None:
    both, data = LayerCuts(generator=cuts[0], discriminator=cuts[1]), batch(SMALL)
    whole = SMALL.build(3)
    iteration(SMALL, whole, torch.optim.Adam(whole.parameters(), 1e-2), *data)
    home = SMALL.build(3).keep(lambda network, block: both.of(network).at_home(block))
    server = SMALL.build(3).keep(lambda network, block: not both.of(network).at_home(block))
    split_iteration(SMALL, home, server, both, data)
    pieces = home.state_dict() | server.state_dict()
    assert pieces.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, pieces[name], atol=1e-7), name
