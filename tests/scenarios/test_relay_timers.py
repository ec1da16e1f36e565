"""Expiry of permissions (300 s), channels (600 s, then 300 s of rest) and allocations, idle and busy.

Sessions refresh all of them in time. So the tests reach the expiry by dropping the requests that refresh.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Datagram, Input
from polynya.core.packets import IpPacket
from polynya.ice.events import AgentState, AgentStateChanged, ConsentLost
from polynya.lab import Network
from polynya.lab.exchange import Peer
from polynya.lab.links import NetworkInterface
from polynya.lab.programs import Listening
from polynya.lab.relaying import USER, turn_server
from polynya.session.options import Policy
from polynya.stun.attributes import LIFETIME
from polynya.stun.framing import is_channel_data
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.client import ChannelBound, Credentials, RelayedData, ServerAddress, TurnClient
from tests.lab.conftest import Program
from tests.reports import flat
from tests.scenarios.relays import CLOSED, TCP, UDP, Scene, nats

pytestmark = pytest.mark.slow

DATA_INDICATION = b"\x00\x17"
IDLE, BUSY = 50 * SECOND, SECOND


def scene(uri: str = UDP) -> Scene:
    made = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY, servers=[uri])
    assert made.start()
    return made


def message_of(packet: IpPacket) -> Message | None:
    try:
        return decode(packet.payload)
    except DecodeError:
        return None


class Losing:
    """Drops the requests of one method from a host while it is switched on; counts those that pass."""

    def __init__(self, interface: NetworkInterface, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lose: Callable[[Message], bool] = lambda message: False
        self.lost = 0
        self.requests: list[tuple[float, Method | int]] = []
        self.channel_data = 0
        transmit = NetworkInterface.transmit

        def watched(end: NetworkInterface, packet: IpPacket, network: Network) -> None:
            if end is interface:
                message = message_of(packet)
                self.channel_data += is_channel_data(packet.payload)
                if message is not None and message.cls is Class.REQUEST:
                    if self.lose(message):
                        self.lost += 1
                        return
                    self.requests.append((network.now / SECOND, message.method))
            transmit(end, packet, network)

        monkeypatch.setattr(NetworkInterface, "transmit", watched)

    def times(self, method: Method) -> list[float]:
        return [at for at, each in self.requests if each == method]


def ups_and_downs(peer: Peer, since: Instant) -> list[AgentState]:
    assert peer.process is not None
    return [event.new for at, event in peer.process.log if at > since and isinstance(event, AgentStateChanged)]


@pytest.mark.parametrize("every", [IDLE, BUSY], ids=["idle", "busy"])
@pytest.mark.parametrize("uri", [UDP, TCP])
def test_an_hour_loses_no_data_and_refreshes_in_time(uri: str, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiortc/aioice#28, #29, pion/turn#481."""
    world = scene(uri)
    since = world.net.now
    watch = Losing(world.topology.one.interfaces[0], monkeypatch)
    expected = 3600 * SECOND // every
    assert world.talk(3600, every=every) == (expected, expected)
    assert all(ups_and_downs(peer, since) == [] for peer in world.peers)
    if uri == UDP:  # over TCP a segment may contain several messages or a part of one
        assert watch.channel_data >= expected, "data is sent by the channel"
        for method, lifetime in ((Method.REFRESH, 600), (Method.CHANNEL_BIND, 600)):
            times = watch.times(method)
            assert 5 <= len(times) <= 16, method
            assert all(after - before < lifetime for before, after in pairwise(times))
    assert world.end() == []
    world.net.run_for(600 * SECOND)
    assert world.turn.allocations == 0, "at the latest when its lifetime ends, since the last request may get a 438"


@pytest.mark.parametrize("every", [IDLE, BUSY], ids=["idle", "busy"])
@pytest.mark.parametrize("outage", [10, 25])
@pytest.mark.parametrize("at", [230, 290, 470, 500, 590])
def test_a_path_survives_an_outage_at_the_time_of_a_refresh(
    at: int, outage: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests that refresh something before its expiry are lost for a while."""
    world = scene()
    since = world.net.now
    watch = Losing(world.topology.one.interfaces[0], monkeypatch)
    world.net.run(Instant(since + at * SECOND))
    watch.lose = lambda message: message.method != Method.BINDING
    world.net.run_for(outage * SECOND)
    watch.lose = lambda message: False
    world.talk(60, every=every)
    ticks = 600 * SECOND // every
    assert world.talk(600, every=every) == (ticks, ticks)
    assert all(ups_and_downs(peer, since) == [] for peer in world.peers)
    assert world.end() == []


def test_a_channel_that_cannot_be_refreshed_falls_back_to_indications(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8656, section 12: the channel expires after 600 s; with its own permission the data continues by Send."""
    world = scene()
    since = world.net.now
    watch = Losing(world.topology.one.interfaces[0], monkeypatch)
    watch.lose = lambda message: message.method == Method.CHANNEL_BIND
    assert world.talk(1500) == (1500, 1500), "the switch loses no data"
    assert watch.lost > 0
    used = watch.channel_data
    assert world.talk(60) == (60, 60)
    assert watch.channel_data == used, "no channel"
    assert all(ups_and_downs(peer, since) == [] for peer in world.peers)
    assert world.end() == []


def test_a_permission_that_cannot_be_refreshed_ends_the_path_after_300_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    world = scene()
    watch = Losing(world.topology.one.interfaces[0], monkeypatch)
    watch.lose = lambda message: message.method in (Method.CREATE_PERMISSION, Method.CHANNEL_BIND)
    start = world.net.now
    world.talk(280)
    assert world.one.state is AgentState.COMPLETED
    world.talk(700)
    assert world.one.state is AgentState.FAILED
    ended = world.one.first(AgentState.FAILED)
    assert ended is not None
    assert 300 * SECOND - SECOND <= ended - start <= 640 * SECOND
    assert world.one.events(ConsentLost) or "could not be renewed in time" in flat(world.one.session.why())
    assert world.end() == []


def test_an_allocation_that_cannot_be_refreshed_expires_and_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = scene()
    watch = Losing(world.topology.one.interfaces[0], monkeypatch)
    watch.lose = lambda message: message.method == Method.REFRESH and message.get(LIFETIME) != 0
    world.talk(660)
    report = flat(world.one.session.why())
    assert "could not be refreshed before its lifetime ended" in report
    assert watch.lost > 1
    watch.lose = lambda message: False
    world.net.run_for(60 * SECOND)
    if world.one.state is not AgentState.COMPLETED or world.other.state is not AgentState.COMPLETED:
        world.one.call(world.one.session.restart)
        world.net.run_for(10 * SECOND)
    assert world.talk(60) == (60, 60)
    assert world.end() == []


def test_a_path_that_was_idle_for_all_lifetimes_carries_the_first_datagram() -> None:
    world = scene()
    world.net.run_for(1800 * SECOND)
    world.one.send(b"first after half an hour")
    world.other.send(b"and back")
    world.net.run_for(SECOND)
    assert world.other.received == [b"first after half an hour"]
    assert world.one.received == [b"and back"]
    assert world.end() == []


class Overheard(Listening):
    """A listening machine that records its datagrams."""

    def __init__(self, machine: Any, heard: list[bytes]) -> None:
        super().__init__(machine)
        self._heard = heard

    def receive(self, input: Input, *, now: Instant) -> None:
        if isinstance(input, Datagram):
            self._heard.append(input.data)
        super().receive(input, now=now)


class ByHand:
    """A TURN client on a host without NAT, and a peer that sends to its relay at given times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = nats(None, None)
        self.net = made.network
        turn_server(self.net, made.internet)
        server = ServerAddress(address=Address("203.0.113.9", 3478))
        random, flow_ids = self.net.chance_of("client"), self.net.flow_ids
        self.client = TurnClient(server, random=random, flow_ids=flow_ids, credentials=Credentials(*USER))
        self.heard: list[bytes] = []
        """Return the datagrams from the server, oldest first."""
        self.process = made.one.run(Overheard(self.client, self.heard))
        self.process.call(self.client.start)
        self.watch = Losing(made.one.interfaces[0], monkeypatch)
        self.peer = Program(self.net, made.other)
        self.net.run_for(SECOND)

    def ask(self, method: Callable[..., None], what: object) -> Instant:
        """Send a request; returns the time at which the server gets it, 15 ms later."""
        asked_at = self.net.now
        self.process.call(method, what)
        self.net.run_for(SECOND)
        return Instant(asked_at + 15 * MILLISECOND)

    def arrives(self, at: int) -> bool:
        """Whether a peer's datagram that reaches the server at this time is relayed."""
        self.net.run(Instant(at - 20 * MILLISECOND))
        before = len(self.process.events(RelayedData))
        self.peer.send(self.client.relayed[0], b"from the peer")
        self.net.run_for(SECOND // 10)
        return len(self.process.events(RelayedData)) > before


def test_a_permission_expires_at_the_server_after_300_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8656, section 9: neither earlier nor later; datagrams of the peer don't refresh it."""
    scene = ByHand(monkeypatch)
    since = scene.ask(scene.client.permit, (scene.peer.address,))
    scene.watch.lose = lambda message: message.method == Method.CREATE_PERMISSION
    times = [1, 150, 290, 299.9, 300.2, 400]
    came = [scene.arrives(since + int(at * SECOND)) for at in times]
    assert came == [True] * 4 + [False] * 2
    assert scene.watch.lost


def test_a_channel_expires_after_600_seconds_and_can_be_bound_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8656, section 12: the same number and peer can be bound again at once."""
    scene = ByHand(monkeypatch)
    since = scene.ask(scene.client.bind, scene.peer.address)
    scene.watch.lose = lambda message: message.method == Method.CHANNEL_BIND
    by_channel: list[bool] = []
    for at in (590, 599.9, 600.1, 700):
        assert scene.arrives(since + int(at * SECOND)), "the permission is refreshed separately"
        carried = [data for data in scene.heard if is_channel_data(data) or data.startswith(DATA_INDICATION)]
        by_channel.append(is_channel_data(carried[-1]))
    assert by_channel == [True, True, False, False]
    scene.watch.lose = lambda message: False
    scene.ask(scene.client.bind, scene.peer.address)
    first, again = scene.process.events(ChannelBound)
    assert first == again, "the same peer and number"
    assert scene.arrives(scene.net.now + SECOND)
    assert is_channel_data(scene.heard[-1])
