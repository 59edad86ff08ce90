"""Pretrained models: what their folders may hold, and what is said of those that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from manyhands import UNet
from manyhands.errors import RecipeError
from manyhands.models.pretrained import Pretrained
from manyhands.models.state_spec import frozen_hash, state_spec_of
from manyhands.runs.recipe_file import parse_recipe
from manyhands.tensors import sha256
from tests.models.toy_pretrained import UNET, of_run, save_run_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run_model(tmp_path_factory.mktemp("base") / "model")


def test_it_begins_as_the_stored_network_whatever_the_seed(folder: Path) -> None:
    stored = UNET.build(3).state_dict()
    for seed in (0, 1):
        assert sha256(of_run(folder).build(seed).state_dict()) == sha256(stored)
    assert state_spec_of(of_run(folder)) == state_spec_of(UNET)
    assert not of_run(folder).has_frozen
    assert of_run(folder / "unet").build(0).folder.unet == folder / "unet"  # a U-Net alone


def test_only_what_is_trained_is_its_state(folder: Path) -> None:
    model = of_run(folder, adapter={"rank": 2})
    network = model.build(0)
    frozen, trained = network.frozen(), network.state_dict()
    assert not frozen.keys() & trained.keys()
    assert sum(t.numel() for t in trained.values()) == 2 * sum(t.numel() // 2 for t in trained.values()) == 512
    assert model.frozen_count == sum(tensor.numel() for tensor in frozen.values())
    assert frozen_hash(model) == network.frozen_hash
    with pytest.raises(RuntimeError, match=r"to_q.* is not in these weights of a model of kind 'pretrained'"):
        network.load_state_dict({name: t for name, t in trained.items() if "mid_block.attentions.0.to_q" not in name})
    with pytest.raises(RuntimeError, match="does not belong"):
        network.load_state_dict(trained | {"inner.conv_in.bias": torch.zeros(8)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.load_state_dict({name: torch.zeros(1, 1) for name in trained})


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "unet" / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another architecture": (
        edited(lambda config: config.update(_class_name="DiTTransformer2DModel")),
        "holds a DiTTransformer2DModel, but a UNet2DModel or a UNet2DConditionModel of diffusers is expected",
    ),
    "no U-Net": (lambda folder: (folder / "unet" / "config.json").unlink(), "unet/config.json cannot be read"),
    "no JSON": (lambda folder: (folder / "unet" / "config.json").write_text("{"), "unet/config.json cannot be read"),
    "a list": (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "unet/config.json holds no table"),
    "no weights": (
        lambda folder: (folder / "unet" / WEIGHTS).unlink(),
        "its U-Net cannot be loaded: .*",
    ),
    "torn weights": (
        lambda folder: (folder / "unet" / WEIGHTS).write_bytes(b"{}"),
        "its U-Net cannot be loaded: .*",
    ),
    "other weights": (
        edited(lambda config: config.update(layers_per_block=2)),
        "its U-Net cannot be loaded: .* size mismatch",
    ),
    "missing weights": (
        lambda folder: save_file({"conv_in.bias": torch.zeros(8)}, folder / "unet" / WEIGHTS),
        "its U-Net has missing weights, such as .*: its config.json is of another network",
    ),
    "other widths": (edited(lambda config: config.update(block_out_channels=[8, 24])), "its U-Net cannot be loaded"),
    "more inputs": (
        edited(lambda config: config.update(addition_embed_type="text_time")),
        "its U-Net takes more than a label or a text: addition_embed_type is 'text_time'",
    ),
    "text without an encoder": (
        edited(lambda config: config.update(_class_name="UNet2DConditionModel")),
        "its UNet2DConditionModel needs a text encoder; name",
    ),
    "inpainting": (
        edited(lambda config: config.update(in_channels=9)),
        "its U-Net has 9 channels in and 1 out, but the images have 1$",
    ),
    "no channels": (edited(lambda config: config.pop("in_channels")), "its U-Net has None channels in and 1 out"),
}


@pytest.mark.parametrize("bad", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, bad: str) -> None:
    folder = save_run_model(tmp_path / "model")
    spoil, text = BAD_FOLDERS[bad]
    spoil(folder)
    with pytest.raises(RecipeError, match=f"method.model.folder: {folder}: {text}"):
        of_run(folder).build(0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 16}, "its U-Net is for a side of 8, but that of these images is 16; set data.size = 8"),
        ({"channels": 3}, "1 channels in and 1 out, but the images have 3; set data.channels = 1"),
        ({"classes": 5}, "its U-Net was trained with 2 classes, but there are 5"),
        ({"classes": 0}, "its U-Net was trained with 2 classes, but there are 0"),
    ],
)
def test_a_model_of_other_images_says_of_which(folder: Path, options: dict[str, int], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        of_run(folder, **options).build(0)


def test_a_gan_is_no_pretrained_denoiser(tmp_path: Path) -> None:
    (tmp_path / "manyhands.json").write_text("{}")
    with pytest.raises(RecipeError, match="config.json cannot be read .*, a folder in the layout of diffusers is"):
        of_run(tmp_path).build(0)


def test_what_is_no_folder_and_a_name_of_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"'runs/no/model' is no folder; .* owner/name of one on the Hub"):
        of_run(Path("runs/no/model")).build(0)
    with pytest.raises(
        RecipeError, match="'owner/name' is no folder here, and could not be fetched .*; fetch it where there is a net"
    ):
        of_run(Path("owner/name")).build(0)


def test_nothing_is_read_before_it_is_needed() -> None:
    model = of_run(Path("nowhere/at/all"), adapter={"rank": 2})
    assert model == Pretrained.model_validate(model.model_dump(mode="json"))
    assert hash(model) == hash(Pretrained.model_validate(model.model_dump()))


def test_classes_are_those_of_the_unet_but_for_the_one_that_means_no_label(tmp_path: Path) -> None:
    folder = save_run_model(tmp_path / "model", UNet(size=8, channels=1, classes=0, widths=(8,)))
    assert of_run(folder, classes=0).build(0).folder.classes == 0
    with pytest.raises(RecipeError, match="was trained with 0 classes, but there are 2"):
        of_run(folder).build(0)


def test_prompts_are_one_for_each_class(folder: Path) -> None:
    assert of_run(folder, names=("cat", "dog")).texts == ["a photo of cat", "a photo of dog", ""]
    assert of_run(folder, prompts=("a cat", "a dog")).texts == ["a cat", "a dog", ""]
    assert of_run(folder, classes=0, prompts="a blood cell").texts == ["a blood cell"]
    for options, text in (
        ({"prompts": "a photo"}, "prompts is 'a photo', which is the same for every class; write {class} in it"),
        ({"prompts": ("a",)}, "prompts has 1 texts, but there are 2 classes"),
        ({"names": ("a",)}, "names has 1 names, but there are 2 classes"),
    ):
        with pytest.raises(ValueError, match=text):
            of_run(folder, **options)


def test_a_recipe_fills_in_shape_and_names(folder: Path) -> None:
    fields = {
        "name": "x",
        "data": {"source": "digits", "size": 8, "classes": ["cat", "dog"]},
        "partition": {"kind": "iid", "silos": 2},
        "method": {
            "kind": "fedavg",
            "rounds": 1,
            "training": {"steps": 1},
            "model": {"kind": "pretrained", "folder": str(folder), "adapter": {"rank": 2}},
        },
    }
    model = parse_recipe(fields, "x.toml").method.image_model
    assert model == of_run(folder, names=("cat", "dog"), adapter={"rank": 2})
    fields["method"]["model"]["adapter"] = {"rank": 2, "target": ["to_q"]}  # type: ignore[index]
    with pytest.raises(RecipeError, match="method.model.adapter.*: unknown key 'target'; did you mean 'targets'"):
        parse_recipe(fields, "x.toml")
