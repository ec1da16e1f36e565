"""Agents that share one socket, behind NATs: its server-reflexive address is found once for all (RFC 8445, 5.1.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.pacer import Pacer
from polynya.core.packets import IpPacket
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate, CandidateType
from polynya.ice.config import IceConfig
from polynya.ice.description import Description
from polynya.ice.events import AgentState, LocalCandidateAdded
from polynya.lab import Host, Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.table import LIMIT, session_config
from polynya.lab.topologies import SERVER, STUN_PORT, Topology, between_nats
from polynya.nat import NatConfig, PortAssignment, every_class
from polynya.session.mux import AgentData, AgentEvent, Mux
from polynya.session.options import HostAddress, SessionConfig
from polynya.stun.message import decode, is_stun
from polynya.stun.registry import Class
from polynya.stun.uris import StunUri

RANDOM = NatConfig(ports=PortAssignment.RANDOM)
CLASSES = list(every_class(RANDOM))


class Questions:
    """Counts the Binding requests that arrive at the STUN server."""

    def __init__(self) -> None:
        self.count = 0

    def write(
        self, at: Instant, interface: str, packet: IpPacket, *, outbound: bool | None = None, comment: str = ""
    ) -> None:
        at_server = packet.destination == Address(SERVER[0], STUN_PORT) and interface.startswith("stun")
        if at_server and not outbound and is_stun(packet.payload):
            self.count += decode(packet.payload).cls is Class.REQUEST


class MuxHost:
    """A mux that runs on a host, with one socket."""

    def __init__(self, network: Network, host: Host, stun: str) -> None:
        self.network = network
        self.host = host
        self.config = SessionConfig(ice=IceConfig(controlling=False), stun_servers=(StunUri.parse(stun),))
        self.random = network.chance_of("mux")
        self.pacer = Pacer()
        self.mux: Mux[str] = Mux(self.config, random=self.random, pacer=self.pacer)
        self.members: dict[str, Member] = {}
        self.process = host.run(self.mux, self._on_event)
        self.flow = network.flow_ids.new()
        local = HostAddress(address=Address(host.interfaces[0].addresses[0], 0), interface="eth0", pinned=False)
        self.process.call(lambda now: self.mux.open(self.flow, local))
        network.run_for(MILLISECOND)

    def member(self, name: str) -> Member:
        member = self.members[name] = Member(name, self)
        return member

    def _on_event(self, event: Any) -> None:
        if isinstance(event, AgentEvent):
            member = self.members[event.name]
            member.emitted.append(event.event)
            if member.signal is not None:
                member.signal(event.event)
        elif isinstance(event, AgentData):
            self.members[event.name].received.append(event.data)


class Member:
    """One agent of the mux, in the place of a `Peer`."""

    def __init__(self, name: str, mux: MuxHost) -> None:
        self.name = name
        self.shared = mux
        self.agent = IceAgent(mux.config.ice, random=mux.random, pacer=mux.pacer)
        self.signal: Callable[[Any], None] | None = None
        self.emitted: list[Any] = []
        self.received: list[bytes] = []
        self.process = None
        self.closed_at = None

    @property
    def session(self) -> Member:
        return self

    def start(self) -> None:
        self.process = self.shared.process
        self.process.call(lambda now: self.shared.mux.add(self.name, self.agent))
        self.process.call(lambda now: self.shared.mux.gather(self.name, now=now))

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        return self.shared.process.call(method, *args)

    def set_remote(self, description: Description, *, now: Instant) -> None:
        self.shared.mux.call(self.name, lambda agent: agent.set_remote(description, now=now))

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None:
        def add(agent: IceAgent) -> None:
            if candidate is None:
                agent.end_of_remote_candidates(now=now)
            else:
                agent.add_remote(candidate, now=now, stream=stream)

        self.shared.mux.call(self.name, add)

    def leave(self) -> None:
        self.process.call(lambda now: self.shared.mux.remove(self.name, now=now))
        del self.shared.members[self.name]

    @property
    def candidates(self) -> list[tuple[CandidateType, Address]]:
        found = [event.candidate for event in self.emitted if isinstance(event, LocalCandidateAdded)]
        return [(candidate.type, candidate.address) for candidate in found]


def meet(topology: Topology) -> tuple[Member, Peer]:
    """An agent of a mux on one host meets an agent on the other, until both have settled."""
    network = topology.network
    member = MuxHost(network, topology.one, topology.stun).member("alice")
    peer = Peer(network, topology.other, session_config(topology, controlling=True))
    Exchange(network, member, peer).start()  # type: ignore[arg-type]
    settled = (AgentState.COMPLETED, AgentState.FAILED)
    network.run_until(lambda: member.agent.state in settled and peer.settled, Instant(network.now + LIMIT))
    return member, peer


@pytest.mark.parametrize("second", CLASSES, ids=lambda each: each.label)
@pytest.mark.parametrize("first", CLASSES, ids=lambda each: each.label)
def test_an_agent_of_a_mux_behind_a_nat_connects_as_the_rules_imply(first: NatConfig, second: NatConfig) -> None:
    """All 81 cells: what the table of agents with sockets of their own says."""
    topology = between_nats(first, second, network=Network(1))
    member, peer = meet(topology)
    assert topology.expected is not None
    assert (member.agent.state is AgentState.COMPLETED) is topology.expected
    assert (peer.state is AgentState.COMPLETED) is topology.expected
    if topology.expected:
        peer.send(b"hello")
        topology.network.run_for(SECOND)
        assert member.received == [b"hello"]


@pytest.mark.parametrize("config", CLASSES, ids=lambda each: each.label)
def test_five_hundred_agents_behind_any_nat_are_one_question(config: NatConfig) -> None:
    questions = Questions()
    topology = between_nats(config, None, network=Network(2, capture=questions))
    shared = MuxHost(topology.network, topology.one, topology.stun)
    members = [shared.member(f"agent{number}") for number in range(500)]
    for member in members:
        member.start()
    topology.network.run_for(SECOND)
    assert questions.count == 1
    [(_, host), (kind, mapped)] = members[0].candidates
    assert kind is CandidateType.SERVER_REFLEXIVE and mapped.host == "198.51.100.1"
    assert host == shared.mux.bases.bases[0].local
    assert all(member.candidates == members[0].candidates for member in members)
    assert not any(shared.mux.gathers(member.name) for member in members)


def test_twenty_peers_reach_their_agents_through_one_mapping() -> None:
    config = NatConfig(ports=PortAssignment.RANDOM)
    questions = Questions()
    network = Network(3, capture=questions)
    topology = between_nats(config, None, network=network)
    shared = MuxHost(network, topology.one, topology.stun)
    pairs = []
    for number in range(20):
        host = network.host(f"peer{number}", f"192.0.2.{100 + number}", topology.internet)
        member = shared.member(f"agent{number}")
        peer = Peer(network, host, SessionConfig(ice=IceConfig(controlling=True)))
        Exchange(network, member, peer).start()  # type: ignore[arg-type]
        pairs.append((member, peer))
    network.run_for(10 * SECOND)
    assert questions.count == 1
    for member, peer in pairs:
        assert member.agent.state is peer.state is AgentState.COMPLETED
        peer.send(peer.name.encode())
    network.run_for(SECOND)
    assert [member.received for member, _ in pairs] == [[peer.name.encode()] for _, peer in pairs]


def test_the_mapping_stays_while_an_agent_lives() -> None:
    """RFC 8445, section 11: the NAT forgets after 30 s, and the next agent comes after ten minutes."""
    config = NatConfig(udp_timeout=30 * SECOND, ports=PortAssignment.RANDOM)
    questions = Questions()
    network = Network(4, capture=questions)
    topology = between_nats(config, None, network=network)
    shared = MuxHost(network, topology.one, topology.stun)
    first = shared.member("first")
    first.start()
    network.run_for(600 * SECOND)
    late = shared.member("late")
    late.start()
    assert late.candidates == first.candidates, "it gets them at once"
    network.run_for(SECOND)
    assert late.candidates == first.candidates, "and is still right"
    assert questions.count == 3, "asked again every five minutes"


def test_without_agents_nothing_is_sent_and_the_next_one_asks_again() -> None:
    config = NatConfig(udp_timeout=30 * SECOND, ports=PortAssignment.RANDOM)
    questions = Questions()
    network = Network(5, capture=questions)
    topology = between_nats(config, None, network=network)
    shared = MuxHost(network, topology.one, topology.stun)
    first = shared.member("first")
    first.start()
    network.run_for(10 * SECOND)
    before = first.candidates
    first.leave()
    sent = shared.process.sent
    network.run_for(3600 * SECOND)
    assert shared.process.sent == sent and shared.mux.next_timer() is None
    second = shared.member("second")
    second.start()
    assert len(second.candidates) == 1, "a mapping of an hour ago is no candidate"
    network.run_for(SECOND)
    [host, mapped] = second.candidates
    assert host == before[0] and mapped != before[1], "the NAT has forgotten the first mapping"
    assert questions.count == 2
