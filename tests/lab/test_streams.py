"""Streams in the virtual network: TCP and TLS as programs see them, over good and bad links, NATs and firewalls."""

from __future__ import annotations

import errno
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, Transport
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Close, Closed, Input, Open, Opened, Output, Send, SendFailed, StreamData
from polynya.core.packets import IpPacket, Protocol, TcpFields, TcpFlags
from polynya.core.pcapng import PcapngWriter
from polynya.core.trace import TraceEvent, Tracer, TraceWriter
from polynya.lab import UDP_BLOCKED, Host, Network, Process, Profile, Refusal, Rule
from polynya.nat import NatConfig, UnsolicitedSyn, every_class

SERVER = Address("203.0.113.5", 443)


class Streaming:
    """Opens streams and listeners on request and keeps its inputs; with `echo` it sends every byte back."""

    def __init__(self, *, echo: bool = False) -> None:
        self.inputs: list[Input] = []
        self.accepted: list[Opened] = []
        self._echo = echo
        self.remotes: dict[Flow, Address] = {}
        self._outputs: Queue[Output] = Queue()

    def open(self, request: Open, *, now: Instant) -> None:
        self._outputs.append(request)

    def send(self, flow: Flow, data: bytes, *, now: Instant) -> None:
        self._outputs.append(Send(flow, self.remotes[flow], data))

    def close(self, flow: Flow, *, now: Instant) -> None:
        self._outputs.append(Close(flow=flow))

    def receive(self, input: Input, *, now: Instant) -> None:
        self.inputs.append(input)
        if isinstance(input, Opened) and input.remote is not None:
            self.remotes[input.flow] = input.remote
            if input.listener is not None:
                self.accepted.append(input)
        elif isinstance(input, StreamData) and self._echo:
            self._outputs.append(Send(input.flow, self.remotes[input.flow], input.data))

    def tick(self, *, now: Instant) -> None:
        pass

    def next_timer(self) -> Instant | None:
        return None

    def outputs(self) -> list[Output]:
        return self._outputs.drain()

    def events(self) -> list[object]:
        return []

    def data(self, flow: Flow) -> bytes:
        return b"".join(i.data for i in self.inputs if isinstance(i, StreamData) and i.flow == flow)

    def heard(self, kind: type[Any]) -> list[Any]:
        return [i for i in self.inputs if isinstance(i, kind)]


class Program:
    """A streaming machine that runs on a host."""

    def __init__(self, net: Network, host: Host, *, echo: bool = False) -> None:
        self.net = net
        self.machine = Streaming(echo=echo)
        self.process: Process = host.run(self.machine)

    def connect(self, remote: Address = SERVER, transport: Transport = Transport.TCP, **more: Any) -> Flow:
        flow = self.net.flow_ids.new()
        self.process.call(self.machine.open, Open(flow=flow, transport=transport, remote=remote, **more))
        return flow

    def listen(self, local: Address = SERVER, transport: Transport = Transport.TCP, **more: Any) -> Flow:
        flow = self.net.flow_ids.new()
        self.process.call(self.machine.open, Open(flow=flow, transport=transport, local=local, **more))
        return flow

    def send(self, flow: Flow, data: bytes) -> None:
        self.process.call(self.machine.send, flow, data)

    def close(self, flow: Flow) -> None:
        self.process.call(self.machine.close, flow)

    def closed(self, flow: Flow) -> Closed | None:
        return next((i for i in self.machine.heard(Closed) if i.flow == flow), None)

    def opened(self, flow: Flow) -> Opened | None:
        return next((i for i in self.machine.heard(Opened) if i.flow == flow), None)


class World:
    """A public server and a client, which is behind a NAT if `nat` is set."""

    def __init__(self, net: Network, *, nat: NatConfig | None = None, link: Profile | None = None) -> None:
        self.net = net
        self.internet = net.router("internet")
        self.server = net.host("server", SERVER.host, self.internet, link=link or Profile(delay=10 * MILLISECOND))
        if nat is None:
            self.client = net.host("client", "192.0.2.1", self.internet, link=link)
        else:
            self.nat = net.nat(
                "nat", outside=self.internet, address="198.51.100.1", inside="10.0.0.0/24", config=nat, link=link
            )
            self.client = net.host("client", "10.0.0.2", self.nat)
        self.there = Program(net, self.server, echo=True)
        self.here = Program(net, self.client)


def test_a_stream_opens_in_a_round_trip_and_carries_bytes_both_ways(net: Network) -> None:
    world = World(net, nat=NatConfig())
    listening = world.there.listen()
    flow = world.here.connect()
    net.run_until(lambda: world.here.opened(flow) is not None, Instant(SECOND))
    assert net.now == 2 * 12 * MILLISECOND
    world.here.send(flow, b"hello")
    net.run_for(SECOND)
    assert world.here.machine.data(flow) == b"hello"
    [accepted] = world.there.machine.accepted
    assert accepted.listener == listening
    assert accepted.remote is not None
    assert accepted.remote.host == "198.51.100.1"
    opened = world.here.opened(flow)
    assert opened is not None
    assert (opened.local.host, opened.remote) == ("10.0.0.2", SERVER)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_every_byte_arrives_once_and_in_order_whatever_the_link_does(seed: int, secure: bool) -> None:
    net = Network(seed)
    link = Profile(delay=20 * MILLISECOND, jitter=30 * MILLISECOND, loss=0.1, duplication=0.05, reordering=0.1)
    world = World(net, link=link)
    transport = Transport.TLS if secure else Transport.TCP
    world.there.listen(transport=transport)
    flow = world.here.connect(transport=transport)
    net.run_for(20 * SECOND)
    data = net.chance_of("data").randbytes(200_000)
    for at in range(0, len(data), 9_973):
        world.here.send(flow, data[at : at + 9_973])
    net.run_for(3600 * SECOND)
    assert world.here.machine.data(flow) == data
    world.here.close(flow)
    net.run_for(600 * SECOND)
    [accepted] = world.there.machine.accepted
    assert world.there.closed(accepted.flow) is not None
    assert net.clock.waiting == 0


def test_segments_shrink_to_the_discovered_path_mtu(net: Network) -> None:
    world = World(net)
    narrow = net.router("narrow", world.internet, link=Profile(delay=MILLISECOND, mtu=700))
    far = net.host("far", "192.0.2.77", narrow)
    program = Program(net, far)
    world.there.listen()
    flow = program.connect()
    net.run_for(SECOND)
    program.send(flow, bytes(50_000))
    net.run_for(10 * SECOND)
    assert program.machine.data(flow) == bytes(50_000)
    assert any("do not fit the MTU" in drop.reason for drop in net.drops), "path MTU discovery dropped a packet"


def test_a_port_where_nothing_listens_refuses_at_once(net: Network) -> None:
    world = World(net, nat=NatConfig())
    flow = world.here.connect()
    net.run_for(SECOND)
    closed = world.here.closed(flow)
    assert closed is not None
    assert closed.errno == errno.ECONNREFUSED
    assert not world.here.process.streams


def test_a_connect_to_a_silent_host_times_out(net: Network) -> None:
    world = World(net)
    world.server.silent = True
    flow = world.here.connect()
    net.run_for(19 * SECOND)
    assert world.here.closed(flow) is None
    net.run_for(2 * SECOND)
    closed = world.here.closed(flow)
    assert closed is not None
    assert closed.errno == errno.ETIMEDOUT


@pytest.mark.parametrize(
    ("refusal", "number"),
    [
        (Refusal.SILENT, errno.ETIMEDOUT),
        (Refusal.ICMP, errno.EHOSTUNREACH),
        (Refusal.RESET, errno.ECONNREFUSED),
    ],
)
def test_a_firewall_refuses_a_stream_by_its_policy(net: Network, refusal: Refusal, number: int) -> None:
    world = World(net)
    wall = net.firewall(
        "wall", outside=world.internet, refusal=refusal, rules=[Rule(allow=False, protocol=Protocol.TCP)]
    )
    program = Program(net, net.host("walled", "192.0.2.9", wall))
    world.there.listen()
    flow = program.connect()
    net.run_for(30 * SECOND)
    closed = program.closed(flow)
    assert closed is not None
    assert closed.errno == number


def test_a_firewall_that_blocks_udp_passes_streams(net: Network) -> None:
    world = World(net)
    wall = net.firewall("wall", outside=world.internet, rules=[UDP_BLOCKED])
    program = Program(net, net.host("walled", "192.0.2.9", wall))
    world.there.listen()
    flow = program.connect()
    net.run_for(SECOND)
    program.send(flow, b"through the wall")
    net.run_for(7000 * SECOND)
    program.send(flow, b", two hours later")
    net.run_for(SECOND)
    assert program.machine.data(flow) == b"through the wall, two hours later"


@pytest.mark.parametrize(
    ("policy", "seconds", "number"),
    [
        (UnsolicitedSyn.WAIT_THEN_ICMP, 6, errno.ECONNREFUSED),
        (UnsolicitedSyn.RESET, 0, errno.ECONNREFUSED),
        (UnsolicitedSyn.SILENCE, 20, errno.ETIMEDOUT),
    ],
)
def test_a_nat_answers_an_unsolicited_stream_by_rfc_5382(
    net: Network, policy: UnsolicitedSyn, seconds: int, number: int
) -> None:
    world = World(net, nat=NatConfig(unsolicited_syn=policy))
    flow = world.there.connect(Address("198.51.100.1", 4000))
    net.run_until(lambda: world.there.closed(flow) is not None, Instant(60 * SECOND))
    closed = world.there.closed(flow)
    assert closed is not None
    assert closed.errno == number
    assert net.now // SECOND == seconds


@pytest.mark.parametrize("config", list(every_class()), ids=lambda config: config.label)
def test_every_class_of_nat_translates_outbound_streams(net: Network, config: NatConfig) -> None:
    world = World(net, nat=config)
    world.there.listen()
    flows = [world.here.connect() for _ in range(5)]
    net.run_for(SECOND)
    for number, flow in enumerate(flows):
        world.here.send(flow, b"stream %d" % number)
    net.run_for(SECOND)
    assert [world.here.machine.data(flow) for flow in flows] == [b"stream %d" % number for number in range(5)]


def test_a_simultaneous_open_connects(net: Network) -> None:
    """RFC 9293, section 3.5; the simultaneous-open candidates of RFC 6544 need it."""
    world = World(net)
    one, other = Address("192.0.2.1", 4001), Address(SERVER.host, 4002)
    mine, theirs = world.here.connect(other, local=one), world.there.connect(one, local=other)
    net.run_for(SECOND)
    world.here.send(mine, b"to and fro")
    net.run_for(SECOND)
    assert world.here.machine.data(mine) == b"to and fro"
    assert world.there.machine.data(theirs) == b"to and fro"


def test_close_sends_buffered_bytes_before_the_stream_ends(net: Network) -> None:
    world = World(net)
    world.there.listen()
    flow = world.here.connect()
    net.run_for(SECOND)
    world.here.send(flow, bytes(300_000))
    world.here.close(flow)
    net.run_for(60 * SECOND)
    [accepted] = world.there.machine.accepted
    assert world.there.machine.data(accepted.flow) == bytes(300_000)
    closed = world.there.closed(accepted.flow)
    assert closed is not None
    assert (closed.reason, closed.errno) == (f"{accepted.remote}: closed by the other side", None)
    assert world.here.closed(flow) is None, "the side that closes receives no Closed"
    assert not world.here.process.streams
    assert list(world.there.process.streams) == [accepted.listener]


def test_a_send_before_open_or_after_close_is_refused(net: Network) -> None:
    world = World(net)
    listening = world.there.listen()
    net.run_for(SECOND)
    world.there.machine.remotes[listening] = SERVER
    world.there.send(listening, b"no remote")
    flow = world.here.connect()
    world.here.machine.remotes[flow] = SERVER
    world.here.send(flow, b"too early")
    net.run_for(SECOND)
    assert [failed.errno for failed in world.here.machine.heard(SendFailed)] == [errno.ENOTCONN]
    assert [failed.errno for failed in world.there.machine.heard(SendFailed)] == [errno.ENOTCONN]
    world.here.close(flow)
    world.here.send(flow, b"too late")
    assert world.here.process.misuses == [f"8 bytes for {SERVER} were sent by {flow}, but it is not open"]


def test_a_send_beyond_the_buffer_limit_is_refused(net: Network) -> None:
    world = World(net)
    world.there.listen()
    flow = world.here.connect()
    net.run_for(SECOND)
    for _ in range(20):
        world.here.send(flow, bytes(100_000))
    net.run_for(60 * SECOND)
    failed = world.here.machine.heard(SendFailed)
    assert {each.errno for each in failed} == {errno.ENOBUFS}
    assert len(world.here.machine.data(flow)) == 100_000 * (20 - len(failed))


def test_a_crashed_program_closes_its_streams_and_a_host_without_power_does_not(net: Network) -> None:
    world = World(net)
    world.there.listen()
    first = world.here.connect()
    net.run_for(SECOND)
    world.there.process.stop()
    net.run_for(SECOND)
    assert world.here.closed(first) is not None

    again = Program(net, world.server, echo=True)
    again.listen()
    second = world.here.connect()
    net.run_for(SECOND)
    again.process.stop(silently=True)
    net.run_for(300 * SECOND)
    assert world.here.closed(second) is None, "no packet was sent"
    world.here.send(second, b"are you there?")
    net.run_for(SECOND)
    closed = world.here.closed(second)
    assert closed is not None
    assert closed.errno == errno.ECONNRESET


def test_a_link_that_stays_down_ends_a_busy_stream_after_three_minutes(net: Network) -> None:
    world = World(net)
    world.there.listen()
    flow = world.here.connect()
    net.run_for(SECOND)
    net.set_up(world.server.interfaces[0], False)
    world.here.send(flow, b"into the void")
    net.run_for(120 * SECOND)
    assert world.here.closed(flow) is None
    net.run_for(300 * SECOND)
    closed = world.here.closed(flow)
    assert closed is not None
    assert closed.errno == errno.ETIMEDOUT


def test_a_link_that_comes_back_in_time_loses_nothing(net: Network) -> None:
    world = World(net)
    world.there.listen()
    flow = world.here.connect()
    net.run_for(SECOND)
    net.set_up(world.server.interfaces[0], False)
    world.here.send(flow, bytes(100_000))
    net.run_for(60 * SECOND)
    net.set_up(world.server.interfaces[0], True)
    net.run_for(120 * SECOND)
    assert world.here.machine.data(flow) == bytes(100_000)


def test_a_reset_with_a_wrong_sequence_number_is_ignored(net: Network) -> None:
    """RFC 5961, section 3.2: an off-path attacker cannot reset a connection."""
    world = World(net)
    world.there.listen()
    flow = world.here.connect()
    net.run_for(SECOND)
    opened = world.here.opened(flow)
    assert opened is not None
    for sequence in (0, 1 << 31):
        forged = TcpFields(flags=TcpFlags.RST, sequence=sequence)
        world.client.deliver(IpPacket(net.packet_id(), SERVER, opened.local, Protocol.TCP, tcp=forged))
    world.here.send(flow, b"still here")
    net.run_for(SECOND)
    assert world.here.machine.data(flow) == b"still here"


def test_streams_on_one_host_and_ipv6_ones_work_alike(net: Network) -> None:
    internet = net.router("internet")
    host = net.host("dual", ("192.0.2.1", "2001:db8:1::1"), internet)
    far = net.host("far", ("192.0.2.2", "2001:db8:2::2"), internet)
    here, there = Program(net, host), Program(net, far, echo=True)
    local = Program(net, host, echo=True)
    for program in (there, local):
        program.listen(Address("0.0.0.0", 80))
        program.listen(Address("::", 80))
    flows = [
        here.connect(Address.parse(to)) for to in ("127.0.0.1:80", "192.0.2.2:80", "[::1]:80", "[2001:db8:2::2]:80")
    ]
    net.run_for(SECOND)
    for flow in flows:
        here.send(flow, b"hello")
    net.run_for(SECOND)
    assert [here.machine.data(flow) for flow in flows] == [b"hello"] * 4


@pytest.mark.parametrize(
    ("more", "number"),
    [
        ({"local": Address("10.9.9.9", 0)}, errno.EADDRNOTAVAIL),
        ({"interface": "wlan7"}, errno.ENODEV),
        ({"remote": Address("2001:db8::5", 443)}, errno.ENETUNREACH),
        ({"local": Address("192.0.2.1", 0), "remote": Address("2001:db8::5", 443)}, errno.EAFNOSUPPORT),
    ],
)
def test_a_stream_that_the_system_would_refuse_is_refused(net: Network, more: dict[str, Any], number: int) -> None:
    world = World(net)
    flow = world.here.connect(**more)
    net.run_for(SECOND)
    closed = world.here.closed(flow)
    assert closed is not None
    assert closed.errno == number


def test_a_port_in_use_is_refused_and_one_that_is_free_again_is_not(net: Network) -> None:
    world = World(net)
    first, second = world.there.listen(), world.there.listen()
    net.run_for(SECOND)
    closed = world.there.closed(second)
    assert closed is not None
    assert closed.errno == errno.EADDRINUSE
    world.there.close(first)
    third = world.there.listen()
    net.run_for(SECOND)
    assert world.there.opened(third) is not None


# ------------------------------------------------------------------------------------------------------------- TLS


def test_tls_takes_one_more_round_trip_and_negotiates_alpn(net: Network) -> None:
    world = World(net)
    net.names["turn.example"] = (SERVER.host,)
    world.there.listen(transport=Transport.TLS, alpn=("h2", "stun.turn"))
    flow = world.here.connect(transport=Transport.TLS, server_name="turn.example", alpn=("stun.turn",))
    net.run_until(lambda: world.here.opened(flow) is not None, Instant(SECOND))
    assert net.now == 2 * 2 * 11 * MILLISECOND
    world.here.send(flow, b"hello")
    net.run_for(SECOND)
    assert world.here.machine.data(flow) == b"hello"
    opened, [accepted] = world.here.opened(flow), world.there.machine.accepted
    assert opened is not None
    assert opened.alpn == accepted.alpn == "stun.turn"


def test_a_certificate_for_another_name_is_refused(net: Network) -> None:
    world = World(net)
    world.server.certificate = ("other.example",)
    world.there.listen(transport=Transport.TLS)
    flow = world.here.connect(transport=Transport.TLS, server_name="turn.example")
    net.run_for(SECOND)
    closed = world.here.closed(flow)
    assert closed is not None
    assert "the certificate is for other.example, not for turn.example" in closed.reason
    assert world.there.machine.accepted == []


def test_tls_and_plain_tcp_do_not_understand_each_other(net: Network) -> None:
    world = World(net)
    world.there.listen()
    echoed = world.here.connect(transport=Transport.TLS)
    greeting = Program(net, world.server)
    greeting.listen(Address(SERVER.host, 25))
    greeted = world.here.connect(Address(SERVER.host, 25), transport=Transport.TLS)
    net.run_for(SECOND)
    greeting.send(greeting.machine.accepted[0].flow, b"220 a mail server\r\n")
    net.run_for(SECOND)
    for flow, reason in (
        (echoed, "the other side answered as a client, not as a server"),
        (greeted, "does not speak TLS"),
    ):
        closed = world.here.closed(flow)
        assert closed is not None
        assert reason in closed.reason

    world.there.listen(Address(SERVER.host, 444), transport=Transport.TLS)
    plain = world.here.connect(Address(SERVER.host, 444))
    net.run_for(SECOND)
    world.here.send(plain, b"GET / HTTP/1.1\r\n\r\n")
    net.run_for(SECOND)
    assert world.here.closed(plain) is not None


def test_a_client_without_a_tls_hello_is_disconnected(net: Network) -> None:
    world = World(net)
    world.there.listen(transport=Transport.TLS)
    flow = world.here.connect()
    net.run_for(30 * SECOND)
    assert world.here.closed(flow) is not None
    assert world.there.machine.accepted == []


# --------------------------------------------------------------------------------------------------- trace and capture


def transfer(seed: int, *, trace: Tracer | None = None, capture: PcapngWriter | None = None) -> bytes:
    net = Network(seed, trace=trace or Tracer(), capture=capture)
    world = World(net, nat=NatConfig(), link=Profile(delay=20 * MILLISECOND, loss=0.05))
    world.there.listen()
    flow = world.here.connect()
    net.run_for(20 * SECOND)
    world.here.send(flow, bytes(20_000))
    net.run_for(120 * SECOND)
    world.here.close(flow)
    net.run_for(120 * SECOND)
    return world.here.machine.data(flow)


def test_the_same_seed_gives_the_same_bytes_and_every_drop_has_a_reason() -> None:
    def trace(seed: int) -> str:
        file = io.StringIO()
        assert transfer(seed, trace=Tracer(TraceWriter(file))) == bytes(20_000)
        return file.getvalue()

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)
    events: list[TraceEvent] = []
    transfer(1, trace=Tracer(events.append))
    assert all(event.reason for event in events if event.kind == "packet-dropped")
    opened = [event.fields for event in events if event.kind == "flow-opened" and event.node == "client"]
    assert [(fields["transport"], fields["remote"]) for fields in opened] == [("tcp", str(SERVER))]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_finds_a_captured_stream_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "stream.pcapng"
    with path.open("wb") as file:
        transfer(1, capture=PcapngWriter(file))
    shown = subprocess.run(
        ["tshark", "-r", str(path), "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
         "-Y", "_ws.malformed || tcp.checksum.status == 0 || ip.checksum.status == 0"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert shown.stdout == ""
    counted = subprocess.run(
        ["tshark", "-r", str(path), "-Y", "tcp"], capture_output=True, text=True, check=True, timeout=60
    )
    assert counted.stdout.count("\n") > 50
