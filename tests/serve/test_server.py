"""The server on real sockets: it listens, answers, refuses, and stops in time whatever its clients do."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.serve import ServeConfig, Server
from polynya.serve.http import OFFENSES
from polynya.serve.links import Links
from polynya.signaling.limits import Limits
from polynya.signaling.messages import PATH
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from tests.free_ports import free_port
from tests.loops import until

pytestmark = pytest.mark.loops("asyncio", "uvloop")

ANY4, ANY6 = Address("127.0.0.1", 0), Address("::1", 0)


def config(**changes: object) -> ServeConfig:
    return ServeConfig(**{"listen": (ANY4,), "http": (ANY4,), **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def websocket(server: Server, **options: object) -> AsyncIterator[ClientConnection]:
    url = server.url.replace("http", "ws", 1) + PATH
    async with connect(url, proxy=None, **options) as opened:  # type: ignore[arg-type]
        yield opened


async def http(address: Address, request: str) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(request.encode())
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_stun_is_answered_on_every_listener() -> None:
    async def ask(address: Address) -> Address:
        family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
        loop = asyncio.get_running_loop()
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.bind(("::1" if address.family == 6 else "127.0.0.1", 0))
            request = Message.request(Method.BINDING, bytes(12)).encode()
            client.sendto(request, (address.host, address.port))
            answer = decode(await loop.sock_recv(client, 2048))
            assert answer[XOR_MAPPED_ADDRESS] == Address.of(*client.getsockname()[:2])
            return answer[XOR_MAPPED_ADDRESS]

    async with Server(config(listen=(ANY4, ANY4._replace(host="127.0.0.2"), ANY6), http=())) as server:
        assert len({each.port for each in server.stun_addresses}) == 3
        for address in server.stun_addresses:
            await ask(address)
        assert server.stun_uris[0] == f"stun:127.0.0.1:{server.stun_addresses[0].port}"


async def test_a_member_gets_the_stun_listeners() -> None:
    async with Server(config()) as server, websocket(server) as link:
        await link.send('{"type":"join","version":1,"room":"r"}')
        welcome = json.loads(await link.recv())
        assert welcome["servers"] == [{"uris": list(server.stun_uris)}]


async def test_healthz_answers_ok_and_other_paths_do_not_exist() -> None:
    async with Server(config()) as server:
        [address] = server.http_addresses
        end = " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await http(address, f"GET /healthz{end}")
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nok\n")
        assert b"server:" not in answer.lower(), "the answer does not name the server software"
        assert (await http(address, f"GET /{end}")).startswith(b"HTTP/1.1 404 ")
        with pytest.raises(InvalidStatus):
            await connect(server.url.replace("http", "ws", 1) + "/elsewhere", proxy=None)


@pytest.mark.parametrize(
    ("origin", "accepted"), [("http://evil.example", False), ("https://friend.example", True), ("own", True)]
)
async def test_web_pages_of_other_origins_are_refused(origin: str, accepted: bool) -> None:
    async with Server(config(origins=("https://friend.example",))) as server:
        header = server.url if origin == "own" else origin
        if accepted:
            async with websocket(server, origin=header) as link:
                await link.ping()
            return
        with pytest.raises(InvalidStatus) as refused:
            async with websocket(server, origin=header):
                pass
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "accepted"),
    [
        ("http://chat.example", "chat.example", "http", True),
        ("https://chat.example", "chat.example", "http", False),
        ("http://chat.example", "chat.example", "https", False),
        ("https://chat.example", "chat.example", "https", True),
        ("https://Chat.example", "chat.example:443", "https", True),
        ("https://chat.example:80", "chat.example", "https", False),
        ("ftp://chat.example", "chat.example", "http", False),
        ("null", "null", "http", False),
        ("chat.example", "chat.example", "http", False),
        ("", "", "http", False),
    ],
)
async def test_an_origin_is_scheme_host_and_port(origin: str, host: str, scheme: str, accepted: bool) -> None:
    async with Server(config(trusted_proxies=("127.0.0.1",))) as server:
        [address] = server.http_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(
            upgrade(f"X-Forwarded-Proto: {scheme}\r\nOrigin: {origin}\r\n").replace(
                b"Host: x", f"Host: {host}".encode()
            )
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 " if accepted else b"HTTP/1.1 403 ")
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        "POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_an_ambiguous_body_is_refused_and_the_connection_closed(request_: str) -> None:
    async with Server(config()) as server:
        hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await http(server.http_addresses[0], request_ + hidden)
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1


async def test_hostile_clients_are_answered_and_disconnected_and_others_stay() -> None:
    async with Server(config()) as server, websocket(server) as bystander:
        await bystander.send('{"type":"join","version":1,"room":"r"}')
        for hostile in ("nonsense", b"\x00\xff", "x" * 20_000, '{"type":"signal"}'):
            async with websocket(server) as link:
                with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - the server decides when it ends
                    while True:
                        await link.send(hostile)
                        error = json.loads(await link.recv())
                        assert error["type"] == "error"
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code in {1008, 1009}
        async with websocket(server) as link:
            with pytest.raises(ConnectionClosed):  # noqa: PT012
                await link.send("x" * 1_000_000)
                await link.recv()
        await bystander.send('{"type":"keepalive"}')
        assert json.loads(await bystander.recv())["type"] == "welcome"
        assert server.counters["signaling.members"] == 1


async def test_a_connection_without_a_request_is_closed() -> None:
    async with Server(config(request_timeout=2.0)) as server, websocket(server) as link:
        [address] = server.http_addresses
        for opening in (b"", b"GET /healthz HTTP/1.1\r\nHost:"):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(opening)
            with pytest.raises(ConnectionError):  # noqa: PT012
                assert await reader.read() == b""
                raise ConnectionResetError
            writer.close()
        await link.send('{"type":"leave"}')
        with pytest.raises(ConnectionClosed) as closed:
            await link.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000, "an older WebSocket stays open"


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (GET, b"X: y\r\n"),
        (GET + b"\r\n" + GET, b"X: y\r\n"),
        (GET + b"Content-Length: 1000\r\n\r\n", b"x"),
        (POST + b"Content-Length: 1000\r\n\r\n", b"x"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (POST + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n", b""),
        (GET + b"\r\n" + POST + b"Content-Length: 1000\r\n\r\n", b"x"),
    ],
    ids=["headers", "later headers", "body of GET", "body of POST", "chunks", "100-continue", "later body"],
)
async def test_every_request_has_a_deadline(first: bytes, drop: bytes) -> None:
    async with Server(config(request_timeout=0.5)) as server:
        [address] = server.http_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(first)
        with suppress(ConnectionError):
            async with asyncio.timeout(4):  # uvicorn closes idle connections after 5 s
                reading = asyncio.ensure_future(reader.read())
                while not reading.done():
                    writer.write(drop)
                    await asyncio.wait([reading], timeout=0.05)
                await reading
        writer.close()


async def test_requests_in_time_may_follow_each_other_on_one_connection() -> None:
    async with Server(config(request_timeout=0.5)) as server:
        [address] = server.http_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port)
        for _ in range(6):
            writer.write(GET + b"\r\n")
            assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.15)  # real sockets: the deadline of the first request passes
        writer.close()


async def test_the_connections_of_one_source_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polynya.serve.http.SPARE", 2)
    async with Server(config(limits=Limits(links_per_host=1))) as server:
        [address] = server.http_addresses
        silent = [await asyncio.open_connection(address.host, address.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(address.host, address.port, local_addr=("127.0.0.2", 0))
        writer.write(GET + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for _, each in (*silent, (reader, writer)):
            each.close()


async def drain(link: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await link.recv()


async def test_a_member_that_does_not_read_is_disconnected_and_others_stay() -> None:
    limits = Limits(
        messages_per_second=100_000, burst=100_000, bytes_per_second=10**9, bytes_burst=10**9, away_messages=0
    )
    async with Server(config(limits=limits)) as server, websocket(server) as fast:
        # a raw socket, because the library always reads
        [address] = server.http_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=1024)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        writer.write(
            f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        join = b'{"type":"join","version":1,"room":"r"}'
        writer.write(bytes([0x81, 0x80 | len(join), 0, 0, 0, 0]) + join)
        await fast.send('{"type":"join","version":1,"room":"r"}')
        peers = json.loads(await fast.recv())["peers"]
        slow = peers[0] if peers else json.loads(await fast.recv())["peer"]
        reading = asyncio.create_task(drain(fast))
        body = '{"kind":"x","x":"%s"}' % ("y" * 16_000)
        for _ in range(2000):
            await fast.send(f'{{"type":"signal","peer":"{slow}","body":{body}}}')
            if server.counters["signaling.links"] == 1:
                break
        assert server.counters["signaling.links"] == 1
        writer.close()
        await fast.close()
        await reading


@asynccontextmanager
async def silent(server: Server) -> AsyncIterator[socket.socket]:
    """A WebSocket on a raw socket, because the library always reads."""
    [address] = server.http_addresses
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (address.host, address.port))
        await loop.sock_sendall(client, upgrade())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await loop.sock_recv(client, 1)
        yield client


def upgrade(more: str = "", path: str = PATH) -> bytes:
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}{more}\r\n".encode()


REFUSED_UPGRADES = {
    "a long header": upgrade(f"X: {'x' * 9000}\r\n"),
    "many headers": upgrade("".join(f"X-{number}: x\r\n" for number in range(140))),
    "byte 7F": upgrade("X: a\x7fb\r\n"),
    "byte 01": upgrade("X: a\x01b\r\n"),
    "byte 1F in the host": upgrade().replace(b"Host: x", b"Host: x\x1f"),
    "a body": upgrade("Content-Length: 5\r\n") + b"hello",
    "a body that is not sent": upgrade("Content-Length: 5\r\n"),
    "a chunked body": upgrade("Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n",
    "a long path": upgrade(path=PATH + "?" + "x" * 9000),
    "a long path elsewhere": upgrade(path="/" + "x" * 9000),
    "another method": upgrade().replace(b"GET", b"POST", 1),
    "an invented method": upgrade().replace(b"GET", b"GETT", 1),
    "two keys": upgrade("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"),
    "a short key": upgrade().replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA"),
    "another version": upgrade().replace(b"Version: 13", b"Version: 8"),
    "another path": upgrade(path="/elsewhere"),
    "a strange path": upgrade(path="/%00%ff%2e%2e"),
    "no path": upgrade(path="*"),
    "more than a request may have": upgrade(f"X: {'x' * 20_000}\r\n"),
}


@pytest.mark.parametrize("request_", REFUSED_UPGRADES.values(), ids=REFUSED_UPGRADES.keys())
async def test_an_upgrade_that_is_refused_gets_an_answer_and_its_connection_ends(request_: bytes) -> None:
    async with Server(config(request_timeout=3600)) as server:
        [address] = server.http_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(request_)
        answer = await reader.readline()
        assert answer.startswith(b"HTTP/1.1 4"), answer
        with suppress(ConnectionError):  # a reset, if the server has not read all
            await reader.read()
        writer.close()


async def test_an_upgrade_with_other_headers_is_accepted() -> None:
    more = "X-Text: caf\xe9\r\nX-Empty:\r\nContent-Length: 0\r\nX-Folded: a\r\n b\r\n"
    async with Server(config()) as server:
        [address] = server.http_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(upgrade(more).decode().encode("latin-1"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        writer.close()


PING = bytes([0x89, 0x80 | 125, 0, 0, 0, 0]) + bytes(125)


async def test_a_client_that_sends_pings_and_never_reads_is_disconnected() -> None:
    async with Server(config(limits=Limits(join_timeout=1))) as server, silent(server) as client:
        loop = asyncio.get_running_loop()
        with pytest.raises(ConnectionError):  # noqa: PT012 - the server decides when it ends
            while True:
                await loop.sock_sendall(client, PING * 1000)
        await until(lambda: server.counters["signaling.links"] == 0)


def frame(opcode: int, payload: bytes = b"") -> bytes:
    assert len(payload) < 126
    return bytes([opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


@pytest.mark.parametrize(
    "flood",
    [
        frame(0x8A),
        PING,
        frame(0x01) + frame(0x00) * 100,
        frame(0x01, b"x") + frame(0x00, b"x") * 100,
        frame(0x02) + frame(0x80),
        frame(0x02) + frame(0x00, bytes(125)) + frame(0x80),
    ],
    ids=["pongs", "pings", "empty continuations", "small ones", "empty messages", "small fragments"],
)
async def test_a_websocket_with_too_many_frames_without_data_is_closed(flood: bytes) -> None:
    async with Server(config()) as server, silent(server) as client:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            await loop.sock_sendall(client, flood * 200)
            while await loop.sock_recv(client, 4096):
                pass
        await until(lambda: server.counters["signaling.links"] == 0)


async def test_the_close_of_a_websocket_with_too_many_pongs_says_why() -> None:
    async with Server(config()) as server, silent(server) as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, frame(0x8A) * (OFFENSES + 1))
        answer = b""
        while chunk := await loop.sock_recv(client, 4096):
            answer += chunk
        assert answer[2:] == b"\x03\xf0too many control frames or small fragments", "close 1008"


async def test_a_websocket_may_send_pings_and_long_messages_in_fragments() -> None:
    async with Server(config()) as server, websocket(server) as link:
        for _ in range(20):
            await (await link.ping())
        await link.send(['{"type":"join","version":1,"room":"r"}', " " * 1000, " " * 1000, ""])
        assert json.loads(await link.recv())["type"] == "welcome"


async def test_used_connections_count_until_they_are_gone() -> None:
    # the join timeout closes both links, and their clients do not answer the close
    limits = Limits(join_timeout=1, links_per_host=2)
    async with Server(config(limits=limits)) as server, silent(server), silent(server):
        await until(lambda: server.counters.get("signaling.join-timeout") == 2)
        async with websocket(server) as third:
            assert json.loads(await third.recv())["code"] == "host-full"
        await until(lambda: server.counters["signaling.closing"] == 0, "both connections are aborted")
        async with websocket(server) as third:
            await third.send('{"type":"join","version":1,"room":"r"}')
            assert json.loads(await third.recv())["type"] == "welcome"


async def test_a_used_port_is_an_error_and_nothing_stays_open() -> None:
    with socket.socket() as taken, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken_udp:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        taken_udp.bind(("127.0.0.1", free_port()))
        with pytest.raises(ConfigurationError, match=r"cannot listen on tcp 127\.0\.0\.1:\d+: .*another program"):
            async with Server(config(http=(ANY4, Address.of(*taken.getsockname())))):
                pass
        with pytest.raises(ConfigurationError, match=r"cannot listen on udp 127\.0\.0\.1:\d+: .*in use"):
            async with Server(config(listen=(ANY4, Address.of(*taken_udp.getsockname())))):
                pass


def test_nothing_to_listen_on_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no address to listen on"):
        ServeConfig()


async def test_it_stops_in_time_with_members_and_idle_connections() -> None:
    # not an ephemeral port: the connection at the end could get that as its own port, and reach itself
    server = Server(config(http=(Address("127.0.0.1", free_port()),)))
    async with server:
        [address] = server.http_addresses
        idle = [await asyncio.open_connection(address.host, address.port) for _ in range(3)]
        waiting = await connect(server.url.replace("http", "ws", 1) + PATH, proxy=None)
        member = await connect(server.url.replace("http", "ws", 1) + PATH, proxy=None)
        await member.send('{"type":"join","version":1,"room":"r"}')
        await member.recv()
    assert json.loads(await member.recv())["code"] == "shutting-down"
    with pytest.raises(ConnectionClosed) as closed:
        await member.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
    await waiting.close()
    for _, writer in idle:
        writer.close()
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await asyncio.open_connection(address.host, address.port)


async def test_cancelling_the_start_leaves_nothing_open() -> None:
    for turns in range(12):
        server = Server(config())
        task = asyncio.create_task(server.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            continue
        await server.aclose()


async def test_a_queue_that_cannot_hold_a_resume_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="queue"):
        Links(Limits(), queue_bytes=1000)
