"""NAT behavior discovery with a STUN server that has two addresses (RFC 5780, sections 4.2 to 4.5).

Mapping and filtering are tested on a flow each, since a NAT filters by the addresses that a flow has sent to:

    mapping   I    request to A1:P1      no OTHER-ADDRESS: unknown; mapped as sent: no NAT, endpoint-independent
              II   request to A2:P1      mapped as in I: endpoint-independent
              III  request to A2:P2      mapped as in II: address-dependent; else address-and-port-dependent
    filtering I    request to A1:P1
              II   response from A2:P2   it arrives: endpoint-independent
              III  response from A1:P2   it arrives, II does not: address-dependent; neither: address-and-port-dependent
    hairpin        both flows send to each other's mapped address, several times: the first packets open filters

A server with two ports of one address leaves the mapping unknown; of the filtering it shows whether the port counts.
Filtering tests II and III run at the same time, because each may end in a timeout. The results are a snapshot: under
load a NAT may become stricter, never less strict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Any, Final

from polynya.core.addresses import Address, scope
from polynya.core.behavior import Behavior
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Counters, Datagram, IcmpError, Input, Open, Opened, Send, SendFailed
from polynya.core.trace import NO_TRACE, Tracer

from .attributes import MAPPED_ADDRESS, OTHER_ADDRESS, XOR_MAPPED_ADDRESS, ChangeRequest
from .message import Message
from .questions import Answer, Question, Questions, Returned
from .reported import why_impossible
from .transactions import Schedule

PATIENT: Final = Schedule(sends=5, last_wait=8)
"""11.5 s in all; only five lost packets in a row would look like a filter."""
BRIEF: Final = Schedule(sends=4, last_wait=2)
"""4.5 s in all, for packets that turn round at the NAT."""


class Test(Enum):
    """A test, with its number in the RFC."""

    MAPPING_1 = "mapping, test I"
    MAPPING_2 = "mapping, test II"
    MAPPING_3 = "mapping, test III"
    FILTERING_1 = "filtering, test I"
    FILTERING_2 = "filtering, test II"
    FILTERING_3 = "filtering, test III"
    HAIRPIN = "hairpinning"

    @property
    def of_mapping(self) -> bool:
        """Whether the test uses the flow for mapping."""
        return self in (Test.MAPPING_1, Test.MAPPING_2, Test.MAPPING_3)


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviorReport:
    """Result of behavior discovery. Results that are unknown are None; each `..._reason` explains either case.

    `str()` gives a summary for people.
    """

    server: Address
    local: Address | None = None
    """The local address of the mapping tests."""
    mapped: Address | None = None
    """The address of `local` as seen by the server."""
    other: Address | None = None
    """The server's other address and port."""
    translated: bool | None = None
    """Whether a NAT translates the address; None also if the local address is unspecified."""
    mapping: Behavior | None = None
    mapping_reason: str = ""
    filtering: Behavior | None = None
    """Also set for a firewall that translates nothing."""
    filtering_reason: str = ""
    hairpinning: bool | None = None
    """Whether two flows behind the NAT reach each other by their mapped addresses. It may be reported as False for a
    NAT that hairpins, if its mapping depends on the remote endpoint and it filters."""
    hairpinning_reason: str = ""
    rewrites: bool = False
    """Whether a middlebox changes addresses in the payload of packets (section 3.6)."""

    def __str__(self) -> str:
        nat = {True: "behind a NAT", False: "no NAT", None: "NAT unknown"}[self.translated]
        hairpin = {True: "yes", False: "no", None: "unknown"}[self.hairpinning]
        lines = [
            f"{self.local or 'no local address'}, mapped to {self.mapped or 'an unknown address'}: {nat}",
            f"  mapping: {_name(self.mapping)} ({self.mapping_reason})",
            f"  filtering: {_name(self.filtering)} ({self.filtering_reason})",
            f"  hairpinning: {hairpin} ({self.hairpinning_reason})",
        ]
        if self.rewrites:
            lines.append("  a middlebox rewrites addresses in packets")
        return "\n".join(lines)


def _name(behavior: Behavior | None) -> str:
    return "unknown" if behavior is None else behavior.value


class BehaviorDiscovery:
    """Machine of one behavior discovery: opens two flows, tests, closes them and emits one `BehaviorReport`.

    `local` is the address to test from, with port 0: an address of this host, or the unspecified one of its family.
    """

    def __init__(
        self,
        *,
        server: Address,
        local: Address,
        flow_ids: FlowIds,
        random: Random,
        schedule: Schedule = PATIENT,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.report = BehaviorReport(server=server)
        """The results so far."""
        self._server = server
        self._bind = local
        self._schedule = schedule
        self._outputs: Queue[Open | Close | Send] = Queue()
        self._questions: Questions[Test] = Questions(random, trace, outbox=self._outputs)
        self._flows = {Test.MAPPING_1: flow_ids.new(), Test.FILTERING_1: flow_ids.new()}
        self._open: dict[Flow, Address] = {}
        self._mapped: dict[Test, Address] = {}
        """The mapped address, by test."""
        self._passed: dict[Test, bool] = {}
        """Whether the responses of filtering tests II and III arrived."""
        self._events: Queue[BehaviorReport] = Queue()
        self._two_addresses = False
        self._hairpinning = False
        self._ended = False

    # --------------------------------------------------------------------------------------------------------- machine

    def start(self, *, now: Instant) -> None:  # noqa: ARG002 - a driver passes the time
        """Open the flows; the tests follow."""
        for flow in self._flows.values():
            self._outputs.append(Open(flow=flow, transport=Transport.UDP, local=self._bind))

    def receive(self, input: Input, *, now: Instant) -> None:
        """Handle a response, a request that came back, an error, or the result of an `Open`."""
        match input:
            case Opened():
                for test, flow in self._flows.items():
                    if flow == input.flow:
                        self._open[flow] = input.local
                        self._ask(test, self._server, now=now)
            case Closed() if input.flow not in self._open:
                for test, flow in self._flows.items():
                    if flow == input.flow:
                        self._failed(test, f"no socket could be opened: {input.reason}")
            case Datagram() | IcmpError() | SendFailed() | Closed():
                self._questions.receive(input, now=now)
            case _:
                pass
        self._go_on(now=now)

    def tick(self, *, now: Instant) -> None:
        self._questions.tick(now=now)
        self._go_on(now=now)

    def next_timer(self) -> Instant | None:
        return self._questions.next_timer()

    def outputs(self) -> list[Open | Close | Send]:
        return self._outputs.drain()

    def events(self) -> list[BehaviorReport]:
        return self._events.drain()

    @property
    def counters(self) -> Counters:
        """Received packets that were ignored, by reason."""
        return self._questions.counters

    # ----------------------------------------------------------------------------------------------------------- steps

    def _go_on(self, *, now: Instant) -> None:
        if self._ended:
            return
        for event in self._questions.events():
            if isinstance(event, Returned):
                self._note(hairpinning=True, hairpinning_reason=f"a request came back from {event.source}")
            elif event.message is None:
                self._failed(event.question.test, event.reason, silent=event.silent)
            else:
                self._answered(event, now=now)
        if self.report.mapping_reason and self.report.filtering_reason and not self._hairpinning:
            self._hairpinning = True
            self._begin_hairpin(now=now)
        if self.report.hairpinning_reason:
            self._ended = True
            self._questions.forget()
            self._outputs.extend(Close(flow=flow) for flow in self._open)
            self._events.append(self.report)

    def _ask(self, test: Test, to: Address, *, now: Instant, change: ChangeRequest | None = None) -> None:
        first = Test.MAPPING_1 if test.of_mapping else Test.FILTERING_1
        self._questions.ask(
            Question(test=test, flow=self._flows[first], to=to, change=change, schedule=self._schedule), now=now
        )

    def _answered(self, answer: Answer[Test], *, now: Instant) -> None:
        """Handle a success response from the requested source."""
        test, message = answer.question.test, answer.message
        assert message is not None
        mapped = self._mapped[test] = message[XOR_MAPPED_ADDRESS]
        if message.get(MAPPED_ADDRESS) not in (None, mapped):
            self._note(rewrites=True)
        match test:
            case Test.MAPPING_1:
                self._first_mapping(mapped, self._other(message), now=now)
            case Test.MAPPING_2 | Test.MAPPING_3:
                self._judge_mapping(test, now=now)
            case Test.FILTERING_1:
                self._two_addresses = self._other(message) is not None
                if self._two_addresses:
                    self._ask(Test.FILTERING_2, self._server, now=now, change=ChangeRequest(address=True, port=True))
                self._ask(Test.FILTERING_3, self._server, now=now, change=ChangeRequest(port=True))
            case Test.FILTERING_2 | Test.FILTERING_3:
                self._passed[test] = True
                self._judge_filtering()
            case Test.HAIRPIN:
                pass  # another host has our mapped address: there is a second NAT in front of this one

    def _other(self, message: Message) -> Address | None:
        """Return OTHER-ADDRESS if it is valid: possible, another address and another port."""
        other, here = message.get(OTHER_ADDRESS), self._server
        if other is None or other.family != here.family or other.host == here.host or other.port == here.port:
            return None
        return None if why_impossible(other, by=here) else other

    def _failed(self, test: Test, reason: str, *, silent: bool = False) -> None:
        """Handle a test without a success response; silence is a result of filtering tests II and III."""
        if test is Test.HAIRPIN:
            if not self.report.hairpinning:
                self._note(hairpinning=False, hairpinning_reason="no request came back")
        elif test.of_mapping:
            self._note(mapping_reason=f"{test.value}: {reason}")
        elif test is Test.FILTERING_1 or not silent:
            self._note(filtering_reason=self.report.filtering_reason or f"{test.value}: {reason}")
        else:
            self._passed[test] = False
            self._judge_filtering()

    def _first_mapping(self, mapped: Address, other: Address | None, *, now: Instant) -> None:
        local = self._open[self._flows[Test.MAPPING_1]]
        here = mapped == Address(local.host, local.port)
        certain = scope(local.host) != "unspecified"
        self._note(local=local, mapped=mapped, other=other, translated=not here if certain else None)
        if here and certain:
            self._note(
                mapping=Behavior.EI, mapping_reason=f"the server sees the local address {mapped}: there is no NAT"
            )
        elif other is None:
            self._note(mapping_reason=f"{self._server} has no other address")
        else:
            self._ask(Test.MAPPING_2, other.with_port(self._server.port), now=now)

    def _judge_mapping(self, test: Test, *, now: Instant) -> None:
        seen, other = self._mapped, self.report.other
        first, second = seen[Test.MAPPING_1], seen[Test.MAPPING_2]
        if first == second:
            self._note(mapping=Behavior.EI, mapping_reason=f"mapped to {first} towards both addresses of the server")
        elif test is Test.MAPPING_2 and other is not None:
            self._ask(Test.MAPPING_3, other, now=now)
        else:
            third = seen[Test.MAPPING_3]
            kind = Behavior.AD if second == third else Behavior.APD
            reason = f"mapped to {first} towards one address, to {second} and {third} towards two ports of another"
            self._note(mapping=kind, mapping_reason=reason)

    def _judge_filtering(self) -> None:
        from_all, from_port = self._passed.get(Test.FILTERING_2), self._passed.get(Test.FILTERING_3)
        if from_all:
            self._note(filtering=Behavior.EI, filtering_reason="a response from another address and port arrived")
        elif from_port is None or (from_all is None and self._two_addresses):
            return
        elif not from_port:
            self._note(filtering=Behavior.APD, filtering_reason="no response from another port arrived")
        elif self._two_addresses:
            reason = "a response from another port arrived, none from another address"
            self._note(filtering=Behavior.AD, filtering_reason=reason)
        else:
            reason = f"a response from another port arrived; {self._server} has no other address to test with"
            self._note(filtering_reason=reason)

    def _begin_hairpin(self, *, now: Instant) -> None:
        ends = [self._mapped.get(test) for test in self._flows]
        if self.report.translated is False or None in ends:
            reason = "there is no NAT" if self.report.translated is False else "the mapped addresses are unknown"
            self._note(hairpinning_reason=reason)
            return
        for flow, to in zip(self._flows.values(), reversed(ends), strict=True):
            if to is not None:
                self._questions.ask(Question(test=Test.HAIRPIN, flow=flow, to=to, schedule=BRIEF), now=now)

    def _note(self, **found: Any) -> None:
        self.report = replace(self.report, **found)
