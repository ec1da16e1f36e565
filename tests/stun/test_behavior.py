"""RFC 5780: the requests of a behavior discovery, and its handling of responses that no honest server sends."""

from __future__ import annotations

import random
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Close, Closed, Datagram, IcmpError, IcmpKind, Open, Opened, Send
from polynya.stun.attributes import (
    CHANGE_REQUEST,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from polynya.stun.behavior import BehaviorDiscovery, BehaviorReport
from polynya.stun.message import Message, decode

SERVER, OTHER = Address("203.0.113.1", 3478), Address("203.0.113.2", 3479)
LOCAL = Address("10.0.0.2", 0)
MAPPED = Address("198.51.100.1", 4000)
BOTH = ChangeRequest(address=True, port=True)


class Table:
    """A discovery driven by hand: its flows are open and its first requests sent."""

    def __init__(self) -> None:
        self.machine = BehaviorDiscovery(server=SERVER, local=LOCAL, flow_ids=FlowIds(), random=random.Random(1))
        self.now = Instant(0)
        self.sent: list[Send] = []
        self.closed: list[Flow] = []
        self.reports: list[BehaviorReport] = []
        self.machine.start(now=self.now)
        self.flows = [each.flow for each in self.machine.outputs() if isinstance(each, Open)]
        for number, flow in enumerate(self.flows):
            self.give(Opened(flow=flow, local=LOCAL.with_port(5000 + number)))

    def give(self, input: Any) -> None:
        self.machine.receive(input, now=self.now)
        self.drain()

    def drain(self) -> None:
        for output in self.machine.outputs():
            if isinstance(output, Send):
                self.sent.append(output)
            elif isinstance(output, Close):
                self.closed.append(output.flow)
        self.reports += self.machine.events()

    def run_for(self, duration: int) -> None:
        end = Instant(self.now + duration)
        while (due := self.machine.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.machine.tick(now=self.now)
            self.drain()
        self.now = end

    def asked(self, change: ChangeRequest | None = None, flow: int = 0) -> Send:
        """Return the last request of a flow with this CHANGE-REQUEST."""
        fitting = [
            send
            for send in self.sent
            if send.flow == self.flows[flow] and decode(send.data).get(CHANGE_REQUEST) == change
        ]
        return fitting[-1]

    def answer(self, send: Send, source: Address | None = None, **options: Any) -> None:
        attributes = {XOR_MAPPED_ADDRESS: MAPPED, OTHER_ADDRESS: OTHER, **options.pop("attributes", {})}
        data = Message.success(decode(send.data), attributes).encode()
        self.give(Datagram(send.flow, source or send.remote, data))


def test_no_more_than_ten_requests_are_begun_a_second() -> None:
    """Section 5."""
    table = Table()
    assert len(table.sent) == 1
    table.run_for(99 * MILLISECOND)
    assert len(table.sent) == 1
    table.run_for(1 * MILLISECOND)
    assert [send.flow for send in table.sent] == table.flows


def test_an_answer_from_where_it_was_not_asked_from_is_no_proof() -> None:
    """A server that ignores CHANGE-REQUEST would make every NAT look open."""
    table = Table()
    table.run_for(100 * MILLISECOND)
    table.answer(table.asked(flow=1))
    table.run_for(200 * MILLISECOND)
    table.answer(table.asked(BOTH, flow=1), SERVER)
    assert table.machine.report.filtering is None
    assert "instead of the requested source" in table.machine.report.filtering_reason


def test_an_other_address_on_the_same_host_is_not_believed() -> None:
    """Section 7.4: a server without a second address must not send it; a test with it would prove nothing."""
    table = Table()
    table.answer(table.asked(), attributes={OTHER_ADDRESS: SERVER.with_port(3479)})
    assert table.machine.report.mapping is None and table.machine.report.other is None


def test_packets_of_others_are_dropped_and_counted() -> None:
    table = Table()
    request = decode(table.asked().data)
    answer = Message.success(request, {XOR_MAPPED_ADDRESS: MAPPED}).encode()
    strange = Message.success(Message.request(request.method, bytes(12)), {XOR_MAPPED_ADDRESS: MAPPED}).encode()  # type: ignore[arg-type]
    table.give(Datagram(table.flows[0], SERVER, b"noise"))
    table.give(Datagram(table.flows[0], SERVER, strange))
    table.give(Datagram(table.flows[1], SERVER, answer))
    table.give(Datagram(table.flows[0], SERVER, Message.success(request, {}).encode()))
    assert table.machine.report.mapped is None
    assert table.machine.counters == {
        "not STUN": 1, "no matching request": 1, "responses on another flow": 1,
        "responses without a mapped address": 1,
    }  # fmt: skip


def test_what_rewrites_addresses_is_noticed() -> None:
    """Section 3.6: a middlebox can find MAPPED-ADDRESS, which is not obfuscated."""
    table = Table()
    table.answer(table.asked(), attributes={MAPPED_ADDRESS: LOCAL.with_port(5000)})
    assert table.machine.report.rewrites and table.machine.report.mapped == MAPPED


def test_an_unreachable_server_is_not_a_filter() -> None:
    table = Table()
    table.run_for(100 * MILLISECOND)
    table.answer(table.asked(flow=1))
    table.run_for(200 * MILLISECOND)
    for flow in table.flows:
        table.give(IcmpError(flow=flow, remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE))
    [report] = table.reports
    assert (
        report.filtering is None and "unreachable" in report.filtering_reason and "unreachable" in report.mapping_reason
    )
    assert table.closed == table.flows


def test_a_flow_that_is_lost_ends_its_part_with_the_reason() -> None:
    table = Table()
    table.run_for(100 * MILLISECOND)
    for flow in table.flows:
        table.give(Closed(flow=flow, reason="the interface is gone"))
    [report] = table.reports
    assert "the interface is gone" in report.mapping_reason and "the interface is gone" in report.filtering_reason


def test_after_the_end_nothing_is_done() -> None:
    table = Table()
    table.run_for(60 * SECOND)
    [report] = table.reports
    assert (report.mapping, report.filtering) == (None, None)
    sent = len(table.sent)
    table.answer(table.asked())
    table.run_for(60 * SECOND)
    assert len(table.sent) == sent and table.reports == [report]
    assert table.machine.next_timer() is None and table.closed == table.flows


def test_the_same_seed_asks_the_same() -> None:
    tables = [Table(), Table()]
    for table in tables:
        table.answer(table.asked())
        table.run_for(30 * SECOND)
    assert tables[0].sent == tables[1].sent and tables[0].reports[0].mapping is None
