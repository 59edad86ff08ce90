"""What comes in the name of another party is refused, whatever credentials it carries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey, ReturnCode
from nvflare.fuel.f3.message import Message

from manyhands.federation.job.origin_guard import OriginGuard


def message(origin: str, sender: str) -> Message:
    sent = Message({MessageHeaderKey.ORIGIN: origin}, b"")
    sent.set_prop(MessagePropKey.ENDPOINT, SimpleNamespace(name=sender))
    return sent


@pytest.mark.parametrize(
    ("origin", "sender"),
    [("a", "a"), ("a.job", "a"), ("a.job", "a.job"), ("server.job", "server.job"), ("relay.a.job", "relay")],
)
def test_a_party_speaks_for_itself_and_for_its_jobs(origin: str, sender: str) -> None:
    assert OriginGuard()._check(message(origin, sender)) is None


@pytest.mark.parametrize(
    ("origin", "sender"),
    [
        ("b.job", "a.job"),
        ("server.job", "a.job"),
        ("server", "a"),
        ("b", "_admin_1234"),
        ("b.job", "ab.job"),
        ("", "a"),
    ],
)
def test_no_party_speaks_for_another(origin: str, sender: str) -> None:
    refusal = OriginGuard()._check(message(origin, sender))
    assert refusal is not None
    assert refusal.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED
