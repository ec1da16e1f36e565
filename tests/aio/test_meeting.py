"""Two programs that meet in a room of a real server and connect with each other on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import polynya
from polynya.aio.meeting import Meeting, PeerFound, PeerGone, RoomEntered, SignalingLost, Step
from polynya.aio.signaling import Signaling, connect_room
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, ConnectError, ConnectionClosed, SignalingError, UsageError
from polynya.core.machine import Interface, InterfaceAddress
from polynya.serve import ServeConfig, Server
from polynya.signaling.limits import Limits

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ANY = Address("127.0.0.1", 0)


def server(**changes: Any) -> Server:
    return Server(ServeConfig(listen=(ANY,), http=(ANY,), **changes))


def test_two_programs_that_know_only_a_room_talk(run: Run) -> None:
    async def main() -> None:
        async with server() as house:
            one, two = await asyncio.gather(connect_room(house.url, "r"), connect_room(house.url, "r"))
            one.send(b"to two")
            two.send(b"to one")
            assert await one.recv() == b"to one"
            assert await two.recv() == b"to two"
            await one.agent.completed()
            assert one.path.local.address.host in {"127.0.0.1", "::1"}
            await one.close()
            await two.close()
            with pytest.raises(ConnectionClosed):
                await one.recv()
            assert house.counters["signaling.rooms"] == 0

    run(main())


def test_it_does_not_matter_who_comes_first(run: Run) -> None:
    async def main() -> None:
        async with server() as house:
            for _ in range(4):
                first = asyncio.create_task(polynya.connect_room(house.url, "r"))
                while house.counters["signaling.members"] == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                two = await polynya.connect_room(house.url, "r")
                async with two, await first as one:
                    one.send(b"x")
                    assert await two.recv() == b"x"

    run(main())


def test_a_peer_that_leaves_before_a_connection_stands_is_given_up(run: Run) -> None:
    async def main() -> None:
        told: list[Step] = []
        async with server() as house, Meeting(house.url, "r", tell=told.append) as meeting:
            connecting = asyncio.create_task(meeting.connect())
            async with Signaling(house.url, "r") as visitor:
                await anext(visitor)
            async with Meeting(house.url, "r") as other:
                theirs = await other.connect()
                ours = await connecting
                ours.send(b"x")
                assert await theirs.recv() == b"x"
            kinds = [type(step) for step in told]
            assert kinds[0] is RoomEntered
            assert kinds.count(PeerFound) == 2
            assert next(step.peer for step in told if isinstance(step, PeerGone)) == visitor_of(told)

    run(main())


def visitor_of(told: list[Step]) -> str:
    return next(step.peer for step in told if isinstance(step, PeerFound))


def test_what_came_before_connect_was_called_is_not_lost(run: Run) -> None:
    async def main() -> None:
        async with server() as house, Meeting(house.url, "r") as late, Meeting(house.url, "r") as early:
            connecting = asyncio.create_task(early.connect())
            while not late._early:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            one, two = await late.connect(), await connecting
            one.send(b"x")
            assert await two.recv() == b"x"

    run(main())


def test_a_connection_outlives_the_signaling_server(run: Run) -> None:
    async def main() -> None:
        told: list[Step] = []
        async with server() as house:
            one, two = Meeting(house.url, "r", tell=told.append), Meeting(house.url, "r")
            await one.__aenter__()
            await two.__aenter__()
            one.signaling._machine._patience = two.signaling._machine._patience = no_patience()
            first, second = await asyncio.gather(one.connect(), two.connect())
        while not any(isinstance(step, SignalingLost) for step in told):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        first.send(b"still here")
        assert await second.recv() == b"still here"
        await one.close()
        await two.close()

    run(main())


def no_patience() -> Any:
    from polynya.signaling.client import Patience

    return Patience(give_up=0)


def test_nobody_coming_is_told_as_that(run: Run) -> None:
    async def main() -> None:
        async with server() as house:
            with pytest.raises(ConnectError, match=r"nobody came to the room 'lonely' within 1 s"):
                await connect_room(house.url, "lonely", timeout=1)
            async with Signaling(house.url, "silent"):
                with pytest.raises(ConnectError, match=r"no connection within 1 s"):
                    await connect_room(house.url, "silent", timeout=1)

    run(main())


def test_a_server_that_goes_while_nobody_came_is_told(run: Run) -> None:
    async def main() -> None:
        async with server() as house:
            meeting = Meeting(house.url, "r")
            await meeting.__aenter__()
            meeting.signaling._machine._patience = no_patience()
            connecting = asyncio.create_task(meeting.connect())
            await asyncio.sleep(0)
        with pytest.raises(SignalingError, match="shutting down"):
            await connecting
        await meeting.close()

    run(main())


def test_a_third_is_refused(run: Run) -> None:
    async def main() -> None:
        async with server() as house, Meeting(house.url, "r"), Meeting(house.url, "r"):
            with pytest.raises(SignalingError, match="2 members already"):
                await connect_room(house.url, "r")

    run(main())


def test_cancelling_at_any_turn_leaves_nothing_open(run: Run) -> None:
    async def main() -> None:
        async with server(limits=Limits(resume_timeout=0)) as house:
            for turns in (0, 1, 2, 5, 10, 20, 30, 40, 60, 90, 130):
                both = [asyncio.create_task(connect_room(house.url, "r")) for _ in range(2)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in both:
                    task.cancel()
                for ended in await asyncio.gather(*both, return_exceptions=True):
                    if isinstance(ended, polynya.Connection):
                        await ended.close()
                    else:
                        assert isinstance(ended, asyncio.CancelledError)
                while house.counters["signaling.links"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)

    run(main())


def test_wrong_use_is_told_before_anybody_is_waited_for(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="policy"):
        Meeting("http://127.0.0.1:1", "r", policy="some")
    with pytest.raises(ConfigurationError):
        Meeting("http://127.0.0.1:1", "r", servers=["nonsense"])

    async def main() -> None:
        meeting = Meeting("http://127.0.0.1:1", "r")
        with pytest.raises(UsageError, match="async with"):
            await meeting.connect()
        await meeting.close()

    run(main())


async def settled(*connections: polynya.Connection, generation: int) -> None:
    """Until data goes over a nominated pair of this generation at every end."""

    def there(connection: polynya.Connection) -> bool:
        return connection.ready and connection.path.nominated and connection.path.local.generation == generation

    for connection in connections:
        while not there(connection):  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # real sockets


class Talk:
    """Numbered datagrams from one end to the other, all the while."""

    def __init__(self, source: polynya.Connection, target: polynya.Connection) -> None:
        self.sent = 0
        self.heard: list[bytes] = []
        self._tasks = [asyncio.create_task(self._send(source)), asyncio.create_task(self._hear(target))]

    async def _send(self, source: polynya.Connection) -> None:
        while True:
            source.send(b"%d" % self.sent)
            self.sent += 1
            await asyncio.sleep(0.001)

    async def _hear(self, target: polynya.Connection) -> None:
        async for datagram in target:
            self.heard.append(datagram)

    async def end(self) -> None:
        self._tasks[0].cancel()
        while len(self.heard) < self.sent:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._tasks[1].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("who", ["the first", "the second", "both at once"])
def test_a_restart_is_signaled_and_loses_no_datagram(run: Run, who: str) -> None:
    """aiortc/aiortc#211, #1367. RFC 8445, section 9: the old pair carries data until the new one is nominated.

    Three times over, so that generations count on; restarts of both sides cross in the signaling server.
    """

    async def main() -> None:
        async with server() as house:
            one, two = await asyncio.gather(connect_room(house.url, "r"), connect_room(house.url, "r"))
            async with one, two:
                await settled(one, two, generation=0)
                talks = [Talk(one, two), Talk(two, one)]
                for generation in (1, 2, 3):
                    for restarting in (one, two):
                        if who == "both at once" or restarting is (one if who == "the first" else two):
                            restarting.agent.restart()
                    await settled(one, two, generation=generation)
                for talk in talks:
                    await talk.end()
                    assert talk.heard == [b"%d" % number for number in range(talk.sent)]
                assert one.pair_changes >= 4 and two.pair_changes >= 4, "each generation has its pair"

    run(main())


def test_a_changed_network_is_signaled_and_followed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`interfaces_changed()` by hand: the address in use is gone, and the other side learns of the one that came."""

    def only(host: str) -> None:
        address = InterfaceAddress(host=host, prefix_length=8)
        there = (Interface(name="lo", index=1, addresses=(address,), loopback=True),)
        monkeypatch.setattr("polynya.aio.agent.list_interfaces", lambda: there)

    async def main() -> None:
        only("127.0.0.1")
        async with server() as house:
            one, two = await asyncio.gather(connect_room(house.url, "r"), connect_room(house.url, "r"))
            async with one, two:
                await settled(one, two, generation=0)
                only("127.0.0.2")
                assert one.agent.interfaces_changed()
                await settled(one, two, generation=1)
                assert one.path.local.address.host == "127.0.0.2" == two.path.remote.address.host
                one.send(b"from the new address")
                assert await two.recv() == b"from the new address"
                assert not one.agent.interfaces_changed(), "nothing has changed since"

    run(main())


def test_a_restart_without_its_signaling_server_leaves_the_connection_as_it_is(run: Run) -> None:
    async def main() -> None:
        told: list[Step] = []
        async with server() as house:
            one, two = Meeting(house.url, "r", tell=told.append), Meeting(house.url, "r")
            await one.__aenter__()
            await two.__aenter__()
            one.signaling._machine._patience = two.signaling._machine._patience = no_patience()
            first, second = await asyncio.gather(one.connect(), two.connect())
            await settled(first, second, generation=0)
        while not any(isinstance(step, SignalingLost) for step in told):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        first.agent.restart()
        for number in range(20):
            first.send(b"%d" % number)
            assert await second.recv() == b"%d" % number
            await asyncio.sleep(0.01)
        await one.close()
        await two.close()

    run(main())
