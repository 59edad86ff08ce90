"""What is approved is what was shown, by its whole hash; nothing that was read is overwritten by what nobody has."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from manyhands.cli.federation.app import app
from manyhands.errors import RecipeError
from manyhands.federation.approval import (
    MAX_WAITING,
    OFFERS,
    approve,
    approved,
    describe_offer,
    find_offer,
    keep_offer,
    note_site,
    waiting,
)
from manyhands.federation.kit import KEPT
from manyhands.federation.policy import recipe_hash, recipe_text
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.shipped import recipe_path

TEXT = recipe_text(load_recipe(recipe_path("digits-collafuse")))


def twins() -> tuple[str, str]:
    """Two recipes that differ in their seed alone, and whose hashes begin alike."""
    seen: dict[str, str] = {}
    for seed in range(1_000_000):
        text = f"# {seed}\n{TEXT}"
        begins = recipe_hash(text)[:6]
        if begins in seen:
            return seen[begins], text
        seen[begins] = text
    raise AssertionError


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / KEPT).mkdir()
    note_site(tmp_path / KEPT, "a", 100)
    return tmp_path / KEPT


def run(*arguments: str, words: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), input=words)
    return result.exit_code, result.output + str(result.exception or "")


def test_two_recipes_whose_hashes_begin_alike_are_two(site: Path) -> None:
    one, other = twins()
    first = keep_offer(site, one)
    assert first[:6] == keep_offer(site, other)[:6]
    assert (site / OFFERS / f"{first}.toml").read_text() == one
    with pytest.raises(RecipeError, match=f"several hashes begin like this: .*{first}"):
        find_offer(site, first[:6])
    code, _ = run("approve", str(site.parent), first, "--yes")
    assert code == 0
    assert approved(site) == {recipe_hash(one)}
    assert find_offer(site, first[:6]).text == other  # the one that still waits, and it is shown as such
    assert recipe_hash(other) not in approved(site)


def test_what_lies_there_is_never_overwritten_and_what_was_changed_is_not_approved(site: Path) -> None:
    digest = keep_offer(site, TEXT)
    path = site / OFFERS / f"{digest}.toml"
    path.write_text(TEXT.replace("rounds = ", "rounds = 1"))
    changed = path.read_text()
    for act in (lambda: keep_offer(site, TEXT), lambda: find_offer(site, digest)):
        with pytest.raises(RecipeError, match="was changed, since its text has another hash"):
            act()
    assert path.read_text() == changed
    assert run("approve", str(site.parent), digest, "--yes")[0] != 0
    assert approved(site) == set()


def test_approve_shows_what_would_be_sent_and_asks_for_a_yes(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = keep_offer(site, TEXT)
    code, said = run("approve", str(site.parent), digest[:8])
    assert code != 0
    assert "--yes approves what is shown above" in said
    assert "dB, epsilon" in said
    assert "leaves (once an image): its images, noised" in said
    assert approved(site) == set()
    code, said = run("approve", str(site.parent), digest[:8], "--yes")
    assert code == 0
    assert said.endswith(f"its hash is {digest}\napproved {digest}\n")
    assert approved(site) == {digest}
    assert waiting(site) == []


@pytest.mark.parametrize(("word", "allowed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_a_person_is_asked(site: Path, word: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = keep_offer(site, TEXT)
    monkeypatch.setattr("manyhands.cli.federation.approve.is_terminal", lambda: True)
    code, said = run("approve", str(site.parent), digest, words=word)
    assert (code == 0, approved(site) == {digest}) == (allowed, allowed)
    assert said.index("leaves (once an image)") < said.index("Approve it?")


@pytest.mark.parametrize("begins", ["", "abc", "../../x", "g" * 12, "0" * 65, "a" * 64])
def test_what_is_no_hash_of_what_waits_is_refused(site: Path, begins: str) -> None:
    keep_offer(site, TEXT)
    with pytest.raises(RecipeError, match="give the hash|no recipe with this hash waits"):
        find_offer(site, begins)


def test_only_whole_hashes_are_approved(site: Path) -> None:
    with pytest.raises(RecipeError, match="is not the whole hash"):
        approve(site, ["a" * 12])
    assert approved(site) == set()


def test_a_server_cannot_fill_the_disk_with_recipes(site: Path) -> None:
    for number in range(MAX_WAITING):
        keep_offer(site, f"# {number}\n{TEXT}")
    with pytest.raises(RecipeError, match="wait for approval here already"):
        keep_offer(site, TEXT)
    approve(site, [recipe_hash(f"# 0\n{TEXT}")])
    keep_offer(site, TEXT)
    assert len(list((site / OFFERS).iterdir())) == MAX_WAITING + 1


PAINT = "\\u001b[2Jall is well\\n"
"""What clears a terminal and writes on it, as TOML has it."""


def test_nothing_in_a_recipe_paints_over_what_is_shown(site: Path) -> None:
    cut = "{generator={head=0,tail=3},discriminator={head=1,tail=3}}"
    classes = ", ".join(f'"{PAINT}{i}"' for i in range(10))
    changes = [f'method.cuts={{"silo-[0{PAINT}]*"={cut}}}', f"data.classes=[{classes}]", f'data.origin="{PAINT}"']
    digest = keep_offer(site, recipe_text(load_recipe(recipe_path("digits-huscf"), changes)))
    words = describe_offer(site, find_offer(site, digest))
    assert all(character.isprintable() for line in words for character in line)


def test_nor_does_the_refusal_of_a_recipe_that_names_what_is_not_there(site: Path) -> None:
    digest = keep_offer(site, TEXT.replace("[method.cuts]", f'[method.cuts]\n"silo-[0{PAINT}]" = 0.5\n'))
    code, said = run("approve", str(site.parent), digest, "--yes")
    assert code != 0
    assert "all is well" in said
    assert all(character.isprintable() or character == "\n" for character in said)
    assert approved(site) == set()


def test_without_a_hash_the_waiting_recipes_are_listed(site: Path) -> None:
    assert run("approve", str(site.parent)) == (0, f"no recipe waits in {site}\n")
    digests = sorted(keep_offer(site, f"# {number}\n{TEXT}") for number in range(3))
    approve(site, digests[:1])
    assert run("approve", str(site.parent)) == (0, "".join(f"{digest}\n" for digest in digests[1:]))
