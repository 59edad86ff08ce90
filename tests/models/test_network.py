"""Any module with (x_t, t, labels) is a denoiser; a wrong one is refused before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from manyhands import Central, DiffusionGenerator, Experiment, FedAvg, Local, Network, Sampling, Training, UNet
from manyhands.errors import RecipeError, RunFolderError
from manyhands.evaluation.drawing import sampling_protocol
from manyhands.generators.base import ImageGenerator
from manyhands.generators.load import load
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.messages.codec.quantised_weights import Weights
from manyhands.methods.distil import Distil
from manyhands.methods.fedavg.server_optimizer import ServerAdam
from manyhands.methods.learners.base import Learner, LocalResult, LocalRound, minimize
from manyhands.models.base import Denoiser, Model
from manyhands.registry import MODELS
from manyhands.report.quality import sampling_words
from manyhands.runs.compose import compose
from manyhands.runs.finished import loaded_generator
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.seed import seeded_globally
from manyhands.tensors import Tensors
from tests.conftest import tiny_silos

UNET = UNet(size=4, channels=1, classes=2, widths=(8,))
TRAINING = Training(batch=4, steps=2, learning_rate=1e-2)
SHAPE = {"size": 4, "channels": 1, "classes": 2}


class Small(nn.Module):
    """A denoiser of one's own, with a buffer."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.label = nn.Embedding(classes + 1, 1)
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        out: Tensor = self.conv(x_t) * self.scale + self.label(labels)[:, :, None, None]
        return out


class Unconditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor, time: Tensor, label: None) -> Tensor:
        assert label is None
        out: Tensor = self.conv(x)
        return out


def small(**options: Any) -> Network:
    return Network(**{"module": Small(), **SHAPE, **options})


def trained(method: Any, folder: Path | None = None, **more: Any) -> Experiment:
    experiment = Experiment(method, tiny_silos(), device="cpu", folder=folder, **more)
    for _ in experiment:
        pass
    return experiment


def assert_equal(ones: Any, others: Any) -> None:
    assert ones.keys() == others.keys()
    assert all(torch.equal(ones[name], others[name]) for name in ones)


VARIANTS: list[tuple[type[Any], dict[str, Any]]] = [
    (FedAvg, {}),
    (FedAvg, {"ema": 0.5, "proximal": 0.1, "server_optimizer": ServerAdam(), "participants": 2}),
    (FedAvg, {"up": Updates(bits=4), "down": Weights(), "keep_optimiser": True}),
    (Local, {"ema": 0.5, "distil": Distil(steps=2)}),
    (Central, {}),
]


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_module_is_trained_as_the_u_net_that_it_is(kind: type[Any], options: dict[str, Any]) -> None:
    def memories(model: Any) -> tuple[Any, Any]:
        silos = tiny_silos()[:1] if kind is Central else tiny_silos()
        experiment = Experiment(kind(model=model, training=TRAINING, rounds=2, **options), silos, device="cpu")
        for _ in experiment:
            pass
        return experiment.server.state_dict(), {
            f"{silo.name} {name}": tensor for silo in experiment.silos for name, tensor in silo.memory.items()
        }

    for mine, theirs in zip(memories(Network(module=UNET.build(0), **SHAPE)), memories(UNET), strict=True):
        assert_equal(mine, theirs)


def test_training_leaves_the_module_alone_and_starts_from_its_weights() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    experiment = Experiment(FedAvg(model=network, training=TRAINING, rounds=1), tiny_silos(), device="cpu", seed=5)
    start = dict(experiment.server.state_dict())
    for _ in experiment:
        pass
    assert_equal(network.module.state_dict(), before)
    assert all(torch.equal(start[f"weights.{name}"], tensor) for name, tensor in before.items())
    assert network.module.training  # trying it changed nothing


def test_a_function_makes_modules_with_the_seed_of_the_run() -> None:
    network = Network(module=Small, **SHAPE)
    state = torch.default_generator.get_state()
    first, again, other = (network.build(seed).state_dict() for seed in (1, 1, 2))
    assert_equal(first, again)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    assert torch.equal(state, torch.default_generator.get_state())


def test_equal_specifications_hold_the_same_module() -> None:
    network = small()
    assert network == small(module=network.module)
    assert hash(network) == hash(small(module=network.module))
    assert network != small()


def test_what_is_saved_is_loaded_with_the_module_and_draws_the_same(tmp_path: Path) -> None:
    network = small()
    generator = trained(FedAvg(model=network, training=TRAINING, rounds=1)).generator()
    generator.save(tmp_path / "model")
    loaded = DiffusionGenerator.from_pretrained(tmp_path / "model", model=small())
    sampling = Sampling(steps=2)
    assert torch.equal(loaded.sample(3, seed=1, sampling=sampling), generator.sample(3, seed=1, sampling=sampling))
    with pytest.raises(RunFolderError, match=r"its classes is 2, but that of the model is 0"):
        DiffusionGenerator.from_pretrained(
            tmp_path / "model", model=Network(module=Unconditional(), size=4, channels=1, classes=0)
        )
    with pytest.raises(RunFolderError, match="Missing key"):
        DiffusionGenerator.from_pretrained(tmp_path / "model", model=Network(module=UNET.build(0), **SHAPE))


def test_a_run_is_resumed_and_its_folder_says_how_to_load_it(tmp_path: Path) -> None:
    network = small()
    whole = trained(FedAvg(model=network, training=TRAINING, rounds=2), tmp_path / "whole")
    stopped = iter(
        Experiment(
            FedAvg(model=network, training=TRAINING, rounds=2), tiny_silos(), folder=tmp_path / "cut", device="cpu"
        )
    )
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    resumed = trained(FedAvg(model=network, training=TRAINING, rounds=2), tmp_path / "cut", resume=True)
    assert_equal(whole.server.state_dict(), resumed.server.state_dict())

    how = r"'tests.models.test_network.Small' names a network that was given in Python.*from_pretrained.*Denoiser"
    with pytest.raises(RunFolderError, match=how):
        load(tmp_path / "whole" / "model")
    with pytest.raises(RecipeError, match=f"model.module: {how}"):
        loaded_generator(RunFolder(tmp_path / "whole"), None)
    DiffusionGenerator.from_pretrained(tmp_path / "whole" / "model", model=network)


class SmallDenoiser(Denoiser):
    kind: Literal["small"] = "small"

    def build(self, seed: int) -> nn.Module:
        with seeded_globally(seed, "small"):
            return Small(self.classes)


def test_a_denoiser_that_is_registered_runs_from_a_recipe_and_loads_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS.classes, "small", "tests.models.test_network:SmallDenoiser")  # type: ignore[arg-type]
    changes = ["method.model={kind='small'}", "method.rounds=1", "data.limit=40", "evaluation.images=0"]
    experiment = compose(load_recipe(recipe_path("digits-fedavg"), changes), tmp_path / "run")
    for _ in experiment:
        pass
    shared = experiment.generator()
    loaded = loaded_generator(RunFolder(tmp_path / "run"), None)
    assert isinstance(loaded, DiffusionGenerator)
    assert loaded.model == SmallDenoiser(size=8, channels=1, classes=10)
    assert_equal(loaded.weights, shared.weights)


class Wrong(SmallDenoiser):
    made: Any

    def build(self, seed: int) -> nn.Module:
        if self.made is None:
            raise OSError("no weights")
        return self.made  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (None, r"build\(seed\) raised OSError: no weights"),
        ("x", r"build\(seed\) returns a value of type str, a torch.nn.Module is expected"),
        (nn.BatchNorm2d(1), "num_batches_tracked of BatchNorm2d is torch.int64"),
        (nn.Conv2d(1, 1, 1), r"Conv2d.forward takes \(input: .*, \(x_t, t, labels\) is expected"),
    ],
)
def test_the_network_of_a_registered_denoiser_is_tried_before_training(made: Any, error: str) -> None:
    method = FedAvg(model=Wrong(**SHAPE, made=made), training=TRAINING, rounds=1)
    with pytest.raises(RecipeError, match=f"method.model: a model of kind 'small': {error}"):
        Experiment(method, tiny_silos())


class Grey(ImageGenerator):
    """Draws images of one grey; it is no dataclass."""

    is_diffusion = False
    sampler = "one grey for all pixels"
    sampling, device, ema = Sampling(), "cpu", 0.0

    def __init__(self, model: GreyModel, weights: Tensors) -> None:
        self.model, self.weights, self.classes = model, weights, ()

    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        return self.weights["weight"].mean().expand(len(labels), 1, 8, 8)

    def save(self, folder: Path | str) -> None:
        Path(folder).mkdir(parents=True)
        save_file(dict(self.weights), Path(folder) / "grey.safetensors")
        (Path(folder) / "manyhands.json").write_text(json.dumps({"model": self.model.model_dump()}))


class GreyLearner(Learner["GreyModel"]):
    def train_round(self, local: LocalRound) -> LocalResult:
        return minimize(self, local, lambda _: local.network(torch.ones(1, 1)).square().sum(), torch.Generator())

    def generator(self, weights: Tensors) -> Grey:
        return Grey(self.model, weights)


class GreyModel(Model):
    learner = GreyLearner
    kind: Literal["grey"] = "grey"
    classes: int = 10

    def build(self, seed: int) -> nn.Module:
        with seeded_globally(seed, "grey"):
            return nn.Linear(1, 1)

    def load_generator(self, folder: Path, device: str) -> Grey:
        return Grey(self, load_file(folder / "grey.safetensors"))


def test_a_model_that_is_no_denoiser_loads_its_own_generator_and_says_how_it_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS.classes, "grey", "tests.models.test_network:GreyModel")  # type: ignore[arg-type]
    changes = ["method.model={kind='grey'}", "method.rounds=1", "data.limit=40", "evaluation.images=0"]
    experiment = compose(load_recipe(recipe_path("digits-fedavg"), changes), tmp_path / "run")
    for _ in experiment:
        pass
    loaded = loaded_generator(RunFolder(tmp_path / "run"), None)
    assert isinstance(loaded, Grey)
    assert torch.equal(loaded.sample(12), experiment.generator().sample(12))
    protocol = {"sampling": sampling_protocol({"silo-0": loaded}, Sampling()), "weights": "raw"}
    assert sampling_words(protocol) == "drawn by one grey for all pixels, weights: raw"


class Other(Small):
    """A wrong module, in one of several ways."""

    def __init__(self, wrong: str) -> None:
        super().__init__(classes=1 if wrong == "labels" else 2)
        self.wrong = wrong
        if wrong == "dtype":
            self.half()
        if wrong == "batch norm":
            self.norm = nn.BatchNorm2d(1)
        if wrong == "frozen":
            self.requires_grad_(requires_grad=False)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Any:
        out = super().forward(x_t, t, labels)
        return {"shape": out[:, :, ::2], "tuple": (out,)}.get(self.wrong, out)


@pytest.mark.parametrize(
    ("module", "error"),
    [
        (3, "is of type int, a torch.nn.Module or a function without arguments that makes one is expected"),
        ("a.b", "'a.b' names a network that was given in Python"),
        (lambda: 3, "returns a value of type int, a torch.nn.Module is expected"),
        (nn.Identity(), "Identity has no parameter that can be trained"),
        (nn.Conv2d(1, 1, 1), r"Conv2d.forward takes \(input: .*, \(x_t, t, labels\) is expected"),
        (
            Other("shape"),
            r"Other returns shape \(2, 1, 2, 4\), a tensor of shape \(2, 1, 4, 4\), that of x_t, is expected",
        ),
        (
            Other("tuple"),
            r"Other returns a value of type tuple, a tensor of shape \(2, 1, 4, 4\), that of x_t, is expected",
        ),
        (Other("dtype"), "of Other is torch.float16, torch.float32 is expected"),
        (Other("batch norm"), "norm.num_batches_tracked of Other is torch.int64.*track_running_stats=False"),
        (Other("frozen"), "Other has no parameter that can be trained"),
        (Other("labels"), r"labels 0 and 2, which means no label, and raised IndexError"),
    ],
)
def test_a_wrong_module_is_refused_and_the_error_says_what_is_expected(module: Any, error: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){error}"):
        small(module=module)


def test_a_module_is_shared_whole() -> None:
    assert "14 weights" in FedAvg(model=small(), training=TRAINING, rounds=1).cost_lines(3, Sampling())
    with pytest.raises(ValueError, match="share is 'up', but a model of kind 'network' can only be shared with 'all'"):
        FedAvg(model=small(), training=TRAINING, rounds=1, share="up")
