"""Permissions are installed as candidates arrive; a pair without one waits and takes no pacing slot."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from polynya.core.instants import SECOND, Instant
from polynya.core.pacer import Pacer
from polynya.core.packets import IpPacket
from polynya.ice.candidates import CandidateType
from polynya.ice.pairs import PairState
from polynya.lab import Network
from polynya.lab.links import NetworkInterface
from polynya.session.options import Policy
from polynya.stun.attributes import DATA, XOR_PEER_ADDRESS
from polynya.stun.message import Message, decode, is_stun
from polynya.stun.registry import Class, Method
from tests.scenarios.relays import CLOSED, OPEN, Scene, nats


class Watch:
    """Records the STUN and TURN messages of a host with their times, and can drop some of them."""

    def __init__(self, interface: NetworkInterface, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lose: Callable[[Message], bool] = lambda message: False
        self.sent: list[tuple[Instant, Message]] = []
        transmit = NetworkInterface.transmit

        def watched(end: NetworkInterface, packet: IpPacket, network: Network) -> None:
            if end is interface and is_stun(packet.payload):
                message = decode(packet.payload)
                self.sent.append((network.now, message))
                if self.lose(message):
                    return
            transmit(end, packet, network)

        monkeypatch.setattr(NetworkInterface, "transmit", watched)

    def of(self, method: Method, cls: Class = Class.REQUEST) -> list[Message]:
        return [message for _, message in self.sent if message.method == method and message.cls is cls]

    def starts(self) -> list[Instant]:
        """Start of each transaction."""
        first: dict[bytes, Instant] = {}
        for at, message in self.sent:
            if message.cls is Class.REQUEST:
                first.setdefault(message.transaction_id, at)
        return list(first.values())


def test_a_pair_without_a_permission_stays_waiting_and_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY)
    watch = Watch(scene.topology.one.interfaces[0], monkeypatch)
    watch.lose = lambda message: message.method == Method.CREATE_PERMISSION
    scene.exchange.start()
    scene.net.run_for(5 * SECOND)
    pairs = scene.one.session.agent.pairs()
    assert pairs, "the remote candidates are known"
    assert {pair.state for pair in pairs} <= {PairState.WAITING, PairState.FROZEN}
    assert not any(pair.valid or pair.writable for pair in pairs)
    assert watch.of(Method.CREATE_PERMISSION), "permissions are requested at once"
    assert not watch.of(Method.SEND, Class.INDICATION), "nothing is sent before they are installed"
    kinds = {message.method for _, message in watch.sent if message.cls is Class.REQUEST}
    assert kinds <= {Method.ALLOCATE, Method.CREATE_PERMISSION, Method.BINDING}
    pacer = scene.one.session.agent.pacing._pacer
    reserved: list[Pacer] = []
    reserve = Pacer.reserve
    monkeypatch.setattr(Pacer, "reserve", lambda self, *, now: reserved.append(self) or reserve(self, now=now))
    scene.net.run_for(3 * SECOND)
    assert pacer not in reserved, "no slot is taken for a check that cannot be sent"
    watch.lose = lambda message: False
    scene.net.run_until(lambda: scene.one.settled and scene.other.settled, Instant(30 * SECOND))
    assert scene.types() == ("relay -> relay", "relay -> relay")
    assert scene.end() == []


def test_other_pairs_are_checked_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents with a direct path connect as fast as without a relay."""
    times = []
    for servers in ([], ["turn:203.0.113.9"]):
        scene = Scene(nats(OPEN, OPEN), servers=servers)
        watch = Watch(scene.topology.one.interfaces[0], monkeypatch)
        watch.lose = lambda message: message.method == Method.CREATE_PERMISSION
        scene.exchange.start()
        scene.net.run_until(lambda scene=scene: scene.one.settled and scene.other.settled, Instant(30 * SECOND))
        assert not scene.relayed
        times.append(scene.net.now)
        monkeypatch.undo()
    without, with_relays = times
    assert with_relays <= without + SECOND // 10


def test_permissions_are_requested_as_candidates_arrive_many_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY)
    watch = Watch(scene.topology.one.interfaces[0], monkeypatch)
    assert scene.start()
    requests = watch.of(Method.CREATE_PERMISSION)
    requested = [peer.host for request in requests for peer in request[XOR_PEER_ADDRESS]]
    remote = {pair.remote_address.host for pair in scene.one.session.agent.pairs()}
    assert remote <= set(requested), "each host of the remote candidates"
    first = next(at for at, message in watch.sent if message.method == Method.CREATE_PERMISSION)
    checks = [at for at, message in watch.sent if message.method == Method.SEND]
    assert all(at > first for at in checks)
    starts = sorted(watch.starts())
    assert all(after - before >= 5 * SECOND // 1000 for before, after in pairwise(starts))


def test_before_the_channel_is_bound_data_is_sent_by_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiortc/aioice#110: Data indications were dropped, so relay to relay carried no data."""
    scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY)
    watch = Watch(scene.topology.one.interfaces[0], monkeypatch)
    watch.lose = lambda message: message.method == Method.CHANNEL_BIND
    assert scene.start()
    assert all(pair.local.type is CandidateType.RELAYED for peer in scene.peers if (pair := peer.selected))
    assert scene.talk(30) == (30, 30)
    carried = [message[DATA] for message in watch.of(Method.SEND, Class.INDICATION)]
    assert sum(data.startswith(scene.one.name.encode()) for data in carried) == 30
    assert scene.end() == []
