"""The table of NATs with a TURN server: every pair connects, directly if the rules allow it, else relayed."""

from __future__ import annotations

import itertools

import pytest

from polynya.core.flows import Transport
from polynya.core.instants import SECOND, Instant
from polynya.ice.candidates import Candidate
from polynya.ice.events import AgentState, SelectedPairChanged
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.relaying import relayed_configs, turn_server
from polynya.lab.table import Meeting, meet
from polynya.lab.topologies import Topology, between_nats
from polynya.nat import NatConfig, PortAssignment, every_class
from polynya.nat.rules import expect
from polynya.session.options import Policy
from tests.scenarios.relays import Scene, nats

pytestmark = pytest.mark.slow

CLASSES = list(every_class(NatConfig(ports=PortAssignment.RANDOM)))


def topology(first: NatConfig | None, second: NatConfig | None, seed: int = 0) -> Topology:
    made = between_nats(first, second, network=Network(seed))
    turn_server(made.network, made.internet)
    return made


def relayed(meeting: Meeting) -> bool:
    return any("relay" in (pair or "") for pair in meeting.pairs)


@pytest.mark.parametrize("first", CLASSES, ids=lambda config: config.label)
def test_every_pair_of_nats_connects_directly_if_the_rules_allow_it_else_relayed(first: NatConfig) -> None:
    for second in CLASSES:
        meeting = meet(made := topology(first, second), configs=relayed_configs(made))
        assert (meeting.connected, meeting.data, meeting.faults) == (True, True, ()), second.label
        assert relayed(meeting) != expect(first, second).always, (second.label, meeting.pairs)


def test_with_the_policy_relay_no_other_candidate_is_signaled_or_used() -> None:
    """RFC 8828, mode 4: the remote agent learns the relayed address only."""
    meeting = meet(made := topology(CLASSES[0], CLASSES[0]), configs=relayed_configs(made, Policy.RELAY))
    assert meeting.connected
    assert meeting.data
    assert meeting.pairs == ("relay -> relay", "relay -> relay")
    for peer in meeting.peers:
        signaled = [str(local.candidate) for local in peer.session.agent.local_candidates() if local.advertise]
        assert signaled
        assert all("typ relay" in line for line in signaled)
        assert not any("10.0." in line or "198.51." in line for line in signaled)


def test_relay_only_has_no_delay() -> None:
    """pion/ice#324, livekit/livekit#4835: relay-only sessions waited for candidates of other types."""
    meeting = meet(made := topology(CLASSES[-1], CLASSES[-1]), configs=relayed_configs(made, Policy.RELAY))
    for peer in meeting.peers:
        valid, nominated = peer.first(AgentState.CONNECTED), peer.first(AgentState.COMPLETED)
        assert valid is not None
        assert nominated is not None
        assert nominated - valid < SECOND // 4


def test_a_relay_carries_data_in_both_directions_for_an_hour() -> None:
    """aiortc/aioice#28, #29, pion/turn#481: relays died after 10 to 15 minutes."""
    made = topology(CLASSES[-1], CLASSES[-1])
    network = made.network
    one, other = (
        Peer(network, host, config) for host, config in zip((made.one, made.other), relayed_configs(made), strict=True)
    )
    Exchange(network, one, other).start()
    network.run_until(lambda: one.settled and other.settled, Instant(60 * SECOND))
    assert one.state is other.state is AgentState.COMPLETED
    for minute in range(60):
        network.run(Instant((minute + 1) * 60 * SECOND))
        one.send(b"from one, minute %d" % minute)
        other.send(b"from other, minute %d" % minute)
    network.run_for(5 * SECOND)
    assert other.received == [b"from one, minute %d" % minute for minute in range(60)]
    assert one.received == [b"from other, minute %d" % minute for minute in range(60)]
    assert one.state is other.state is AgentState.COMPLETED


def test_data_flows_on_the_first_valid_pair_without_waiting_for_a_channel() -> None:
    made = topology(CLASSES[-1], CLASSES[-1])
    network = made.network
    one, other = (
        Peer(network, host, config)
        for host, config in zip((made.one, made.other), relayed_configs(made, Policy.RELAY), strict=True)
    )
    Exchange(network, one, other).start()
    network.run_until(lambda: bool(one.events(SelectedPairChanged)), Instant(60 * SECOND))
    sent = [b"number %d" % number for number in range(40)]
    for data in sent:
        assert one.send(data)
        network.run_for(SECOND // 50)  # during nomination and channel binding
    network.run_for(2 * SECOND)
    assert other.received == sent, "the switch to the channel neither loses nor reorders on a lossless link"


def test_pairs_with_a_peer_that_the_server_denies_fail_with_the_reason() -> None:
    made = topology(None, None)
    configs = relayed_configs(made, Policy.RELAY)
    network = made.network
    one, other = Peer(network, made.one, configs[0]), Peer(network, made.other, relayed_configs(made)[1])
    Exchange(network, one, other).start()
    network.run_until(lambda: one.settled and other.settled, Instant(60 * SECOND))
    inside = Candidate.parse("candidate:9 1 udp 2130706431 10.1.2.3 5000 typ host")
    one.call(one.session.add_remote, inside)
    network.run_for(5 * SECOND)
    refused = [pair for pair in one.session.agent.pairs() if pair.remote_address.host == "10.1.2.3"]
    assert refused
    assert all("403" in pair.reason for pair in refused)


def test_reordered_signaling_changes_nothing() -> None:
    for first, second in itertools.product((CLASSES[-1], CLASSES[2]), repeat=2):
        for seed in range(3):
            made = topology(first, second, seed)
            meeting = meet(made, configs=relayed_configs(made), signaling_jitter=SECOND // 10)
            assert meeting.connected, (first.label, second.label, seed)
            assert meeting.faults == ()


def test_a_session_reports_how_a_relayed_path_carries_data() -> None:
    """The path to the TURN server is IPv4 and UDP, and a channel is bound to the peer of the nominated pair."""
    scene = Scene(nats(CLASSES[0], CLASSES[0]), policy=Policy.RELAY)
    assert scene.start()
    scene.net.run_for(SECOND)
    for peer in scene.peers:
        pair = peer.selected
        assert pair is not None
        overhead = peer.session.relay_overhead(pair.flow, pair.remote_address)
        assert overhead is not None
        assert (overhead.family, overhead.transport, overhead.channel, overhead.header) == (4, Transport.UDP, True, 4)
        base = peer.session.gathering.bases[0]
        assert peer.session.relay_overhead(base.flow, pair.remote_address) is None
    assert scene.end() == []
