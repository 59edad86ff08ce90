"""The operations between the server and its sites and admin that belong to no method, as plans."""

from __future__ import annotations

import torch

from manyhands.errors import MAX_DETAIL_LENGTH
from manyhands.messages.facts import Flag, Listed, Table, Text, Whole
from manyhands.messages.message import MAX_HEADER_BYTES
from manyhands.messages.operation import IMAGES, Operation, Payload
from manyhands.messages.plan import Plan
from manyhands.tensors import TensorSpec

RUN = Text(80)
"""The name of a run, or an empty text."""
PIECE_BYTES = 1 << 25
"""The most bytes of a file in one message."""
RECIPE = Text(MAX_HEADER_BYTES)
ROUND, SITE, HASH = Whole(0, 1_000_000), Text(64), Text(64)
NOTHING = Payload()

SITE_PLAN = Plan({
    "hello": Operation(
        "asks for a run", "repeatedly",
        Payload(facts={"declined": RUN}), Payload(facts={"run": RUN, "recipe": RECIPE}),
    ),
    "enrol": Operation(
        "takes part", "when it begins",
        Payload(facts={"run": RUN, "images": IMAGES, "held_out": Whole(0, IMAGES.maximum), "kept": Listed(ROUND, 64)}),
        Payload(facts={"round": ROUND, "sites": ROUND}),
    ),
    "decline": Operation(
        "does not take part, or no longer", "once",
        Payload(facts={"run": RUN, "why": Text(MAX_DETAIL_LENGTH), "waits": Flag()}),
    ),
    "ended": Operation("has finished", "once", Payload(facts={"run": RUN})),
})  # fmt: skip
"""The operations of a site."""
ADMIN_PLAN = Plan({
    "submit": Operation(
        "starts a run", "once a run",
        Payload(facts={"recipe": Table(MAX_HEADER_BYTES), "sites": Listed(SITE, 1000)}),
        Payload(facts={"run": RUN, "hash": HASH}),
    ),
    "status": Operation(
        "asks for the status", "at any time", NOTHING,
        Payload(facts={"sites": Table(MAX_HEADER_BYTES), "run": Table(4 * MAX_DETAIL_LENGTH)}),
    ),
    "stop": Operation("ends a run", "once a run", Payload(facts={"run": RUN}), Payload(facts={"run": RUN})),
    "files": Operation(
        "asks which files a run has", "once a run", Payload(facts={"run": RUN}),
        Payload(facts={"files": Table(MAX_HEADER_BYTES)}),
    ),
    "file": Operation(
        "asks for a piece of a file", "piece by piece",
        Payload(facts={"run": RUN, "path": Text(4 * MAX_DETAIL_LENGTH), "at": Whole(0, 1 << 53)}),
        Payload({"bytes": TensorSpec((None,), torch.uint8, PIECE_BYTES)}, others=({},)),
    ),
})  # fmt: skip
"""The operations of the admin."""
