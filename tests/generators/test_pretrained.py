"""What a run of a pretrained model exports, loaded by others: PEFT, diffusers and our own generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manyhands import DiffusionGenerator
from manyhands.diffusion.objective import Diffusion
from manyhands.errors import RunFolderError
from manyhands.generators.load import load
from manyhands.generators.pretrained import ADAPTER
from manyhands.models.pretrained import Pretrained
from manyhands.tensors import Tensors, sha256
from tests.models.toy_pretrained import of_run, save_run_model

RNG = torch.Generator().manual_seed(5)
X, T, LABELS = torch.randn(3, 1, 8, 8, generator=RNG), torch.tensor([1, 50, 900]), torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def trained(model: Pretrained) -> Tensors:
    """Weights that have gone somewhere."""
    rng = torch.Generator().manual_seed(1)
    return {
        name: weight.detach() + 0.3 * torch.randn(weight.shape, generator=rng)
        for name, weight in model.build(0).state_dict().items()
    }


def generator(model: Pretrained) -> DiffusionGenerator:
    return DiffusionGenerator(model, Diffusion(), trained(model), classes=("0", "1"))


@torch.no_grad()
def output(unet: object) -> torch.Tensor:
    return unet(X, T - 1, class_labels=LABELS).sample  # type: ignore[operator,no-any-return]


@torch.no_grad()
def expected(made: DiffusionGenerator) -> torch.Tensor:
    return made.network(X, T, LABELS)  # type: ignore[no-any-return]


@pytest.mark.parametrize("whole", [(), ("class_embedding", "norm1")])
@pytest.mark.parametrize("kind", ["ffa", "naive"])
def test_peft_puts_exported_adapters_on_the_base(tmp_path: Path, base: Path, kind: str, whole: tuple[str, ...]) -> None:
    from diffusers import UNet2DModel
    from peft import PeftModel

    adapter = {"kind": kind, "rank": 2, "alpha": 4, "targets": ["to_q", "conv1"], "whole": whole}
    made = generator(of_run(base, adapter=adapter))
    made.save(tmp_path / "model")
    unet = UNet2DModel.from_pretrained(base / "unet", low_cpu_mem_usage=False)
    assert not torch.allclose(output(unet), expected(made), atol=1e-2)
    adapted = PeftModel.from_pretrained(unet, tmp_path / "model" / ADAPTER)
    assert torch.allclose(output(adapted), expected(made), atol=1e-6)
    again = PeftModel.from_pretrained(
        UNet2DModel.from_pretrained(base / "unet", low_cpu_mem_usage=False), tmp_path / "model" / ADAPTER, "first"
    )
    again.load_adapter(tmp_path / "model" / ADAPTER, "second")
    again.set_adapter("second")
    assert torch.allclose(output(again), expected(made), atol=1e-6)


@pytest.mark.parametrize("adapter", [None, {"rank": 2}, {"rank": 2, "kind": "naive", "whole": "norm1"}])
def test_our_generator_draws_the_same_bits_again(tmp_path: Path, base: Path, adapter: object) -> None:
    made = generator(of_run(base, adapter=adapter))
    made.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, DiffusionGenerator)
    assert sha256(loaded.weights) == sha256(made.weights)
    assert torch.equal(loaded.sample(4), made.sample(4))
    size = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*.safetensors"))
    whole = (base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < whole / 4 if adapter else size >= whole  # of a base, adapters are a small part


def test_a_whole_network_needs_its_base_no_longer(tmp_path: Path) -> None:
    base = save_run_model(tmp_path / "base")
    made = generator(of_run(base))
    images = made.sample(2)
    made.save(tmp_path / "model")
    base.rename(tmp_path / "gone")
    assert torch.equal(load(tmp_path / "model").sample(2), images)  # type: ignore[union-attr]


def test_a_run_begins_from_what_another_exported(tmp_path: Path, base: Path) -> None:
    made = generator(of_run(base))
    made.save(tmp_path / "model")
    assert sha256(of_run(tmp_path / "model").build(0).state_dict()) == sha256(made.weights)


def test_adapters_of_another_base_are_not_loaded(tmp_path: Path) -> None:
    base = save_run_model(tmp_path / "base")
    generator(of_run(base, adapter={"rank": 2})).save(tmp_path / "model")
    save_run_model(base, seed=4)
    with pytest.raises(RunFolderError, match="its adapters were trained on other frozen weights than .*/base has now"):
        load(tmp_path / "model")
    base.rename(tmp_path / "gone")
    with pytest.raises(RunFolderError, match="method.model.folder: '.*base' is no folder"):
        load(tmp_path / "model")
