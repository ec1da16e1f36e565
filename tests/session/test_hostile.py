"""Whatever comes by a socket: a connected session drops it, counts it, and lives on."""

from __future__ import annotations

import random

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Datagram, IcmpError, IcmpKind, SendFailed
from polynya.ice.events import AgentState
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.relaying import relayed_configs, turn_server
from polynya.lab.topologies import between_nats
from polynya.nat import full_cone
from polynya.session.options import Policy
from tests.stun.mutations import Fuzzer

CASES = 4000


@pytest.mark.parametrize("policy", [Policy.ALL, Policy.RELAY])
def test_hostile_packets_neither_raise_nor_end_a_connection(policy: Policy) -> None:
    """security.md 12: a bad MAC, a forged answer, a torn message: dropped, and the session lives on."""
    made = between_nats(full_cone(), full_cone(), network=Network(7))
    turn_server(made.network, made.internet)
    network = made.network
    one, other = (
        Peer(network, host, config)
        for host, config in zip((made.one, made.other), relayed_configs(made, policy), strict=True)
    )
    Exchange(network, one, other).start()
    network.run_until(lambda: one.settled and other.settled, Instant(60 * SECOND))
    assert one.state is AgentState.COMPLETED
    assert one.process is not None

    chance, fuzzer = random.Random(11), Fuzzer(11)
    session = one.session
    flows = [*(base.flow for base in session.gathering.bases), *(pair.flow for pair in session.agent.pairs())]
    remotes = [pair.remote_address for pair in session.agent.pairs()]
    remotes += [Address("203.0.113.9", 3478), Address("203.0.113.1", 3478), Address("192.0.2.66", 6666)]
    for _ in range(CASES):
        flow, remote = chance.choice(flows), chance.choice(remotes)
        kind = chance.random()
        if kind < 0.96:
            hostile: Datagram | SendFailed | IcmpError = Datagram(flow, remote, fuzzer.case())
        elif kind < 0.98:
            hostile = SendFailed(flow=flow, remote=remote, errno=chance.choice((1, 101, 113)))
        else:
            hostile = IcmpError(flow=flow, remote=remote, kind=IcmpKind.HOST_UNREACHABLE)
        session.receive(hostile, now=network.now)
        if chance.random() < 0.01:
            network.run_for(20 * MILLISECOND)
    one.call(lambda now: None)
    network.run_for(60 * SECOND)

    assert one.state is other.state is AgentState.COMPLETED
    before = len(other.received)
    assert one.send(b"still here")
    network.run_for(SECOND)
    assert other.received[before:] == [b"still here"]
