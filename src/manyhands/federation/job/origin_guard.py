"""At the server: no party speaks in the name of another one.

FLARE 2.9 signs a party's name and its token as one text without a separator, and checks the origin of a message only if
it knows the token. So whoever moves a letter from the token to the name, or has a user's token, sends under any origin.
"""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message

EVERY = "*"


class OriginGuard(FLComponent):  # type: ignore[misc]  # FLARE has no types
    """Refuses a message whose origin is not of the party over whose connection it came, as its certificate names it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_event_handler(EventType.SYSTEM_START, self._begin)

    def _begin(self, _event: str, fl_ctx: FLContext) -> None:
        cell = fl_ctx.get_engine().get_cell().core_cell
        cell.add_incoming_filter(EVERY, EVERY, self._check)  # for one topic, it would replace FLARE's own check

    def _check(self, message: Message) -> Message | None:
        origin = str(message.get_header(MessageHeaderKey.ORIGIN))
        sender = str(message.get_prop(MessagePropKey.ENDPOINT).name)
        if FQCN.get_root(origin) == FQCN.get_root(sender):
            return None
        self.logger.warning(f"refused: {sender} sent a message in the name of {origin}")
        return make_reply(ReturnCode.UNAUTHENTICATED, error="it comes in the name of another party")
