"""A site holds to its own folder and its own images, whatever a server tells it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from manyhands.errors import Reason, RecipeError, Refused
from manyhands.federation.approval import approve, approved, waiting
from manyhands.federation.policy import APPROVED_RUNS, Policy, recipe_hash, recipe_text
from manyhands.federation.server_connection import RunAborted
from manyhands.federation.site import APPROVAL_SECONDS, Site
from manyhands.federation.usage import Usage
from manyhands.files.toml_text import MAX_BYTES
from manyhands.links.exchange import SessionGone
from manyhands.messages.message import Message, encode
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.shipped import recipe_path
from manyhands.tensors import Tensors

TEXT = recipe_text(load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2"]))
LIMITS = Policy(approve="limits", labels=True, data="recipe")
TINY = ["method.rounds=9", "method.training.steps=2", "method.model.widths=[8]"]


class Server:
    """Answers with what it is told to, one thing after another."""

    def __init__(self, *answers: Message | Exception) -> None:
        self.answers, self.received, self.sessions = list(answers), list[Message](), 1

    def __call__(self, message: Message) -> Message:
        self.received.append(message)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def new_session(self) -> None:
        self.sessions += 1

    def check(self) -> None:
        pass


def begun(sites: int = 2) -> Message:
    """The answer to an enrolment."""
    return Message("enrol", facts={"round": 0, "sites": sites})


def site(
    out: Path,
    server: Server,
    log: Callable[[str], None] = lambda _: None,
    pause: Callable[[float], None] = lambda _: None,
    policy: Policy = LIMITS,
) -> Site:
    return Site("silo-0", policy, out, server, log, pause)  # type: ignore[arg-type] # it answers as a line does


def said(
    path: Path, *answers: Message | Exception, run: str = "run", text: str = TEXT, policy: Policy = LIMITS
) -> list[Message]:
    """What a site says until it has finished with a run."""
    server = Server(*answers)
    site(path, server, policy=policy).work(run, text)
    assert server.answers == []
    return server.received


NAMES = ["../run", "/tmp/run", "a/b", ".", "..", "\x1b[2J", "R", "a" * 300, "a" * 100_000, "\ud800", "run\n"]
TEXTS = {
    "no TOML": "name =",
    "nested TOML": "a = " + "[" * 100_000,
    "5,000 digits": "seed = " + "9" * 5000,
    "a long key": ".".join("a" * 100_000) + " = 1",
    "half a character": "name = '\ud800'",
    "no recipe": "name = 'run'",
    "nothing": "",
    "too long": "#" * (MAX_BYTES + 1) + TEXT,
    "escape sequences": "'\\u001b[2J' = 1".replace("'", '"'),
}


@pytest.mark.parametrize("run", NAMES)
def test_a_name_that_is_none_is_declined_once_and_the_site_goes_on(tmp_path: Path, run: str) -> None:
    lines, server = list[str](), Server(Message("decline"))
    site(tmp_path / "site", server, lines.append).work(run, TEXT)
    (declined,) = server.received
    assert "is not a valid name of a run" in declined.facts["why"]
    assert len(encode(declined)) < 4000
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("kind", TEXTS)
def test_a_hostile_recipe_is_declined_once_and_the_site_goes_on(tmp_path: Path, kind: str) -> None:
    lines, server = list[str](), Server(Message("decline"))
    site(tmp_path / "site", server, lines.append).work("run", TEXTS[kind])
    (declined,) = server.received
    assert declined.facts["waits"] is False
    assert declined.facts["why"].isprintable()
    assert len(encode(declined)) < 4000
    assert all(line.isprintable() for line in lines)
    assert not (tmp_path / "site").exists()


def test_of_very_many_reasons_a_few_are_said(tmp_path: Path) -> None:
    lines, cuts = list[str](), "".join(f"s{number} = 'x'\n" for number in range(900))
    text = recipe_text(load_recipe(recipe_path("digits-collafuse"))).replace("[method.cuts]\n", "")
    site(tmp_path, Server(Message("decline")), lines.append).work("run", f"{text}\n[method.cuts]\n{cuts}")
    assert 20 < len(lines) < 30
    assert lines[-1].endswith(" more")


def test_no_run_can_be_called_as_a_file_of_the_site_is(tmp_path: Path) -> None:
    approve(tmp_path, ["a" * 64])
    for run in ("approved.txt", "secret", "released.jsonl", "site.json", "offers", "used", "runs"):
        _, declined = said(tmp_path, begun(sites=1), Message("decline"), run=run)
        assert declined.facts["why"].endswith("the run has 1 sites, but min_sites is 2")
        assert (tmp_path / "runs" / run / "recipe.toml").is_file()
    assert approved(tmp_path) == {"a" * 64}


def test_a_site_waits_until_somebody_approves_the_recipe_and_then_enrols(tmp_path: Path) -> None:
    """It declines once, with the word that it waits; how often it looks costs the server nothing."""
    server, pauses, lines = Server(Message("decline"), begun(sites=1), Message("decline")), list[float](), list[str]()
    digest = recipe_hash(TEXT)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            approve(tmp_path / "manyhands", [digest])

    site(tmp_path / "manyhands", server, lines.append, pause, Policy(labels=True, data="recipe")).work("run", TEXT)
    assert [message.op for message in server.received] == ["decline", "enrol", "decline"]
    assert server.received[0].facts == {"why": f"nobody here has approved the recipe {digest} yet", "waits": True}
    assert server.received[1].facts["recipe"] == digest
    assert pauses == [APPROVAL_SECONDS] * 3
    assert f"  to allow it: manyhands federation approve {tmp_path} {digest}" in lines


def test_a_site_that_waits_for_an_approval_ends_with_its_job(tmp_path: Path) -> None:
    server = Server(Message("decline"))
    looked = iter(range(3))

    def check() -> None:
        if next(looked) == 2:
            raise RunAborted

    server.check = check  # type: ignore[method-assign]
    pauses = iter([None] * 5)  # the sixth is an error
    with pytest.raises(RunAborted):
        site(tmp_path, server, pause=lambda _: next(pauses), policy=Policy(labels=True, data="recipe")).work(
            "run", TEXT
        )
    assert [message.op for message in server.received] == ["decline"]
    assert waiting(tmp_path) == [recipe_hash(TEXT)]


def test_a_server_that_has_restarted_is_enrolled_with_again_in_a_new_session(tmp_path: Path) -> None:
    gone = [SessionGone("the server begins again")] * 2
    server = Server(*gone, begun(sites=1), SessionGone("and again"), Message("decline"))
    site(tmp_path, server).work("run", TEXT)
    assert [message.op for message in server.received] == ["enrol"] * 3 + ["decline"] * 2
    assert server.sessions == 4


def test_a_run_that_has_ended_for_flare_ends_the_work_and_is_not_declined(tmp_path: Path) -> None:
    server = Server(RunAborted())
    with pytest.raises(RunAborted):
        site(tmp_path, server).work("run", TEXT)
    assert [message.op for message in server.received] == ["enrol"]


def test_a_site_takes_part_to_the_end_says_so_and_has_nothing_to_do_any_more(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2", *TINY, "method.rounds=1"])
    held = weights_of(recipe)
    joined, last = (Message(op, held, {"round": n, "done": bool(n)}) for n, op in enumerate(("join", "update")))
    server = Server(begun(), joined, last, Message("ended"))
    here = site(tmp_path, server)
    here.work("run", recipe_text(recipe))
    assert [message.op for message in server.received] == ["enrol", "join", "update", "ended"]
    assert here.has_finished
    here.work("run", recipe_text(recipe))  # FLARE may begin the job's process again
    assert len(server.received) == 4
    assert (tmp_path / "runs").stat().st_mode & 0o077 == 0


def weights_of(recipe: Recipe) -> Tensors:
    """What a server with new weights sends to those who join."""
    weights = recipe.method.server(0, {"silo-0": 24, "silo-1": 24}).state_dict()
    return {name.removeprefix("weights."): t for name, t in weights.items() if name.startswith("weights.")}


@pytest.mark.parametrize(
    "answer",
    [Message("enrol"), Message("ended"), Message("hello", facts={"run": "", "recipe": ""}), Message("?"),
     *(Message("enrol", facts={"round": number, "sites": 2}) for number in (-1, "0", None, 1.0, 10**9))],
)  # fmt: skip
def test_an_enrolment_that_is_answered_with_something_else_is_declined_by_name(tmp_path: Path, answer: Message) -> None:
    assert [message.op for message in said(tmp_path, answer, Message("decline"))] == ["enrol", "decline"]


def test_an_answer_to_something_else_is_refused_by_name(tmp_path: Path) -> None:
    """Each is in the plan, but the half that asked would look for facts that it has not."""
    text = recipe_text(load_recipe(recipe_path("digits-collafuse"), ["data.limit=60", "partition.silos=2"]))
    policy = Policy(approve="limits", labels=True, max_snr_db=200, data="recipe")
    for answer in (Message("release", facts={"held": 0}), Message("ready")):
        sent = said(tmp_path / answer.op, begun(), answer, Message("decline"), text=text, policy=policy)
        assert [message.op for message in sent] == ["enrol", "enter", "decline"]
        assert sent[2].facts["why"] == f"unknown operation: '{answer.op}' is not an answer to 'enter'"


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_has_no_round_twice_however_it_asks(tmp_path: Path, refuses: bool) -> None:
    """With other weights it would learn more of the images each time than a person has approved."""
    recipe = load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2", *TINY])
    joined, again = (Message(op, weights_of(recipe), {"round": 0, "done": False}) for op in ("join", "update"))
    answers = [begun(), joined, *[Refused(Reason.TOO_LONG, "so it says")] * refuses, again, Message("decline")]
    sent = said(tmp_path, *answers, text=recipe_text(recipe))
    assert [message.op for message in sent[1:]] == ["join", *["update"] * (1 + refuses), "decline"]
    assert sent[-1].facts["why"] == "stale round: 1 rounds are closed, but the server asks for one again"


def test_a_server_has_an_approved_recipe_done_again_four_times_and_no_more(tmp_path: Path) -> None:
    """A server that begins sessions anew, from other weights each time, would learn more than a person approved."""
    recipe = load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2", *TINY, "method.rounds=1"])
    answers = list[Message | Exception]()
    for number in range(APPROVED_RUNS + 1):
        start = {name: tensor + number for name, tensor in weights_of(recipe).items()}
        answers += [begun(), Message("join", start, {"round": 0, "done": False})]
        answers += [SessionGone("the server begins again")] if number < APPROVED_RUNS else [Message("decline")]
    approve(tmp_path, [recipe_hash(recipe_text(recipe))])
    server, lines = Server(*answers), list[str]()
    site(tmp_path, server, lines.append, policy=Policy(labels=True, data="recipe")).work("run", recipe_text(recipe))
    assert [message.op for message in server.received].count("update") == APPROVED_RUNS
    assert [message.op for message in server.received[-2:]] == ["join", "decline"]
    assert "this recipe has had its 4 rounds over all runs" in "".join(lines)


@pytest.mark.parametrize(("options", "most"), [({}, 36), ({"approve": "limits"}, None), ({"rounds": 50}, 50)])
def test_an_approval_is_for_a_few_times_the_rounds_of_the_recipe(options: dict[str, Any], most: int | None) -> None:
    assert Policy(**options).max_rounds(load_recipe(recipe_path("digits-fedavg"), TINY)) == most


def test_a_folder_of_another_run_is_said_and_the_site_goes_on(tmp_path: Path) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "recipe.toml").write_text("name = 'another'\n")
    (declined,) = said(tmp_path, Message("decline"))
    assert declined.op == "decline"
    assert "its images, its policy, its folder or its budget" in declined.facts["why"]


def test_a_refused_enrolment_is_declined_and_a_run_that_is_over_ends_nothing(tmp_path: Path) -> None:
    over = Refused(Reason.NOT_NOW, "the run is over: stopped")
    assert [message.op for message in said(tmp_path, over, over)] == ["enrol", "decline"]


def test_no_name_of_a_file_is_told_to_others(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "SMITH-JOHN").mkdir(parents=True)
    Image.new("L", (8, 8)).save(images / "SMITH-JOHN" / "SMITH-1.png")
    server, lines = Server(Message("decline")), list[str]()
    site(tmp_path / "site", server, lines.append, policy=Policy(approve="limits", data=str(images))).work("run", TEXT)
    assert "SMITH" in "".join(lines)
    assert "SMITH" not in str(server.received)


def test_a_site_is_not_trained_with_alone(tmp_path: Path) -> None:
    _, declined = said(tmp_path, begun(sites=1), Message("decline"))
    assert declined.facts["why"] == "this site's policy: the run has 1 sites, but min_sites is 2"


def test_a_site_says_which_images_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="its policy names no images"):
        Site("silo-0", Policy(), tmp_path, Server(), lambda _: None)  # type: ignore[arg-type]


def test_what_its_budgets_do_not_allow_is_told_to_others_without_a_figure(tmp_path: Path) -> None:
    Usage(tmp_path, recipe_hash(TEXT), rounds=20).charge(Message("update"), closes_round=True)
    server, lines = Server(Message("decline")), list[str]()
    policy = Policy(approve="limits", rounds=20, data="recipe")
    site(tmp_path, server, lines.append, policy=policy).work("run", TEXT)
    assert "this recipe has had 1 rounds over all runs, and may have 20" in "".join(lines)
    why = "its images, its policy, its folder or its budget do not allow it; its log says why"
    assert server.received[0].facts["why"] == why


def test_what_is_dealt_is_held_against_the_policy_when_its_number_is_known(tmp_path: Path) -> None:
    changes = ["data.limit=60", "partition.silos=2", "method.release=fresh", "method.cut=0.97", "method.rounds=1"]
    text = recipe_text(load_recipe(recipe_path("digits-collafuse"), [*changes, "method.training.steps=2"]))
    for most, taken in ((9, True), (1, False)):
        policy = Policy(approve="limits", labels=True, max_releases=most, data="recipe")
        here = Site("silo-0", policy, tmp_path, Server(), lambda _: None)  # type: ignore[arg-type]
        with nullcontext() if taken else pytest.raises(RecipeError, match="times, but 1 is allowed"):
            here.check_offer("run", text)


def test_what_a_run_keeps_at_a_site_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = site(tmp_path / "site", Server())._private_folder("runs")
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o755)
    assert site(tmp_path / "site", Server())._private_folder("runs").stat().st_mode & 0o077 == 0
