"""Pretrained models of toy size, made from configurations: a U-Net alone, and a whole text-to-image pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from manyhands import DiffusionGenerator, UNet
from manyhands.diffusion.objective import Diffusion
from manyhands.models.pretrained import Pretrained
from manyhands.seed import seeded_globally

UNET = UNet(size=8, channels=1, classes=2, widths=(8, 16), attention=True)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
LENGTH = 20
SIDE = 16


def save_run_model(folder: Path, model: UNet = UNET, seed: int = 3) -> Path:
    """The ``model/`` folder of a run."""
    weights = model.build(seed).state_dict()
    DiffusionGenerator(model, Diffusion(), weights, classes=tuple(map(str, range(model.classes)))).save(folder)
    return folder


def of_run(folder: Path, **options: Any) -> Pretrained:
    shape = {"size": 8, "channels": 1, "classes": 2}
    return Pretrained.model_validate({**shape, "folder": str(folder), **options})


def save_pipeline(folder: Path) -> Path:
    """Stable Diffusion's parts, at 16 x 16 pixels and 4 x 8 x 8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with seeded_globally(0, "toy"):
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=SIDE, scaling_factor=0.5,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(TOKENS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
        ))  # fmt: skip
        torch.nn.init.normal_(vae.quant_conv.bias[4:], -6, 0.1)  # latents that say more than noise
    tokenizer = _tokenizer(folder.parent / "vocabulary")
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, safety_checker=None,
        scheduler=DDIMScheduler(prediction_type="epsilon", steps_offset=1, clip_sample=False),
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _tokenizer(folder: Path) -> Any:
    """A tokenizer whose tokens are letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def of_pipeline(folder: Path, **options: Any) -> Pretrained:
    shape = {"size": SIDE, "channels": 3, "classes": 2, "names": ("zero", "one")}
    return Pretrained.model_validate({**shape, "folder": str(folder), **options})
