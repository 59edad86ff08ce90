"""A site: it asks the server for runs, holds them against its own policy, and does its half of those it allows."""

from __future__ import annotations

import re
import secrets
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from manyhands.checkpoint import generations, path_of, replace_file, writing
from manyhands.ending import ready
from manyhands.errors import KitError, ManyhandsError, RecipeError, Refused, plain
from manyhands.experiment import chosen_device, silo_of, silos_of
from manyhands.federation.plans import SITES
from manyhands.federation.policy import Policy, approved, recipe_hash, told_in_words
from manyhands.journal import RunFolder
from manyhands.links.exchange import SessionGone
from manyhands.message import Message
from manyhands.recipe import Recipe, parse_recipe
from manyhands.silo import Workbench

if TYPE_CHECKING:
    from manyhands.federation.calls import Calls
    from manyhands.methods.method import Conversation
    from manyhands.plan import Plan
    from manyhands.silo import Silo

RUN = re.compile(r"[a-z0-9][a-z0-9._-]*")
KEPT = 3
"""So many rounds a site keeps: that which is closed, that which it has sent, and the one before."""


class NotApproved(ManyhandsError):  # noqa: N818 - what is so, until somebody approves
    """Nobody at this site has read and approved this recipe."""


TOLD = (RecipeError, Refused, NotApproved)
"""What a site says to others of why it does not take part: other errors may name its files."""


class Site:
    """``say`` gets a line for people."""

    def __init__(self, name: str, policy: Policy, out: Path, calls: Calls, say: Callable[[str], None]) -> None:
        self.name, self.policy, self.out, self.calls, self.say = name, policy, out, calls, say
        self._declined: dict[str, str] = {}

    def work(self, forever: Callable[[], bool] = lambda: True) -> None:
        """Take part in run after run."""
        while forever():
            try:
                self._once()
            except SessionGone:
                self.calls.anew()

    def _once(self) -> None:
        offer = self.calls(Message("hello", facts={"declined": self._still_declined()}))
        SITES.check(offer, "down")
        run, text = offer.facts["run"], offer.facts["recipe"]
        if not run:
            return
        if not RUN.fullmatch(run):
            raise KitError(f"the server offers a run of the name {plain(run)!r}, which is none")
        try:
            recipe, silo = self.considered(run, text)
            folder = RunFolder(self.out / run)
            with folder.open(recipe.resolved(), resume=True):
                self._take_part(run, recipe, silo, folder)
        except SessionGone:
            raise
        except ManyhandsError as error:
            waits = isinstance(error, NotApproved)
            self._declined = {run: recipe_hash(text) if waits else ""}
            self.say(f"{run}: {error}")
            why = (
                str(error) if isinstance(error, TOLD) else "its images or its folder do not allow it; its log says why"
            )
            with suppress(Refused):  # it is over already
                self.calls(Message("decline", facts={"run": run, "why": plain(why), "waits": waits}))

    def _still_declined(self) -> str:
        """The run that this site does not take part in; one that was approved meanwhile is asked for again."""
        known = approved(self.out)
        self._declined = {run: waits for run, waits in self._declined.items() if not waits or waits not in known}
        return next(iter(self._declined), "")

    def considered(self, run: str, text: str) -> tuple[Recipe, Silo]:
        """What a run is, and this site's images for it; raises why this site does not take part, if it does not."""
        try:
            recipe = parse_recipe(tomllib.loads(text), run)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"its recipe is no TOML: {error}") from None
        silo = self._silo(recipe)
        if refusals := self.policy.refusals(recipe, len(silo.images), self.name):
            raise RecipeError(f"this site's policy: {'; '.join(refusals)}")
        mark = recipe_hash(text)
        if self.policy.approve == "hash" and mark not in approved(self.out):
            with writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
            replace_file(self.out / f"{mark[:12]}.toml", text.encode())
            for line in told_in_words(recipe, self.name, len(silo.images)):
                self.say(f"  {line}")
            self.say(f"  to allow it: manyhands federation approve {self.out} {mark[:12]}")
            raise NotApproved(f"{mark[:12]} is not approved here")
        return recipe, silo

    def _silo(self, recipe: Recipe) -> Silo:
        """This site's images: its folder's, or those that the recipe deals to it."""
        if self.policy.data == "recipe":
            dealt = {silo.name: silo for silo in silos_of(recipe)[0]}
            if self.name not in dealt:
                raise RecipeError(f"the recipe deals nothing to {self.name}, but to {', '.join(sorted(dealt)[:8])}")
            silo = dealt[self.name]
        else:
            silo = replace(silo_of(self.name, self.policy.data, recipe), secret=self._secret())
        bench = Workbench(chosen_device(self.policy.device))
        silo = replace(silo, seed=recipe.seed, bench=bench)
        recipe.method.fits(silo)
        return silo

    def _secret(self) -> str:
        """What noise that must hide something is drawn from: made once, and told to nobody."""
        path = self.out / "secret"
        if not path.exists():
            with writing(path):
                self.out.mkdir(parents=True, exist_ok=True)
                path.touch(0o600)
            replace_file(path, secrets.token_hex(32).encode())
            path.chmod(0o600)
        return path.read_text()

    def _take_part(self, run: str, recipe: Recipe, silo: Silo, folder: RunFolder) -> None:
        place = folder.silo(self.name)
        told = {"run": run, "images": len(silo.images), "held_out": len(silo.held_out or ()),
                "kept": generations(place)}  # fmt: skip
        self.say(f"{run}: waits for the others")
        begun = self.calls(Message("enrol", facts=told)).facts
        number, sites = begun["round"], begun["sites"]
        if sites < self.policy.min_sites:
            raise RecipeError(f"this site's policy: {sites} take part, {self.policy.min_sites} are the fewest")
        for newer in generations(place):
            if newer > number:  # of a round that was never closed, or of an older run of this name
                path_of(place, newer).unlink()
        found = next(iter(generations(place)), None)
        silo.memory = folder.memory(self.name, found) if found is not None else {}
        self.say(f"{run}: {sites} sites train from round {number + 1}")

        def keep(rounds: int) -> None:
            folder.save_silo(self.name, rounds, silo.memory)
            for old in generations(place)[KEPT:]:
                path_of(place, old).unlink()

        converse(recipe.method.silo(silo), recipe.method.plan(), self.calls, keep)
        keep(recipe.method.rounds)
        if own := recipe.method.own_generator(silo):
            ready(own, recipe.sampling, silo.images.classes, str(silo.bench.device)).save(place / "model")
        self.calls(Message("ended", facts={"run": run}))
        self.say(f"{run}: is through")


def _following(conversation: Conversation, answer: Message | Refused | None) -> Message:
    if isinstance(answer, Refused):
        return conversation.throw(answer)
    return conversation.send(answer)  # type: ignore[arg-type] # None starts a generator


def converse(conversation: Conversation, plan: Plan, call: Calls, keep: Callable[[int], None]) -> None:
    """Lead a conversation to its end: nothing is sent, and nothing taken, that is not in the plan.

    What the silo has is kept before it closes a round, to begin there again.
    """
    answer: Message | Refused | None = None
    try:
        while True:
            message = _following(conversation, answer)
            plan.check(message, "up")
            if plan.operations[message.op].closes_round:
                keep(message.facts["round"] + 1)
            try:
                answer = call(message)
                plan.check(answer, "down")
            except Refused as refusal:
                answer = refusal
    except StopIteration:
        return
    finally:
        conversation.close()
