"""RFC 5780, section 4.3, by TCP in the virtual network: discovery reports the configured mapping (RFC 5382)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.compact import Queue
from polynya.core.flows import Flow, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Input, Open, Opened, Output, Send, StreamData
from polynya.lab import Network
from polynya.lab.programs import Listening
from polynya.nat import NatConfig, PortAssignment, every_class
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.stream_mapping import State, StreamMapping, StreamMappingReport, judge

ONE, ONE_B, TWO = Address("203.0.113.1", 3478), Address("203.0.113.1", 3479), Address("203.0.113.2", 3478)
LIMIT = Instant(300 * SECOND)


class StreamServer:
    """Answers Binding requests on streams."""

    def __init__(self, *, garbage: bytes = b"") -> None:
        self.remotes: dict[Flow, Address] = {}
        self._garbage = garbage
        self._outputs: Queue[Output] = Queue()

    def receive(self, input: Input, *, now: Instant) -> None:
        if isinstance(input, Opened) and input.remote is not None:
            self.remotes[input.flow] = input.remote
        elif isinstance(input, StreamData):
            remote = self.remotes[input.flow]
            answer = Message.success(decode(input.data), {XOR_MAPPED_ADDRESS: remote}).encode(fingerprint=True)
            self._outputs.append(Send(input.flow, remote, self._garbage or answer))

    def tick(self, *, now: Instant) -> None:
        """There are no timers."""

    def next_timer(self) -> None:
        return None

    def outputs(self) -> list[Output]:
        return self._outputs.drain()

    def events(self) -> list[Any]:
        return []


def ask(
    config: NatConfig | None,
    *servers: Address,
    listening: tuple[Address, ...] = (ONE, ONE_B, TWO),
    garbage: bytes = b"",
    transport: Transport = Transport.TCP,
) -> StreamMappingReport:
    net = Network(1)
    internet = net.router("internet")
    for name in dict.fromkeys(server.host for server in listening):
        host = net.host(f"stun-{name}", name, internet)
        opens = [
            Open(flow=net.flow_ids.new(), transport=transport, local=each) for each in listening if each.host == name
        ]
        host.run(Listening(StreamServer(garbage=garbage), opens=opens))
    if config is None:
        alice, address = net.host("alice", "192.0.2.1", internet), "192.0.2.1"
    else:
        nat = net.nat("nat", outside=internet, address="198.51.100.1", inside="10.0.0.0/24", config=config)
        alice, address = net.host("alice", "10.0.0.2", nat), "10.0.0.2"
    machine = StreamMapping(
        servers=servers,
        local=Address(address, 40000),
        flow_ids=net.flow_ids,
        random=random.Random(1),
        transport=transport,
        names=[server.host for server in servers],
    )
    process = alice.run(machine)
    process.call(machine.start)
    process.call(machine.start)
    assert net.run_until(lambda: bool(process.log), LIMIT), "the discovery ends"
    net.run_for(SECOND)
    assert machine.state is State.ENDED and machine.next_timer() is None
    assert process.misuses == [] and process.sockets == {} == process.streams
    [(_, report)] = process.log
    return report


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS], ids=lambda each: each.value)
@pytest.mark.parametrize(
    "config", list(every_class(NatConfig(ports=PortAssignment.RANDOM))), ids=lambda each: each.label
)
def test_three_places_show_the_whole_mapping(config: NatConfig, transport: Transport) -> None:
    report = ask(config, ONE, ONE_B, TWO, transport=transport)
    assert report.mapping is config.mapping, report.reason
    assert report.translated and [mapped.host for mapped in report.mapped] == ["198.51.100.1"] * 3


@pytest.mark.parametrize("config", list(every_class(NatConfig(ports=PortAssignment.RANDOM))), ids=lambda e: e.label)
def test_two_servers_show_whether_the_mapping_depends_on_the_remote_address(config: NatConfig) -> None:
    report = ask(config, ONE, TWO)
    assert report.mapping is (Behavior.EI if config.mapping is Behavior.EI else None)
    assert report.mapping or "depends on the remote address" in report.reason


def test_without_a_nat_nothing_is_translated() -> None:
    report = ask(None, ONE, TWO)
    assert (report.translated, report.mapping) == (False, Behavior.EI)
    assert report.mapped == (report.local, report.local) and report.local == Address("192.0.2.1", 40000)


def test_a_server_that_refuses_or_speaks_something_else_is_the_reason() -> None:
    report = ask(None, ONE, TWO, listening=(ONE,))
    assert report.mapping is None and str(TWO) in report.reason
    assert report.mapped == (Address("192.0.2.1", 40000),), "the first one has answered"
    report = ask(None, ONE, TWO, garbage=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert report.mapping is None and f"{ONE} sent bytes that are no STUN message" in report.reason


def test_two_ports_of_one_server_show_whether_the_port_counts() -> None:
    assert ask(NatConfig(mapping=Behavior.APD, ports=PortAssignment.RANDOM), ONE, ONE_B).mapping is Behavior.APD
    report = ask(NatConfig(mapping=Behavior.AD, ports=PortAssignment.RANDOM), ONE, ONE_B)
    assert report.mapping is None and "to test the address" in report.reason


def test_an_odd_nat_is_reported_as_its_strictest_behavior() -> None:
    """Another address sees the same, another port does not."""
    same, other = Address("198.51.100.1", 1), Address("198.51.100.1", 2)
    assert judge((ONE, ONE_B, TWO), (same, other, same))[0] is Behavior.APD


def test_a_report_reads_well() -> None:
    report = ask(NatConfig(mapping=Behavior.APD), ONE, ONE_B)
    first, second = report.mapped
    assert str(report) == (
        "10.0.0.2:40000: behind a NAT\n"
        f"  mapping: {Behavior.APD.value} (two ports of one server see different addresses)\n"
        f"  203.0.113.1:3478 sees {first}\n"
        f"  203.0.113.1:3479 sees {second}"
    )
