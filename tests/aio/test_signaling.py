"""The signaling client with a real server on loopback."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from polynya.aio.signaling import (
    Away,
    Joined,
    Left,
    Message,
    RemoteCandidate,
    RemoteDescription,
    Resumed,
    Signaling,
    fetch_servers,
)
from polynya.aio.websocket import websocket_url
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, SignalingError, UsageError
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.serve import ServeConfig, Server
from polynya.signaling.limits import Limits
from polynya.signaling.messages import Join, encode
from tests.free_ports import free_port
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")

ANY = Address("127.0.0.1", 0)
DESCRIPTION = Description(ufrag="abcd", password="p" * 24, options=("ice2", "trickle"), pacing=0.005)
HOST = Candidate.parse("candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host")


def server(**changes: Any) -> Server:
    return Server(ServeConfig(listen=(ANY,), http=(ANY,), **changes))


async def next_of(room: Signaling) -> Message:
    return await anext(aiter(room))


class Wire:
    """A TCP forwarder to a server, whose connections can be broken."""

    def __init__(self, house: Server) -> None:
        self._target = house.http_addresses[0]
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Wire:
        self._listener = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._listener.wait_closed()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(*self._target[:2])
        self._writers += [writer, inner_writer]
        for source, sink in ((reader, inner_writer), (inner_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
        sink.close()


async def test_two_members_exchange_descriptions_and_candidates() -> None:
    async with server() as house, Signaling(house.url, "r") as alice, Signaling(house.url, "r") as bob:
        assert alice.stun_servers == house.stun_uris
        assert alice.loopback
        assert bob.peers == (alice.peer_id,)
        assert await next_of(alice) == Joined(peer=bob.peer_id)
        assert alice.peers == (bob.peer_id,)
        assert alice.controls(bob.peer_id) != bob.controls(alice.peer_id)
        await bob.send_description(alice.peer_id, DESCRIPTION)
        await bob.send_candidate(alice.peer_id, HOST)
        await bob.send_candidate(alice.peer_id, None)
        assert [await next_of(alice) for _ in range(3)] == [
            RemoteDescription(peer=bob.peer_id, description=DESCRIPTION),
            RemoteCandidate(peer=bob.peer_id, candidate=HOST),
            RemoteCandidate(peer=bob.peer_id, candidate=None),
        ]
        await bob.close()
        assert await next_of(alice) == Left(peer=bob.peer_id, reason="it left", clean=True)
        assert [message async for message in bob] == []


async def test_a_candidate_keeps_its_generation_and_the_end_that_of_the_description() -> None:
    async with server() as house, Signaling(house.url, "r") as alice, Signaling(house.url, "r") as bob:
        await bob.send_description(alice.peer_id, replace(DESCRIPTION, generation=2))
        await bob.send_candidate(alice.peer_id, HOST)
        await bob.send_candidate(alice.peer_id, replace(HOST, generation=2))
        await bob.send_candidate(alice.peer_id, None)
        received = [await next_of(alice) for _ in range(4)]
        assert received[2:] == [
            RemoteCandidate(peer=bob.peer_id, candidate=replace(HOST, generation=2)),
            RemoteCandidate(peer=bob.peer_id, candidate=None),
        ]
        assert alice.counters == {"dropped-old-generation": 1}


async def test_a_broken_connection_is_reopened_without_loss() -> None:
    async with (
        server() as house,
        Wire(house) as wire,
        Signaling(house.url, "r") as alice,
        Signaling(wire.url, "r") as bob,
    ):
        await next_of(alice)
        before = bob.peer_id
        wire.cut()
        await until(lambda: bob.counters.get("interrupted"))
        await alice.send_description(before, DESCRIPTION)
        assert await next_of(bob) == Resumed(peer=alice.peer_id)
        assert await next_of(bob) == RemoteDescription(peer=alice.peer_id, description=DESCRIPTION)
        assert bob.peer_id == before
        await bob.send_candidate(alice.peer_id, HOST)
        assert [await next_of(alice) for _ in range(2)] == [Away(peer=before), Resumed(peer=before)]
        assert await next_of(alice) == RemoteCandidate(peer=before, candidate=HOST)


async def test_members_rejoin_a_server_that_was_restarted() -> None:
    address = ANY.with_port(free_port())
    async with Server(ServeConfig(listen=(ANY,), http=(address,))) as house:
        alice, bob = Signaling(house.url, "r"), Signaling(house.url, "r")
        await alice.__aenter__()
        await bob.__aenter__()
        await next_of(alice)
        ids = {alice.peer_id, bob.peer_id}
    async with Server(ServeConfig(http=(address,))):
        changes = [await next_of(alice), await next_of(alice)]
        assert {type(each) for each in changes} == {Left, Joined}
        await until(lambda: {alice.peer_id, bob.peer_id}.isdisjoint(ids))
        assert alice.peers == (bob.peer_id,)
        await alice.close()
        await bob.close()


# ---------------------------------------------------------------------------------------------------------- server list


async def test_a_member_refreshes_its_server_list() -> None:
    async with server(limits=Limits(server_lists=2)) as house, Signaling(house.url, "r") as alice:
        both = await asyncio.gather(alice.refresh_servers(), alice.refresh_servers())
        assert both[0] == both[1] == alice.servers
        assert house.counters["signaling.server-lists"] == 1, "calls at the same time share one request"
        await alice.refresh_servers()
        with pytest.raises(SignalingError, match="sent no server list: more than 2 server lists at once"):
            await alice.refresh_servers()
        assert house.counters["signaling.members"] == 1


async def test_refreshing_fails_when_the_server_is_lost() -> None:
    async with server() as house:
        room = Signaling(house.url, "r", reconnect=0)
        await room.__aenter__()
    with pytest.raises(SignalingError, match="shutting down"):
        await room.refresh_servers()
    await room.close()


async def test_the_server_list_is_fetched_without_joining_a_room() -> None:
    async with server() as house:
        offer = await fetch_servers(house.url)
        assert tuple(each.uri for each in offer.servers) == house.stun_uris
        assert offer.loopback
        assert "signaling.joined" not in house.counters
        await until(lambda: house.counters["signaling.links"] == 0)
    with pytest.raises(SignalingError, match="no server listens"):
        await fetch_servers(house.url)


# --------------------------------------------------------------------------------------------------------------- errors


async def test_a_missing_server_is_reported_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(SignalingError, match=f"no server listens at 127.0.0.1:{port}; is `polynya serve --http`"):
            async with Signaling(f"http://127.0.0.1:{port}", "r"):
                pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", r"not a Polynya signaling server \(HTTP 404\)"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", r"refused the connection \(HTTP 403\)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak WebSocket"),
        (b"", "did not answer in time"),
    ],
)
async def test_a_server_of_another_kind_is_reported_as_such(answer: bytes, message: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not answer:
            assert await reader.read() == b"", "the client has closed"
        writer.close()
        await writer.wait_closed()
        served.set()

    served = asyncio.Event()
    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises(SignalingError, match=message):
            async with Signaling(f"http://127.0.0.1:{port}", "r", timeout=30 if answer else 0.3):
                pass
        await served.wait()
        await asyncio.sleep(0)


async def test_https_to_an_http_server_is_reported_as_such() -> None:
    async with server() as house:
        with pytest.raises(SignalingError, match="is the URL http rather than https"):
            async with Signaling(house.url.replace("http:", "https:"), "r"):
                pass


async def test_a_full_room_is_reported() -> None:
    async with server() as house, Signaling(house.url, "r", limit=2), Signaling(house.url, "r"):
        with pytest.raises(SignalingError, match="room 'r': the room already has 2 members"):
            async with Signaling(house.url, "r"):
                pass


async def test_losing_the_server_for_good_ends_the_iteration_with_an_error() -> None:
    async with server() as house:
        room = Signaling(house.url, "r", reconnect=0)
        await room.__aenter__()
    with pytest.raises(SignalingError, match="shutting down"):
        await next_of(room)
    with pytest.raises(SignalingError, match="shutting down"):
        await room.send_candidate("a" * 32, None)
    await room.close()


async def test_cancelling_leaves_nothing_open() -> None:
    async with server() as house:
        for turns in range(0, 60, 3):
            entering = asyncio.create_task(Signaling(house.url, "r").__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0)
            entering.cancel()
            try:
                room = await entering
            except asyncio.CancelledError:
                continue
            await room.close()
        await until(lambda: house.counters["signaling.links"] == 0)
        async with Signaling(house.url, "r") as room:
            waiting = asyncio.create_task(next_of(room))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with Signaling(house.url, "r") as other:
                assert await next_of(room) == Joined(peer=other.peer_id)


async def test_a_low_rate_limit_delays_messages_and_drops_none() -> None:
    limits = Limits(messages_per_second=100, burst=110, offenses=0)
    async with server(limits=limits) as house, Signaling(house.url, "r") as a, Signaling(house.url, "r") as b:
        await next_of(a)
        for port in range(1, 151):
            await b.send_candidate(a.peer_id, replace(HOST, address=HOST.address.with_port(port)))
        received = [await next_of(a) for _ in range(150)]
        assert [each.candidate.address.port for each in received] == list(range(1, 151))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/signaling"),
        ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/signaling"),
        ("https://example.org", "wss://example.org/signaling"),
        ("https://example.org/polynya/", "wss://example.org/polynya/signaling"),
        ("wss://example.org/signaling", "wss://example.org/signaling"),
        ("http://[::1]:80", "ws://[::1]:80/signaling"),
    ],
)
def test_the_url_of_the_server_gives_the_url_of_the_websocket(url: str, target: str) -> None:
    assert websocket_url(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "127.0.0.1:8080",
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://[x",
        "http://x/?a=1",
        "http://x:0",
    ],
)
def test_an_invalid_url_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        Signaling(url, "r")


async def test_errors_name_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match="room's name"):
        Signaling("http://x", "")
    with pytest.raises(ConfigurationError, match="at least 2"):
        Signaling("http://x", "r", limit=1)
    room = Signaling("http://x", "r")
    with pytest.raises(UsageError, match="async with"):
        await room.send_candidate("a" * 32, None)
    with pytest.raises(UsageError, match="async with"):
        _ = room.peer_id
    with pytest.raises(UsageError, match="async with"):
        await room.refresh_servers()
    await room.close()


class DeadMember:
    """A member whose host has vanished: its connection stays open, and nothing is read or answered."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    @classmethod
    async def join(cls, url: str, room: str) -> DeadMember:
        uri = parse_uri(websocket_url(url))
        reader, writer = await asyncio.open_connection(uri.host, uri.port)
        protocol = ClientProtocol(uri)
        protocol.send_request(protocol.connect())
        writer.write(b"".join(protocol.data_to_send()))
        while protocol.state is not State.OPEN:
            protocol.receive_data(await reader.read(4096))
        protocol.send_text(encode(Join(version=1, room=room, limit=2)).encode())
        writer.write(b"".join(protocol.data_to_send()))
        while b"welcome" not in await reader.read(4096):
            pass
        return cls(writer)

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def test_a_dead_member_of_a_full_room_makes_place_for_a_newcomer() -> None:
    async with server() as house:
        dead = await DeadMember.join(house.url, "r")
        async with Signaling(house.url, "r") as alive:
            [gone] = alive.peers
            async with Signaling(house.url, "r") as newcomer:
                assert newcomer.peers == (alive.peer_id,)
                assert newcomer.peer_id != gone
                assert await next_of(alive) == Left(peer=gone, reason="it did not answer for 2 s")
                assert await next_of(alive) == Joined(peer=newcomer.peer_id)
                with pytest.raises(SignalingError, match="already has 2 members"):
                    await Signaling(house.url, "r").__aenter__()
        await dead.close()
