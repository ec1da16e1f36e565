"""Two programs that join a room of a real server and connect on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import polynya
from polynya.aio.meeting import (
    LocalCandidateSent,
    Meeting,
    MeetingStep,
    PeerFound,
    PeerGone,
    RoomEntered,
    SignalingLost,
    connect_room,
)
from polynya.aio.signaling import Signaling
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, ConnectError, ConnectionClosed, SignalingError, UsageError
from polynya.core.machine import Interface, InterfaceAddress
from polynya.serve import ServeConfig, Server, TurnOptions
from polynya.signaling.limits import Limits
from polynya.stun.uris import TurnUri
from polynya.turn.server.config import RelayHost, ServerConfig
from tests.aio.test_signaling import Wire
from tests.loops import until
from tests.reports import flat

pytestmark = pytest.mark.loops("asyncio", "uvloop")

ANY = Address("127.0.0.1", 0)


def turn_options() -> TurnOptions:
    relays = (RelayHost(host="127.0.0.1"),)
    return TurnOptions(config=ServerConfig(realm="realm", relays=relays), shared_secrets=("secret",))


def server(**changes: Any) -> Server:
    return Server(ServeConfig(listen=(ANY,), http=(ANY,), **changes))


async def test_two_programs_that_know_only_a_room_exchange_datagrams() -> None:
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


async def test_leaving_the_context_closes_agent_and_room() -> None:
    async with server() as house:
        other = asyncio.create_task(connect_room(house.url, "r"))
        async with connect_room(house.url, "r") as connection:
            agent = connection.agent
            await (await other).close()
        assert agent.state.value == "closed"
        await until(lambda: house.counters["signaling.members"] == 0)
        with pytest.raises(ConnectionClosed):
            await connection.recv()


async def test_closing_a_connection_that_has_ended_leaves_the_room() -> None:
    async with server() as house:
        one, two = await asyncio.gather(connect_room(house.url, "r"), connect_room(house.url, "r"))
        for connection in (one, two):
            await connection.agent.close()
            assert connection.closed
        assert house.counters["signaling.members"] == 2
        await one.close()
        await two.close()
        assert house.counters["signaling.members"] == 0


async def test_a_pending_connection_is_used_once() -> None:
    async with server() as house:
        pending = connect_room(house.url, "r")
        one, two = await asyncio.gather(pending, connect_room(house.url, "r"))
        async with one, two:
            with pytest.raises(UsageError, match="call it again"):
                await pending
            with pytest.raises(UsageError, match="call it again"):
                async with pending:
                    pass


async def test_new_turn_credentials_come_over_the_own_link_or_a_new_one() -> None:
    async with server(turn=turn_options()) as house:
        [turn] = {str(TurnUri.parse(f"{uri}?transport=udp")) for uri in house.turn_uris}
        async with Meeting(house.url, "r", reconnect=0) as meeting:
            links = house.counters["signaling.links"]
            name, password = await meeting.new_credentials(turn, "realm")
            assert name and password
            assert house.counters["signaling.server-lists"] == links == 1
            assert house.counters["signaling.joined"] == 1
            with pytest.raises(SignalingError, match="no longer lists turn:192"):
                await meeting.new_credentials("turn:192.0.2.9:3478?transport=udp", "realm")


async def test_either_side_may_come_first() -> None:
    async with server() as house:
        for _ in range(4):
            first = asyncio.create_task(polynya.connect_room(house.url, "r"))
            await until(lambda: house.counters["signaling.members"] == 1)
            async with polynya.connect_room(house.url, "r") as two, await first as one:
                one.send(b"x")
                assert await two.recv() == b"x"


async def test_a_peer_that_leaves_before_the_connection_is_replaced_by_the_next() -> None:
    steps: list[MeetingStep] = []
    async with server() as house, Meeting(house.url, "r", on_step=steps.append) as meeting:
        connecting = asyncio.create_task(meeting.connect())
        async with Signaling(house.url, "r") as visitor:
            await anext(visitor)
        async with Meeting(house.url, "r") as other:
            theirs = await other.connect()
            ours = await connecting
            ours.send(b"x")
            assert await theirs.recv() == b"x"
        kinds = [type(step) for step in steps]
        assert kinds[0] is RoomEntered
        assert kinds.count(PeerFound) == 2
        assert next(step.peer for step in steps if isinstance(step, PeerGone)) == visitor_of(steps)


def visitor_of(steps: list[MeetingStep]) -> str:
    return next(step.peer for step in steps if isinstance(step, PeerFound))


async def test_signals_that_arrive_before_connect_are_kept() -> None:
    steps: list[MeetingStep] = []
    async with (
        server() as house,
        Meeting(house.url, "r") as late,
        Meeting(house.url, "r", on_step=steps.append) as early,
    ):
        connecting = asyncio.create_task(early.connect())
        await until(lambda: LocalCandidateSent(candidate=None) in steps)
        sent = 1 + sum(isinstance(step, LocalCandidateSent) for step in steps)  # a description and candidates
        await until(lambda: house.counters.get("signaling.relayed") == sent)
        await late.signaling.refresh_servers()  # the answer arrives after all signals
        one, two = await late.connect(), await connecting
        one.send(b"x")
        assert await two.recv() == b"x"


async def test_a_member_that_returns_our_own_signals_does_no_harm() -> None:
    async with server() as house, Meeting(house.url, "r") as meeting, Signaling(house.url, "r") as peer:
        connecting = asyncio.create_task(meeting.connect())
        agent = polynya.Agent(loopback=True, controlling=not meeting.signaling.controls(peer.peer_id))
        async with agent:
            async for message in peer:
                if isinstance(message, polynya.RemoteDescription):
                    await peer.send_description(message.peer, message.description)
                    agent.set_remote(message.description)
                elif isinstance(message, polynya.RemoteCandidate):
                    await peer.send_candidate(message.peer, message.candidate)
                    agent.add_candidate(message.candidate)
                    if message.candidate is None:
                        break
            await peer.send_description(message.peer, agent.description)
            async for candidate in agent.candidates():
                await peer.send_candidate(message.peer, candidate)
            theirs, ours = await agent.connect(), await connecting
            ours.send(b"x")
            assert await theirs.recv() == b"x"
            assert "is this agent's own" in flat(ours.agent.why())


async def test_a_connection_outlives_the_signaling_server() -> None:
    steps: list[MeetingStep] = []
    async with server() as house:
        one = Meeting(house.url, "r", reconnect=0, on_step=steps.append)
        two = Meeting(house.url, "r", reconnect=0)
        await one.__aenter__()
        await two.__aenter__()
        first, second = await asyncio.gather(one.connect(), two.connect())
    await until(lambda: any(isinstance(step, SignalingLost) for step in steps))
    first.send(b"still here")
    assert await second.recv() == b"still here"
    await one.close()
    await two.close()


async def test_a_timeout_says_whether_another_member_joined() -> None:
    async with server() as house:
        with pytest.raises(ConnectError, match=r"no other member joined the room 'lonely' within 1 s"):
            await connect_room(house.url, "lonely", timeout=1)
        async with Signaling(house.url, "silent"):
            with pytest.raises(ConnectError, match=r"no connection within 1 s"):
                await connect_room(house.url, "silent", timeout=1)


async def test_a_server_lost_before_another_member_joins_is_reported() -> None:
    async with server() as house:
        meeting = Meeting(house.url, "r", reconnect=0)
        await meeting.__aenter__()
        connecting = asyncio.create_task(meeting.connect())
        await asyncio.sleep(0)
    with pytest.raises(SignalingError, match="shutting down"):
        await connecting
    await meeting.close()


async def test_a_third_member_is_refused() -> None:
    async with server() as house, Meeting(house.url, "r"), Meeting(house.url, "r"):
        with pytest.raises(SignalingError, match="already has 2 members"):
            await connect_room(house.url, "r")


async def test_canceling_at_any_turn_of_the_loop_leaves_nothing_open() -> None:
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
            await until(lambda: not house.counters["signaling.links"])


async def test_configuration_errors_are_raised_before_anything_is_opened() -> None:
    with pytest.raises(ConfigurationError, match="policy"):
        Meeting("http://127.0.0.1:1", "r", policy="some")
    with pytest.raises(ConfigurationError):
        Meeting("http://127.0.0.1:1", "r", servers=["nonsense"])
    with pytest.raises(ConfigurationError):
        connect_room("http://127.0.0.1:1", "r", servers=["nonsense"])
    with pytest.raises(ConfigurationError, match="URL"):
        connect_room("127.0.0.1:1", "r")
    meeting = Meeting("http://127.0.0.1:1", "r")
    with pytest.raises(UsageError, match="async with"):
        await meeting.connect()
    await meeting.close()


async def settled(*connections: polynya.Connection, generation: int) -> None:
    """Wait until every connection uses a nominated pair of this generation."""

    def there(connection: polynya.Connection) -> bool:
        return connection.ready and connection.path.nominated and connection.path.local.generation == generation

    for connection in connections:
        await until(lambda connection=connection: there(connection))  # type: ignore[misc]


async def test_the_other_side_notices_a_close_at_once() -> None:
    async with server() as house:
        one, two = await asyncio.gather(connect_room(house.url, "r"), connect_room(house.url, "r"))
        await settled(one, two, generation=0)
        one.send(b"the last words")
        await one.close()
        assert await two.wait_closed() == "the other side closed the connection"
        assert await two.recv() == b"the last words"
        with pytest.raises(ConnectionClosed, match="the other side closed the connection"):
            await two.recv()
        with pytest.raises(ConnectError, match="the other side closed the connection"):
            await two.agent.connect()
        await two.close()


async def test_a_member_that_leaves_ends_the_connection_without_a_word_on_the_path() -> None:
    async with server() as house, Meeting(house.url, "r") as one, Meeting(house.url, "r") as two:
        ours, theirs = await asyncio.gather(one.connect(), two.connect())
        await one.signaling.close()
        assert await theirs.wait_closed() == "the other side left: it left"
        assert not ours.closed


async def test_a_member_whose_websocket_breaks_is_asked_and_stays_while_it_answers() -> None:
    async with (
        server() as house,
        Wire(house) as wire,
        Meeting(wire.url, "r", reconnect=0) as one,
        Meeting(house.url, "r") as two,
    ):
        ours, theirs = await asyncio.gather(one.connect(), two.connect())
        await settled(ours, theirs, generation=0)
        checks = theirs.agent.counters["checks received"], ours.agent.counters["checks received"]
        wire.cut()
        await until(lambda: ours.agent.counters["checks received"] > checks[1])
        ours.send(b"still here")
        assert await theirs.recv() == b"still here"
        assert not theirs.closed


async def test_a_program_that_is_gone_is_noticed_within_three_seconds() -> None:
    """Its WebSocket breaks, and its sockets close without a word, as after SIGKILL."""
    async with (
        server() as house,
        Wire(house) as wire,
        Meeting(wire.url, "r", reconnect=0) as one,
        Meeting(house.url, "r") as two,
    ):
        ours, theirs = await asyncio.gather(one.connect(), two.connect())
        await settled(ours, theirs, generation=0)
        assert one.agent is not None and one.agent._driver is not None
        one.agent._driver.close_now()
        wire.cut()
        reason = await asyncio.wait_for(theirs.wait_closed(), 10)
        assert "no answer to 3 consent checks within 2 s" in reason


class Talk:
    """Sends numbered datagrams from one end to the other without a pause."""

    def __init__(self, source: polynya.Connection, target: polynya.Connection) -> None:
        self.sent = 0
        self.received: list[bytes] = []
        self._tasks = [asyncio.create_task(self._send(source)), asyncio.create_task(self._receive(target))]

    async def _send(self, source: polynya.Connection) -> None:
        while True:
            source.send(b"%d" % self.sent)
            self.sent += 1
            await asyncio.sleep(0.001)

    async def _receive(self, target: polynya.Connection) -> None:
        async for datagram in target:
            self.received.append(datagram)

    async def end(self) -> None:
        self._tasks[0].cancel()
        await until(lambda: len(self.received) == self.sent)
        self._tasks[1].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("who", ["the first", "the second", "both at once"])
async def test_a_restart_is_signaled_and_loses_no_datagram(who: str) -> None:
    """aiortc/aiortc#211, #1367. RFC 8445, section 9: the old pair carries data until the new one is nominated.

    Three times over, so that generations count on; restarts of both sides cross in the signaling server.
    """
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
                assert talk.received == [b"%d" % number for number in range(talk.sent)]
            assert one.pair_changes >= 4 and two.pair_changes >= 4, "each generation has its pair"


async def test_a_changed_network_is_signaled_and_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`interfaces_changed()` by hand: the address in use is removed, and the new one is signaled to the other side."""

    def only(host: str) -> None:
        address = InterfaceAddress(host=host, prefix_length=8)
        there = (Interface(name="lo", index=1, addresses=(address,), loopback=True),)
        monkeypatch.setattr("polynya.aio.agent.list_interfaces", lambda: there)

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


async def test_a_change_of_the_network_is_followed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(*hosts: str) -> None:
        addresses = tuple(InterfaceAddress(host=host, prefix_length=8) for host in hosts)
        there = (Interface(name="lo", index=1, addresses=addresses, loopback=True),)
        for module in ("agent", "interface_watch"):
            monkeypatch.setattr(f"polynya.aio.{module}.list_interfaces", lambda: there)

    monkeypatch.setattr("polynya.aio.interface_watch.CHECK", 0.02)
    monkeypatch.setattr("polynya.aio.interface_watch.POLL", 0.02)
    only("127.0.0.1")
    async with server() as house:
        moving, staying = connect_room(house.url, "r"), connect_room(house.url, "r", follow_host=False)
        one, two = await asyncio.gather(moving, staying)
        async with one, two:
            await settled(one, two, generation=0)
            only("127.0.0.2")  # the signaling's own address is gone, too
            await settled(one, two, generation=1)
            assert one.path.local.address.host == "127.0.0.2" == two.path.remote.address.host
            assert house.counters["signaling.resumed"] == 1
            one.send(b"from the new address")
            assert await two.recv() == b"from the new address"


async def test_a_connection_without_path_and_signaling_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: tuple[Interface, ...] = ()
    async with server() as house:
        first = Meeting(house.url, "r", reconnect=0, follow_host=False)
        async with first, Meeting(house.url, "r", reconnect=0, follow_host=False) as second:
            one, _ = await asyncio.gather(first.connect(), second.connect())
            await one.agent.completed()
            monkeypatch.setattr("polynya.aio.agent.list_interfaces", lambda: nothing)
            assert one.agent.interfaces_changed() and not one.ready
            await house.aclose()
            await until(lambda: one.closed)
            with pytest.raises(ConnectionClosed, match="signaling server"):
                await one.recv()


async def test_a_restart_without_signaling_leaves_the_connection_unchanged() -> None:
    steps: list[MeetingStep] = []
    async with server() as house:
        one = Meeting(house.url, "r", reconnect=0, on_step=steps.append)
        two = Meeting(house.url, "r", reconnect=0)
        await one.__aenter__()
        await two.__aenter__()
        first, second = await asyncio.gather(one.connect(), two.connect())
        await settled(first, second, generation=0)
    await until(lambda: any(isinstance(step, SignalingLost) for step in steps))
    first.agent.restart()
    for number in range(20):
        first.send(b"%d" % number)
        assert await second.recv() == b"%d" % number
        await asyncio.sleep(0.01)
    await one.close()
    await two.close()
