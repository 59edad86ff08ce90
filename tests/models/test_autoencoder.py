"""An autoencoder, kept in the layout of diffusers, and the generator that decodes with it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from pydantic import ValidationError

from manyhands import DiffusionGenerator, Sampling
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.sampling import guided
from manyhands.errors import RecipeError, RunFolderError
from manyhands.generators.load import load
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.latent import Latent

SPEC = Autoencoder(size=8, channels=1, latent=2, widths=(8, 8), kl=0.1)


def autoencoder(seed: int = 0) -> TrainedAutoencoder:
    return TrainedAutoencoder(SPEC, SPEC.build(seed).state_dict())


def latent_generator(classes: int, scale: float = 2.5) -> DiffusionGenerator:
    model = Latent.model_validate(
        {
            "size": 8,
            "channels": 1,
            "classes": classes,
            "folder": "elsewhere",
            "autoencoder": {"latent": 2, "widths": [8, 8], "kl": 0.1},
            "unet": {"widths": [8]},
        }
    )
    names = tuple(map(str, range(classes)))
    weights = model.build(seed=3).state_dict()
    drawn = Sampling(steps=10)
    return DiffusionGenerator(model, Diffusion(), weights, names, drawn, autoencoder=autoencoder(), scale=scale)


def test_diffusers_loads_what_is_saved_and_decodes_the_same(tmp_path: Path) -> None:
    one = autoencoder()
    one.save(tmp_path / "model")
    one.save(tmp_path / "model")
    theirs = AutoencoderKL.from_pretrained(tmp_path / "model", low_cpu_mem_usage=False)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        back = theirs.decode(theirs.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    assert torch.equal(one.reconstruct(x), back)
    again = load(tmp_path / "model")
    assert isinstance(again, TrainedAutoencoder)
    assert again.model == SPEC
    assert torch.equal(again.reconstruct(x, batch=2), one.reconstruct(x, batch=2))


def test_a_normalized_one_shifts_and_scales_each_channel_and_decodes_the_same(tmp_path: Path) -> None:
    one, shift, scale = autoencoder(), torch.tensor([4.3, -0.1]), torch.tensor([0.5, 3.0])
    other = one.normalized(shift, scale)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other.save(tmp_path / "model")
    theirs = AutoencoderKL.from_pretrained(tmp_path / "model", low_cpu_mem_usage=False)
    with torch.no_grad():
        before, after = one.network.inner.encode(x).latent_dist, theirs.encode(x).latent_dist
        decoded = theirs.decode(after.mean).sample
    factors = scale[:, None, None]
    assert torch.allclose(after.mean, (before.mean - shift[:, None, None]) * factors, atol=1e-5)
    assert torch.allclose(after.std, before.std * factors, rtol=1e-5)
    assert torch.allclose(decoded, one.decode(before.mean), atol=1e-5)
    assert torch.allclose(other.reconstruct(x), one.reconstruct(x), atol=1e-5)
    assert theirs.config["scaling_factor"] == 1
    back = other.normalized(-shift * scale, 1 / scale)
    for name, tensor in one.weights.items():
        assert torch.allclose(back.weights[name], tensor, atol=1e-6), name


def test_one_from_elsewhere_is_loaded_by_what_the_recipe_says_of_it(tmp_path: Path) -> None:
    AutoencoderKL(sample_size=512, **SPEC.settings()).save_pretrained(tmp_path)
    loaded = TrainedAutoencoder.from_pretrained(tmp_path, SPEC)
    assert loaded.reconstruct(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_another_autoencoder_or_none_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no autoencoder.*kind = 'autoencoder' writes one"):
        TrainedAutoencoder.from_pretrained(tmp_path / "nowhere", SPEC)
    folder = tmp_path / "model"
    autoencoder().save(folder)
    wider = Autoencoder(size=8, channels=1, latent=2, widths=(8, 16))
    with pytest.raises(RecipeError, match=r"block_out_channels = \[8, 8\], but the recipe says \[8, 16\]"):
        TrainedAutoencoder.from_pretrained(folder, wider)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(RunFolderError, match="cannot be loaded"):
        load(folder)
    weights.unlink()
    with pytest.raises(RunFolderError, match="cannot be loaded"):
        TrainedAutoencoder.from_pretrained(folder, SPEC)
    (folder / "config.json").write_text("[]")
    with pytest.raises(RunFolderError, match="cannot be loaded"):
        TrainedAutoencoder.from_pretrained(folder, SPEC)


@pytest.mark.parametrize("options", [{"act_fn": "gelu"}, {"use_quant_conv": False}, {"norm_num_groups": 4}])
def test_whatever_its_form_depends_on_is_held_against_the_recipe(tmp_path: Path, options: dict[str, object]) -> None:
    AutoencoderKL(**{**SPEC.settings(), **options}).save_pretrained(tmp_path)
    ((name, value),) = options.items()
    with pytest.raises(RecipeError, match=f"is an autoencoder with {name} = {value}, but the recipe says"):
        TrainedAutoencoder.from_pretrained(tmp_path, SPEC)


def test_weights_that_are_not_finite_are_told_with_their_folder(tmp_path: Path) -> None:
    weights = SPEC.build(0).state_dict()
    weights["inner.quant_conv.bias"][0] = torch.nan
    TrainedAutoencoder(SPEC, weights).save(tmp_path / "model")
    with pytest.raises(RunFolderError, match=r"model: this autoencoder cannot be used: inner.quant_conv.bias is not"):
        TrainedAutoencoder.from_pretrained(tmp_path / "model", SPEC)
    with pytest.raises(RunFolderError, match=r"did you mean .*model\?"):
        TrainedAutoencoder.from_pretrained(tmp_path, SPEC)


def test_its_loss_is_the_absolute_error_and_the_divergence_from_the_normal_distribution() -> None:
    network, x = SPEC.build(0), torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        free = SPEC.model_copy(update={"kl": 0.0}).loss(network, x, torch.Generator().manual_seed(1))
        whole = SPEC.loss(network, x, torch.Generator().manual_seed(1))
        posterior = network.inner.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
        back = network.inner.decode(posterior.mean + posterior.std * noise).sample
        normal = torch.distributions.Normal(0.0, 1.0)
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Normal(posterior.mean, posterior.std), normal
        )
    assert free.item() == pytest.approx((back - x).abs().mean().item(), rel=1e-5)
    assert (whole - free).item() == pytest.approx(0.1 * divergence.flatten(1).sum(1).mean().item(), rel=1e-5)


def test_the_first_stage_of_latent_diffusion_has_its_published_size() -> None:
    wide = {"widths": (128, 256, 512, 512), "blocks": 2, "groups": 32, "attention": True}
    with torch.device("meta"):
        network = Autoencoder.model_validate({"size": 256, "channels": 3, **wide}).build(0)
    assert sum(weight.numel() for weight in network.parameters()) == 83_653_863


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"size": 6, "widths": (8, 8, 8)}, "should be a multiple of 4"),
        ({"widths": (8, 12)}, "must be a multiple of groups"),
        ({"size": 4, "widths": (8, 8, 8)}, "should be a multiple of 4 and at least 8"),
    ],
)
def test_sizes_that_do_not_fit_are_told(options: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Autoencoder.model_validate({"size": 8, "channels": 1, **options})


@pytest.mark.parametrize("classes", [0, 3])
def test_a_latent_generator_draws_the_same_when_loaded_and_in_diffusers(tmp_path: Path, classes: int) -> None:
    one, folder = latent_generator(classes), tmp_path / "model"
    one.save(folder)
    other = DiffusionGenerator.from_pretrained(folder)
    assert (other.model, other.scale, other.sampling) == (one.model, one.scale, one.sampling)
    assert torch.equal(one.sample(5, seed=1), other.sample(5, seed=1))
    assert json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"] == 2.5

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=str(folder), trust_remote_code=True, low_cpu_mem_usage=False
        )
    pipeline.set_progress_bar_config(disable=True)
    labels = [0, 1, 2] if classes else [0, 0, 0]
    rng = torch.Generator().manual_seed(0)
    theirs = pipeline(labels, num_inference_steps=10, output_type="np", generator=rng).images
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser = guided(one.network, one.diffusion, torch.tensor(labels) if classes else None, classes, 1.0)
    unbounded = Sampling(steps=10, clip=None)
    latents = unbounded.denoise(denoiser, x, one.diffusion.schedule, 1000, 0, torch.Generator())
    ours = autoencoder().decode(latents / 2.5).clamp(-1, 1)
    assert torch.allclose(torch.from_numpy(theirs).permute(0, 3, 1, 2), ours / 2 + 0.5, atol=2e-3)


def test_the_parts_of_a_latent_model_must_agree() -> None:
    options = {"size": 8, "channels": 1, "classes": 0, "folder": "x", "unet": {"widths": [8]}}
    with pytest.raises(ValidationError, match="autoencoder is for images of 1 x 16, not 1 x 8"):
        Latent.model_validate({**options, "autoencoder": {"size": 16}})
    with pytest.raises(ValidationError, match="unet is for 4 x 8 and 0 classes, but the latents are 4 x 4"):
        Latent.model_validate({**options, "autoencoder": {}, "unet": {"size": 8}})
