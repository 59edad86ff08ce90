"""A site: it checks a run against its own policy, and takes part in it if that allows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from manyhands.errors import BudgetError, ManyhandsError, RecipeError, Refused, printable
from manyhands.federation.approval import approved, describe, keep_offer, note_site
from manyhands.federation.conversation import check_answer, converse
from manyhands.federation.kit import RUNS
from manyhands.federation.plans import ENDING_SECONDS, RUN_NAME, SITE_PLAN
from manyhands.federation.policy import Policy, recipe_hash
from manyhands.federation.released import Released
from manyhands.federation.secret import site_secret
from manyhands.federation.server_connection import IDLE_ANSWER_BOUNDS
from manyhands.federation.site_images import SiteImages
from manyhands.federation.usage import Usage
from manyhands.files.write import disk_errors
from manyhands.links.exchange import SessionGone
from manyhands.messages.message import Bounds, Message
from manyhands.methods.base import Method
from manyhands.models.pretrained import Pretrained
from manyhands.privacy.budget import NO_COST, RELEASES_FILE, Budget
from manyhands.runs.checkpoint import generations, path_of
from manyhands.runs.preparation_progress import shown_preparation
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_offer, understood
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.summary import prepare_for_sampling
from manyhands.silos.silo_memory import SiloMemory

if TYPE_CHECKING:
    from manyhands.federation.server_connection import ServerConnection
    from manyhands.silos.silo import Silo

KEPT_ROUNDS = 3
"""How many rounds a site keeps: the one that is closed, the one that it has sent, and the one before."""
APPROVAL_SECONDS = 2.0
"""How often a site looks whether somebody has approved the recipe."""
MAX_REASON_LINES = 20
"""The most lines of the reasons why a run is declined."""


class NotApproved(ManyhandsError):  # noqa: N818 - it is a state, which ends when somebody approves
    """Nobody at this site has approved this recipe yet."""


SHARED_ERRORS = (RecipeError, Refused, NotApproved)
"""The errors whose text the other parties get; other errors may name files of the site."""


class Site:
    """A site of a federation.

    Args:
        name: The site's name.
        policy: What the site allows.
        out: The folder for everything that the site keeps.
        connection: The connection to the server.
        log: Takes a line for people.
        pause: Waits this many seconds.
    """

    def __init__(
        self, name: str, policy: Policy, out: Path, connection: ServerConnection, log: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        if not policy.data:
            raise RecipeError(f"{name}: its policy names no images; set data to the folder of this site's images")
        self.name, self.policy, self.out, self.connection = name, policy, out, connection
        self.log, self.pause = log, pause
        self.budget_folder = Path(policy.ledger) if policy.ledger else out
        self.images = SiteImages(name, policy, self.budget_folder, log)
        self.has_finished = False

    def work(self, run: str, text: str) -> None:
        """Take part in a run until this site has finished, or say to the server why it does not.

        Args:
            run: The name of the run.
            text: The recipe, as TOML.

        Raises:
            RunAborted: The run was over before.
        """
        while not self.has_finished:
            try:
                recipe, silo = self.check_offer(run, text)
                folder = RunFolder(self._private_folder(RUNS) / run)
                usage = self._usage(recipe, text, len(silo.images), folder)
                with folder.open(recipe.resolved(), resume=True, patience=ENDING_SECONDS):
                    self._take_part(run, text, recipe, silo, folder, usage)
            except SessionGone:
                self.connection.new_session()
            except NotApproved as error:
                decline(error, self.connection, self.log, waits=True)
                self._await_approval(recipe_hash(text))
            except ManyhandsError as error:
                decline(error, self.connection, self.log)
                return

    def _await_approval(self, digest: str) -> None:
        while digest not in approved(self.out):
            self.connection.check()
            self.pause(APPROVAL_SECONDS)

    def check_offer(self, run: str, text: str) -> tuple[Recipe, Silo]:
        """Return the recipe of a run and this site's images for it.

        Until the policy and a person allow the run, no image is opened, and no other file or address that the recipe
        names is read, listed or fetched.

        Raises:
            ManyhandsError: This site does not take part, and why.
        """
        if not RUN_NAME.fullmatch(run):
            raise RecipeError(f"{printable(run)[:80]!r} is not a valid name of a run")
        recipe = parse_offer(text, run)
        check_pretrained(recipe.method)
        count = self.images.count(recipe)
        with understood(run):
            if count:  # images that the recipe deals are checked when their number is known
                self._check_policy(recipe, count)
            if self.policy.approve == "hash" and recipe_hash(text) not in approved(self.out):
                self._keep_for_approval(recipe, text, count)
        with shown_preparation(log=self.log):
            silo = self.images.load(recipe)
        self._check_policy(recipe, len(silo.images))
        return recipe, silo

    def _check_policy(self, recipe: Recipe, images: int) -> None:
        if refusals := self.policy.refusals(recipe, images, self.name):
            raise RecipeError(f"this site's policy: {'; '.join(refusals)}")

    def _private_folder(self, name: str) -> Path:
        """Return a folder that only its owner can read."""
        folder = self.out / name
        with disk_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        return folder

    def _keep_for_approval(self, recipe: Recipe, text: str, images: int) -> None:
        with disk_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        digest = keep_offer(self.out, text)
        note_site(self.out, self.name, self.images.files())
        for line in describe(recipe, digest, self.name, images):
            self.log(f"  {line}")
        if (self.budget_folder / RELEASES_FILE).exists() and (spent := self._budget().worst()) != NO_COST:
            self.log(f"  released of one image before, over all runs: at most {spent.words(self.policy.delta)}")
        self.log(f"  to allow it: manyhands federation approve {self.out.parent} {digest}")
        raise NotApproved(f"nobody here has approved the recipe {digest} yet")

    def _usage(self, recipe: Recipe, text: str, images: int, folder: RunFolder) -> Usage:
        """Return the usage of this recipe; raise ``BudgetError`` if a new run would exceed the policy."""
        usage = Usage(self.budget_folder, recipe_hash(text), self.policy.max_rounds(recipe), self.policy.bytes)
        upload = recipe.method.upload_bytes(images)
        if not folder.path.exists() and (refusals := usage.refusals(recipe.method.rounds, upload)):
            raise BudgetError(f"this site's policy: {'; '.join(refusals)}")
        return usage

    def _budget(self) -> Budget:
        return Budget(self.budget_folder, site_secret(self.budget_folder))

    def _take_part(self, run: str, text: str, recipe: Recipe, silo: Silo, folder: RunFolder, usage: Usage) -> None:
        """Enrol, hold the silo's half of the method, and save the silo's own model."""
        place = folder.silo(self.name)
        number, sites = self._enrol(recipe_hash(text), silo, place)
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

        released = Released(self._budget(), self.policy.limits, silo, recipe.method, self.images.loaded_files)

        def charge(message: Message, closes_round: bool) -> None:
            released.charge(message, run)
            usage.charge(message, closes_round=closes_round, run=run)

        plan = recipe.method.plan()
        self.connection.bounds = Bounds.largest([IDLE_ANSWER_BOUNDS, plan.bounds("down")])
        try:
            converse(recipe.method.silo(silo), plan, self.connection, keep, charge)
        finally:
            self.connection.bounds = IDLE_ANSWER_BOUNDS
        keep(recipe.method.rounds)
        if own := recipe.method.silo_generator(silo):
            device = str(silo.device_context.device)
            prepare_for_sampling(own, recipe.sampling, silo.images.classes, device).save(place / "model")
        self.connection(Message("ended"))
        self.has_finished = True
        self.log(f"{run}: this site has finished")

    def _enrol(self, digest: str, silo: Silo, place: Path) -> tuple[int, int]:
        """Enrol, wait for the other sites, and return the round to begin with and the number of sites."""
        facts = {"recipe": digest, "images": len(silo.images), "held_out": len(silo.held_out or ()),
                "kept": generations(place)}  # fmt: skip
        self.log("waits for the other sites")
        answer = self.connection(Message("enrol", facts=facts))
        check_answer("enrol", answer, SITE_PLAN)
        number, sites = answer.facts["round"], answer.facts["sites"]
        if sites < self.policy.min_sites:
            raise RecipeError(
                f"this site's policy: the run has {sites} sites, but min_sites is {self.policy.min_sites}"
            )
        return number, sites


def check_pretrained(method: Method) -> None:
    """Raise ``RecipeError`` for a pretrained model that is not below the folder in which this site runs.

    Its config.json says what the run sends, so it is read before anybody approves the recipe; nothing is fetched.

    Args:
        method: The method of a recipe that came from the server.
    """
    for model in (getattr(method, name) for name in type(method).model_fields):
        if isinstance(model, Pretrained) and not model.is_below(Path.cwd()):
            raise RecipeError(
                f"method.model.folder: {printable(model.folder)[:80]!r} is no folder below the one in which this site "
                "runs; a site reads no other, and fetches none: copy the pretrained model there"
            )


def decline(
    error: ManyhandsError, connection: ServerConnection, log: Callable[[str], None], *, waits: bool = False
) -> None:
    """Say here and to the server why a site does not take part, or not before somebody here approves the recipe.

    Args:
        error: Why not.
        connection: The connection to the server.
        log: Takes a line for people here, who are told more.
        waits: Whether the site may still take part.
    """
    lines = str(error).splitlines()
    more = len(lines) - MAX_REASON_LINES
    for line in [*lines[:MAX_REASON_LINES], *([f"and {more:,} more"] if more > 0 else [])]:
        log(f"{'waits' if waits else 'does not take part'}: {printable(line)}")
    why = "its images, its policy, its folder or its budget do not allow it; its log says why"
    if isinstance(error, SHARED_ERRORS):
        why = printable(str(error).replace("\n", "; "))
    message = Message("decline", facts={"why": why, "waits": waits})
    with suppress(Refused):  # the run is already over
        while True:
            try:
                connection(message)
                return
            except SessionGone:
                connection.new_session()
