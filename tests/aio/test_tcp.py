"""TCP and TLS streams of a driver: connected, accepted, refused, slow and closed."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from polynya.aio import tcp
from polynya.aio.driver import Driver
from polynya.aio.tcp import StreamLimits
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, Transport
from polynya.core.machine import Close, Closed, Input, Open, Opened, Send, SendFailed, StreamData
from polynya.core.trace import TraceEvent, Tracer
from polynya.stun.framing import encode_channel_data
from tests.aio.conftest import Recorder, driving
from tests.free_ports import free_port
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")

LOOPBACK = Address("127.0.0.1", 0)
Contexts = Callable[[Open], ssl.SSLContext]


async def listen(driver: Driver[Recorder], transport: Transport = Transport.TCP, **options: Any) -> Opened:
    request = Open(flow=driver.flow_ids.new(), transport=transport, local=LOOPBACK.with_port(free_port()), **options)
    driver.call(driver.machine.put, request)
    await driver.machine.until(lambda: about(driver, request.flow))
    [opened] = about(driver, request.flow)
    assert isinstance(opened, Opened), opened
    assert opened.remote is None
    return opened


def about(driver: Driver[Recorder], flow: Flow) -> list[Any]:
    return [each for each in driver.machine.inputs if getattr(each, "flow", None) == flow]


def connect(driver: Driver[Recorder], remote: Address, transport: Transport = Transport.TCP, **options: Any) -> Flow:
    flow = driver.flow_ids.new()
    driver.call(driver.machine.put, Open(flow=flow, transport=transport, remote=remote, **options))
    return flow


async def both_ends(driver: Driver[Recorder], transport: Transport = Transport.TCP, **options: Any) -> Any:
    """Connect a stream to a listener of the same driver; return the `Opened` of both ends."""
    listener = await listen(driver, transport, alpn=options.get("alpn", ()))
    flow = connect(driver, listener.local, transport, **options)

    def accepted() -> list[Opened]:
        return [each for each in driver.machine.of(Opened) if each.listener == listener.flow]

    await driver.machine.until(
        lambda: about(driver, flow) and (accepted() or not isinstance(about(driver, flow)[0], Opened))
    )
    [opened] = about(driver, flow)
    assert isinstance(opened, Opened), opened
    [other] = accepted()
    return opened, other


def received(driver: Driver[Recorder], flow: Flow) -> bytes:
    return b"".join(each.data for each in driver.machine.of(StreamData) if each.flow == flow)


# ---------------------------------------------------------------------------------------------------------------- TCP


async def test_a_stream_is_connected_accepted_and_carries_data_both_ways() -> None:
    async with driving() as driver:
        opened, accepted = await both_ends(driver)
        assert accepted.remote == opened.local
        assert accepted.local == opened.remote
        assert accepted.flow not in {opened.flow, accepted.listener}
        driver.call(
            driver.machine.put,
            Send(opened.flow, opened.remote, b"hello "),
            Send(opened.flow, opened.remote, b"there"),
        )
        await driver.machine.until(lambda: received(driver, accepted.flow) == b"hello there")
        driver.call(driver.machine.put, Send(accepted.flow, accepted.remote, b"welcome"))
        await driver.machine.until(lambda: received(driver, opened.flow) == b"welcome")
        assert (driver.counters["bytes_in"], driver.counters["bytes_out"]) == (18, 18)


async def test_closed_is_reported_once_and_only_to_the_other_side() -> None:
    async with driving() as driver:
        opened, accepted = await both_ends(driver)
        driver.call(driver.machine.put, Send(opened.flow, opened.remote, b"the last words"), Close(flow=opened.flow))
        closed = await driver.machine.received(Closed)
        assert received(driver, accepted.flow) == b"the last words", "buffered data is written first"
        assert closed.flow == accepted.flow
        assert "closed by the other side" in closed.reason
        late = connect(driver, accepted.local)
        await driver.machine.until(lambda: about(driver, late))
        assert driver.machine.of(Closed) == [closed]


async def test_a_refused_connection_is_closed_with_the_reason() -> None:
    with socket.socket() as unused:  # bound, so that no other process takes the port, but not listening
        unused.bind(("127.0.0.1", 0))
        async with driving() as driver:
            flow = connect(driver, Address(*unused.getsockname()))
            closed = await driver.machine.received(Closed)
            assert (closed.flow, closed.errno) == (flow, errno.ECONNREFUSED)
            assert "nothing listens there" in closed.reason
            assert driver.machine.of(Opened) == []


async def test_a_tls_handshake_without_an_answer_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts TCP and never answers the handshake
        async with driving(limits=StreamLimits(connect_timeout=0.05)) as driver:
            connect(driver, Address(*silent.getsockname()), Transport.TLS)
            closed = await driver.machine.received(Closed)
            assert closed.errno == errno.ETIMEDOUT
            assert "did not answer within 0.05 s" in closed.reason


async def test_a_flow_that_is_closed_while_it_connects_has_no_input() -> None:
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with driving() as driver:
            for transport in (Transport.TCP, Transport.TLS):
                flow = connect(driver, Address(*silent.getsockname()), transport)
                driver.call(driver.machine.put, Close(flow=flow))
                flow = connect(driver, Address(*silent.getsockname()), Transport.TLS)
                accepted.append((await asyncio.to_thread(silent.accept))[0])
                driver.call(driver.machine.put, Close(flow=flow))
            last = connect(driver, Address(*silent.getsockname()))
            await driver.machine.until(lambda: about(driver, last))
            assert [each.flow for each in driver.machine.inputs] == [last]
    for each in accepted:
        each.close()


async def test_a_driver_can_be_closed_while_streams_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        driver = Driver(Recorder(), on_event=lambda _: None)
        connect(driver, Address(*silent.getsockname()), Transport.TLS)
        accepted, _ = await asyncio.to_thread(silent.accept)
        connect(driver, Address(*silent.getsockname()), Transport.TLS)
        connect(driver, Address(*silent.getsockname()))
        driver.call(driver.machine.put, Open(flow=driver.flow_ids.new(), transport=Transport.TCP, local=LOOPBACK))
        driver.close_now()
        await driver.aclose()
        assert driver.machine.inputs == []
        accepted.close()


async def test_a_message_that_does_not_fit_the_buffer_is_dropped_whole_and_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with driving(limits=StreamLimits(write_buffer=100_000)) as driver:
            flow = connect(driver, Address(*server.getsockname()))
            opened = await driver.machine.received(Opened)
            accepted, _ = server.accept()
            with accepted:
                message = bytes(60_000)
                sent = 0
                while not driver.machine.of(SendFailed):
                    driver.call(driver.machine.put, Send(flow, opened.remote, message))
                    sent += 1
                failed = SendFailed(flow=flow, remote=opened.remote, errno=errno.ENOBUFS)
                assert driver.machine.of(SendFailed) == [failed]
                assert driver.counters["send_failed_ENOBUFS"] == 1
                driver.call(driver.machine.put, Close(flow=flow))
                loop = asyncio.get_running_loop()
                accepted.setblocking(False)
                total = 0
                while data := await loop.sock_recv(accepted, 1 << 20):
                    total += len(data)
                assert total == (sent - 1) * len(message), "each message is written completely or not at all"


async def test_a_client_that_never_reads_takes_little_memory_of_the_server() -> None:
    async with driving() as driver:
        listener = await listen(driver)
        with socket.create_connection((listener.local.host, listener.local.port)):
            await driver.machine.until(lambda: len(driver.machine.of(Opened)) == 2)
            opened = driver.machine.of(Opened)[1]
            assert opened.listener == listener.flow
            message = bytes(20_000)
            while not driver.machine.of(SendFailed):
                driver.call(driver.machine.put, Send(opened.flow, opened.remote, message))
            waiting, limit = driver.write_buffers()[opened.flow], StreamLimits().accepted_write_buffer
            assert limit - len(message) < waiting <= limit


async def test_a_peer_that_never_reads_does_not_delay_the_close() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        limits = StreamLimits(flush_timeout=0.05)
        driver = Driver(Recorder(), on_event=lambda _: None, limits=limits)
        flow = connect(driver, Address(*server.getsockname()))
        opened = await driver.machine.received(Opened)
        while not driver.machine.of(SendFailed):
            driver.call(driver.machine.put, Send(flow, opened.remote, bytes(60_000)))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await driver.aclose()
        assert loop.time() - began < 2


async def fill(driver: Driver[Recorder], opened: Opened) -> None:
    """Send until the buffers of the system and of the stream are full."""
    before = len(driver.machine.of(SendFailed))
    while len(driver.machine.of(SendFailed)) == before:
        driver.call(driver.machine.put, Send(opened.flow, opened.remote, bytes(20_000)))


async def accepted_by(
    driver: Driver[Recorder], listener: Opened, count: int
) -> tuple[list[socket.socket], list[Opened]]:
    """Connect clients that never read."""
    clients = [socket.create_connection((listener.local.host, listener.local.port)) for _ in range(count)]
    await driver.machine.until(lambda: len(driver.machine.of(Opened)) == 1 + count)
    return clients, driver.machine.of(Opened)[1:]


async def test_a_closed_stream_whose_client_never_reads_is_aborted() -> None:
    async with driving(limits=StreamLimits(close_timeout=0.05)) as driver:
        [client], [opened] = await accepted_by(driver, await listen(driver), 1)
        with client:
            await fill(driver, opened)
            driver.call(driver.machine.put, Close(flow=opened.flow))
            await until(lambda: driver.closing_streams == 0, "the stream is aborted")


async def test_closed_streams_that_wait_for_their_clients_are_limited() -> None:
    async with driving(limits=StreamLimits(close_timeout=30, closing_per_source=2)) as driver:
        clients, streams = await accepted_by(driver, await listen(driver), 4)
        for opened in streams:
            await fill(driver, opened)
            driver.call(driver.machine.put, Close(flow=opened.flow))
        await until(lambda: driver.closing_streams == 2, "the others are aborted")
        for client in clients:
            client.close()


async def test_an_accepted_stream_passes_a_few_frames_in_a_turn() -> None:
    turn = 0
    seen: dict[int, int] = {}

    def count(_: Recorder, received: Input) -> None:
        if isinstance(received, StreamData):
            seen[turn] = seen.get(turn, 0) + len(received.data)

    async with driving() as driver:
        driver.machine.answers = count
        listener = await listen(driver)
        loop = asyncio.get_running_loop()
        with socket.create_connection((listener.local.host, listener.local.port)) as client:
            client.sendall(bytes.fromhex("40000000") * 2000)
            while sum(seen.values()) < 8000:
                turn += 1
                await asyncio.sleep(0)
            assert max(seen.values()) <= 4 * tcp.READ_FRAMES
            seen.clear()
            client.setblocking(False)
            long = encode_channel_data(0x4000, bytes(60_000), pad=True) * 2
            sending = loop.create_task(loop.sock_sendall(client, long))
            while sum(seen.values()) < len(long):
                turn += 1
                await asyncio.sleep(0)
            await sending
            assert max(seen.values()) <= tcp.READ_BYTES


async def test_a_canceled_close_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        driver = Driver(Recorder(), on_event=lambda _: None)
        flow = connect(driver, Address(*server.getsockname()))
        opened = await driver.machine.received(Opened)
        accepted, _ = server.accept()
        with accepted:
            while not driver.machine.of(SendFailed):
                driver.call(driver.machine.put, Send(flow, opened.remote, bytes(60_000)))
            closing = asyncio.create_task(driver.aclose())
            done, _ = await asyncio.wait([closing], timeout=0.05)
            assert not done, "it waits for the slow reader"
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            accepted.settimeout(10)
            while accepted.recv(1 << 20):
                pass  # data that the system had accepted, then the end of the stream


async def test_a_send_before_the_stream_is_open_or_on_a_listener_fails() -> None:
    async with driving() as driver:
        listener = await listen(driver)
        flow = connect(driver, listener.local)
        driver.call(driver.machine.put, Send(flow, listener.local, b"early"))
        driver.call(driver.machine.put, Send(listener.flow, listener.local, b"to a listener"))
        assert [each.errno for each in driver.machine.of(SendFailed)] == [errno.ENOTCONN] * 2
        await driver.machine.received(Opened, 3)


async def test_a_closed_listener_keeps_its_accepted_streams() -> None:
    async with driving() as driver:
        opened, accepted = await both_ends(driver)
        driver.call(driver.machine.put, Close(flow=accepted.listener))
        late = connect(driver, opened.remote)
        await driver.machine.until(lambda: about(driver, late))
        [closed] = about(driver, late)
        assert closed.errno == errno.ECONNREFUSED
        driver.call(driver.machine.put, Send(opened.flow, opened.remote, b"still here"))
        await driver.machine.until(lambda: received(driver, accepted.flow) == b"still here")


async def test_listening_on_a_port_in_use_fails() -> None:
    async with driving() as driver:
        listener = await listen(driver)
        second = Open(flow=driver.flow_ids.new(), transport=Transport.TCP, local=listener.local)
        driver.call(driver.machine.put, second)
        [closed] = about(driver, second.flow)
        assert closed.errno == errno.EADDRINUSE


async def test_a_stream_uses_the_requested_local_address() -> None:
    async with driving() as driver:
        listener = await listen(driver)
        flow = connect(driver, listener.local, local=Address("127.0.0.2", 0))
        await driver.machine.until(lambda: about(driver, flow))
        [opened] = about(driver, flow)
        assert opened.local.host == "127.0.0.2"
        await driver.machine.received(Opened, 3)


async def test_an_open_of_a_stream_without_addresses_raises() -> None:
    async with driving() as driver:
        flow = driver.flow_ids.new()
        with pytest.raises(ConfigurationError, match="a remote to connect to, or a local address to listen on"):
            driver.call(driver.machine.put, Open(flow=flow, transport=Transport.TCP))
        assert isinstance(about(driver, flow)[0], Closed)


async def test_streams_are_traced_as_tcp() -> None:
    events: list[TraceEvent] = []
    async with driving(trace=Tracer(events.append, node="here", machine="aio")) as driver:
        opened, accepted = await both_ends(driver)
        driver.call(driver.machine.put, Send(opened.flow, opened.remote, b"12345"))
        await driver.machine.until(lambda: received(driver, accepted.flow))

    kinds = [(event.kind, event.fields.get("protocol"), event.fields.get("length")) for event in events]
    assert kinds[0] == ("flow-opened", None, None)
    assert [kind for kind in kinds if kind[0].startswith("packet")] == [
        ("packet-sent", "tcp", 5),
        ("packet-received", "tcp", 5),
    ]
    assert [kind[0] for kind in kinds].count("flow-closed") == [kind[0] for kind in kinds].count("flow-opened") == 3


# ---------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for `turn.example` and 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "turn.example")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("turn.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def contexts(certificate: Path) -> Contexts:
    """Make contexts of a server with the certificate, and of a client that trusts it."""

    def make(request: Open) -> ssl.SSLContext:
        if request.remote is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        else:
            context = ssl.create_default_context(cafile=certificate)
        if request.alpn:
            context.set_alpn_protocols(list(request.alpn))
        return context

    return make


@pytest.mark.parametrize("name", ["turn.example", None])
async def test_tls_checks_the_name_and_reports_the_selected_protocol(contexts: Contexts, name: str | None) -> None:
    async with driving(tls=contexts) as driver:
        opened, accepted = await both_ends(driver, Transport.TLS, server_name=name, alpn=("stun.turn",))
        assert opened.alpn == accepted.alpn == "stun.turn"
        driver.call(driver.machine.put, Send(opened.flow, opened.remote, b"secret"))
        await driver.machine.until(lambda: received(driver, accepted.flow) == b"secret")


async def test_one_ssl_context_serves_all_tls_streams(contexts: Contexts, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)
    async with driving(tls=contexts) as server, driving(tls=trusting) as client:
        listener = await listen(server, Transport.TLS)
        for _ in range(2):
            flow = connect(client, listener.local, Transport.TLS, server_name="turn.example")
            await client.machine.until(lambda flow=flow: about(client, flow))  # type: ignore[misc]
            assert isinstance(about(client, flow)[0], Opened)


def test_a_transport_is_closed_once_and_then_aborted() -> None:
    """In Python 3.11.2 (Debian 12), abort() of a TLS transport raises AttributeError after a second close()."""
    calls: list[str] = []

    class FakeTransport(asyncio.Transport):
        def close(self) -> None:
            calls.append("close")

        def is_closing(self) -> bool:
            return bool(calls)

        def abort(self) -> None:
            calls.append("abort")

    class Owner:
        def opened(self, opened: Opened, transport: Transport) -> None:
            assert (opened.local, opened.remote) == (Address("127.0.0.1", 1), Address("127.0.0.1", 2))

    stream = tcp.ConnectedStream(cast("tcp.StreamOwner", Owner()), Flow(1), Transport.TLS)
    stream.connection_made(FakeTransport({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}))
    stream.close()
    stream.close()
    stream.abort()
    assert calls == ["close", "abort"]


async def test_a_certificate_for_another_name_is_refused(contexts: Contexts) -> None:
    async with driving(tls=contexts) as driver:
        listener = await listen(driver, Transport.TLS)
        flow = connect(driver, listener.local, Transport.TLS, server_name="other.example")
        await driver.machine.until(lambda: about(driver, flow))
        [closed] = about(driver, flow)
        assert isinstance(closed, Closed)
        assert "no certificate for other.example" in closed.reason


async def test_a_self_signed_certificate_is_refused_by_default(contexts: Contexts) -> None:
    async with driving(tls=contexts) as server, driving() as client:
        listener = await listen(server, Transport.TLS)
        flow = connect(client, listener.local, Transport.TLS, server_name="turn.example")
        closed = await client.machine.received(Closed)
        assert closed.flow == flow
        assert "trusted here" in closed.reason
        assert client.machine.of(Opened) == []


async def test_a_server_without_tls_is_closed_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with driving() as driver:
            connect(driver, Address(*server.getsockname()), Transport.TLS)
            accepted, _ = await asyncio.to_thread(server.accept)
            with accepted:
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                closed = await driver.machine.received(Closed)
            assert closed.reason.startswith("TLS with 127.0.0.1:")


async def test_an_open_of_a_tls_listener_without_certificate_raises() -> None:
    async with driving() as driver:
        with pytest.raises(ConfigurationError, match="needs a certificate"):
            driver.call(
                driver.machine.put,
                Open(flow=driver.flow_ids.new(), transport=Transport.TLS, local=LOOPBACK),
            )
