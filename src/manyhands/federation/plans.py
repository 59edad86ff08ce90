"""The operations between the server and its sites that belong to no method, as a plan."""

from __future__ import annotations

import re

from manyhands.errors import MAX_DETAIL_LENGTH
from manyhands.messages.facts import Flag, Listed, Text, Whole
from manyhands.messages.operation import IMAGES, Operation, Payload
from manyhands.messages.plan import Plan

ENDING_SECONDS = 30.0
"""How long a process waits for an earlier one of the same run, which FLARE has restarted before it had ended."""
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
"""The name of a run, which names its folder at the server and at each site."""
ROUND, HASH = Whole(0, 1_000_000), Text(64)

SITE_PLAN = Plan({
    "enrol": Operation(
        "takes part", "when it begins",
        Payload(
            facts={
                "recipe": HASH, "images": IMAGES, "held_out": Whole(0, IMAGES.maximum), "kept": Listed(ROUND, 64)
            }
        ),
        Payload(facts={"round": ROUND, "sites": ROUND}),
    ),
    "decline": Operation(
        "does not take part, or no longer", "once",
        Payload(facts={"why": Text(MAX_DETAIL_LENGTH), "waits": Flag()}),
    ),
    "ended": Operation("has finished", "once", Payload()),
})  # fmt: skip
"""The operations of a site."""
