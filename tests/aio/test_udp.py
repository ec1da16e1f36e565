"""UDP sockets under a driver: whose a datagram is, what the system refuses, and what its errors say."""

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
from tests.aio.conftest import Recorder, Run, address_of, driving, open_udp, stun_like, until
from tests.free_ports import free_port

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
DATA = b"\x80 application data"
FLOW = Flow(1)


def sockaddr(address: Address) -> tuple[str, int]:
    return (address.host, address.port)


def free_address() -> Address:
    """A loopback address where nothing listens."""
    return Address("127.0.0.1", free_port())


def largest_buffer() -> int:
    """Bytes that a receive buffer may have without a permission."""
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


# ------------------------------------------------------------------------------------------------------- whose it is


def test_data_of_an_accepted_remote_bypasses_the_machine_and_stun_does_not(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
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

    run(main())


def test_data_of_any_other_remote_or_flow_is_the_machines(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
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

    run(main())


def test_a_refused_remote_is_the_machines_again(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            driver.accept_data(opened.flow, address_of(foreign), lambda _: pytest.fail("it was refused"))
            driver.refuse_data(opened.flow, address_of(foreign))
            driver.refuse_data(opened.flow, Address("127.0.0.1", 1))
            foreign.sendto(DATA, sockaddr(opened.local))
            assert (await driver.machine.received(Datagram)).data == DATA

    run(main())


def test_ipv6_works_like_ipv4(run: Run) -> None:
    async def main() -> None:
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

    run(main())


def test_a_receiver_that_raises_an_os_error_is_not_taken_for_the_sockets_failure(
    run: Any, foreign: socket.socket
) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            delivered: list[bytes] = []

            def deliver(data: bytes) -> None:
                delivered.append(data)
                if data == b"bad":
                    raise ConnectionError("the receiver's fault")

            driver.accept_data(opened.flow, address_of(foreign), deliver)
            for text in (b"bad", b"good"):
                foreign.sendto(text, sockaddr(opened.local))
            await settle(driver, 2)
            assert delivered == [b"bad", b"good"]
            assert driver.machine.of(Closed) == []

    run(main(), expect_unhandled=1)


def test_a_receiver_may_close_the_flow_while_more_waits(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
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

    run(main())


def test_the_loop_gets_its_turn_between_two_batches(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            loop = asyncio.get_running_loop()
            seen: list[object] = []

            def deliver(data: bytes) -> None:
                if not seen:
                    loop.call_soon(seen.append, "the loop's turn")
                seen.append(data)

            driver.accept_data(opened.flow, address_of(foreign), deliver)
            for _ in range(udp.BATCH + 10):
                foreign.sendto(DATA, sockaddr(opened.local))
            await settle(driver, udp.BATCH + 10)
            assert seen.index("the loop's turn") <= udp.BATCH

    run(main())


def test_remotes_on_one_socket_are_told_apart(run: Run) -> None:
    async def main() -> None:
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

    run(main())


# -------------------------------------------------------------------------------------------- what the system refuses


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_icmp_error_is_an_input_with_whom_it_is_about_and_who_sent_it(run: Run, host: str) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver, host)
            nobody = Address(host, free_address().port)
            driver.call(driver.machine.put, Send(opened.flow, nobody, stun_like()))
            error = await driver.machine.received(IcmpError)
            assert error == IcmpError(
                flow=opened.flow, remote=nobody, kind=IcmpKind.PORT_UNREACHABLE, origin=host, mtu=None
            )
            assert driver.machine.of(SendFailed) == []

    run(main())


@linux
def test_an_icmp_error_does_not_cost_the_next_datagram_to_somebody_else(run: Run, foreign: socket.socket) -> None:
    """The kernel fails the next send with the pending error, whomever it is for."""

    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            nobody = free_address()

            def both_at_once(*, now: Instant) -> None:
                driver.machine.put(
                    Send(opened.flow, nobody, b"to nobody"), Send(opened.flow, address_of(foreign), b"to somebody")
                )

            driver.call(both_at_once)
            assert foreign.recv(99) == b"to somebody"
            send = driver.sender(opened.flow, address_of(foreign))
            driver.sender(opened.flow, nobody)(b"to nobody")
            assert send(b"data") is True
            assert foreign.recv(99) == b"data"
            await driver.machine.received(IcmpError, 2)
            assert driver.machine.of(SendFailed) == []
            assert not [name for name in driver.counters if name.startswith("send_failed")]

    run(main())


@linux
def test_an_icmp_error_that_another_call_has_met_is_still_told(run: Run) -> None:
    """Else the socket would wake the loop again and again, with nothing to read."""

    async def main() -> None:
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

    run(main())


@linux
def test_reading_goes_on_after_an_icmp_error(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            for _ in range(3):
                driver.sender(opened.flow, free_address())(b"to nobody")
            foreign.sendto(DATA, sockaddr(opened.local))
            assert (await driver.machine.received(Datagram)).data == DATA
            await driver.machine.received(IcmpError, 3)
            foreign.sendto(DATA, sockaddr(opened.local))
            await driver.machine.received(Datagram, 2)

    run(main())


def test_a_datagram_that_the_system_refuses_is_an_input_and_counted(run: Run) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            broadcast = Address("255.255.255.255", 9)  # needs a permission that the socket has not
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

    run(main())


def test_a_full_buffer_is_counted_as_loss_and_emits_no_send_failed() -> None:
    full, owner, remote = BlockingIOError(errno.EAGAIN, "the buffer is full"), Owner(), Address("127.0.0.1", 9)
    carrier = udp.UdpSocket(cast("socket.socket", FaultySocket(full)), FLOW, owner)
    assert carrier.sender(remote)(DATA) is False
    carrier.send(Send(FLOW, remote, DATA))
    assert owner.inputs == []
    assert owner.tally.failures == {"EAGAIN": 2}
    assert owner.tally.datagrams_out == 0


@linux
def test_what_the_kernel_dropped_is_counted(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            [granted] = driver.receive_buffers().values()
            assert granted == 2 * min(largest_buffer(), sockets.RECEIVE_BUFFER), "Linux doubles what it grants"
            sent = 0
            while not driver.counters["kernel_drops"]:  # the loop does not run meanwhile, so nobody reads
                for _ in range(500):
                    foreign.sendto(bytes(1400), sockaddr(opened.local))
                sent += 500
                assert sent < 1_000_000
            driver.accept_data(opened.flow, address_of(foreign), lambda _: None)
            await until(lambda: driver.counters["datagrams_in"] + driver.counters["kernel_drops"] >= sent)
            before = driver.counters
            assert before["datagrams_in"] + before["kernel_drops"] == sent
            driver.call(driver.machine.put, Close(flow=opened.flow))
            assert driver.counters == before, "what a closed socket counted is kept"

    run(main())


def test_a_socket_that_only_fails_is_closed_with_the_reason() -> None:
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


# --------------------------------------------------------------------------------------------------- how it is bound


def test_a_port_is_taken_from_the_range_and_a_full_range_says_so(run: Run) -> None:
    async def main() -> None:
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

    run(main())


def test_an_address_of_another_host_cannot_be_bound(run: Run) -> None:
    async def main() -> None:
        async with driving() as driver:
            local = Address("203.0.113.77", 0)
            driver.call(driver.machine.put, Open(flow=driver.flow_ids.new(), transport=Transport.UDP, local=local))
            [closed] = driver.machine.of(Closed)
            assert closed.errno == errno.EADDRNOTAVAIL
            assert "203.0.113.77" in closed.reason
            assert "no interface" in closed.reason

    run(main())


# ------------------------------------------------------------------------------------------------- what IP carries


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_fields_of_a_send_are_those_of_its_datagram_and_are_read_where_they_are_asked_for(
    run: Run, host: str
) -> None:
    async def main() -> None:
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

    run(main())


@linux
def test_several_segments_leave_in_one_call(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            fields = IpFields(segment_size=100)
            driver.call(driver.machine.put, Send(opened.flow, address_of(foreign), bytes(250), fields))
            assert [len(foreign.recv(999)) for _ in range(3)] == [100, 100, 50]

    run(main())


# ------------------------------------------------------------------------------------------------------------- trace


def test_every_packet_is_traced_under_an_id_data_too_and_captured(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
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

    run(main())


def test_without_a_trace_packets_have_no_id(run: Run, foreign: socket.socket) -> None:
    async def main() -> None:
        async with driving() as driver:
            opened = await open_udp(driver)
            foreign.sendto(stun_like(), sockaddr(opened.local))
            assert (await driver.machine.received(Datagram)).packet == 0

    run(main())


# --------------------------------------------------------------------------------- loops that cannot watch sockets


def test_an_endpoint_serves_where_the_loop_cannot_watch_sockets(
    run_without_readers: Run, foreign: socket.socket
) -> None:
    async def main() -> None:
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

    run_without_readers(main())
