"""A site holds to its own folder and its own images, whatever a server tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from manyhands.errors import KitError, Refused
from manyhands.federation.policy import Policy, recipe_text
from manyhands.federation.site import Site
from manyhands.links.exchange import SessionGone
from manyhands.message import Message
from manyhands.recipe import load_recipe
from manyhands.shipped import recipe_path

TEXT = recipe_text(load_recipe(recipe_path("digits-fedavg"), ["data.limit=60", "partition.silos=2"]))


class Server:
    """Answers with what it is told to, one thing after another."""

    def __init__(self, *answers: Message | Exception) -> None:
        self.answers, self.heard = list(answers), list[Message]()

    def __call__(self, message: Message) -> Message:
        self.heard.append(message)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def anew(self) -> None:
        raise StopIteration


def offer(run: str = "run", text: str = TEXT) -> Message:
    return Message("hello", facts={"run": run, "recipe": text})


def site(out: Path, server: Server) -> Site:
    told = Policy(approve="limits", labels=True)
    return Site("silo-0", told, out, server, lambda _: None)  # type: ignore[arg-type] # it answers as a line does


def once(path: Path, server: Server) -> list[Message]:
    """What a site says before it asks for a run again."""
    server.answers.append(SessionGone("the end of the test"))
    with pytest.raises(StopIteration):
        site(path, server).work()
    return server.heard


@pytest.mark.parametrize("run", ["../run", "/tmp/run", "a/b", ".", "..", "\x1b[2J", "R"])
def test_a_name_that_leads_out_of_its_folder_is_none(tmp_path: Path, run: str) -> None:
    with pytest.raises(KitError, match="which is none"):
        site(tmp_path / "site", Server(offer(run))).work()
    assert not (tmp_path / "site").exists()


def test_what_is_no_offer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="wrong facts"):
        site(tmp_path / "site", Server(Message("enrol", facts={"round": 0}))).work()


def test_a_folder_of_another_run_is_said_and_the_site_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("name = 'another'\n")
    _, declined, again = once(tmp_path, Server(offer(), Message("decline")))
    assert declined.op == "decline"
    assert "its images or its folder" in declined.facts["why"]
    assert again.facts["declined"] == "run"


def test_a_refused_enrolment_is_declined_and_a_run_that_is_over_ends_nothing(tmp_path: Path) -> None:
    over = Refused("not now", "there is no run 'run' now")  # type: ignore[arg-type]
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
    assert "SMITH" not in str(server.heard)


def test_a_site_is_not_trained_with_alone(tmp_path: Path) -> None:
    said = once(tmp_path, Server(offer(), Message("enrol", facts={"round": 0, "sites": 1}), Message("decline")))
    assert said[2].facts["why"] == "this site's policy: 1 take part, 2 are the fewest"
