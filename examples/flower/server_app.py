"""The ServerApp: the server's half of a method. Flower carries its messages in waves, one to each silo that waits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid, ServerApp

from manyhands.errors import ManyhandsError, Refused
from manyhands.federation.policy import recipe_text
from manyhands.links.coordinator import RoundCoordinator
from manyhands.messages.ledger import Ledger
from manyhands.messages.message import Message, decode, encode
from manyhands.methods.base import plan_of
from manyhands.runs.recipe_file import load_recipe
from manyhands.runs.round import State
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.shipped import recipe_path
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import DeviceContext

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    recipe, folder = load_recipe(recipe_path(config["recipe"]), config["set"].split()), RunFolder(Path(config["out"]))
    with folder.open(recipe.resolved(), resume=False):
        while len(nodes := list(grid.get_node_ids())) < config["silos"]:
            time.sleep(0.2)
        begin = Message("begin", facts={"recipe": recipe_text(recipe)})
        enrolled = exchange(grid, "query.begin", dict.fromkeys(nodes, begin))
        roster = dict(sorted((reply.facts["silo"], reply.facts["images"]) for reply in enrolled.values()))
        server = recipe.method.server(recipe.seed, roster)
        server.device = DeviceContext(chosen_device(recipe.device)).device
        coordinator = RoundCoordinator(server, plan_of(recipe.method), roster)
        train(grid, coordinator, {reply.facts["silo"]: node for node, reply in enrolled.items()})
        folder.save(State.of(server, roster, Ledger(), {}))


def train(grid: Grid, coordinator: RoundCoordinator, nodes: Mapping[str, int]) -> None:
    """Answer the silos, in the order of their names, until all have finished."""
    answers = dict.fromkeys(sorted(nodes), Message("start"))
    while answers:
        replies = exchange(grid, "query.answer", {nodes[silo]: answer for silo, answer in answers.items()})
        for silo in answers:
            reply = replies[nodes[silo]]
            try:
                coordinator.finish(silo) if reply.op == "finished" else coordinator.submit(silo, reply)
            except Refused as refusal:
                coordinator.refuse(silo, refusal)
        open_silos = sorted(nodes.keys() - coordinator.done)
        answers = {silo: answer for silo in open_silos if (answer := collect(coordinator, silo))}


def collect(coordinator: RoundCoordinator, silo: str) -> Message | None:
    """Return the answer to a silo's message, or None while it waits for the other silos."""
    try:
        return coordinator.collect(silo)
    except Refused as refusal:
        return Message("refused", facts={"reason": refusal.reason, "detail": refusal.detail})


def exchange(grid: Grid, kind: str, messages: Mapping[int, Message]) -> dict[int, Message]:
    """Send each node a message, and return their replies when all have come."""
    began, replies = time.monotonic(), {}
    records = {node: ConfigRecord({"message": encode(message)}) for node, message in messages.items()}
    sent = [FlowerMessage(RecordDict({"manyhands": record}), node, kind) for node, record in records.items()]
    waiting = set(grid.push_messages(sent))
    while waiting:
        time.sleep(0.1)
        for reply in grid.pull_messages(waiting):
            if reply.has_error():
                raise ManyhandsError(reply.error.reason)
            waiting.remove(reply.metadata.reply_to_message_id)
            replies[reply.metadata.src_node_id] = decode(reply.content["manyhands"]["message"])
    operations = ", ".join(sorted({reply.op for reply in replies.values()}))
    print(f"{operations}: {len(messages)} messages and replies in {time.monotonic() - began:.1f} s", flush=True)
    return replies
