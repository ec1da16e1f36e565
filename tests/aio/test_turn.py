"""The TURN client for use by hand, on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from polynya.aio.turn import TurnClient
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, ConnectionClosed, TransactionError, UsageError
from tests.aio.turn_house import ECHO, serving
from tests.loops import until
from tests.turn.client.relay import USER, Relay

pytestmark = pytest.mark.loops("asyncio", "uvloop")

LOGIN = {"username": USER.username, "password": USER.password}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_datagrams_go_to_a_peer_and_back_by_indication_and_by_channel(transport: str) -> None:
    async with serving() as (server, where):
        async with TurnClient(f"turn:{where}?transport={transport}", families=(4,), **LOGIN) as relay:
            assert relay.relayed == (Address("198.51.100.7", 49152),) and relay.mapped is not None
            assert not relay.send(ECHO, b"too early")
            await relay.permit("192.0.2.50", Address("192.0.2.51", 9))
            assert relay.send(ECHO, b"by Send")
            assert await relay.recv() == (b"by Send", ECHO)
            await relay.bind(ECHO)
            await relay.bind(str(ECHO))
            sent = [b"%d" % number for number in range(50)]
            for data in sent:
                assert relay.send("192.0.2.50:4000", data)
            got = []
            async for data, peer in relay:
                assert peer == ECHO
                got.append(data)
                if len(got) == 50:
                    break
            assert got == sent and server.dropped == []
            assert "allocated" in str(relay.why())
        assert server.allocations == {} and relay.closed


async def test_data_that_cannot_be_sent_is_an_error() -> None:
    async with serving() as (_, where), TurnClient(f"turn:{where}", **LOGIN) as relay:
        await relay.permit(ECHO)
        with pytest.raises(UsageError, match="encode it first"):
            relay.send(ECHO, "text")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="65425 bytes is too long"):
            relay.send(ECHO, bytes(65425))
        for data in (bytearray(b"data"), memoryview(b"data")):
            assert relay.send(ECHO, data) and await relay.recv() == (b"data", ECHO)
        assert repr(relay) == f"<TurnClient turn:{where}: [2001:db8::7]:49152, 198.51.100.7:49152>"
    assert repr(relay) == f"<TurnClient turn:{where}: closed: closed here>"


async def test_both_families_are_allocated_by_default() -> None:
    async with serving() as (_, where), TurnClient(f"turn:{where}", **LOGIN) as relay:
        assert [address.family for address in relay.relayed] == [6, 4]
    async with serving(Relay(families=(4,))) as (_, where), TurnClient(f"turn:{where}", **LOGIN) as relay:
        assert [address.family for address in relay.relayed] == [4]
        assert [(refused.family, int(refused.code)) for refused in relay.allocation.refused] == [(6, 440)]


async def test_a_refused_peer_is_an_error_that_says_why() -> None:
    async with (
        serving(Relay(forbidden=("192.0.2.51",))) as (_, where),
        TurnClient(f"turn:{where}", **LOGIN) as relay,
    ):
        with pytest.raises(TransactionError, match="its rules forbid this") as caught:
            await relay.permit("192.0.2.51:1", ECHO)
        assert caught.value.code == 403
        with pytest.raises(TransactionError):
            await relay.bind("192.0.2.51:1")
        assert relay.send(ECHO, b"the other is permitted")


async def test_a_wrong_password_is_an_error_at_once() -> None:
    async with serving() as (_, where):
        for login in ({}, {"username": "alice", "password": "wrong"}):
            with pytest.raises(TransactionError) as caught:
                async with TurnClient(f"turn:{where}", **login):
                    pytest.fail("that cannot be")
            assert caught.value.code == 401


async def test_time_limited_credentials_are_asked_for_with_the_realm() -> None:
    realms: list[str] = []
    async with serving() as (server, where):

        async def ask(uri: str, realm: str) -> tuple[str, str]:
            assert uri == f"turn:{where}"
            realms.append(realm)
            await asyncio.sleep(0)
            return "alice", server.users["alice"]

        async with TurnClient(f"turn:{where}", credentials=ask) as relay:
            server.users = {"alice": "a new password"}
            await relay.permit(ECHO)
            server.users = {"alice": "another"}
            relay.set_credentials("alice", "another")
            await relay.bind(ECHO)
        assert realms == ["example.org"] * 2 and server.allocations == {}


async def test_credentials_that_were_refused_are_not_asked_for_again() -> None:
    async def ask(uri: str, realm: str) -> tuple[str, str]:
        return "alice", "wrong"

    async with serving() as (server, where):
        with pytest.raises(TransactionError, match="refused the credentials of 'alice'"):
            await TurnClient(f"turn:{where}", credentials=ask).allocate()
        assert len(server.requests) == 2


async def test_an_exception_of_credentials_fails_the_allocation() -> None:
    async def ask(uri: str, realm: str) -> tuple[str, str]:
        raise LookupError("the key server is down")

    async with serving() as (_, where):
        with pytest.raises(TransactionError, match="the key server is down"):
            await TurnClient(f"turn:{where}", credentials=ask).allocate()


@pytest.mark.parametrize("result", [LookupError("the key server is down"), "alice", None])
async def test_credentials_that_fail_for_an_allocation_are_asked_for_again(result: object) -> None:
    asked: list[str] = []
    async with serving() as (server, where):

        async def ask(uri: str, realm: str) -> tuple[str, str]:
            asked.append(uri)
            if len(asked) == 2:
                if isinstance(result, Exception):
                    raise result
                return result  # type: ignore[return-value]
            return "alice", server.users["alice"]

        async with TurnClient(f"turn:{where}", credentials=ask) as relay:
            server.users = {"alice": "a new password"}
            await relay.permit(ECHO)
        assert len(asked) == 3


async def test_an_unreachable_server_is_an_error_with_the_reason() -> None:
    with pytest.raises(TransactionError, match="nothing listens"):
        await TurnClient("turn:127.0.0.1:9?transport=tcp", **LOGIN).allocate()
    with pytest.raises(TransactionError, match="unreachable"):
        await TurnClient("turn:127.0.0.1:9", **LOGIN).allocate()


async def test_a_silent_server_is_given_up_after_the_timeout() -> None:
    async with serving(Relay(trouble=lambda request, source: b"")) as (_, where):
        with pytest.raises(TransactionError, match="no allocation within 0"):
            await TurnClient(f"turn:{where}", **LOGIN).allocate(timeout=0.2)


async def test_canceling_leaves_nothing_open() -> None:
    requests: list[object] = []
    async with serving(Relay(trouble=lambda request, source: requests.append(request) or b"")) as (_, where):
        client = TurnClient(f"turn:{where}", **LOGIN)
        task = asyncio.ensure_future(client.allocate())
        await until(lambda: requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.closed


async def test_a_lost_allocation_ends_every_wait() -> None:
    async with serving() as (server, where), TurnClient(f"turn:{where}", **LOGIN) as relay:
        waiting = asyncio.ensure_future(relay.recv())
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="another task"):
            await relay.recv()
        server.allocations.clear()
        with pytest.raises(ConnectionClosed, match="437"):
            await relay.permit(ECHO)
        with pytest.raises(ConnectionClosed, match="437"):
            await waiting
        with pytest.raises(ConnectionClosed):
            relay.send(ECHO, b"x")
        assert [received async for received in relay] == []


async def test_a_call_in_the_wrong_state_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError):
        TurnClient("stun:127.0.0.1")
    with pytest.raises(ConfigurationError):
        TurnClient("turn:127.0.0.1", families=(5,))
    client = TurnClient("turn:127.0.0.1")
    with pytest.raises(UsageError, match="async with"):
        client.send(ECHO, b"x")
    with pytest.raises(UsageError, match="async with"):
        _ = client.relayed
    await client.close()
    with pytest.raises(ConnectionClosed):
        client.send(ECHO, b"x")
    with pytest.raises(UsageError, match="make a new one"):
        await client.allocate()
