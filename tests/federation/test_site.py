"""A site holds to its own folder and its own images, whatever a server tells it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from manyhands.errors import Reason, RecipeError, Refused
from manyhands.federation.approval import approve, approved
from manyhands.federation.policy import APPROVED_RUNS, Policy, recipe_hash, recipe_text
from manyhands.federation.site import Site
from manyhands.federation.usage import Usage
from manyhands.links.exchange import SessionGone
from manyhands.messages.message import Message, encode
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.shipped import recipe_path

TEXT = recipe_text(load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2"]))
TINY = ["method.rounds=9", "method.training.steps=2", "method.model.widths=[8]"]


class Server:
    """Answers with what it is told to, one thing after another."""

    def __init__(self, *answers: Message | Exception) -> None:
        self.answers, self.received = list(answers), list[Message]()

    def __call__(self, message: Message) -> Message:
        self.received.append(message)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def new_session(self) -> None:
        raise StopIteration


def offer(run: str = "run", text: str = TEXT) -> Message:
    return Message("hello", facts={"run": run, "recipe": text})


def site(
    out: Path,
    server: Server,
    log: Callable[[str], None] = lambda _: None,
    pause: Callable[[float], None] = lambda _: None,
) -> Site:
    policy = Policy(approve="limits", labels=True, data="recipe")
    return Site("silo-0", policy, out, server, log, pause)  # type: ignore[arg-type] # it answers as a line does


def once(path: Path, server: Server, log: Callable[[str], None] = lambda _: None) -> list[Message]:
    """What a site says before it asks for a run again."""
    server.answers.append(SessionGone("the end of the test"))
    with pytest.raises(StopIteration):
        site(path, server, log).work()
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
    "escape sequences": "'\\u001b[2J' = 1".replace("'", '"'),
}


@pytest.mark.parametrize("run", NAMES)
def test_a_name_that_is_none_is_declined_once_and_the_site_goes_on(tmp_path: Path, run: str) -> None:
    lines, unsound = list[str](), len(run) > 80
    answers = [offer(run)] if unsound else [offer(run), Refused(Reason.NOT_NOW, "there is no such run")]
    said = once(tmp_path / "site", Server(*answers), lines.append)
    assert [message.op for message in said] == ["hello", *["decline"] * (not unsound), "hello"]
    assert ("offer is not valid: wrong facts" if unsound else "is not a valid name of a run") in "".join(lines)
    assert all(len(encode(message)) < 4000 for message in said)
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("kind", TEXTS)
def test_a_hostile_recipe_is_declined_once_and_the_site_goes_on(tmp_path: Path, kind: str) -> None:
    lines = list[str]()
    said = once(tmp_path / "site", Server(offer(text=TEXTS[kind]), Message("decline")), lines.append)
    assert [message.op for message in said] == ["hello", "decline", "hello"]
    assert said[2].facts["declined"] == "run"
    assert said[1].facts["why"].isprintable()
    assert len(encode(said[1])) < 4000
    assert all(line.isprintable() for line in lines)
    assert not (tmp_path / "site").exists()


def test_of_very_many_reasons_a_few_are_said(tmp_path: Path) -> None:
    lines, cuts = list[str](), "".join(f"s{number} = 'x'\n" for number in range(900))
    text = recipe_text(load_recipe(recipe_path("digits-collafuse"))).replace("[method.cuts]\n", "")
    text = f"{text}\n[method.cuts]\n{cuts}"
    once(tmp_path / "site", Server(offer(text=text), Message("decline")), lines.append)
    assert 20 < len(lines) < 30
    assert lines[-1].endswith(" more")


def test_no_run_can_be_called_as_a_file_of_the_site_is(tmp_path: Path) -> None:
    approve(tmp_path, ["a" * 64])
    for run in ("approved.txt", "secret", "released.jsonl", "site.json", "offers", "used", "runs"):
        started = Message("enrol", facts={"round": 0, "sites": 1})
        said = once(tmp_path, Server(offer(run), started, Message("decline")))
        assert said[2].facts["why"].endswith("the run has 1 sites, but min_sites is 2")
        assert (tmp_path / "runs" / run / "recipe.toml").is_file()
    assert approved(tmp_path) == {"a" * 64}


def test_a_server_that_offers_nonsense_without_end_is_asked_more_and_more_slowly(tmp_path: Path) -> None:
    pauses = list[float]()
    nothing = offer("", "")  # which would be no reason to ask faster again
    answers = [answer for number in range(12) for answer in (offer(f"run-{number}", "="), Message("decline"), nothing)]
    server = Server(*answers, SessionGone("the end of the test"))
    with pytest.raises(StopIteration):
        site(tmp_path, server, pause=pauses.append).work()
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_what_is_no_offer_is_refused_by_name_and_the_site_goes_on(tmp_path: Path) -> None:
    lines = list[str]()
    answers = [Message("enrol", facts={"round": 0}), Refused(Reason.MALFORMED, "what was answered is no message")]
    said = once(tmp_path / "site", Server(*answers), lines.append)
    assert [message.op for message in said] == ["hello", "hello", "hello"]
    assert all("the server's offer is not valid: " in line for line in lines)


@pytest.mark.parametrize(
    "begun",
    [Message("enrol"), Message("ended"), Message("hello", facts={"run": "", "recipe": ""}), Message("?"),
     *(Message("enrol", facts={"round": number, "sites": 2}) for number in (-1, "0", None, 1.0, 10**9))],
)  # fmt: skip
def test_an_enrolment_that_is_answered_with_something_else_is_declined_by_name(tmp_path: Path, begun: Message) -> None:
    said = once(tmp_path / "site", Server(offer(), begun, Message("decline")))
    assert [message.op for message in said] == ["hello", "enrol", "decline", "hello"]


def test_an_answer_to_something_else_is_refused_by_name(tmp_path: Path) -> None:
    """Each is in the plan, but the half that asked would look for facts that it has not."""
    started = Message("enrol", facts={"round": 0, "sites": 2})
    text = recipe_text(load_recipe(recipe_path("digits-collafuse"), ["data.limit=60", "partition.silos=2"]))
    policy = Policy(approve="limits", labels=True, max_snr_db=200, data="recipe")
    for answer in (Message("release", facts={"held": 0}), Message("ready")):
        server = Server(offer(text=text), started, answer, Message("decline"), SessionGone("the end of the test"))
        with pytest.raises(StopIteration):
            Site("silo-0", policy, tmp_path / answer.op, server, lambda _: None).work()  # type: ignore[arg-type]
        assert [message.op for message in server.received] == ["hello", "enrol", "enter", "decline", "hello"]
        assert server.received[3].facts["why"] == f"unknown operation: '{answer.op}' is not an answer to 'enter'"


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_has_no_round_twice_however_it_asks(tmp_path: Path, refuses: bool) -> None:
    """With other weights it would learn more of the images each time than a person has approved."""
    recipe = load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2", *TINY])
    weights = recipe.method.server(0, {"silo-0": 24, "silo-1": 24}).state_dict()
    held = {name.removeprefix("weights."): t for name, t in weights.items() if name.startswith("weights.")}
    joined, again = (Message(op, held, {"round": 0, "done": False}) for op in ("join", "update"))
    answers = [Message("enrol", facts={"round": 0, "sites": 2}), joined]
    answers += [Refused(Reason.TOO_LONG, "so it says"), again] if refuses else [again]
    said = once(tmp_path, Server(offer(text=recipe_text(recipe)), *answers, Message("decline")))
    assert [message.op for message in said[2:]] == ["join", *["update"] * (1 + refuses), "decline", "hello"]
    assert said[-2].facts["why"] == "stale round: 1 rounds are closed, but the server asks for one again"


class ForgetfulServer(Server):
    """Loses every session, as often as it likes."""

    def new_session(self) -> None:
        pass


def test_a_server_has_an_approved_recipe_done_again_four_times_and_no_more(tmp_path: Path) -> None:
    """A server that begins sessions anew, from other weights each time, would learn more than a person approved."""
    recipe = load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2", *TINY, "method.rounds=1"])
    weights = recipe.method.server(0, {"silo-0": 24, "silo-1": 24}).state_dict()
    answers = list[Message | Exception]()
    for number in range(APPROVED_RUNS + 1):
        start = {
            name.removeprefix("weights."): t + number for name, t in weights.items() if name.startswith("weights.")
        }
        joined = Message("join", start, {"round": 0, "done": False})
        answers += [offer(text=recipe_text(recipe)), Message("enrol", facts={"round": 0, "sites": 2}), joined]
        answers += [SessionGone("the server begins again")] if number < APPROVED_RUNS else [Message("decline")]
    server = ForgetfulServer(*answers, StopIteration())
    approve(tmp_path, [recipe_hash(recipe_text(recipe))])
    lines, policy = list[str](), Policy(labels=True, data="recipe")
    with pytest.raises(StopIteration):
        Site("silo-0", policy, tmp_path, server, lines.append, lambda _: None).work()  # type: ignore[arg-type]
    assert [message.op for message in server.received].count("update") == APPROVED_RUNS
    assert [message.op for message in server.received[-3:]] == ["join", "decline", "hello"]
    assert "this recipe has had its 4 rounds over all runs" in "".join(lines)


@pytest.mark.parametrize(("options", "most"), [({}, 36), ({"approve": "limits"}, None), ({"rounds": 50}, 50)])
def test_an_approval_is_for_a_few_times_the_rounds_of_the_recipe(options: dict[str, Any], most: int | None) -> None:
    assert Policy(**options).max_rounds(load_recipe(recipe_path("digits-fedavg"), TINY)) == most


def test_a_folder_of_another_run_is_said_and_the_site_goes_on(tmp_path: Path) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "recipe.toml").write_text("name = 'another'\n")
    _, declined, again = once(tmp_path, Server(offer(), Message("decline")))
    assert declined.op == "decline"
    assert "its images, its folder or its budget" in declined.facts["why"]
    assert again.facts["declined"] == "run"


def test_a_refused_enrolment_is_declined_and_a_run_that_is_over_ends_nothing(tmp_path: Path) -> None:
    over = Refused(Reason.NOT_NOW, "there is no run 'run' now")
    said = once(tmp_path, Server(offer(), over, over))
    assert [message.op for message in said] == ["hello", "enrol", "decline", "hello"]


def test_no_name_of_a_file_is_told_to_others(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "SMITH-JOHN").mkdir(parents=True)
    Image.new("L", (8, 8)).save(images / "SMITH-JOHN" / "SMITH-1.png")
    server = Server(offer(), Message("decline"), SessionGone("the end of the test"))
    lines = list[str]()
    policy = Policy(approve="limits", data=str(images))
    with pytest.raises(StopIteration):
        Site("silo-0", policy, tmp_path / "site", server, lines.append).work()  # type: ignore[arg-type]
    assert "SMITH" in "".join(lines)
    assert "SMITH" not in str(server.received)


def test_a_site_is_not_trained_with_alone(tmp_path: Path) -> None:
    said = once(tmp_path, Server(offer(), Message("enrol", facts={"round": 0, "sites": 1}), Message("decline")))
    assert said[2].facts["why"] == "this site's policy: the run has 1 sites, but min_sites is 2"


def test_a_site_says_which_images_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="its policy names no images"):
        Site("silo-0", Policy(), tmp_path, Server(), lambda _: None)  # type: ignore[arg-type]


def test_what_its_budgets_do_not_allow_is_told_to_others_without_a_figure(tmp_path: Path) -> None:
    Usage(tmp_path, recipe_hash(TEXT), rounds=20).charge(Message("update"), closes_round=True)
    policy = Policy(approve="limits", rounds=20, data="recipe")
    server, lines = Server(offer(), Message("decline"), SessionGone("the end of the test")), list[str]()
    with pytest.raises(StopIteration):
        Site("silo-0", policy, tmp_path, server, lines.append).work()  # type: ignore[arg-type]
    assert "this recipe has had 1 rounds over all runs, and may have 20" in "".join(lines)
    assert server.received[1].facts["why"] == "its images, its folder or its budget do not allow it; its log says why"


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
