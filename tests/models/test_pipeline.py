"""A whole text-to-image pipeline of toy size, from its folder over rounds to what diffusers draws with the export."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from manyhands import Experiment, FedAvg, Images, Silo, Training
from manyhands.errors import RecipeError
from manyhands.generators.load import load
from manyhands.links.in_process import InProcess
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.models.state_spec import state_spec_of
from tests.models.toy_pretrained import SIDE, of_pipeline, save_pipeline

ADAPTER = {"rank": 2, "alpha": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "base")


def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


def images(count: int, seed: int, names: tuple[str, ...] = ("zero", "one")) -> Images:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8))
    return Images(pixels, torch.from_numpy(rng.integers(0, 2, count)), names)


def silos(**options: Any) -> list[Silo]:
    return [Silo(f"s{i}", images(count, i, **options)) for i, count in enumerate((7, 5))]


def trained(folder: Path, adapter: object = ADAPTER, **options: Any) -> Experiment:
    training = Training(batch=4, steps=3, learning_rate=0.1)
    method = FedAvg(model=of_pipeline(folder, adapter=adapter), training=training, rounds=1, **options)
    experiment = Experiment(method, silos(), device="cpu", link=InProcess(wire="bytes"))
    for _ in experiment:
        pass
    return experiment


@torch.no_grad()
def outputs(network: Any, pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What our network, and the U-Net of a pipeline, say of the same latents, times and prompts."""
    rng = torch.Generator().manual_seed(3)
    x, t, labels = torch.randn(3, 4, 8, 8, generator=rng), torch.tensor([1, 40, 900]), torch.tensor([0, 1, 2])
    embedded, _ = pipe.encode_prompt(["a photo of zero", "a photo of one", ""], "cpu", 1, False)
    return network(x, t, labels), pipe.unet(x, t - 1, embedded).sample


def test_prompts_are_encoded_as_the_pipeline_encodes_them(folder: Path) -> None:
    network, pipe = of_pipeline(folder).build(0), pipeline(folder)
    embedded, _ = pipe.encode_prompt(["a photo of zero", "a photo of one", ""], "cpu", 1, False)
    assert torch.equal(network.embedded, embedded)
    assert not torch.allclose(embedded[0], embedded[1])
    ours, theirs = outputs(network, pipe)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours[0], ours[1])


def test_one_prompt_for_images_without_labels(folder: Path) -> None:
    network = of_pipeline(folder, classes=0, names=(), prompts="a photo of one").build(0)
    x, t = torch.zeros(2, 4, 8, 8), torch.tensor([3, 3])
    of_two = of_pipeline(folder).build(0)
    with torch.no_grad():
        assert torch.equal(network(x, t, None), of_two(x, t, torch.tensor([1, 1])))


def test_a_pipeline_of_diffusers_loads_the_exported_adapters(tmp_path: Path, folder: Path) -> None:
    generator = trained(folder).generator()
    generator.save(tmp_path / "model")
    pipe = pipeline(folder)
    ours, theirs = outputs(generator.network, pipe)
    assert (ours - theirs).abs().max() > 1e-3
    pipe.load_lora_weights(tmp_path / "model")
    assert torch.allclose(*outputs(generator.network, pipe), atol=1e-6)
    pipe.unload_lora_weights()
    pipe.unet.load_lora_adapter(tmp_path / "model", prefix="unet", use_safetensors=True)
    assert torch.allclose(*outputs(generator.network, pipe), atol=1e-6)
    assert torch.equal(load(tmp_path / "model").sample(2), generator.sample(2))  # type: ignore[union-attr]


def test_a_whole_export_is_a_pipeline_of_diffusers(tmp_path: Path, folder: Path) -> None:
    base = shutil.copytree(folder, tmp_path / "base")
    generator = trained(base, adapter=None).generator()
    images = generator.sample(2)
    generator.save(tmp_path / "model")
    shutil.rmtree(base)
    pipe = pipeline(tmp_path / "model")
    assert torch.allclose(*outputs(generator.network, pipe), atol=1e-6)
    drawn = pipe("a photo of one", height=SIDE, width=SIDE, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, SIDE, SIDE, 3)
    assert torch.equal(load(tmp_path / "model").sample(2), images)  # type: ignore[union-attr]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = generator.autoencoder.decode(latents / 0.5)  # type: ignore[union-attr]
        assert torch.allclose(decoded, pipe.vae.decode(latents / 0.5).sample, atol=1e-5)


def test_only_adapters_travel_and_all_else_is_compared(tmp_path: Path, folder: Path) -> None:
    experiment = trained(folder, up=Updates(bits=8), proximal=0.1)
    method = experiment.method
    up = sum(entry["bytes"] for entry in experiment.ledger.entries() if entry["direction"] == "up")
    weights = sum(spec.size for spec in state_spec_of(method.model).values())
    assert weights == method.model.build(0).state_dict().__len__() * 2 * 16  # B of 16 outputs at rank 2
    assert up < 2 * weights + 4000  # both silos, with headers
    untouched = of_pipeline(folder, adapter=ADAPTER).build(0)
    network = experiment.silos[0].device_context.network(method.model)
    assert network.frozen_hash == untouched.frozen_hash
    assert all(torch.equal(tensor, network.frozen()[name]) for name, tensor in untouched.frozen().items())
    assert experiment.generator().scale == 0.5

    for part in ("vae", "text_encoder", "unet"):
        other = shutil.copytree(folder, tmp_path / part)
        [path] = (other / part).glob("*.safetensors")
        tensors = load_file(path)
        next(iter(tensors.values())).flatten()[0] += 1
        save_file(tensors, path, metadata={"format": "pt"})
        assert of_pipeline(other, adapter=ADAPTER).build(0).frozen_hash != network.frozen_hash
    assert of_pipeline(folder, adapter=ADAPTER, prompts="{class}").build(0).frozen_hash != network.frozen_hash


def test_classes_of_images_are_those_of_the_prompts(folder: Path) -> None:
    method = FedAvg(model=of_pipeline(folder), training=Training(steps=1), rounds=1)
    with pytest.raises(RecipeError, match="s0: its classes are cat, dog, but the prompts are made of zero, one; set"):
        for _ in Experiment(method, silos(names=("cat", "dog")), device="cpu"):
            pass
    method = FedAvg(model=of_pipeline(folder, prompts=("a", "one")), training=Training(batch=2, steps=1), rounds=1)
    for _ in Experiment(method, silos(names=("cat", "dog")), device="cpu"):
        pass


def changed(folder: Path, copy: Path, part: str, **entries: Any) -> Path:
    shutil.copytree(folder, copy)
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return copy


@pytest.mark.parametrize(
    ("part", "entries", "text"),
    [
        ("vae", {"latent_channels": 8}, "its U-Net has 4 channels in and 4 out, but the latents have 8"),
        ("vae", {"in_channels": 1}, "its autoencoder is for 1 channels, the images have 3; set data.channels = 1"),
        ("vae", {"norm_num_groups": 3}, "its autoencoder cannot be used for images of 16 pixels: .*groups"),
        (
            "unet",
            {"sample_size": 16},
            "its U-Net is for a side of 16, but .* is 8; set data.size = 32",
        ),
        ("unet", {"_class_name": "SD3Transformer2DModel"}, "holds a SD3Transformer2DModel, but a UNet2DModel"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ("text_encoder", {"hidden_size": 8}, "its text encoder cannot be loaded"),
    ],
)
def test_a_pipeline_that_cannot_be_used_is_named(
    tmp_path: Path, folder: Path, part: str, entries: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecipeError, match=text):
        of_pipeline(changed(folder, tmp_path / "other", part, **entries)).build(0)


def test_without_transformers_an_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RecipeError, match=r"needs transformers: pip install 'manyhands\[text\]'"):
        of_pipeline(folder).build(0)
