"""Many agents on one socket (libp2p/py-libp2p#1352, pion/ice#550, #469)."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, Instant, nanoseconds
from polynya.core.machine import Datagram, Open, Opened, Resolve, Resolved, Send
from polynya.core.pacer import Pacer
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate, CandidateType, Gathered
from polynya.ice.config import IceConfig
from polynya.ice.description import Description
from polynya.ice.events import AgentState
from polynya.session.mux import AgentData, FlowOpened, Mux, UnknownUfrag
from polynya.session.options import HostAddress

SHARED, SHARED_ADDRESS = Flow(1), Address("10.0.0.1", 4000)


class World:
    """Two muxes: one with a shared socket, the other with a socket for each peer. Packets take a millisecond."""

    def __init__(self, peers: int) -> None:
        self.now = Instant(0)
        self.mux: Mux[str] = Mux(random=random.Random(0), pacer=Pacer())
        self.mux.receive(Opened(flow=SHARED, local=SHARED_ADDRESS), now=self.now)
        self.events = self.mux.events()
        self.pacer = Pacer()
        self.far: Mux[str] = Mux(random=random.Random(0), pacer=Pacer())
        self.addresses = {f"peer{n}": Address(f"10.{1 + n // 250}.0.{1 + n % 250}", 5000) for n in range(peers)}
        self.flows = {address: Flow(100 + n) for n, address in enumerate(self.addresses.values())}
        self.sources = {flow: address for address, flow in self.flows.items()} | {SHARED: SHARED_ADDRESS}
        self.in_flight: deque[tuple[Instant, Address, Address, bytes]] = deque()
        for number, (name, address) in enumerate(self.addresses.items()):
            agent = IceAgent(IceConfig(controlling=True), random=random.Random(number), pacer=Pacer())
            agent.add_local(Gathered(type=CandidateType.HOST, address=address, flow=self.flows[address]), now=self.now)
            agent.end_of_local_candidates(now=self.now)
            self.far.add(name, agent)

    def add(self, name: str, ufrag: str | None = None, password: str | None = None) -> IceAgent:
        config = IceConfig(controlling=False, ufrag=ufrag, password=password)
        agent = IceAgent(config, random=random.Random(name), pacer=self.pacer)
        gathered = Gathered(type=CandidateType.HOST, address=SHARED_ADDRESS, flow=SHARED)
        agent.add_local(gathered, now=self.now)
        agent.end_of_local_candidates(now=self.now)
        self.mux.add(name, agent)
        return agent

    def introduce(self, name: str) -> None:
        """Each side's description and only candidate to the other."""
        ours, theirs = self.mux[name], self.far[name]
        for mux, other in ((self.mux, theirs), (self.far, ours)):
            [local] = other.local_candidates()

            def tell(agent: IceAgent, other: IceAgent = other, candidate: Candidate = local.candidate) -> None:
                agent.set_remote(other.local_description, now=self.now)
                agent.add_remote(candidate, now=self.now)
                agent.end_of_remote_candidates(now=self.now)

            mux.call(name, tell)

    def run(self, seconds: float) -> None:
        end = Instant(self.now + nanoseconds(seconds))
        while True:
            for send in self.mux.outputs() + self.far.outputs():
                assert isinstance(send, Send)
                self.in_flight.append(
                    (Instant(self.now + MILLISECOND), self.sources[send.flow], send.remote, send.data)
                )
            self.events += self.mux.events()
            self.far.events()
            due = [at for at in (self.mux.next_timer(), self.far.next_timer()) if at is not None]
            due += [self.in_flight[0][0]] if self.in_flight else []
            if not due or min(due) > end:
                self.now = end
                return
            self.now = max(self.now, min(due))
            while self.in_flight and self.in_flight[0][0] <= self.now:
                _, source, target, data = self.in_flight.popleft()
                if target == SHARED_ADDRESS:
                    self.mux.receive(Datagram(SHARED, source, data), now=self.now)
                else:
                    self.far.receive(Datagram(self.flows[target], source, data), now=self.now)
            self.mux.tick(now=self.now)
            self.far.tick(now=self.now)


def test_two_agents_on_one_socket_each_find_their_own_peer() -> None:
    world = World(2)
    assert world.events == [FlowOpened(flow=SHARED, local=SHARED_ADDRESS)]
    for name in world.addresses:
        world.add(name)
        world.introduce(name)
    world.run(5)
    for name, address in world.addresses.items():
        assert world.mux[name].state is AgentState.COMPLETED
        assert world.far[name].state is AgentState.COMPLETED
        [pair] = [pair for pair in world.mux[name].pairs() if pair.selected]
        assert pair.remote_address == address


def test_data_goes_to_the_agent_whose_peer_sent_it() -> None:
    world = World(2)
    for name in world.addresses:
        world.add(name)
        world.introduce(name)
    world.run(5)
    for name, address in world.addresses.items():
        world.mux.receive(Datagram(SHARED, address, name.encode()), now=world.now)
    world.mux.receive(Datagram(SHARED, Address("10.0.9.9", 1), b"stranger"), now=world.now)
    got = [(each.name, each.data) for each in world.mux.events() if isinstance(each, AgentData)]
    assert got == [("peer0", b"peer0"), ("peer1", b"peer1")]
    assert world.mux.counters["unauthenticated"] == 1


def test_data_is_sent_to_the_peer_of_the_agent_that_is_named() -> None:
    world = World(2)
    for name in world.addresses:
        world.add(name)
        assert not world.mux.send(name, b"too early")
        world.introduce(name)
    world.run(5)
    for name, address in world.addresses.items():
        world.mux.outputs()
        assert world.mux.send(name, name.encode())
        assert world.mux.outputs() == [Send(SHARED, address, name.encode())]


def test_a_shared_socket_is_opened_and_reported() -> None:
    mux: Mux[str] = Mux(random=random.Random(0), pacer=Pacer())
    mux.open(SHARED, HostAddress(address=SHARED_ADDRESS, interface="eth0"))
    [asked] = mux.outputs()
    assert isinstance(asked, Open)
    assert (asked.flow, asked.local, asked.interface) == (SHARED, SHARED_ADDRESS, "eth0")
    mux.receive(Opened(flow=SHARED, local=SHARED_ADDRESS), now=Instant(0))
    assert mux.events() == [FlowOpened(flow=SHARED, local=SHARED_ADDRESS)]


def test_an_agent_that_leaves_takes_no_socket_and_no_neighbor_with_it() -> None:
    world = World(2)
    for name in world.addresses:
        world.add(name)
        world.introduce(name)
    world.run(5)
    world.mux.remove("peer0", now=world.now)
    assert not [output for output in world.mux.outputs() if not isinstance(output, Send)]
    assert not world.mux.send("peer0", b"to no peer")
    world.run(60)
    assert world.mux["peer1"].state is AgentState.COMPLETED, "its consent goes on"
    assert len(world.mux) == 1
    world.mux.receive(Datagram(SHARED, world.addresses["peer0"], b"late"), now=world.now)
    assert not [each for each in world.mux.events() if isinstance(each, AgentData)]


def test_an_unknown_ufrag_is_emitted_and_an_agent_made_for_it_connects() -> None:
    """A public hook for the ufrag (libp2p/py-libp2p#1352): the server learns of a peer by its first check."""
    world = World(1)
    peer = world.far["peer0"]
    known = Description(ufrag="server+ufrag", password="server+password+of+24+ch")
    template = world.add("template")
    [shared] = template.local_candidates()

    def tell(agent: IceAgent) -> None:
        agent.set_remote(known, now=world.now)
        agent.add_remote(replace(shared.candidate, extensions=()), now=world.now)  # of no one agent: it names no ufrag
        agent.end_of_remote_candidates(now=world.now)

    world.far.call("peer0", tell)
    world.run(0.2)
    unknown = [each for each in world.events if isinstance(each, UnknownUfrag)]
    assert {(each.ufrag, each.remote_ufrag) for each in unknown} == {("server+ufrag", peer.local_description.ufrag)}
    assert template.state is AgentState.NEW
    world.add("made", known.ufrag, known.password)
    world.mux.call("made", lambda a: a.set_remote(peer.local_description, now=world.now))
    world.mux.call("made", lambda a: a.end_of_remote_candidates(now=world.now))
    world.mux.receive(unknown[-1].packet, now=world.now)
    world.run(5)
    assert world.mux["made"].state is AgentState.COMPLETED
    assert peer.state is AgentState.COMPLETED


def test_a_name_or_ufrag_that_is_taken_is_refused() -> None:
    world = World(0)
    world.add("a", "ufrag", "p" * 22)
    for name, ufrag in (("a", "other"), ("b", "ufrag")):
        with pytest.raises(ValueError, match="in use by another agent"):
            world.add(name, ufrag, "p" * 22)


def test_five_hundred_agents_share_one_socket_and_one_pacer() -> None:
    world = World(500)
    for name in world.addresses:
        world.add(name)
        world.introduce(name)
    world.run(20)
    assert {world.mux[name].state for name in world.addresses} == {AgentState.COMPLETED}


def test_the_names_of_all_agents_are_resolved() -> None:
    """Two agents may look up the same name with the same token."""
    world = World(2)
    line = "candidate:1 1 udp 2122252543 host.local 6000 typ host"
    for name in world.addresses:
        world.add(name)

        def look_up(agent: IceAgent) -> None:
            agent.set_remote(Description(ufrag="them", password="theirpasswordtheirpass"), now=world.now)
            agent.add_remote(Candidate.parse(line), now=world.now)

        world.mux.call(name, look_up)
    queries = [output for output in world.mux.outputs() if isinstance(output, Resolve)]
    assert [query.name for query in queries] == ["host.local"] * 2
    for query in queries:
        world.mux.receive(Resolved(query=query, hosts=("10.0.0.9",)), now=world.now)
    for name in world.addresses:
        assert [pair.remote_address for pair in world.mux[name].pairs()] == [Address("10.0.0.9", 6000)]
