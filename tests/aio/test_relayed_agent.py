"""Agents behind a TURN server: credentials, TLS, name resolution, and the sizes of datagrams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import polynya
from polynya.serve import Server
from polynya.turn.client.indications import MAX_DATA
from tests.aio.test_endpoint import one_shot
from tests.interop.coturn import make_certificate
from tests.loops import until
from tests.reports import flat
from tests.serve import turn_house

pytestmark = pytest.mark.loops("asyncio", "uvloop")

LOGIN = {"username": turn_house.NAME, "credential": turn_house.PASSWORD}


def relayed(uri: str, *, controlling: bool, **options: object) -> polynya.Agent:
    """An agent whose only candidates are on a TURN server."""
    given = {"servers": [{"urls": uri, **LOGIN}]} | options
    return polynya.Agent(
        controlling=controlling, policy="relay", loopback=True, interfaces=["lo"], families=(4,), **given
    )  # type: ignore[arg-type]


@asynccontextmanager
async def connected(a: polynya.Agent, b: polynya.Agent) -> AsyncIterator[tuple[polynya.Connection, polynya.Connection]]:
    async with a, b:
        await one_shot(a, b)
        here, there = await asyncio.gather(a.connect(20), b.connect(20))
        await asyncio.gather(a.completed(20), b.completed(20))
        yield here, there


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_the_size_of_a_datagram_is_that_of_the_relayed_path(transport: str) -> None:
    """RFC 8656: 4 bytes by a channel, 36 in a Send indication; both sides are relayed here."""
    async with Server(turn_house.config()) as server:
        uri = turn_house.uri(server, transport)
        a, b = relayed(uri, controlling=True), relayed(uri, controlling=False)
        async with connected(a, b) as (here, there):
            overhead = a._overhead(a.pairs()[0])
            assert overhead is not None and overhead.transport.value == transport
            await until(lambda: all(each._overhead(each.pairs()[0]).channel for each in (a, b)))  # type: ignore[union-attr]
            assert here.path.relayed and here.max_datagram_size == 576 - 28 - 36
            assert here.send(bytes(here.max_datagram_size))
            assert await there.recv() == bytes(576 - 28 - 36)
            with pytest.raises(polynya.UsageError, match="is too long"):
                here.send(bytes(65508))
            with pytest.raises(polynya.UsageError, match=f"carries {MAX_DATA}, and 512 without"):
                here.send(bytes(MAX_DATA + 1))
            assert here.send(bytearray(b"x")) and await there.recv() == b"x"
            assert here.datagrams_sent == 2


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_close_is_noticed_through_relays(transport: str) -> None:
    """The notice leaves before the Refresh that frees the allocation."""
    async with Server(turn_house.config()) as server:
        uri = turn_house.uri(server, transport)
        a, b = relayed(uri, controlling=True), relayed(uri, controlling=False)
        async with connected(a, b) as (here, there):
            await here.close()
            assert await there.wait_closed() == "the other side closed the connection"


async def test_tls_and_resolve_are_those_that_were_given(tmp_path: Path) -> None:
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    names: list[str] = []

    async def resolve(name: str) -> list[str]:
        names.append(name)
        return ["127.0.0.1"]

    async with Server(turn_house.tls_config(tmp_path)) as server:
        uri = f"turns:turn.example.org:{server.tls_addresses[0].port}"
        trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        trusting.check_hostname = False
        options = {"tls": trusting, "resolve": resolve}
        a, b = (relayed(uri, controlling=each, **options) for each in (True, False))
        async with connected(a, b) as (here, there):
            here.send(b"over TLS")
            assert await there.recv() == b"over TLS"
        assert set(names) == {"turn.example.org"}
        async with relayed(uri, controlling=True, resolve=resolve) as distrusting:
            assert [candidate async for candidate in distrusting.candidates()] == []
            assert "certificate" in flat(distrusting.why())
        async with polynya.TurnClient(
            uri, username=turn_house.NAME, password=turn_house.PASSWORD, families=(4,), **options
        ) as relay:
            assert relay.relayed[0].host == "127.0.0.1"


async def test_credentials_are_asked_for_when_there_are_none() -> None:
    asked: list[tuple[str, str]] = []

    async def ask(uri: str, realm: str) -> tuple[str, str]:
        asked.append((uri, realm))
        return turn_house.NAME, turn_house.PASSWORD

    async with Server(turn_house.config()) as server:
        uri = turn_house.uri(server)
        a = relayed(uri, controlling=True, servers=[uri], credentials=ask)
        b = relayed(uri, controlling=False)
        async with connected(a, b) as (here, there):
            here.send(b"x")
            assert await there.recv() == b"x"
        assert asked == [(uri, turn_house.REALM)]


FAILURES = [
    pytest.param(polynya.SignalingError("there are none"), "SignalingError: there are none"),
    pytest.param(LookupError("there are none"), "LookupError: there are none", marks=pytest.mark.unhandled(1)),
    pytest.param(asyncio.CancelledError(), "CancelledError", marks=pytest.mark.unhandled(1)),
    pytest.param(("one",), "it returned str: return a user name", marks=pytest.mark.unhandled(1)),
    pytest.param("ab", "it returned str: return a user name", marks=pytest.mark.unhandled(1)),
    pytest.param((b"user", "password"), "it returned bytes, str", marks=pytest.mark.unhandled(1)),
    pytest.param(None, "it returned NoneType", marks=pytest.mark.unhandled(1)),
    pytest.param(("", "password"), "ConfigurationError: the TURN user name is empty"),
    pytest.param(("user", "a wrong password"), "it refuses the credentials of 'user'"),
]


@pytest.mark.parametrize(("result", "reason"), FAILURES)
async def test_credentials_that_fail_are_asked_for_again_and_gathering_does_not_wait(
    result: object, reason: str
) -> None:
    asked: list[str] = []

    async def ask(uri: str, realm: str) -> tuple[str, str]:
        asked.append(uri)
        if len(asked) > 1:
            return turn_house.NAME, turn_house.PASSWORD
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[return-value]

    async with Server(turn_house.config()) as server:
        uri = turn_house.uri(server)
        async with relayed(uri, controlling=True, servers=[uri], credentials=ask) as agent:
            await until(lambda: reason in str(agent.why()))
            await until(lambda: "(a relayed address)" in str(agent.why()))
        assert asked == [uri, uri]
