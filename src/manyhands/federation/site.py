"""A site: it asks the server for runs, holds them against its own policy, and does its half of those it allows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from manyhands.data.sources import Folder
from manyhands.errors import BudgetError, DataError, ManyhandsError, Reason, RecipeError, Refused, printable
from manyhands.federation.approval import approved, count_images, describe, keep_offer, note_site
from manyhands.federation.plans import SITE_PLAN
from manyhands.federation.policy import FROM_RECIPE, Policy, recipe_hash
from manyhands.federation.released import Released
from manyhands.federation.secret import site_secret
from manyhands.federation.server_connection import IDLE_BOUNDS
from manyhands.federation.usage import Usage
from manyhands.files.write import disk_errors
from manyhands.formatting import names_text
from manyhands.links.exchange import SessionGone
from manyhands.messages.message import Bounds, Message
from manyhands.privacy.budget import FILE as LEDGER
from manyhands.privacy.budget import NO_COST, Budget
from manyhands.runs.checkpoint import generations, path_of
from manyhands.runs.compose import silo_of, silos_of
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_offer, understood
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.summary import ready
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import FROM_THE_SEED, DeviceContext
from manyhands.silos.silo_memory import SiloMemory

if TYPE_CHECKING:
    from manyhands.federation.server_connection import ServerConnection
    from manyhands.messages.plan import Plan
    from manyhands.methods.base import Conversation
    from manyhands.silos.silo import Silo

RUNS = "runs"
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
"""The name of a recipe, and a number where that was taken."""
KEPT_ROUNDS = 3
"""So many rounds a site keeps: that which is closed, that which it has sent, and the one before."""
PATIENCE, MAX_WAIT = 3, 60.0
"""So many runs in a row are declined at once; then it waits before the next, longer each time."""
MAX_LINES = 20
"""So many of the reasons why a run is declined are said."""


class NotApproved(ManyhandsError):  # noqa: N818 - what is so, until somebody approves
    """Nobody at this site has read and approved this recipe."""


SHARED_ERRORS = (RecipeError, Refused, NotApproved)
"""What a site says to others of why it does not take part: other errors may name its files."""


class Site:
    """``log`` gets a line for people, ``pause`` waits so many seconds."""

    def __init__(
        self, name: str, policy: Policy, out: Path, connection: ServerConnection, log: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        if not policy.data:
            raise RecipeError(f"{name}: say which images are its own: data, in its policy, names their folder")
        self.name, self.policy, self.out, self.connection = name, policy, out, connection
        self.log, self.pause = log, pause
        self.ledger = Path(policy.ledger) if policy.ledger else out
        self._declined: dict[str, str] = {}
        self._files: list[Path] = []
        self._in_a_row = 0

    def work(self, forever: Callable[[], bool] = lambda: True) -> None:
        """Take part in run after run."""
        while forever():
            try:
                self._once()
            except SessionGone:
                self.connection.new_session()

    def _once(self) -> None:
        try:
            offer = self.connection(Message("hello", facts={"declined": self._still_declined()}))
            check_answer("hello", offer, SITE_PLAN)
        except Refused as refusal:
            self.log(f"the server offers what is no run: {refusal}")
            self._wait_a_while()
            return
        run, text = offer.facts["run"], offer.facts["recipe"]
        if not run:
            return
        try:
            recipe, silo = self.check_offer(run, text)
            folder = RunFolder(self._private_folder(RUNS) / run)
            usage = self._usage(recipe, text, len(silo.images), folder)
            with folder.open(recipe.resolved(), resume=True):
                self._in_a_row = 0
                self._take_part(run, recipe, silo, folder, usage)
        except SessionGone:
            raise
        except ManyhandsError as error:
            self._decline(printable(run), recipe_hash(text) if isinstance(error, NotApproved) else "", error)

    def _decline(self, run: str, waits: str, error: ManyhandsError) -> None:
        """Say why; ``waits`` is the hash of a recipe that somebody may approve yet."""
        self._declined = {run: waits}
        lines = str(error).splitlines()
        more = len(lines) - MAX_LINES
        for line in [*lines[:MAX_LINES], *([f"and {more:,} more"] if more > 0 else [])]:
            self.log(f"{run}: {printable(line)}")
        why = "its images, its folder or its budget do not allow it; its log says why"
        if isinstance(error, SHARED_ERRORS):
            why = printable(str(error).replace("\n", "; "))
        with suppress(Refused):  # it is over already
            self.connection(Message("decline", facts={"run": run, "why": why, "waits": bool(waits)}))
        self._wait_a_while()

    def _wait_a_while(self) -> None:
        """Ask no server again and again that has nothing but what is declined."""
        self._in_a_row += 1
        if self._in_a_row > PATIENCE:
            self.pause(min(2.0 ** (self._in_a_row - PATIENCE), MAX_WAIT))

    def _still_declined(self) -> str:
        """The run that this site does not take part in; one that was approved meanwhile is asked for again."""
        known = approved(self.out)
        self._declined = {run: waits for run, waits in self._declined.items() if not waits or waits not in known}
        return next(iter(self._declined), "")

    def check_offer(self, run: str, text: str) -> tuple[Recipe, Silo]:
        """What a run is, and this site's images for it; raises why this site does not take part, if it does not.

        Until its policy and its people allow it, nothing is opened, listed or fetched but what is this site's own.
        """
        if not RUN_NAME.fullmatch(run):
            raise RecipeError(f"a run cannot be called {printable(run)[:80]!r}")
        recipe = parse_offer(text, run)
        counted = self._image_count(recipe)
        with understood(run):
            if counted:  # what is dealt is held against the policy when it is known
                self._check_policy(recipe, counted)
            if self.policy.approve == "hash" and recipe_hash(text) not in approved(self.out):
                self._keep_for_approval(recipe, text, counted)
        silo = self._silo(recipe)
        self._check_policy(recipe, len(silo.images))
        return recipe, silo

    def _check_policy(self, recipe: Recipe, images: int) -> None:
        if refusals := self.policy.refusals(recipe, images, self.name):
            raise RecipeError(f"this site's policy: {'; '.join(refusals)}")

    def _private_folder(self, name: str) -> Path:
        """A folder of the site's own, which nobody else of its machine can read."""
        folder = self.out / name
        with disk_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        return folder

    def _keep_for_approval(self, recipe: Recipe, text: str, images: int) -> None:
        with disk_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        digest = keep_offer(self.out, text)
        note_site(self.out, self.name, len(self._image_files()))
        for line in describe(recipe, digest, self.name, images):
            self.log(f"  {line}")
        if (self.ledger / LEDGER).exists() and (spent := self._budget().worst()) != NO_COST:
            self.log(f"  released of one image before, over all runs: at most {spent.words(self.policy.delta)}")
        self.log(f"  to allow it: manyhands federation approve {self.out} {digest}")
        raise NotApproved(f"{digest} is not approved here")

    def _image_count(self, recipe: Recipe) -> int:
        """About how many images it would train on, without opening any; 0 where they are only dealt later."""
        return count_images(recipe, len(self._image_files()))

    def _silo(self, recipe: Recipe) -> Silo:
        """This site's images: its folder's, or in the demo those that the recipe deals to it."""
        silo = self._simulated_silo(recipe) if self.policy.data == FROM_RECIPE else self._own_silo(recipe)
        context = DeviceContext(chosen_device(self.policy.device))
        silo = replace(silo, seed=recipe.seed, device_context=context)
        recipe.method.check_silo(silo)
        return silo

    def _own_silo(self, recipe: Recipe) -> Silo:
        self._files = self._image_files()
        silo = replace(silo_of(self.name, self.policy.data, recipe), secret=site_secret(self.ledger))
        if self._files != self._image_files():
            raise DataError(f"{self.policy.data}: was changed while it was read")
        return silo

    def _image_files(self) -> list[Path]:
        """The pictures of this site's folder; none is opened."""
        return Folder(path=Path(self.policy.data)).files() if self.policy.data != FROM_RECIPE else []

    def _simulated_silo(self, recipe: Recipe) -> Silo:
        dealt = {silo.name: silo for silo in silos_of(recipe)[0]}
        if self.name not in dealt:
            raise RecipeError(f"the recipe deals nothing to {self.name}, but to {names_text(sorted(dealt))}")
        if recipe.method.needs_secret:
            self.log(f"simulated: noise {FROM_THE_SEED}")
        return dealt[self.name]

    def _usage(self, recipe: Recipe, text: str, images: int, folder: RunFolder) -> Usage:
        """What this recipe has had of this site; raises where a run that is new here would go beyond the policy."""
        usage = Usage(self.ledger, recipe_hash(text), self.policy.max_rounds(recipe), self.policy.bytes)
        sent = recipe.method.upload_bytes(images)
        if not folder.path.exists() and (refusals := usage.refusals(recipe.method.rounds, sent)):
            raise BudgetError(f"this site's policy: {'; '.join(refusals)}")
        return usage

    def _budget(self) -> Budget:
        return Budget(self.ledger, site_secret(self.ledger))

    def _take_part(self, run: str, recipe: Recipe, silo: Silo, folder: RunFolder, usage: Usage) -> None:
        place = folder.silo(self.name)
        facts = {"run": run, "images": len(silo.images), "held_out": len(silo.held_out or ()),
                "kept": generations(place)}  # fmt: skip
        self.log(f"{run}: waits for the others")
        begun = self.connection(Message("enrol", facts=facts))
        check_answer("enrol", begun, SITE_PLAN)
        number, sites = begun.facts["round"], begun.facts["sites"]
        if sites < self.policy.min_sites:
            raise RecipeError(f"this site's policy: {sites} take part, {self.policy.min_sites} are the fewest")
        for newer in generations(place):
            if newer > number:  # of a round that was never closed, or of an older run of this name
                path_of(place, newer).unlink()
        newest = next(iter(generations(place)), None)
        silo.memory = SiloMemory(folder.memory(self.name, newest) if newest is not None else {})
        self.log(f"{run}: {sites} sites train from round {number + 1}")

        def keep(rounds: int) -> None:
            folder.save_silo(self.name, rounds, silo.memory)
            for kept_round in generations(place)[KEPT_ROUNDS:]:
                path_of(place, kept_round).unlink()

        released = Released(self._budget(), self.policy.limits, silo, recipe.method, self._files)

        def charge(message: Message, closes_round: bool) -> None:
            released.charge(message, run)
            usage.charge(message, closes_round=closes_round, run=run)

        plan = recipe.method.plan()
        self.connection.bounds = Bounds.largest([IDLE_BOUNDS, plan.bounds("down")])
        try:
            converse(recipe.method.silo(silo), plan, self.connection, keep, charge)
        finally:
            self.connection.bounds = IDLE_BOUNDS
        keep(recipe.method.rounds)
        if own := recipe.method.silo_generator(silo):
            ready(own, recipe.sampling, silo.images.classes, str(silo.device_context.device)).save(place / "model")
        self.connection(Message("ended", facts={"run": run}))
        self.log(f"{run}: is through")


def _next_message(conversation: Conversation, answer: Message | Refused | None) -> Message:
    if isinstance(answer, Refused):
        return conversation.throw(answer)
    return conversation.send(answer)  # type: ignore[arg-type] # None starts a generator


def check_answer(op: str, answer: Message, plan: Plan) -> None:
    """Refuse what is no answer to this operation: another one's may lack what whoever asked goes on with."""
    plan.check(answer, "down")
    if answer.op != op:
        raise Refused(Reason.UNKNOWN_OPERATION, f"{answer.op!r} is no answer to {op!r}")


def converse(
    conversation: Conversation, plan: Plan, call: ServerConnection, keep: Callable[[int], None],
    charge: Callable[[Message, bool], None],
) -> None:  # fmt: skip
    """Lead a conversation to its end: nothing is sent, and nothing taken, that is not in the plan.

    What the silo has is kept before it closes a round, to begin there again; every message is charged before it is
    sent, and the last of a round as such. A round that was closed is not done again, whatever weights come for it.
    """
    answer: Message | Refused | None = None
    done = 0
    try:
        while True:
            message = _next_message(conversation, answer)
            plan.check(message, "up")
            if closes_round := plan.operations[message.op].closes_round:
                if message.facts["round"] < done:
                    raise Refused(Reason.STALE_ROUND, f"{done} rounds are closed, and the server asks for one again")
                keep(message.facts["round"] + 1)
            charge(message, closes_round)
            try:
                answer = call(message)
                check_answer(message.op, answer, plan)
                done = message.facts["round"] + 1 if closes_round else done
            except Refused as refusal:
                answer = refusal
    except StopIteration:
        return
    finally:
        conversation.close()
