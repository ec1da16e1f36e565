"""Hosts whose addresses change: data flows again within a second and three round trips, two more if both change.

The signaling connection is open again after three round trips: one each for TCP, the WebSocket and the join.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.hosts import Host
from polynya.lab.table import session_config
from polynya.lab.topologies import Topology, between_nats
from polynya.nat import NatConfig, port_restricted_cone

TICK = 10 * MILLISECOND


class Talk:
    """Two connected peers, each of which sends the time every 10 ms."""

    def __init__(self, nat: Callable[[], NatConfig] | None, *, seed: int, round_trip: int) -> None:
        self.network = Network(seed=seed)
        self.round_trip = round_trip
        delays = (round_trip // 4, round_trip // 4)
        nats = (None, None) if nat is None else (nat(), nat())
        self.topology: Topology = between_nats(*nats, network=self.network, delays=delays)
        self.one = Peer(self.network, self.topology.one, session_config(self.topology, controlling=True))
        self.other = Peer(self.network, self.topology.other, session_config(self.topology, controlling=False))
        self.exchange = Exchange(self.network, self.one, self.other, delay=round_trip // 2)
        self.exchange.start()
        assert self.network.run_until(lambda: self.one.settled and self.other.settled, self.at(10 * SECOND))
        self.network.run_for(60 * SECOND)

    def at(self, later: int) -> Instant:
        return Instant(self.network.clock.now + later)

    def peer(self, host: Host) -> Peer:
        return self.one if host is self.one.host else self.other

    def readdress(self, host: Host, *addresses: str) -> None:
        self.network.address(host.interfaces[0], *addresses)
        self.exchange.interrupt(self.peer(host), 3 * self.round_trip)

    def silence(self) -> int:
        """Talk until data sent from now on has arrived on both sides; return how long that took."""
        began = self.network.clock.now
        while self.network.clock.now < began + 100 * SECOND:
            for peer in (self.one, self.other):
                peer.send(str(self.network.clock.now).encode())
            self.network.run_for(TICK)
            latest = [int(peer.received[-1]) if peer.received else 0 for peer in (self.one, self.other)]
            if min(latest) >= began:
                return self.network.clock.now - began
        raise AssertionError(f"{self.one.session.why()}\n{self.other.session.why()}")


NEW = {"alice": ("192.0.2.77", "10.0.1.77"), "bob": ("192.0.2.78", "10.0.2.78")}


@pytest.mark.parametrize("round_trip", [20, 100, 300])
@pytest.mark.parametrize("nat", [None, port_restricted_cone])
@pytest.mark.parametrize("who", ["alice", "bob", "both"])
def test_data_flows_again_after_an_address_was_replaced(
    who: str, nat: Callable[[], NatConfig] | None, round_trip: int
) -> None:
    talk = Talk(nat, seed=1, round_trip=round_trip * MILLISECOND)
    for peer in (talk.one, talk.other):
        if who in ("both", peer.name):
            talk.readdress(peer.host, NEW[peer.name][nat is not None])
    trips = 5 if who == "both" else 3
    assert talk.silence() <= SECOND + trips * talk.round_trip
    talk.network.run_for(60 * SECOND)
    assert talk.silence() <= 2 * talk.round_trip, "and it stays"


def test_a_host_without_an_address_for_a_while_talks_again_once_it_has_one() -> None:
    talk = Talk(None, seed=1, round_trip=100 * MILLISECOND)
    talk.readdress(talk.one.host)
    talk.network.run_for(20 * SECOND)
    assert talk.one.selected is None
    talk.readdress(talk.one.host, "192.0.2.77")
    assert talk.silence() <= SECOND + 3 * talk.round_trip


def test_a_link_local_address_of_a_new_interface_restarts_nothing() -> None:
    talk = Talk(None, seed=1, round_trip=100 * MILLISECOND)
    before = talk.one.session.agent.local_description
    talk.network.attach(talk.one.host, "fe80::7", talk.topology.internet)
    talk.one.host.interfaces_changed()
    talk.network.run_for(SECOND)
    assert talk.one.session.agent.local_description == before
    assert [base.local.host for base in talk.one.session.gathering.bases] == ["192.0.2.1", "fe80::7"]


def test_an_address_that_is_added_replaces_nothing_that_works() -> None:
    """Data flows on without a gap, before and after the restart."""
    talk = Talk(None, seed=1, round_trip=100 * MILLISECOND)
    before = len(talk.other.received)
    talk.network.address(talk.one.host.interfaces[0], "192.0.2.1", "192.0.2.77")
    for number in range(300):
        assert talk.one.send(str(number).encode())
        talk.network.run_for(TICK)
    talk.network.run_for(SECOND)
    assert [int(data) for data in talk.other.received[before:]] == list(range(300))
