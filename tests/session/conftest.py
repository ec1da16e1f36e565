"""Bench for a session: a clock that jumps, sockets that are numbers, and servers that answer on demand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant, nanoseconds
from polynya.core.machine import (
    Datagram,
    Interface,
    InterfaceAddress,
    InterfacesChanged,
    Open,
    Opened,
    Output,
    Resolve,
    Resolved,
    Send,
)
from polynya.core.pacer import Pacer
from polynya.ice.config import IceConfig
from polynya.ice.events import LocalCandidateAdded
from polynya.session.events import GatheringState, GatheringStateChanged
from polynya.session.options import SessionConfig
from polynya.session.session import Session, SessionEvent
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.uris import StunUri

ETH0 = Interface(name="eth0", index=2, addresses=(InterfaceAddress(host="10.0.0.2", prefix_length=24),))
WLAN0 = Interface(name="wlan0", index=3, addresses=(InterfaceAddress(host="10.9.0.2", prefix_length=24),))

FIRST, SECOND_SERVER = Address("192.0.2.1", 3478), Address("192.0.2.9", 3478)
MAPPED = Address("198.51.100.7", 40000)


START = Instant(0)


@dataclass
class Bench:
    """A session, driven by hand."""

    session: Session
    now: Instant = START
    events: list[SessionEvent] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    next_port: int = 5000

    def drain(self) -> None:
        self.outputs += self.session.outputs()
        self.events += self.session.events()

    def start(self, *interfaces: Interface, answer: bool = True) -> None:
        self.session.start(InterfacesChanged(interfaces=interfaces), now=self.now)
        self.drain()
        if answer:
            self.answer_opens()
            self.answer_names()

    def answer_opens(self) -> dict[Flow, Address]:
        opened = {}
        for output in self.take(Open):
            assert output.local is not None
            opened[output.flow] = output.local.with_port(self.next_port)
            self.next_port += 1
            self.session.receive(Opened(flow=output.flow, local=opened[output.flow]), now=self.now)
            self.drain()
        return opened

    def answer_names(self, **hosts: tuple[str, ...]) -> None:
        for query in self.take(Resolve):
            known = hosts.get(query.name, () if query.name[0].isalpha() else (query.name,))
            error = "" if known else f"{query.name} has no address"
            self.session.receive(Resolved(query=query, hosts=known, error=error), now=self.now)
            self.drain()

    def take(self, kind: type) -> list:  # type: ignore[type-arg]
        """Remove and return the outputs of one kind."""
        taken = [output for output in self.outputs if isinstance(output, kind)]
        self.outputs = [output for output in self.outputs if not isinstance(output, kind)]
        return taken

    def answer_question(self, question: Send, mapped: Address) -> None:
        """Pass in the STUN server's response to one request."""
        answer = Message.success(decode(question.data), {XOR_MAPPED_ADDRESS: mapped}).encode(fingerprint=True)
        self.receive(question.flow, question.remote, answer)

    def receive(self, flow: Flow, remote: Address, data: bytes) -> None:
        self.session.receive(Datagram(flow, remote, data), now=self.now)
        self.drain()

    def advance(self, seconds: float) -> None:
        """Let the clock jump from timer to timer for these seconds."""
        end = Instant(self.now + nanoseconds(seconds))
        while (due := self.session.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.session.tick(now=self.now)
            self.drain()
        self.now = end

    def of(self, kind: type) -> list:  # type: ignore[type-arg]
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def bench():  # type: ignore[no-untyped-def]
    """Factory of benches: `bench("stun:192.0.2.1", policy=...)`."""

    def make(*servers: str, **options: object) -> Bench:
        options.setdefault("ice", IceConfig(controlling=True))
        config = SessionConfig(
            stun_servers=tuple(map(StunUri.parse, servers)),
            **options,  # type: ignore[arg-type]
        )
        return Bench(Session(config, random=random.Random(1), pacer=Pacer(), flow_ids=FlowIds()))

    return make


def ended(bench) -> bool:  # type: ignore[no-untyped-def]
    return any(event.new is GatheringState.COMPLETE for event in bench.of(GatheringStateChanged))


def candidates(bench) -> list[tuple[str, Address]]:  # type: ignore[no-untyped-def]
    return [(event.candidate.type.value, event.candidate.address) for event in bench.of(LocalCandidateAdded)]
