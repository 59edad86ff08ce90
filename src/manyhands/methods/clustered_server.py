"""Several servers of one method, one for each cluster of silos."""

from __future__ import annotations

from collections.abc import Mapping

from manyhands.messages.message import Message
from manyhands.methods.server import Accumulated, Server
from manyhands.tensors import Tensors, add_prefix, strip_prefix


class ClusteredServer(Server):
    """Passes each message to the server of the silo's cluster. All servers close their rounds together.

    Args:
        servers: The server of each cluster, by the name of the cluster.
        clusters: The silos of each cluster.
    """

    def __init__(self, servers: Mapping[str, Server], clusters: Mapping[str, tuple[str, ...]]) -> None:
        self.servers = dict(servers)
        self.cluster_of = {silo: name for name, silos in clusters.items() for silo in silos}

    @property
    def round(self) -> int:
        """The round of all of them."""
        return min((server.round for server in self.servers.values()), default=0)

    @round.setter  # noqa: A003 - the property above
    def round(self, number: int) -> None:
        for server in self.servers.values():
            server.round = number

    def handle(self, silo: str, message: Message) -> Message:
        """Pass the message on."""
        return self._of(silo).handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Pass the message on."""
        self._of(silo).validate(silo, message)

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Pass the message on."""
        return self._of(silo).accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round in every cluster, even in one from which no silo called."""
        answers: dict[str, Message] = {}
        for name, server in self.servers.items():
            of_cluster = {silo: message for silo, message in messages.items() if self.cluster_of[silo] == name}
            answers |= server.handle_barrier(op, of_cluster)
        return answers

    def go_back(self, state: Tensors) -> str | None:
        """Have all of them go back."""
        left_out = [server.go_back(strip_prefix(state, f"{name}/")) for name, server in self.servers.items()]
        return None if None in left_out else ", ".join(filter(None, left_out))

    def state_dict(self) -> Tensors:
        """Return the state of each server, under the name of its cluster."""
        parts = (add_prefix(server.state_dict(), f"{name}/") for name, server in self.servers.items())
        return {name: tensor for part in parts for name, tensor in part.items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        for name, server in self.servers.items():
            server.load_state_dict(strip_prefix(state, f"{name}/"))

    def _of(self, silo: str) -> Server:
        return self.servers[self.cluster_of[silo]]
