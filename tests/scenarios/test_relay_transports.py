"""Transports to TURN servers: through restrictive firewalls, over both address families, and by preference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polynya.core.flows import Transport
from polynya.core.instants import MILLISECOND, SECOND, in_seconds
from polynya.core.packets import Protocol
from polynya.ice.candidates import CandidateType
from polynya.ice.events import AgentState
from polynya.lab import UDP_BLOCKED, Network, Refusal, Rule
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.links import Profile
from polynya.lab.relaying import REALM, TURN_SERVER, relay, relayed_configs, turn_server
from polynya.lab.topologies import Topology, stun_server
from polynya.session.options import Policy
from polynya.turn.server.config import RelayHost, ServerConfig
from tests.reports import flat
from tests.scenarios.relays import (
    ALL,
    CLOSED,
    OPEN,
    SECOND_SERVER,
    TCP,
    TLS,
    TLS_443,
    UDP,
    Scene,
    dual_stack,
    nats,
    walled,
)

ONLY_443 = (
    UDP_BLOCKED,
    Rule(allow=True, outward=True, protocol=Protocol.TCP, remote_ports=(443, 443)),
    Rule(allow=False, outward=True, protocol=Protocol.TCP),
)


def relays_of(peer: Peer) -> list[str]:
    """Return the servers of the relayed candidates, by preference."""
    found = [local for local in peer.session.agent.local_candidates() if local.type is CandidateType.RELAYED]
    found.sort(key=lambda local: -local.candidate.priority)
    return list(dict.fromkeys(str(local.server) for local in found))


@pytest.mark.parametrize("both", [False, True], ids=["one side", "both sides"])
@pytest.mark.parametrize("uri", [TCP, TLS, TLS_443])
def test_if_udp_is_blocked_the_relay_is_reached_by_tcp_or_tls(uri: str, both: bool) -> None:
    scene = Scene(walled([UDP_BLOCKED], [UDP_BLOCKED] if both else []), servers=[UDP, uri])
    assert scene.start()
    assert scene.types() == (("relay -> relay",) * 2 if both else ("relay -> host", "host -> relay"))
    assert relays_of(scene.one) == [server for server in relays_of(scene.one) if "over udp" not in server]
    assert scene.talk(60) == (60, 60)
    assert scene.end() == []


def test_if_only_port_443_is_open_the_relay_is_reached_by_tls() -> None:
    scene = Scene(walled(ONLY_443, ONLY_443), servers=ALL)
    assert scene.start()
    assert relays_of(scene.one) == ["203.0.113.9:443 over tls"]
    assert scene.talk(60) == (60, 60)
    assert scene.end() == []


@pytest.mark.parametrize("refusal", list(Refusal))
def test_a_firewall_causes_no_delay_whether_it_rejects_or_drops(refusal: Refusal) -> None:
    made = walled([], [])
    wall = made.network.firewall("wall", outside=made.internet, rules=ONLY_443, refusal=refusal)
    made.one = made.network.host("carol", "192.0.2.40", wall, delay=10 * MILLISECOND)
    scene = Scene(made, servers=ALL)
    assert scene.start()
    connected = scene.one.first(AgentState.CONNECTED)
    assert connected is not None
    assert connected < SECOND // 2
    assert scene.end() == []


def test_udp_is_preferred_to_tcp_and_tcp_to_tls() -> None:
    scene = Scene(nats(CLOSED, CLOSED), servers=list(reversed(ALL)))
    assert scene.start()
    for peer in scene.peers:
        assert relays_of(peer) == [
            "203.0.113.9:3478 over udp",
            "203.0.113.9:3478 over tcp",
            *[server for server in relays_of(peer)[2:] if "over tls" in server],
        ]
        assert len(relays_of(peer)) == 4
    shown = [pair for peer in scene.peers if (pair := peer.selected) is not None]
    ours = [pair.local for pair in shown if pair.local.type is CandidateType.RELAYED]
    assert ours
    chosen = [
        local.server
        for peer in scene.peers
        for local in peer.session.agent.local_candidates()
        if local.candidate.address in [candidate.address for candidate in ours]
    ]
    assert all("over udp" in str(server) for server in chosen)
    assert scene.end() == []


def test_every_allocation_is_freed_when_the_sessions_end() -> None:
    """Several servers, transports and families: the requests that free allocations take no pacing slot."""
    scene = Scene(dual_stack(CLOSED), servers=ALL)
    assert scene.start()
    scene.net.run_for(2 * SECOND)
    assert scene.turn.allocations == 8
    assert scene.end() == []
    assert scene.turn.allocations == 0


@pytest.mark.parametrize("uri", [UDP, TCP, TLS])
def test_a_session_leaves_no_allocation_whenever_it_closes(uri: str) -> None:
    for at in range(0, 400, 7):
        scene = Scene(nats(CLOSED, CLOSED), servers=[uri])
        scene.exchange.start()
        scene.net.run_for(at * MILLISECOND + MILLISECOND // 2)
        faults = scene.end(settled=False)
        assert (at, faults) == (at, [])
        assert (at, scene.turn.allocations) == (at, 0)


@pytest.mark.parametrize("dead", [UDP.replace(".9", ".77"), TCP.replace(".9", ".77"), TLS.replace(".9", ".77")])
def test_an_unreachable_server_does_not_delay_a_direct_connection(dead: str) -> None:
    """algesten/str0m#405, aiortc/aiortc#1183: each unreachable server or candidate added delay."""
    times = []
    for servers in ([], [dead], [dead, UDP]):
        made = nats(OPEN, OPEN)
        made.network.host("dead", "203.0.113.77", made.internet).silent = True
        scene = Scene(made, servers=servers)
        assert scene.start()
        assert not scene.relayed
        times.append([in_seconds(at) for peer in scene.peers if (at := peer.first(AgentState.CONNECTED)) is not None])
        assert scene.end() == []
    without, *others = times
    for with_it in others:
        assert max(with_it) < max(without) + 0.02, "at most a few pacing slots"


def test_several_servers_are_used_in_parallel_and_the_nearest_connects() -> None:
    """aiortc/aioice#3: one STUN and one TURN server were not enough."""
    made = nats(CLOSED, CLOSED)
    net = made.network
    turn_server(net, made.internet, name="far", addresses=SECOND_SERVER, delay=400 * MILLISECOND)
    alone = Scene(nats(CLOSED, CLOSED), servers=[UDP])
    assert alone.start()
    scene = Scene(made, servers=["turn:203.0.113.10", "turn:203.0.113.10?transport=tcp", UDP])
    assert scene.start()
    for one, other in zip(alone.peers, scene.peers, strict=True):
        first, second = one.first(AgentState.CONNECTED), other.first(AgentState.CONNECTED)
        assert first is not None
        assert second is not None
        assert second < first + 50 * MILLISECOND, "the far server causes no delay"
    net.run_for(10 * SECOND)
    for peer in scene.peers:
        assert set(relays_of(peer)) == {
            "203.0.113.9:3478 over udp",
            "203.0.113.10:3478 over udp",
            "203.0.113.10:3478 over tcp",
        }, "all servers have answered in the end"
    assert scene.end() == []


@pytest.mark.parametrize("uri", [UDP, TCP, TLS])
def test_a_far_server_may_finish_long_after_a_near_one(uri: str) -> None:
    """Four round trips of 0.6 s exceed the grace time after the STUN response, in which the only relay was dropped."""
    made = nats(CLOSED, CLOSED)
    turn = turn_server(made.network, made.internet, delay=290 * MILLISECOND)
    scene = Scene(made, servers=[uri], turn=turn)
    assert scene.start()
    assert scene.relayed
    assert scene.talk(30)[0] >= 28
    assert scene.end() == []


def test_a_server_that_is_reached_by_ipv6_relays_ipv4() -> None:
    made = dual_stack(CLOSED)
    server = "turn:[2001:db8:100::9]"
    scene = Scene(made, policy=Policy.RELAY, servers=[server])
    assert scene.start()
    families = {
        local.candidate.address.family
        for local in scene.one.session.agent.local_candidates()
        if local.type is CandidateType.RELAYED
    }
    assert families == {4, 6}, "one allocation has both"
    assert scene.turn.allocations == 2
    assert scene.talk(30) == (30, 30)
    assert scene.end() == []


@pytest.mark.parametrize(("mine", "theirs"), [((4,), (6,)), ((6,), (4,))])
def test_an_ipv4_host_and_an_ipv6_host_meet_over_a_dual_allocation(
    mine: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    """There is no direct path; the relay of one agent has an address of the other's family."""
    made = walled([], [])
    hosts = []
    for name, families in (("ann", mine), ("ben", theirs)):
        number = len(hosts) + 50
        address = f"192.0.2.{number}" if families == (4,) else f"2001:db8:{number}::2"
        hosts.append(made.network.host(name, address, made.internet, delay=10 * MILLISECOND))
    made.one, made.other = hosts
    scene = Scene(made, servers=[UDP, "turn:[2001:db8:100::9]"])
    assert scene.start()
    assert scene.relayed
    assert scene.talk(30) == (30, 30)
    assert scene.end() == []


def test_a_relay_on_one_side_is_enough() -> None:
    made = nats(CLOSED, CLOSED)
    with_it, without = relayed_configs(made)[0], relayed_configs(made, servers=[])[1]
    scene = Scene(made, configs=(with_it, without))
    assert scene.start()
    assert [types.split(" -> ")[0] == "relay" for types in scene.types()] == [True, False]
    assert scene.talk(60) == (60, 60)
    assert scene.end() == []


def test_two_relay_only_clients_of_one_server_meet_inside_it() -> None:
    """security.md, line 2: a live relayed address of the server is always a permitted peer."""
    made = nats(CLOSED, CLOSED)
    strict = ServerConfig(realm=REALM, relays=(RelayHost(host=TURN_SERVER[0]),))  # the default policy
    turn = turn_server(made.network, made.internet, config=strict)
    scene = Scene(made, policy=Policy.RELAY, turn=turn)
    assert scene.start()
    assert scene.types() == ("relay -> relay", "relay -> relay")
    assert scene.talk(60) == (60, 60)
    assert scene.end() == []
    outside = [drop for drop in made.network.drops if drop.node == "turn"]
    assert outside == [], "relayed inside the server"


def test_without_any_transport_connecting_fails_with_a_reason_for_each_server() -> None:
    nothing = (UDP_BLOCKED, Rule(allow=False, protocol=Protocol.TCP))
    scene = Scene(walled(nothing, []), servers=ALL)
    assert not scene.start(limit=120 * SECOND)
    assert scene.one.state is AgentState.FAILED
    report = flat(scene.one.session.why())
    for server in ("3478 over udp", "3478 over tcp", "5349 over tls", "443 over tls"):
        assert f"203.0.113.9:{server}" in report
    assert scene.end() == []


def test_a_server_with_a_certificate_for_another_name_gives_no_relay() -> None:
    made = walled([UDP_BLOCKED], [])
    scene = Scene(made, servers=[relay(TLS)])
    scene.turn.host.certificate = ("evil.example",)
    assert not scene.start(limit=120 * SECOND)
    assert "certificate is for evil.example, not for 203.0.113.9" in flat(scene.one.session.why())
    assert scene.end() == []


def test_a_service_has_the_listeners_that_are_configured() -> None:
    made = walled([UDP_BLOCKED], [UDP_BLOCKED])
    turn = turn_server(made.network, made.internet, listeners=[(Transport.TCP, 80)])
    scene = Scene(made, servers=[TCP, "turn:203.0.113.9:80?transport=tcp"], turn=turn)
    assert scene.start()
    assert relays_of(scene.one) == ["203.0.113.9:80 over tcp"]
    assert scene.end() == []


def without_trickle(delay: int, *, blocked_udp: bool = True, server: int = 0) -> float:
    """Return when both agents are connected, in seconds: one is behind a firewall that drops UDP, one behind a NAT."""
    net = Network(1)
    internet = net.router("internet")
    stun = stun_server(net, internet, delay=server)
    link = Profile(delay=delay)
    wall = net.firewall("wall", outside=internet, rules=(UDP_BLOCKED,), link=link)
    nat = net.nat("nat", outside=internet, address="198.51.100.2", inside="10.0.2.0/24", config=CLOSED, link=link)
    one, other = net.host("alice", "192.0.2.1", wall), net.host("bob", "10.0.2.2", nat)
    made = Topology(network=net, internet=internet, one=one, other=other, stun=stun)
    configs = relayed_configs(made, servers=[relay(UDP), relay(TCP)])
    first, second = (replace(config, blocked_udp=blocked_udp) for config in configs)
    turn = turn_server(net, internet, delay=server)
    scene = Scene(made, configs=(first, second), turn=turn)
    scene.exchange = Exchange(net, *scene.peers, delay=0, trickle=False)
    assert scene.start() and scene.relayed
    times = [peer.first(AgentState.CONNECTED) or peer.first(AgentState.COMPLETED) for peer in scene.peers]
    assert scene.end() == []
    return max(in_seconds(at) for at in times if at is not None)


def test_blocked_udp_does_not_delay_a_relayed_connection_without_trickle() -> None:
    """Issue E, line 9: gathering gave the unreachable STUN server a second after the relay over TCP."""
    assert without_trickle(25 * MILLISECOND) <= 0.45
    assert without_trickle(5 * MILLISECOND, server=5 * MILLISECOND) <= 0.35
    assert without_trickle(25 * MILLISECOND, blocked_udp=False) > 1.2, "the option"
