"""UDP sockets of a driver: the receivers of datagrams, refused sends, ICMP errors and IP fields."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from polynya.aio import sockets, udp
from polynya.aio.driver import Driver
from polynya.aio.tally import Tally
from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    Ecn,
    IcmpError,
    IcmpKind,
    Input,
    IpFields,
    Open,
    Opened,
    Send,
    SendFailed,
)
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import TraceEvent, Tracer
from tests.aio.conftest import Recorder, address_of, driving, open_udp, stun_like
from tests.free_ports import free_port
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux' error queue and counters")
DATA = b"\x80 application data"
FLOW = Flow(1)


def sockaddr(address: Address) -> tuple[str, int]:
    return (address.host, address.port)


def free_address() -> Address:
    """Return a loopback address where nothing listens."""
    return Address("127.0.0.1", free_port())


def largest_buffer() -> int:
    """Return the limit of a receive buffer for unprivileged processes, in bytes."""
    return int(Path("/proc/sys/net/core/rmem_max").read_text())


async def settle(driver: Driver[Recorder], count: int) -> None:
    """Wait until the driver has read this many datagrams; data bypasses the machine and emits no event."""
    await until(lambda: driver.counters["datagrams_in"] >= count)


class Owner:
    """The owner of a single socket: records its inputs."""

    trace = None

    def __init__(self) -> None:
        self.tally = Tally()
        self.inputs: list[Input] = []

    def take(self, input: Input) -> None:
        self.inputs.append(input)

    lost = take


class FaultySocket:
    """An open IPv4 socket whose reads and writes fail with `error`."""

    family = socket.AF_INET

    def __init__(self, error: OSError) -> None:
        self.error = error

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def close(self) -> None:
        pass

    def fail(self, *_: object) -> Any:
        raise self.error

    recvfrom = recvmsg = sendto = fail

    def getsockopt(self, *_: object) -> Any:
        raise OSError(errno.ENOPROTOOPT, "no such option")


# ------------------------------------------------------------------------------------------------------------ receivers


async def test_data_of_an_accepted_remote_address_bypasses_the_machine_and_stun_does_not(
    foreign: socket.socket,
) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        delivered: list[bytes] = []
        driver.accept_data(opened.flow, address_of(foreign), delivered.append)
        texts = [DATA, b"\x00not stun", b"\x01" * 40, b"", b"\x03", b"\x04", stun_like()[:19], stun_like() + b"x"]
        for text in [*texts, stun_like(), stun_like(60)]:
            foreign.sendto(text, sockaddr(opened.local))
        await driver.machine.received(Datagram, 2)
        assert delivered == texts
        assert [datagram.data for datagram in driver.machine.of(Datagram)] == [stun_like(), stun_like(60)]
        counters = driver.counters
        assert counters["datagrams_in"] == len(texts) + 2
        assert counters["bytes_in"] == sum(map(len, texts)) + 80


async def test_data_of_other_remote_addresses_and_flows_goes_to_the_machine(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened, other = await open_udp(driver), await open_udp(driver)
        delivered: list[bytes] = []
        neighbor = address_of(foreign).with_port(foreign.getsockname()[1] ^ 1)
        driver.accept_data(opened.flow, neighbor, delivered.append)
        driver.accept_data(other.flow, address_of(foreign), delivered.append)
        foreign.sendto(DATA, sockaddr(opened.local))
        datagram = await driver.machine.received(Datagram)
        assert datagram == Datagram(opened.flow, address_of(foreign), DATA)
        assert delivered == []


async def test_data_of_a_refused_remote_address_goes_to_the_machine(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        driver.accept_data(opened.flow, address_of(foreign), lambda _: pytest.fail("the remote address was refused"))
        driver.refuse_data(opened.flow, address_of(foreign))
        driver.refuse_data(opened.flow, Address("127.0.0.1", 1))
        foreign.sendto(DATA, sockaddr(opened.local))
        assert (await driver.machine.received(Datagram)).data == DATA


async def test_data_and_stun_are_separated_over_ipv6() -> None:
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as foreign:
        foreign.bind(("::1", 0))
        async with driving() as driver:
            opened = await open_udp(driver, "::1")
            delivered: list[bytes] = []
            foreign.sendto(stun_like(), sockaddr(opened.local))
            remote = (await driver.machine.received(Datagram)).remote
            assert remote == address_of(foreign)
            driver.accept_data(opened.flow, remote, delivered.append)
            foreign.sendto(DATA, sockaddr(opened.local))
            await settle(driver, 2)
            assert delivered == [DATA]
            assert driver.sender(opened.flow, remote)(b"back")
            assert foreign.recv(99) == b"back"


@pytest.mark.unhandled(1)
async def test_an_os_error_of_the_receiver_does_not_close_the_socket(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        delivered: list[bytes] = []

        def deliver(data: bytes) -> None:
            delivered.append(data)
            if data == b"bad":
                raise ConnectionError("an error of the receiver")

        driver.accept_data(opened.flow, address_of(foreign), deliver)
        for text in (b"bad", b"good"):
            foreign.sendto(text, sockaddr(opened.local))
        await settle(driver, 2)
        assert delivered == [b"bad", b"good"]
        assert driver.machine.of(Closed) == []


async def test_a_receiver_may_close_the_flow_during_a_batch(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        delivered: list[bytes] = []

        def deliver(data: bytes) -> None:
            delivered.append(data)
            driver.call(driver.machine.put, Close(flow=opened.flow))

        driver.accept_data(opened.flow, address_of(foreign), deliver)
        for _ in range(3):
            foreign.sendto(DATA, sockaddr(opened.local))
        await settle(driver, 1)
        assert delivered == [DATA]
        assert driver.machine.of(Closed) == []


async def test_other_tasks_run_between_two_batches(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        loop = asyncio.get_running_loop()
        seen: list[object] = []

        def deliver(data: bytes) -> None:
            if not seen:
                loop.call_soon(seen.append, "another task")
            seen.append(data)

        driver.accept_data(opened.flow, address_of(foreign), deliver)
        for _ in range(udp.BATCH + 10):
            foreign.sendto(DATA, sockaddr(opened.local))
        await settle(driver, udp.BATCH + 10)
        assert seen.index("another task") <= udp.BATCH


async def test_remote_addresses_of_one_socket_are_distinguished() -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(5)]
        try:
            for other in others:
                other.sendto(DATA, sockaddr(opened.local))
            await driver.machine.received(Datagram, 5)
            remotes = [datagram.remote.port for datagram in driver.machine.of(Datagram)]
            assert remotes == [other.getsockname()[1] for other in others]
            for remote in remotes:
                assert driver.sender(opened.flow, Address("127.0.0.1", remote))(b"back")
            assert [other.recv(9) for other in others] == [b"back"] * 5
        finally:
            for other in others:
                other.close()


# --------------------------------------------------------------------------------------------------------------- errors


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_icmp_error_is_an_input_with_its_remote_address_and_origin(host: str) -> None:
    async with driving() as driver:
        opened = await open_udp(driver, host)
        closed_port = Address(host, free_address().port)
        driver.call(driver.machine.put, Send(opened.flow, closed_port, stun_like()))
        error = await driver.machine.received(IcmpError)
        assert error == IcmpError(
            flow=opened.flow, remote=closed_port, kind=IcmpKind.PORT_UNREACHABLE, origin=host, mtu=None
        )
        assert driver.machine.of(SendFailed) == []


@linux
async def test_an_icmp_error_does_not_lose_the_next_datagram_to_another_address(foreign: socket.socket) -> None:
    """The kernel fails the next send with the pending error, whatever its destination is."""

    async with driving() as driver:
        opened = await open_udp(driver)
        closed_port = free_address()

        def both_at_once(*, now: Instant) -> None:
            driver.machine.put(
                Send(opened.flow, closed_port, b"to a closed port"),
                Send(opened.flow, address_of(foreign), b"to the peer"),
            )

        driver.call(both_at_once)
        assert foreign.recv(99) == b"to the peer"
        send = driver.sender(opened.flow, address_of(foreign))
        driver.sender(opened.flow, closed_port)(b"to a closed port")
        assert send(b"data") is True
        assert foreign.recv(99) == b"data"
        await driver.machine.received(IcmpError, 2)
        assert driver.machine.of(SendFailed) == []
        assert not [name for name in driver.counters if name.startswith("send_failed")]


@linux
async def test_an_icmp_error_that_another_call_received_is_still_reported() -> None:
    """Else the socket would wake the loop again and again, with nothing to read."""

    request = Open(flow=FLOW, transport=Transport.UDP, local=Address("127.0.0.1", 0))
    for ip_fields in (False, True):
        sock, _ = sockets.open_udp(request)
        owner = Owner()
        carrier = udp.UdpSocket(sock, FLOW, owner)
        carrier.watch(asyncio.get_running_loop(), ip_fields=ip_fields)
        carrier.sender(free_address())(b"to a closed port")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        await until(lambda owner=owner: owner.inputs)
        [error] = owner.inputs
        assert isinstance(error, IcmpError)
        carrier.close()


@linux
async def test_reading_continues_after_an_icmp_error(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        for _ in range(3):
            driver.sender(opened.flow, free_address())(b"to a closed port")
        foreign.sendto(DATA, sockaddr(opened.local))
        assert (await driver.machine.received(Datagram)).data == DATA
        await driver.machine.received(IcmpError, 3)
        foreign.sendto(DATA, sockaddr(opened.local))
        await driver.machine.received(Datagram, 2)


async def test_a_refused_datagram_is_reported_and_counted() -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        broadcast = Address("255.255.255.255", 9)  # needs SO_BROADCAST
        driver.call(driver.machine.put, Send(opened.flow, broadcast, DATA))
        failed = SendFailed(flow=opened.flow, remote=broadcast, errno=errno.EACCES)
        assert driver.machine.of(SendFailed) == [failed]
        assert driver.sender(opened.flow, broadcast)(DATA) is False
        assert driver.machine.of(SendFailed) == [failed, failed]
        assert driver.sender(opened.flow, Address("127.0.0.1", 9))(bytes(65536)) is False
        assert driver.machine.of(SendFailed)[2].errno == errno.EMSGSIZE
        counters = driver.counters
        assert (counters["send_failed_EACCES"], counters["send_failed_EMSGSIZE"]) == (2, 1)
        assert counters["datagrams_out"] == 0


def test_a_full_buffer_is_counted_as_loss_and_emits_no_send_failed() -> None:
    full, owner, remote = BlockingIOError(errno.EAGAIN, "the buffer is full"), Owner(), Address("127.0.0.1", 9)
    carrier = udp.UdpSocket(cast("socket.socket", FaultySocket(full)), FLOW, owner)
    assert carrier.sender(remote)(DATA) is False
    carrier.send(Send(FLOW, remote, DATA))
    assert owner.inputs == []
    assert owner.tally.failures == {"EAGAIN": 2}
    assert owner.tally.datagrams_out == 0


@linux
async def test_drops_of_the_kernel_are_counted(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        [granted] = driver.receive_buffers().values()
        assert granted == 2 * min(largest_buffer(), sockets.RECEIVE_BUFFER), "Linux doubles what it grants"
        sent = 0
        while not driver.counters["kernel_drops"]:  # the loop does not run meanwhile, so nothing is read
            for _ in range(500):
                foreign.sendto(bytes(1400), sockaddr(opened.local))
            sent += 500
            assert sent < 1_000_000
        driver.accept_data(opened.flow, address_of(foreign), lambda _: None)
        await until(lambda: driver.counters["datagrams_in"] + driver.counters["kernel_drops"] >= sent)
        before = driver.counters
        assert before["datagrams_in"] + before["kernel_drops"] == sent
        driver.call(driver.machine.put, Close(flow=opened.flow))
        assert driver.counters == before, "the counters include closed sockets"


def test_a_socket_whose_reads_keep_failing_is_closed_with_the_reason() -> None:
    owner = Owner()
    down = FaultySocket(OSError(errno.ENETDOWN, "Network is down"))
    carrier = udp.UdpSocket(cast("socket.socket", down), FLOW, owner)
    for _ in range(udp.MAX_FAILURES):
        assert owner.inputs == []
        carrier.read()
    [closed] = owner.inputs
    assert isinstance(closed, Closed)
    assert (closed.flow, closed.errno) == (FLOW, errno.ENETDOWN)
    assert "Network is down" in closed.reason
    assert carrier.closed


# -------------------------------------------------------------------------------------------------------------- binding


async def test_ports_come_from_the_range_and_a_full_range_is_an_error() -> None:
    async with driving() as driver:
        base = free_address().port
        ports = (base, min(base + 1, 65535))
        bound = []
        for _ in range(ports[1] - base + 1):
            flow = driver.flow_ids.new()
            local = Address("127.0.0.1", 0)
            driver.call(driver.machine.put, Open(flow=flow, transport=Transport.UDP, local=local, ports=ports))
        bound = [opened.local.port for opened in driver.machine.of(Opened)]
        assert len(set(bound)) == len(bound) >= 1
        assert all(ports[0] <= port <= ports[1] for port in bound)
        driver.call(
            driver.machine.put,
            Open(flow=driver.flow_ids.new(), transport=Transport.UDP, local=Address("127.0.0.1", 0), ports=ports),
        )
        assert driver.machine.of(Closed)[-1].errno == errno.EADDRINUSE


async def test_an_address_of_another_host_cannot_be_bound() -> None:
    async with driving() as driver:
        local = Address("203.0.113.77", 0)
        driver.call(driver.machine.put, Open(flow=driver.flow_ids.new(), transport=Transport.UDP, local=local))
        [closed] = driver.machine.of(Closed)
        assert closed.errno == errno.EADDRNOTAVAIL
        assert "203.0.113.77" in closed.reason
        assert "no interface" in closed.reason


# ------------------------------------------------------------------------------------------------------------ IP fields


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_ip_fields_are_sent_and_received(host: str) -> None:
    async with driving(ip_fields=True) as driver:
        opened, other = await open_udp(driver, host), await open_udp(driver, host)
        marked = IpFields(ecn=Ecn.ECT_0, dscp=46, ttl=7)
        whole = IpFields(dont_fragment=True, ttl=9)
        driver.call(
            driver.machine.put,
            Send(opened.flow, other.local, b"marked", marked),
            Send(opened.flow, other.local, b"whole", whole),
            Send(opened.flow, other.local, b"plain"),
        )
        await driver.machine.received(Datagram, 3)
        got = {datagram.data: datagram.ip for datagram in driver.machine.of(Datagram)}
        assert got[b"marked"] == marked
        assert got[b"whole"] == IpFields(ecn=Ecn.NOT_ECT, dscp=0, ttl=9)
        assert got[b"plain"] == IpFields(ecn=Ecn.NOT_ECT, dscp=0, ttl=64)


@linux
async def test_several_segments_are_sent_in_one_call(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        fields = IpFields(segment_size=100)
        driver.call(driver.machine.put, Send(opened.flow, address_of(foreign), bytes(250), fields))
        assert [len(foreign.recv(999)) for _ in range(3)] == [100, 100, 50]


# ------------------------------------------------------------------------------------------------------------- trace


async def test_every_packet_is_traced_with_an_id_and_captured(foreign: socket.socket) -> None:
    events: list[TraceEvent] = []
    packets: list[IpPacket] = []
    trace = Tracer(events.append, node="here", machine="aio")
    async with driving(trace=trace, capture=lambda _, packet: packets.append(packet)) as driver:
        opened = await open_udp(driver)
        remote = address_of(foreign)
        driver.accept_data(opened.flow, remote, lambda _: None)
        driver.call(driver.machine.put, Send(opened.flow, remote, stun_like()))
        driver.sender(opened.flow, remote)(DATA)
        foreign.sendto(stun_like(), sockaddr(opened.local))
        foreign.sendto(DATA, sockaddr(opened.local))
        await settle(driver, 2)
        [datagram] = driver.machine.of(Datagram)
        out = {"protocol": "udp", "source": str(opened.local), "destination": str(remote)}
        back = {"protocol": "udp", "source": str(remote), "destination": str(opened.local)}
        assert [(event.kind, event.fields) for event in events] == [
            ("flow-opened", {"flow": str(opened.flow), "transport": "udp", "local": str(opened.local)}),
            ("packet-sent", {"packet": 1, **out, "length": 20}),
            ("packet-sent", {"packet": 2, **out, "length": len(DATA)}),
            ("packet-received", {"packet": 3, **back, "length": 20}),
            ("packet-received", {"packet": 4, **back, "length": len(DATA)}),
        ]
        assert datagram.packet == 3
        assert packets == [
            IpPacket(1, opened.local, remote, Protocol.UDP, stun_like()),
            IpPacket(2, opened.local, remote, Protocol.UDP, DATA),
            IpPacket(3, remote, opened.local, Protocol.UDP, stun_like()),
            IpPacket(4, remote, opened.local, Protocol.UDP, DATA),
        ]
    assert events[-1].kind == "flow-closed"


async def test_without_a_trace_packets_have_no_id(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        foreign.sendto(stun_like(), sockaddr(opened.local))
        assert (await driver.machine.received(Datagram)).packet == 0


# --------------------------------------------------------------------------------- loops that cannot watch sockets


@pytest.mark.loops("without readers")
async def test_a_loop_that_cannot_watch_sockets_uses_an_endpoint(foreign: socket.socket) -> None:
    async with driving() as driver:
        opened = await open_udp(driver)
        remote = address_of(foreign)
        delivered: list[bytes] = []
        foreign.sendto(DATA, sockaddr(opened.local))
        assert (await driver.machine.received(Datagram)) == Datagram(opened.flow, remote, DATA)
        driver.accept_data(opened.flow, remote, delivered.append)
        foreign.sendto(DATA, sockaddr(opened.local))
        foreign.sendto(stun_like(), sockaddr(opened.local))
        await driver.machine.received(Datagram, 2)
        assert delivered == [DATA]
        driver.call(driver.machine.put, Send(opened.flow, remote, b"machine"))
        assert driver.sender(opened.flow, remote)(b"data")
        assert [foreign.recv(99), foreign.recv(99)] == [b"machine", b"data"]
        counters = driver.counters
        assert (counters["datagrams_in"], counters["datagrams_out"]) == (3, 2)
        driver.call(driver.machine.put, Close(flow=opened.flow))
        assert driver.machine.of(Closed) == []
        still_opening = Open(flow=driver.flow_ids.new(), transport=Transport.UDP, local=Address("127.0.0.1", 0))
        driver.call(driver.machine.put, still_opening)
