"""Rooms of more than two: each member has a connection to each other one."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

import polynya
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, ConnectError, ConnectionClosed, SignalingError, UsageError
from polynya.ice.candidates import Candidate
from polynya.ice.config import IceConfig
from polynya.ice.description import Description
from polynya.serve import ServeConfig, Server
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")

ANY = Address("127.0.0.1", 0)


def server(**changes: Any) -> Server:
    return Server(ServeConfig(listen=(ANY,), http=(ANY,), **changes))


async def found(room: polynya.Room, count: int) -> dict[str, polynya.Connection]:
    """Return the next connections of a room."""
    return dict([await anext(room) for _ in range(count)])


async def test_three_members_have_a_connection_to_each_other() -> None:
    async with server() as house, AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(polynya.Room(house.url, "r", limit=3)) for _ in range(3)]
        meshes = await asyncio.gather(*(found(room, 2) for room in rooms))
        for room, mesh in zip(rooms, meshes, strict=True):
            assert set(mesh) == {other.peer_id for other in rooms if other is not room} == set(room.peers)
            assert room.connections == mesh
            for peer, connection in mesh.items():
                assert room.agent(peer).is_controlling is (room.peer_id > peer)
                connection.send(room.peer_id.encode())
        for room, mesh in zip(rooms, meshes, strict=True):
            for peer, connection in mesh.items():
                assert await connection.recv() == peer.encode(), room.peer_id
        assert len({connection.path.local.address for mesh in meshes for connection in mesh.values()}) == 6
    assert all(connection.closed for mesh in meshes for connection in mesh.values())


async def test_members_come_and_go_and_the_others_stay_connected() -> None:
    async with server() as house, polynya.Room(house.url, "r") as room, polynya.Room(house.url, "r") as stays:
        events: list[object] = []

        async def follow() -> None:
            async for event in room.events():
                events.append(event)

        following = asyncio.create_task(follow())
        first = await anext(room)
        async with polynya.Room(house.url, "r") as visitor:
            peer, connection = await anext(room)
            assert peer == visitor.peer_id
            await found(visitor, 2)
        await until(lambda: connection.closed)
        assert list(room.connections.items()) == [first]
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        with pytest.raises(UsageError, match="no member"):
            room.agent(peer)
        first[1].send(b"still here")
        assert await (await anext(stays))[1].recv() == b"still here"
        of_visitor = [event for event in events if getattr(event, "peer", "") == peer]
        kinds = [polynya.PeerFound, polynya.PeerConnected, polynya.PeerGone]
        assert [type(event) for event in of_visitor] == kinds
        await room.close()
        await following
        with pytest.raises(StopAsyncIteration):
            await anext(room)


async def test_a_member_that_cannot_be_reached_is_reported_and_stops_nobody_else() -> None:
    async with (
        server() as house,
        polynya.Room(house.url, "r", ice=IceConfig(patience=0.2)) as room,
        polynya.Signaling(house.url, "r") as dead,
        polynya.Room(house.url, "r") as other,
    ):
        events = room.events()
        peer = room.peer_id
        await dead.send_description(peer, Description(ufrag="dead", password="p" * 24))
        line = "candidate:1 1 udp 2130706431 127.0.0.1 9 typ host"
        await dead.send_candidate(peer, Candidate.parse(line))
        await dead.send_candidate(peer, None)
        assert (await anext(room))[0] == other.peer_id
        async for event in events:
            if isinstance(event, polynya.PeerFailed):
                assert event.peer == dead.peer_id and isinstance(event.error, ConnectError)
                break
        await events.aclose()


async def test_connections_survive_the_loss_of_the_server() -> None:
    async with AsyncExitStack() as stack:
        async with server() as house:
            rooms = [await stack.enter_async_context(polynya.Room(house.url, "r", reconnect=0)) for _ in range(2)]
            (_, one), (_, two) = [await anext(room) for room in rooms]
        for room in rooms:
            with pytest.raises(SignalingError):
                await anext(room)
        one.send(b"x")
        assert await two.recv() == b"x"


async def test_wrong_use_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        polynya.Room("http://127.0.0.1:1", "r", policy="none")
    with pytest.raises(UsageError, match="async with"):
        await anext(polynya.Room("http://127.0.0.1:1", "r"))
    with pytest.raises(SignalingError):
        await polynya.Room("http://127.0.0.1:1", "r").__aenter__()
