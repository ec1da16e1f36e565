"""The client of a server list: one link, one request, one answer or one reason."""

from __future__ import annotations

import pytest

from polynya.core.errors import UsageError
from polynya.core.instants import SECOND, Instant
from polynya.signaling.client import Ended, ServersReceived
from polynya.signaling.links import CloseLink, LinkClosed, LinkOpened, LinkText, OpenLink, SendText
from polynya.signaling.messages import Error, IceServer, ListServers, ServerList, encode
from polynya.signaling.servers import LINK, ServerListClient

START = Instant(0)
SERVERS = (IceServer(uris=("stun:192.0.2.1:3478",)),)


def requesting() -> ServerListClient:
    """A client whose request is sent."""
    client = ServerListClient()
    client.start(now=START)
    assert client.outputs() == [OpenLink(link=LINK)]
    client.receive(LinkOpened(link=LINK), now=START)
    assert client.outputs() == [SendText(LINK, encode(ListServers()))]
    return client


def test_the_list_is_emitted_and_the_link_closed() -> None:
    client = requesting()
    client.receive(LinkText(LINK, "a message of a later version"), now=START)
    client.receive(LinkText(LINK, encode(ServerList(SERVERS))), now=START)
    assert client.events() == [ServersReceived(servers=SERVERS)]
    assert client.outputs() == [CloseLink(link=LINK)]
    assert client.next_timer() is None
    client.receive(LinkClosed(link=LINK), now=START)
    client.leave(now=START)
    assert client.events() == client.outputs() == []


def test_a_refusal_and_a_broken_link_end_it_with_the_reason() -> None:
    client = requesting()
    client.receive(LinkText(LINK, encode(Error(code="host-full", message="too many", fatal=True))), now=START)
    assert client.events() == [Ended(code="host-full", reason="too many")]
    assert client.outputs() == [CloseLink(link=LINK)]
    client = requesting()
    client.receive(LinkClosed(link=LINK, reason="refused"), now=START)
    assert client.events() == [Ended(code="unreachable", reason="refused")]
    assert client.outputs() == []


def test_it_gives_up_after_its_timeout() -> None:
    client = ServerListClient(timeout=5 * SECOND)
    client.start(now=START)
    assert client.next_timer() == 5 * SECOND
    client.tick(now=Instant(5 * SECOND - 1))
    assert client.events() == []
    client.tick(now=Instant(5 * SECOND))
    [ended] = client.events()
    assert isinstance(ended, Ended)
    assert ended.code == "no-answer"


def test_a_second_start_is_a_usage_error() -> None:
    client = requesting()
    with pytest.raises(UsageError, match="already been started"):
        client.start(now=START)
