"""A silo's process: it holds the silo's half of the method for as long as the run lasts."""

from __future__ import annotations

import socket
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

from manyhands.errors import Reason, Refused
from manyhands.federation.conversation import converse
from manyhands.messages.message import Message, decode, encode
from manyhands.methods.base import plan_of
from manyhands.runs.compose import silos_of
from manyhands.runs.recipe_file import parse_recipe
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import DeviceContext

IDLE_SECONDS = 600.0
"""The silo ends if no message comes for so long."""


class Line:
    """The socket to which each process of Flower connects once, with an answer of the server.

    Args:
        listener: The socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.listener.settimeout(IDLE_SECONDS)

    def receive(self) -> Message:
        """Wait for the server's next answer."""
        self.connection, _ = self.listener.accept()
        message = decode(self.connection.makefile("rb").read())
        if message.op == "refused":
            raise Refused(Reason(message.facts["reason"]), message.facts["detail"])
        return message

    def reply(self, message: Message) -> None:
        """Send a message as the reply to that answer."""
        with self.connection:
            self.connection.sendall(encode(message))

    def call(self, message: Message) -> Message:
        """Send a message and return the answer."""
        self.reply(message)
        return self.receive()


def main(name: str, line: Line) -> None:
    """Take part in one run."""
    recipe = parse_recipe(tomllib.loads(line.receive().facts["recipe"]), "the recipe of the server")
    silo = next(silo for silo in silos_of(recipe)[0] if silo.name == name)
    silo = replace(silo, seed=recipe.seed, device_context=DeviceContext(chosen_device(recipe.device)))
    line.call(Message("enrol", facts={"silo": name, "images": len(silo.images)}))
    conversation, plan = recipe.method.silo(silo), plan_of(recipe.method)
    converse(conversation, plan, line.call, keep=lambda _: None, charge=lambda *_: None)
    line.reply(Message("finished"))


if __name__ == "__main__":
    with socket.socket(fileno=sys.stdin.fileno()) as listener:
        try:
            main(sys.argv[1], Line(listener))
        finally:
            Path(listener.getsockname()).unlink()
