from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from typer.testing import CliRunner

from manyhands import Diffusion, DiffusionGenerator, Sampling, Schedule, UNet
from manyhands.cli.app import app
from manyhands.diffusion.sampling import guided
from manyhands.errors import RecipeError, RunFolderError
from manyhands.models.dit import DiT
from manyhands.models.unet import UNetModule

DIT = DiT(size=8, channels=1, classes=3, width=16, depth=2, head=8)


def generator(classes: int, **options: object) -> DiffusionGenerator:
    model = UNet(size=8, channels=1, classes=classes, widths=(8, 16))
    names = tuple(map(str, range(classes)))
    diffusion = Diffusion.model_validate(options)
    return DiffusionGenerator(model, diffusion, model.build(seed=3).state_dict(), names, Sampling(steps=10))


@pytest.mark.parametrize("classes", [0, 3])
def test_what_is_saved_draws_the_same(tmp_path: Path, classes: int) -> None:
    one = generator(classes)
    one.save(tmp_path / "model")
    one.save(tmp_path / "model")
    other = DiffusionGenerator.from_pretrained(tmp_path / "model")
    assert (other.model, other.diffusion, other.sampling, other.classes) == (
        one.model,
        one.diffusion,
        one.sampling,
        one.classes,
    )
    assert torch.equal(one.sample(5, seed=1), other.sample(5, seed=1))
    assert not torch.equal(one.sample(5, seed=1), one.sample(5, seed=2))


@pytest.mark.parametrize("target", ["eps", "v"])
@pytest.mark.parametrize("kind", ["cosine", "linear", "scaled-linear"])
@pytest.mark.parametrize("classes", [0, 3])
def test_diffusers_loads_it_and_draws_the_same_images(tmp_path: Path, classes: int, kind: str, target: str) -> None:
    one = generator(classes, schedule={"kind": kind}, target=target)
    folder = str(tmp_path / "model")
    one.save(tmp_path / "model")
    custom = {"custom_pipeline": folder, "trust_remote_code": True} if classes else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(folder, **custom)
    pipeline.set_progress_bar_config(disable=True)
    rng, labels = torch.Generator().manual_seed(0), [0, 1, 2]
    asked = {"class_labels": labels} if classes else {"batch_size": 3, "use_clipped_model_output": True}
    theirs = pipeline(num_inference_steps=10, output_type="np", generator=rng, **asked).images

    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    known = torch.tensor(labels) if classes else None
    denoiser = guided(one.network, one.diffusion, known, classes, 1.0)
    ours = one.sampling.denoise(denoiser, x, one.diffusion.schedule, 1000, 0, torch.Generator()).clamp(-1, 1)
    assert torch.allclose(torch.from_numpy(theirs).permute(0, 3, 1, 2), ours / 2 + 0.5, atol=2e-3)


@pytest.mark.parametrize(
    ("target", "kind", "steps"), [("flow", "unet", 7), ("flow", "unet", 10), ("flow", "dit", 10), ("v", "dit", 10)]
)
@pytest.mark.parametrize("classes", [0, 3])
def test_diffusers_loads_flows_and_transformers_and_draws_the_same_images(
    tmp_path: Path, target: str, classes: int, kind: str, steps: int
) -> None:
    model = DIT.model_copy(update={"classes": classes}) if kind == "dit" else generator(classes).model
    weights = {name: 0.05 * torch.randn_like(tensor) for name, tensor in model.build(3).state_dict().items()}
    settings = Sampling(steps=steps, clip=None if target == "flow" else 1.0)
    one = DiffusionGenerator(
        model, Diffusion.model_validate({"target": target}), weights, tuple(map(str, range(classes))), settings
    )
    one.save(tmp_path / "model")
    again = DiffusionGenerator.from_pretrained(tmp_path / "model")
    assert again.diffusion == one.diffusion
    assert torch.equal(one.sample(3, seed=1), again.sample(3, seed=1))

    folder = str(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    rng, labels = torch.Generator().manual_seed(0), [0, 1, 2] if classes else [0, 0, 0]
    guidance = 2.0 if classes else 1.0
    theirs = pipeline(
        class_labels=labels, num_inference_steps=steps, guidance_scale=guidance, output_type="np", generator=rng
    ).images
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = guided(one.network, one.diffusion, torch.tensor(labels) if classes else None, classes, guidance)
    ours = settings.denoise(denoiser, x, one.diffusion.schedule, 1000, 0, torch.Generator()).clamp(-1, 1)
    assert torch.allclose(torch.from_numpy(theirs).permute(0, 3, 1, 2), ours / 2 + 0.5, atol=2e-3)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++", "ddpm"])
def test_a_flow_is_guided_and_clipped_by_every_sampler(sampler: str) -> None:
    one = generator(3, target="flow", norm=4.0, min_snr=5.0)
    drawn = one.sample(3, sampling=Sampling.model_validate({"sampler": sampler, "steps": 4, "guidance": 2.0}))
    assert torch.isfinite(drawn).all()
    assert drawn.abs().max() <= 1


def test_labels_are_the_classes_in_turn_and_bad_ones_an_error() -> None:
    assert generator(3).labels(5) == [0, 1, 2, 0, 1]
    assert generator(0).labels(2) == [0, 0]
    assert generator(3).labels(labels=[2, 2]) == [2, 2]
    for bad in ([3], [-1], [1.7]):
        with pytest.raises(RecipeError, match="is not in 0 to 2"):
            generator(3).sample(labels=bad)
    with pytest.raises(RecipeError, match="label 1 is given, but this model has no classes"):
        generator(0).sample(labels=[1])


def test_nothing_and_contradictions_cannot_be_drawn() -> None:
    for options in ({"labels": []}, {"count": 0}, {"count": -1}, {"count": 5, "labels": [1]}):
        with pytest.raises(RecipeError, match="cannot sample"):
            generator(3).sample(**options)


def test_streamed_batches_hold_what_was_asked_in_order() -> None:
    batches = list(generator(3).stream([0, 1, 2, 1], seed=0, batch=3))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [1]]
    assert all(images.abs().max() <= 1 for images, _ in batches)


def test_a_folder_without_a_generator_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no trained generator"):
        DiffusionGenerator.from_pretrained(tmp_path)


def test_a_network_that_cannot_be_is_an_error() -> None:
    for options, said in [
        ({"size": 28, "widths": (8,) * 4}, "not a multiple of 8"),
        ({"widths": (8, 12)}, "must be a multiple of groups"),
        ({"widths": ()}, "at least 1"),
    ]:
        with pytest.raises(ValidationError, match=said):
            UNet.model_validate({"size": 8, "channels": 1, "classes": 0, **options})


@pytest.mark.parametrize("attention", [False, True])
def test_the_first_step_of_the_chain_is_step_0_of_diffusers(attention: bool) -> None:
    spec = UNet(size=8, channels=3, classes=2, widths=(8, 16), attention=attention)
    network = spec.build(seed=0)
    assert isinstance(network, UNetModule)
    x, y = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    theirs = network.inner(x, torch.zeros(2, dtype=torch.long), class_labels=y).sample
    assert torch.equal(network(x, torch.ones(2, dtype=torch.long), y), theirs)


def test_initial_weights_come_from_the_seed_alone_and_leave_the_global_state() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    spec = UNet(size=4, channels=1, classes=0, widths=(8,))
    one, same, other = (spec.build(seed).state_dict()["inner.conv_in.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_guidance_and_ddpm_draw_too() -> None:
    for sampling in (
        Sampling(steps=4, guidance=3.0),
        Sampling(steps=4, guidance=0.0),
        Sampling(sampler="ddpm", steps=4),
    ):
        assert torch.isfinite(generator(3, schedule=Schedule(steps=50)).sample(3, sampling=sampling)).all()


@pytest.mark.parametrize("facts", ["{}", "[]", "3", '{"model": 3}', "no json", '{"model": {"size": 8}}'])
def test_a_damaged_generator_is_named(tmp_path: Path, facts: str) -> None:
    generator(3).save(tmp_path / "model")
    (tmp_path / "model" / "manyhands.json").write_text(facts)
    with pytest.raises(RunFolderError, match="no trained generator") as caught:
        DiffusionGenerator.from_pretrained(tmp_path / "model")
    assert "subscriptable" not in str(caught.value)


def test_weights_of_another_network_are_noticed(tmp_path: Path) -> None:
    generator(3).save(tmp_path / "model")
    facts = (tmp_path / "model" / "manyhands.json").read_text()
    (tmp_path / "model" / "manyhands.json").write_text(facts.replace('"classes": 3', '"classes": 4'))
    with pytest.raises(RunFolderError, match="no trained generator"):
        DiffusionGenerator.from_pretrained(tmp_path / "model")


def test_drawing_from_a_model_folder_runs_none_of_its_code(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    generator(3).save(folder)
    pipeline = folder / "pipeline.py"
    pipeline.write_text(f"open({str(mark)!r}, 'w').close()\n{pipeline.read_text()}")
    said = CliRunner().invoke(
        app, ["sample", str(folder), "--count", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    )
    assert said.exit_code == 0, said.output
    assert (tmp_path / "out" / "grid.png").exists()
    assert not mark.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
    assert mark.exists(), "the other way does: that the first one does not can be seen"
