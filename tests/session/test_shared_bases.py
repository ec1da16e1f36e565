"""Mappings of shared sockets: asked once for all agents, kept, and asked again (RFC 8445, section 5.1.1.2)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant, nanoseconds
from polynya.core.machine import Close, Datagram, IcmpError, IcmpKind, Open, Opened, Output, Resolve, Resolved, Send
from polynya.core.pacer import Pacer
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import CandidateType
from polynya.ice.config import IceConfig
from polynya.ice.events import LocalCandidateAdded, LocalCandidatesEnded
from polynya.session.events import GatheringState
from polynya.session.mux import AgentEvent, FlowClosed, Mux
from polynya.session.options import HostAddress, SessionConfig
from polynya.session.shared_bases import MAX_CHANGES
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class
from polynya.stun.uris import StunUri
from tests.reports import flat

START = Instant(0)
FLOW = Flow(1)
LOCAL = Address("10.0.0.2", 5000)
SERVER = Address("192.0.2.1", 3478)
MAPPED = Address("198.51.100.7", 40000)


@dataclass
class Bench:
    """A mux, driven by hand, and servers that answer on demand."""

    mux: Mux[str]
    now: Instant = START
    outputs: list[Output] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    agents: int = 0

    def drain(self) -> None:
        self.outputs += self.mux.outputs()
        self.events += self.mux.events()

    def open(self, flow: Flow = FLOW, local: Address = LOCAL) -> None:
        self.mux.open(flow, HostAddress(address=local.with_port(0), interface="eth0"))
        self.drain()
        assert [opening.flow for opening in self.take(Open)] == [flow]
        self.mux.receive(Opened(flow=flow, local=local), now=self.now)
        self.drain()

    def join(self) -> str:
        self.agents += 1
        name = f"agent{self.agents}"
        self.mux.add(name, IceAgent(IceConfig(), random=random.Random(name), pacer=Pacer()))
        self.mux.gather(name, now=self.now)
        self.drain()
        return name

    def leave(self, name: str) -> None:
        self.mux.remove(name, now=self.now)
        self.drain()

    def take(self, kind: type) -> list[Any]:
        taken = [output for output in self.outputs if isinstance(output, kind)]
        self.outputs = [output for output in self.outputs if not isinstance(output, kind)]
        return taken

    def names(self, *hosts: str, error: str = "") -> None:
        for query in self.take(Resolve):
            self.mux.receive(Resolved(query=query, hosts=hosts or (query.name,), error=error), now=self.now)
            self.drain()

    def asked(self) -> list[Send]:
        """The questions since the last call; indications stay."""
        return [send for send in self.take(Send) if decode(send.data).cls is Class.REQUEST]

    def answer(self, question: Send, mapped: Address = MAPPED) -> None:
        answer = Message.success(decode(question.data), {XOR_MAPPED_ADDRESS: mapped}).encode(fingerprint=True)
        self.mux.receive(Datagram(question.flow, question.remote, answer), now=self.now)
        self.drain()

    def wait(self, seconds: float) -> None:
        end = Instant(self.now + nanoseconds(seconds))
        while (due := self.mux.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.mux.tick(now=self.now)
            self.drain()
        self.now = end

    def addresses(self, name: str) -> list[Address]:
        """The server-reflexive candidates of an agent."""
        found = [event.event for event in self.events if isinstance(event, AgentEvent) and event.name == name]
        locals_ = [event.candidate for event in found if isinstance(event, LocalCandidateAdded)]
        return [each.address for each in locals_ if each.type is CandidateType.SERVER_REFLEXIVE]

    def ended(self, name: str) -> bool:
        return AgentEvent(name, LocalCandidatesEnded(generation=0)) in self.events


def bench(*servers: str, external: dict[str, str] | None = None) -> Bench:
    config = SessionConfig(
        ice=IceConfig(), stun_servers=tuple(map(StunUri.parse, servers)), external=external or {}
    )  # fmt: skip
    return Bench(Mux(config, random=random.Random(1), pacer=Pacer()))


def test_no_server_is_asked_before_an_agent_gathers_and_then_once_for_all() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    assert b.outputs == [] and b.mux.next_timer() is None
    first, second = b.join(), b.join()
    b.names()
    [question] = b.asked()
    assert (question.flow, question.remote) == (FLOW, SERVER)
    assert not b.ended(first) and b.mux.gathers(first)
    b.answer(question)
    third = b.join()
    for name in (first, second, third):
        assert b.addresses(name) == [MAPPED] and b.ended(name) and not b.mux.gathers(name)
    assert b.asked() == []


def test_without_servers_an_agent_has_all_there_is_at_once() -> None:
    b = bench(external={"10.0.0.2": "203.0.113.9"})
    b.open()
    name = b.join()
    assert b.addresses(name) == [Address("203.0.113.9", 5000)] and b.ended(name)
    assert b.mux.bases.state is GatheringState.NEW and b.outputs == []


def test_of_two_servers_the_silent_one_has_a_second_after_the_other_has_answered() -> None:
    b = bench("stun:192.0.2.1", "stun:192.0.2.9")
    b.open()
    name = b.join()
    b.names()
    b.wait(0.1)
    first, silent = b.asked()
    b.answer(first)
    b.wait(0.9)
    assert b.addresses(name) == [MAPPED] and not b.ended(name)
    b.wait(0.2)
    assert b.ended(name)
    assert f"{silent.remote} had not answered 1 s after the last answer" in flat(b.mux.bases.why(b.mux[name]))


def test_a_silent_or_unresolved_server_delays_no_longer_than_the_patience() -> None:
    b = bench("stun:silent.example", "stun:nowhere.example")
    b.open()
    name = b.join()
    silent, nowhere = b.take(Resolve)
    b.mux.receive(Resolved(query=silent, hosts=("192.0.2.1",)), now=b.now)
    b.mux.receive(Resolved(query=nowhere, hosts=(), error="nowhere.example has no address"), now=b.now)
    b.wait(4.9)
    assert not b.ended(name)
    b.wait(0.2)
    assert b.ended(name) and b.addresses(name) == []
    report = flat(b.mux.bases.why(b.mux[name]))
    assert "gathering complete" in report and "nowhere.example has no address" in report
    assert "192.0.2.1:3478 had not answered 5 s after they were asked" in report


def test_a_late_answer_and_a_late_name_are_emitted_after_the_end() -> None:
    b = bench("stun:192.0.2.1", "stun:slow.example")
    b.open()
    name = b.join()
    known, slow = b.take(Resolve)
    b.mux.receive(Resolved(query=known, hosts=("192.0.2.1",)), now=b.now)
    b.wait(6)
    assert b.ended(name) and b.addresses(name) == []
    b.answer(b.asked()[-1])
    assert b.addresses(name) == [MAPPED]
    b.mux.receive(Resolved(query=slow, hosts=("192.0.2.9",)), now=b.now)
    b.drain()
    [question] = b.asked()
    other = Address("198.51.100.7", 40001)
    b.answer(question, other)
    assert b.addresses(name) == [MAPPED, other] and not b.mux.gathers(name)


def test_servers_that_were_silent_are_asked_again_for_an_agent_that_comes_half_a_minute_later() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    b.join()
    b.names()
    b.wait(10)
    b.asked()
    assert b.ended(b.join()), "and not before"
    b.wait(21)
    b.asked()
    late = b.join()
    b.names()
    [question] = b.asked()
    b.answer(question)
    assert b.addresses(late) == [MAPPED] == b.addresses("agent1")


def test_a_port_without_a_listener_ends_it_at_once() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    name = b.join()
    b.names()
    b.asked()
    b.mux.receive(IcmpError(flow=FLOW, remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE), now=b.now)
    b.drain()
    assert b.ended(name)


def test_a_mapping_is_kept_only_while_an_agent_is_present() -> None:
    """RFC 8445, section 11: Tr is 15 s."""
    b = bench("stun:192.0.2.1")
    b.open()
    one, two = b.join(), b.join()
    b.names()
    b.answer(b.asked()[0])
    b.leave(one)
    b.wait(60)
    kept = [(send.flow, send.remote) for send in b.take(Send) if decode(send.data).cls is Class.INDICATION]
    assert kept == [(FLOW, SERVER)] * 4
    b.leave(two)
    assert b.mux.next_timer() is None
    b.now = Instant(b.now + 14 * SECOND)
    assert b.addresses(b.join()) == [MAPPED], "the NAT still has it"
    b.wait(15)
    assert len(b.take(Send)) == 1, "and it is kept again"


def test_a_mapping_without_keepalives_is_dropped() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    one = b.join()
    b.names()
    b.answer(b.asked()[0])
    b.leave(one)
    b.now = Instant(b.now + 16 * SECOND)
    other = b.join()
    assert b.addresses(other) == [] and not b.ended(other)
    b.names()
    [question] = b.asked()
    b.answer(question, MAPPED.with_port(41000))
    assert b.addresses(other) == [MAPPED.with_port(41000)] and b.ended(other)


def test_servers_are_asked_again_every_five_minutes_and_all_agents_get_a_change() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    old = b.join()
    b.names()
    b.answer(b.asked()[0])
    b.wait(300.1)
    [question] = b.asked()
    assert b.ended(b.join()), "meanwhile what was seen last counts"
    moved = MAPPED.with_port(41000)
    b.answer(question, moved)
    assert b.addresses(old) == [MAPPED, moved]
    assert b.addresses(b.join()) == [moved], "a new agent does not get the first one"


def test_a_nat_that_changes_its_mapping_each_time_gives_eight_candidates() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    name = b.join()
    b.names()
    b.answer(b.asked()[0])
    for number in range(1, 20):
        b.wait(300)
        b.answer(b.asked()[0], MAPPED.with_port(41000 + number))
    assert len(b.addresses(name)) == MAX_CHANGES
    assert b.addresses(b.join()) == [MAPPED.with_port(41019)]


def test_a_refresh_that_is_not_answered_changes_nothing() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    name = b.join()
    b.names()
    b.answer(b.asked()[0])
    b.wait(350)
    assert b.addresses(b.join()) == [MAPPED] and b.addresses(name) == [MAPPED]


def test_in_a_changed_network_the_servers_are_asked_again() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    name = b.join()
    b.names()
    b.answer(b.asked()[0])
    b.mux.network_changed(now=b.now)
    b.drain()
    late = b.join()
    assert b.addresses(late) == [] and not b.ended(late)
    b.names()
    b.wait(0.1)
    [question] = b.asked()
    b.answer(question, MAPPED.with_port(41000))
    assert b.addresses(late) == [MAPPED.with_port(41000)] and b.addresses(name) == [MAPPED, MAPPED.with_port(41000)]


def test_a_changed_network_without_agents_asks_no_server() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    b.mux.network_changed(now=b.now)
    b.drain()
    assert b.outputs == [] and b.mux.next_timer() is None


def test_a_later_socket_is_a_candidate_of_all_and_asks_the_servers() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    name = b.join()
    b.names()
    b.answer(b.asked()[0])
    b.open(Flow(2), Address("10.9.0.2", 5000))
    b.wait(0.1)
    [question] = b.asked()
    assert question.flow == Flow(2)
    b.answer(question, MAPPED.with_port(42000))
    assert b.addresses(name) == [MAPPED, MAPPED.with_port(42000)]


def test_a_socket_that_is_closed_takes_its_mapping_and_its_questions_along() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    b.open(Flow(2), Address("10.9.0.2", 5000))
    name = b.join()
    b.names()
    b.wait(0.1)
    first, second = b.asked()
    b.answer(first)
    b.mux.close(FLOW, "its address is gone", now=b.now)
    b.drain()
    assert b.take(Close) == [Close(flow=FLOW)]
    assert FlowClosed(flow=FLOW, reason="its address is gone") in b.events
    assert not b.ended(name), "the other socket's question is open"
    b.answer(second, MAPPED.with_port(42000))
    assert b.ended(name) and b.addresses(b.join()) == [MAPPED.with_port(42000)]
    assert "10.0.0.2 is not used: its address is gone" in flat(b.mux.bases.why(b.mux[name]))


@pytest.mark.parametrize("server", ["[2001:db8::1]", "127.0.0.1"])
def test_a_server_out_of_reach_is_not_asked_and_not_waited_for(server: str) -> None:
    b = bench(f"stun:{server}")
    b.open()
    name = b.join()
    b.names(server.strip("[]"))
    assert b.asked() == [] and b.ended(name)


def test_an_answer_to_no_request_is_dropped() -> None:
    b = bench("stun:192.0.2.1")
    b.open()
    name = b.join()
    b.names()
    [question] = b.asked()
    stranger = Send(FLOW, SERVER, Message.request(1, bytes(12)).encode(fingerprint=True))
    b.answer(stranger, MAPPED.with_port(666))
    b.answer(Send(FLOW, Address("192.0.2.66", 3478), question.data), MAPPED.with_port(666))
    assert b.addresses(name) == [] and b.mux.counters["unexpected"] == 1
