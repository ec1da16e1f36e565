"""The client of pion/turn, which most Go programs use, with `polynya serve`.

It sends indications until its channel is bound, refreshes an allocation at half its lifetime, and handles 438.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.free_ports import free_port
from tests.interop.dialogue import Peer, peer
from tests.interop.server import PASSWORD, USER, Server, serving

pytestmark = pytest.mark.peer("pion")

PION = Path(__file__).resolve().parent.parent.parent / ".peers" / "pion" / "turn"
TRANSPORTS = ["udp", "tcp", "tls"]


@pytest.fixture(scope="module", params=["0", "2"], ids=["no workers", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    secrets = 'shared_secrets = ["south", "north"]'
    workers, allow = ("--workers", request.param), ("127.0.0.1", "::1")
    with serving(tmp_path_factory.mktemp("pion"), secrets, *workers, allow=allow) as running:
        yield running


@contextmanager
def pion(
    server: Server, transport: str = "udp", *flags: str, user: str = USER, password: str = PASSWORD
) -> Iterator[Peer]:
    where = ["-server", server.place(transport), "-transport", transport, "-certificate", server.certificate]
    with peer("pion", [PION, *where, "-user", user, "-password", password, *flags]) as started:
        yield started


@contextmanager
def echoing(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A peer that echoes datagrams. Its port is no listener's, not even for TCP: the server would refuse it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, free_port()))
        ended = threading.Event()

        def answer() -> None:
            while True:
                data, source = sock.recvfrom(65536)
                if ended.is_set():
                    return
                sock.sendto(data, source)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield sock
        finally:
            ended.set()
            with socket.socket(family, socket.SOCK_DGRAM) as last:
                last.sendto(b"", sock.getsockname()[:2])
            thread.join()


def exchange(client: Peer, sock: socket.socket, label: str, count: int = 20) -> int:
    """Send datagrams one by one and check that each is echoed. Return the number of bytes."""
    place = list(sock.getsockname()[:2])
    size = 0
    for number in range(count):
        data = f"{label} {number} ".encode() + bytes(number % 7)
        client.command(send=data.hex(), to=place)
        line = client.expect("received", "failed")
        assert line == {"received": data.hex(), "from": place}
        size += len(data)
    return size


def until(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def answered(server: Server, what: str) -> float:
    return server.counted("polynya_turn_messages_total").get(what, 0)


def allocated(client: Peer, server: Server) -> tuple[str, int]:
    allocated: dict[str, Any] = client.expect("allocated")
    host, port = allocated["relayed"]
    assert allocated["mapped"][0] == "127.0.0.1"
    assert 49152 <= port <= 65535
    return host, port


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", [4, 6])
def test_data_is_relayed_in_both_directions_by_indication_and_by_channel(
    server: Server, transport: str, family: int
) -> None:
    """RFC 8656, sections 11 and 12."""
    bound, unasked = answered(server, "success responses CHANNEL_BIND"), b"unasked"
    host = "127.0.0.1" if family == 4 else "::1"
    with echoing(host) as sock, pion(server, transport, "-family", str(family)) as client:
        relayed = allocated(client, server)
        client.command(permit=list(sock.getsockname()[:2]))
        client.expect("permitted")
        sock.sendto(unasked, relayed)
        assert client.expect("received") == unasked.hex()
        size = exchange(client, sock, "by indication, then by channel")
        until(lambda: answered(server, "success responses CHANNEL_BIND") > bound, "it binds a channel")
        size += exchange(client, sock, "by channel")
        client.end()
    carried = f"{size} bytes to peers, {size + len(unasked)} from peers, 0 datagrams dropped"
    server.says(re.escape(f"user {USER}, ended: ended by its client; {carried}"))


def test_two_pion_clients_exchange_data_through_their_relays(server: Server) -> None:
    """The peer of each client is a relayed address of this server, which needs no rule."""
    with pion(server) as one, pion(server, "tcp") as two:
        here, there = allocated(one, server), allocated(two, server)
        two.command(permit=list(here))
        two.expect("permitted")
        one.command(send=b"ping".hex(), to=list(there))
        assert two.expect("received", "failed") == {"received": b"ping".hex(), "from": list(here)}
        two.command(send=b"pong".hex(), to=list(here))
        assert one.expect("received", "failed") == {"received": b"pong".hex(), "from": list(there)}
        one.end()
        two.end()


def test_time_limited_credentials_of_every_secret_are_accepted(server: Server) -> None:
    for secret in ("south", "north"):
        with echoing() as sock, pion(server, "udp", "-secret", secret, "-user", "carol") as client:
            allocated(client, server)
            exchange(client, sock, "hello")
            client.end()
    server.says(r"allocation for \S+, user \d{10}:carol: 127", 2)


@pytest.mark.parametrize("flags", [("-password", "wrong"), ("-secret", "west")], ids=["password", "secret"])
def test_wrong_credentials_are_refused(server: Server, flags: tuple[str, str]) -> None:
    with pion(server, "udp", *flags) as client:
        assert "401" in client.expect("failed")
    server.says(r"ALLOCATE from \S+ refused: 401 (wrong password|no such user)")


def test_a_forbidden_peer_is_refused_and_the_relay_survives(server: Server) -> None:
    with echoing() as sock, pion(server) as client:
        allocated(client, server)
        client.command(permit=["169.254.169.254", 80])
        assert "403" in client.expect("failed")
        exchange(client, sock, "hello")
        client.end()


def test_refreshes_with_stale_nonces_keep_a_relay(tmp_path: Path) -> None:
    """RFC 8656, sections 7.2 and 9: allocations of 3 s and nonces of 1 s, for two lifetimes, over each transport."""
    lives = "default_lifetime = 3\nmax_lifetime = 3\nnonce_lifetime = 1"
    with serving(tmp_path, lives) as server, ExitStack() as stack:
        sock = stack.enter_context(echoing())
        clients = [stack.enter_context(pion(server, each, "-permissions", "1s")) for each in TRANSPORTS]
        for client in clients:
            allocated(client, server)
            exchange(client, sock, "at first")
        began = time.monotonic()
        while time.monotonic() < began + 7:
            time.sleep(0.5)
            for client in clients:
                exchange(client, sock, "still", 2)
        assert answered(server, "success responses REFRESH") >= 6 and answered(server, "error responses 438") >= 3
        assert answered(server, "success responses CREATE_PERMISSION") >= 9
        assert ", ended: " not in server.log()
        for client in clients:
            client.end()
