from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from PIL import Image

from manyhands import Central, FedAvg
from manyhands.errors import DataError, RecipeError
from manyhands.files.toml_text import MAX_BYTES, parse_toml
from manyhands.registry import METHODS
from manyhands.runs.data import Data
from manyhands.runs.recipe_file import load_recipe, parse_offer, parse_recipe, read_recipe

TEXT = """
[data]
source = "digits"
size = 8
[partition]
kind = "iid"
silos = 4
[method]
kind = "fedavg"
rounds = 2
[method.model]
widths = [8]
[method.training]
steps = 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(TEXT)
    return file


def test_what_the_data_says_is_filled_in_and_the_resolved_recipe_says_the_same(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert (recipe.method.model.size, recipe.method.model.channels, recipe.method.model.classes) == (8, 1, 10)
    assert parse_recipe(recipe.resolved()) == recipe
    assert parse_recipe(tomllib.loads(tomli_w.dumps(recipe.resolved()))) == recipe


def test_changes_are_toml_values_or_plain_words(path: Path) -> None:
    recipe = load_recipe(
        path, ["method.kind=central", "method.training.steps=7", "seed=3", "method.model.widths=[8, 16]"]
    )
    assert isinstance(recipe.method, Central)
    assert recipe.method.silos == 4
    assert recipe.method.training.steps == 7
    assert recipe.seed == 3
    assert recipe.method.model.widths == (8, 16)


def test_a_number_may_begin_with_its_point(path: Path) -> None:
    assert read_recipe(path, ["a=.4", "b=-.5", "c=[.2, 0.25]", "d=./x.1", "e=data/.4", "f={ g = .001 }"]).items() >= {
        "a": 0.4, "b": -0.5, "c": [0.2, 0.25], "d": "./x.1", "e": "data/.4", "f": {"g": 0.001}
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["method.bacth=3"], r"mine.toml: method: unknown key 'bacth'; known: "),
        (["method.training.bacth=3"], r"mine.toml: method.training: unknown key 'bacth'; did you mean 'batch'\?"),
        (["rounds=3"], r"unknown key 'rounds'; did you mean 'method.rounds'\?"),
        (["steps=3"], r"unknown key 'steps'; did you mean 'method.training.steps'\?"),
        (["sede=3"], r"unknown key 'sede'; did you mean 'seed'\?"),
        (["method.kind=fedavgg"], r"method: kind 'fedavgg' is not known; did you mean 'fedavg'\?"),
        (["data.source=digit"], r"data.source: kind 'digit' is not known; did you mean 'digits'\?"),
        (["method.rounds=0"], r"method.rounds: is 0, but should be greater than or equal to 1"),
        (["method.ema=nan"], r"method.ema: is nan, but"),
        (["method.ema=inf"], r"method.ema: is inf, but"),
        (["method.training.learning_rate=-1"], r"method.training.learning_rate: is -1, but"),
        (["method.training.epochs=2"], r"method.training: set either steps or epochs"),
        (["method.participants=5"], r"participants is 5, partition.silos is only 4"),
        (["quorum=5"], r"quorum is 5, but only 4 silos take part"),
        (["quorum=3", "method.participants=2"], r"quorum is 3, but only 2 silos take part"),
        (["sampling.guidance=2", "method.diffusion.label_dropout=0"], r"label_dropout > 0"),
        (["method.model.size=16"], r"method.model is for 1 x 16, data is 1 x 8"),
        (["method.model.widths=[8, 12]"], r"method.model: width 12 must be a multiple of groups"),
        (["partition.kind=domains"], r"need each other"),
        (
            ["partition.kind=dirichlet", "partition.alpha=1", "data.classes=0"],
            r"'dirichlet' distributes images by label",
        ),
        (["method.up={kind='updates',fine=['nothing']}"], r"method: fine has 'nothing', but no weight"),
        (["method.up.bits=4"], r"method.up: a table that names its kind is expected"),
        (["method.up=4"], r"method.up: a table that names its kind is expected"),
        (["method.proximal=1e39"], r"method.proximal: is 1e\+39, but"),
        (
            ["method.model.kind=autoencoder", "method.model.widths=[8, 16]", "method.share=up"],
            r"an autoencoder can only be shared with",
        ),
        (["partition.kind=dirichlet"], r"partition.alpha: is missing"),
        (["name=../up"], r"name: is '../up', but"),
        (["method.rounds=true"], r"method.rounds: is True, but"),
        (["method.rounds='2'"], r"method.rounds: is '2', but"),
        (["method.rounds=2.0"], r"method.rounds: is 2.0, but"),
        (["data.classes=-3"], r"data.classes: is -3, but"),
        (["data.classes=['a', 'a']"], r"data: classes names a class twice"),
        (["data.size=1"], r"^[^\n]*data.size: is 1, but[^\n]*$"),
        (["method.model.widths=[0]"], r"width 0 must be a multiple"),
        (
            ["method.model.widths=[4]", "method.model.groups=1", "method.model.attention=true"],
            r"not a multiple of head",
        ),
        (["sampling.steps=1000000000000"], r"sampling.steps: is 1000000000000, but"),
        (["method.training.steps=10000000000000000000000"], r"method.training.steps: "),
        (["seed=1\nname='x'"], r"has no value; write FIELD=VALUE"),
        (["seed"], r"--set seed: has no value; write FIELD=VALUE"),
        (["seed.x=1", "seed.x.y=2"], r"--set seed.x.y=2: x is a value, not a table"),
        (
            ["method.kind=collafuse", "method.cut=low"],
            r"method.cut: is 'low', but should be a share in \[0, 1\], \{ snr_db",
        ),
        (["method=3"], r"method: "),
        (["data=3"], r"data: "),
    ],
)
def test_a_wrong_recipe_is_told_by_place_and_nearest_name(path: Path, changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, changes)


def test_every_mistake_is_told_at_once(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["method.rounds=0", "seed=-1"])
    assert str(caught.value).count("mine.toml") == 2


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(RecipeError, match="not a TOML file"):
        load_recipe(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(RecipeError, match="data: is missing"):
        load_recipe(tmp_path / "empty.toml")


def test_classes_are_declared_or_come_from_the_source(path: Path, tmp_path: Path) -> None:
    assert load_recipe(path, ["data.classes=10"]).method.model.classes == 10
    assert load_recipe(path, ["method.model.classes=0"]).method.model.classes == 0
    with pytest.raises(DataError, match="no such folder"):
        load_recipe(path, ["data.source={kind='folder', path='nowhere'}"])
    declared = load_recipe(path, ["data.source={kind='folder', path='nowhere'}", "data.classes=['cat', 'dog']"])
    assert declared.method.model.classes == 2
    assert isinstance(declared.method, FedAvg)


def test_a_limit_keeps_the_names_of_what_was_skipped(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("L", (4, 4)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    data = Data.model_validate(
        {"size": 4, "limit": 2, "source": {"kind": "folder", "path": str(tmp_path), "unreadable": 0.5}}
    )
    images = data.load()
    assert len(images) == 2
    assert "broken.png" in images.skipped[0]


def test_codecs_have_a_short_form_and_a_file_name_gives_the_run_its_name(path: Path) -> None:
    assert load_recipe(path, ["method.up=updates", "method.up.bits=4"]).method.up.bits == 4  # type: ignore[union-attr]
    assert load_recipe(path, ["method.up=float16"]) == load_recipe(path, ["method.up.kind=float16"])
    other = path.with_name("My Recipe.toml")
    other.write_text(TEXT)
    assert load_recipe(other).name == "my-recipe"


def test_a_recipe_without_data_is_told_once(path: Path) -> None:
    path.write_text(TEXT.replace("[data]", "").replace('source = "digits"\nsize = 8', ""))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).count("\n") == 0


HUSCF = Path(__file__).parents[2] / "recipes" / "digits-huscf.toml"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["method.min_head=2"], r"min_head is 2: a head ends before block 2"),
        (["method.clusters=0"], r"method.clusters.*greater than or equal to 1"),
        (["method.clusters=9"], r"method.clusters is 9, partition.silos is only 5"),
        (["method.training.batch=1"], r"method.training.batch: is 1, but"),
        (["method.training.precision=bfloat16"], r"method.training.precision"),
        (["method.cut={generator={head=1,tail=2},discriminator={head=1,tail=4}}"], r"head must be below block 2"),
        (["method.cut={generator={head=0,tail=4},discriminator={head=0,tail=4}}"], r"images can be computed"),
        (['method.cuts={"silo-9"={generator={head=0,tail=4},discriminator={head=1,tail=4}}}'], r"'silo-9'"),
        (["method.bits=12"], r"method.bits"),
        (["method.guard={noise=0.1}"], r"method.guard.clip"),
    ],
)
def test_what_a_cut_gan_cannot_be_is_named(changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(HUSCF, changes)


@pytest.mark.parametrize("kind", METHODS.classes)
def test_a_kind_of_method_implies_its_kind_of_model(kind: str) -> None:
    recipe = tomllib.loads(TEXT) | {"name": "short", "data": {"source": "digits", "size": 16}}
    recipe["method"] = {"kind": kind, "rounds": 1, "training": {"steps": 1}} | (
        {"cut": 0.4} if kind == "collafuse" else {}
    )
    model = parse_recipe(recipe).method.model
    gan = kind in {"huscf", "mdgan", "splitgan", "pflgan", "hflgan"}
    assert (model.kind, model.classes) == ("gan" if gan else "unet", 10)
    recipe["method"]["model"] = {"kind": model.kind}
    assert parse_recipe(recipe).method.model == model
    recipe["method"]["model"] = {"kind": "unet" if gan else "gna"}
    with pytest.raises(
        RecipeError, match=r"method.model.*(but should be 'gan'|but should be 'unet'|did you mean 'gan')"
    ):
        parse_recipe(recipe)


HOSTILE = {
    "nested arrays": ("a = " + "[" * 100_000, "nested more than"),
    "nested tables": ("a = " + "{b = " * 50_000, "nested more than"),
    "whole, and too deep": ("a = " + "[" * 40 + "]" * 40, "nested more than"),
    "a long key": (".".join("a" * 500_000) + " = 1", "a key of more than 32 parts"),
    "a long quoted key": (" . ".join(['"a"'] * 100_000) + " = 1", "a key of more than 32 parts"),
    "a long header": ("[" + ".".join("a" * 500_000) + "]", "a key of more than 32 parts"),
    "5,000 digits": ("seed = " + "9" * 5000, "is not a TOML"),
    "4,000 digits": ("seed = " + "9" * 4000, "beyond 64 bits"),
    "half a character": ("name = '\ud800'", "half a character"),
    "two megabytes": ("#" * (2 * MAX_BYTES), "bytes; at most 1,048,576 are allowed"),
    "a word of a megabyte": ("a" * MAX_BYTES, "is not a TOML"),
    "only quotes": ('"' * MAX_BYTES, "is not a TOML"),
    "no TOML": ("name =", "is not a TOML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_that_anybody_may_send_comes_to_more_than_a_named_refusal(kind: str) -> None:
    text, why = HOSTILE[kind]
    with pytest.raises(RecipeError, match=why):
        parse_offer(text, "run")


def test_what_is_near_to_the_bounds_is_read() -> None:
    key = ".".join("a" * 31)
    fields = parse_toml(f"{key} = {(1 << 63) - 1}\nwords = 'a.b.c'\n" + "#" * (MAX_BYTES - 200), "it")
    assert fields["words"] == "a.b.c"


def test_a_file_is_bounded_as_a_text_is(path: Path) -> None:
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match=f"mine.toml: has {MAX_BYTES + 1:,} bytes"):
        load_recipe(path)


def test_an_offer_says_its_classes_itself(tmp_path: Path) -> None:
    source = f'source = {{ kind = "folder", path = "{tmp_path}" }}'
    with pytest.raises(RecipeError, match=r"run: data\.classes is missing"):
        parse_offer(TEXT.replace('source = "digits"', source), "run")
    whole = 'name = "mine"\n' + TEXT.replace('source = "digits"', f'{source}\nclasses = ["a", "b"]')
    offer = parse_offer(whole, "run")
    assert offer.data.known_classes() == ("a", "b")


@pytest.mark.parametrize(
    ("cuts", "said"),
    [
        ([f"silo-{number:05}" for number in range(20_000)], "at most 1000 items"),
        ([f"silo-00*{number}" for number in range(900)], r"method names 'silo-00\*0'"),
    ],
)
def test_cuts_of_very_many_silos_are_refused_and_names_are_no_patterns_there(cuts: list[str], said: str) -> None:
    """Each of them is looked up among the names of all silos, and its step computed."""
    text = TEXT.replace('"fedavg"', '"collafuse"\ncut = 0.9').replace("silos = 4", "silos = 20_000")
    fields = "".join(f'"{name}" = 0.9\n' for name in cuts)
    with pytest.raises(RecipeError, match=said):
        parse_offer(f"name = 'x'\n{text}\n[method.cuts]\n{fields}", "recipe")
