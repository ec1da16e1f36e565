"""Our TURN client against coturn: every transport, both families, and stale nonces."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polynya.aio.turn import TurnClient
from polynya.core.addresses import Address
from polynya.core.errors import TransactionError
from polynya.turn.client import ChannelBound, Permitted
from tests.free_ports import free_port
from tests.interop.coturn import PASSWORD, REALM, USER, Coturn, coturn
from tests.interop.exchange import echoing, exchange, trusting

pytestmark = pytest.mark.peer("coturn")
LOGIN = {"username": USER, "password": PASSWORD}
TRANSPORTS = ["udp", "tcp", "tls"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    with coturn(tmp_path_factory.mktemp("coturn")) as running:
        yield running


def client(server: Coturn, transport: str = "udp", host: str = "127.0.0.1", **options: Any) -> TurnClient:
    place = f"[{host}]" if ":" in host else host
    uri = f"turn:{place}:{server.port}?transport={transport}"
    if transport == "tls":
        uri = f"turns:{place}:{server.tls_port}"
    return TurnClient(uri, **{**LOGIN, "tls": trusting(server.certificate), **options})


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", 4), ("::1", 6), ("127.0.0.1", 6), ("::1", 4)])
async def test_data_is_relayed_in_indications_and_in_channels(
    server: Coturn, transport: str, host: str, family: int
) -> None:
    async with (
        echoing("127.0.0.1" if family == 4 else "::1") as peer,
        client(server, transport, host, families=(family,)) as relay,
    ):
        [relayed] = relay.relayed
        assert relayed.family == family and relay.mapped is not None and relay.mapped.host == host
        assert "Coturn-4" in relay.allocation.software
        await relay.permit(peer)
        await exchange(relay, peer)
        await relay.bind(peer)
        await exchange(relay, peer)
        assert relay.datagrams_dropped == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_switch_to_a_channel_keeps_every_datagram_in_order(server: Coturn, transport: str) -> None:
    async with echoing() as peer, client(server, transport) as relay:
        await relay.permit(peer)
        binding = asyncio.ensure_future(relay.bind(peer))
        got: list[bytes] = []
        for number in range(200):
            assert relay.send(peer, b"%d" % number)
            if number % 4 == 3:
                while len(got) <= number:
                    got.append((await relay.recv())[0])
        await binding
        assert got == [b"%d" % number for number in range(200)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_one_allocation_of_both_families(server: Coturn, transport: str) -> None:
    async with (
        echoing() as peer4,
        echoing("::1") as peer6,
        client(server, transport, families=(4, 6)) as relay,
    ):
        assert [address.family for address in relay.relayed] == [4, 6] and relay.allocation.refused == ()
        await relay.permit(peer4, peer6)
        assert [len(event.peers) for event in relay._latest if isinstance(event, Permitted)] == [2]
        await exchange(relay, peer4)
        await exchange(relay, peer6)
        await relay.bind(peer6)
        await relay.bind(peer4)
        await exchange(relay, peer4)
        await exchange(relay, peer6)


async def test_two_clients_exchange_data_through_their_relays(server: Coturn) -> None:
    async with client(server) as one, client(server, "tcp") as two:
        await one.permit(two.relayed[0])
        await two.bind(one.relayed[0])
        assert one.send(two.relayed[0], b"ping")
        assert await two.recv() == (b"ping", one.relayed[0])
        assert two.send(one.relayed[0], b"pong")
        assert await one.recv() == (b"pong", two.relayed[0])


async def test_relays_survive_stale_nonces(tmp_path: Path) -> None:
    """Allocations of 4 s and nonces of 1 s: every refresh gets a stale nonce, for more than two lifetimes."""

    async def live(server: Coturn, transport: str) -> None:
        async with echoing() as peer, client(server, transport) as relay:
            assert relay.allocation.lifetime == 4
            await relay.permit(peer)
            await relay.bind(peer)
            until = time.monotonic() + 9
            while time.monotonic() < until:
                await exchange(relay, peer, 10)
                await asyncio.sleep(0.5)
            report = relay.why()
            assert report is not None and report.data["counters"]["challenges 438"] >= 2

    with coturn(tmp_path, "--stale-nonce=1", "--max-allocate-lifetime=4") as server:
        await asyncio.gather(*(live(server, transport) for transport in TRANSPORTS))


async def test_close_frees_the_allocation(tmp_path: Path) -> None:
    with coturn(tmp_path, "--user-quota=1") as server:
        async with client(server) as relay:
            with pytest.raises(TransactionError, match="as many allocations as the server allows") as caught:
                await client(server).allocate()
            assert caught.value.code == 486 and relay.relayed
        until = time.monotonic() + 10  # coturn takes a second or two; the lifetime of the allocation is ten minutes
        while True:
            again = client(server)
            try:
                await again.allocate()
            except TransactionError:
                assert time.monotonic() < until
                await asyncio.sleep(0.2)
            else:
                await again.close()
                return


async def test_a_wrong_password_raises_at_once(server: Coturn) -> None:
    with pytest.raises(TransactionError, match="refuses the credentials of 'alice'") as caught:
        await client(server, password="wrong").allocate()
    assert caught.value.code == 401 and f"realm {REALM!r}" not in str(caught.value)


async def test_a_forbidden_peer_is_reported_and_the_others_are_permitted(tmp_path: Path) -> None:
    with coturn(tmp_path, "--denied-peer-ip=127.0.0.9") as server:
        async with echoing() as peer, client(server) as relay:
            with pytest.raises(TransactionError) as caught:
                await relay.permit(peer, "127.0.0.9")
            assert caught.value.code == 403
            await exchange(relay, peer)


async def test_a_server_without_credentials_is_used_without_them(tmp_path: Path) -> None:
    with coturn(tmp_path, auth=False) as server:
        async with echoing() as peer, TurnClient(f"turn:127.0.0.1:{server.port}") as relay:
            await relay.bind(peer)
            await exchange(relay, peer)
            assert [event.number for event in relay._latest if isinstance(event, ChannelBound)] == [0x4000]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_try_alternate_is_followed(server: Coturn, tmp_path: Path, transport: str) -> None:
    with coturn(tmp_path, f"--alternate-server=127.0.0.1:{server.port}") as first:
        async with echoing() as peer, client(first, transport) as relay:
            assert relay.allocation.server.address == Address("127.0.0.1", server.port)
            await relay.permit(peer)
            await exchange(relay, peer)


async def test_a_pair_of_ports_is_reserved_and_taken(server: Coturn) -> None:
    async with client(server, even_port=True, families=(4,)) as even:
        token = even.allocation.reservation_token
        assert token is not None and even.relayed[0].port % 2 == 0
        async with client(server, reservation_token=token, families=(4,)) as odd:
            assert odd.relayed[0].port == even.relayed[0].port + 1


@pytest.mark.parametrize("options", [[], ["--channel"]])
def test_the_relay_command_echoes_datagrams_of_its_peers(server: Coturn, options: list[str]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", free_port()))
        peer.settimeout(0.2)
        where = f"turn:127.0.0.1:{server.port}?transport=tcp"
        named = f"127.0.0.1:{peer.getsockname()[1]}"
        command = [sys.executable, "-m", "polynya", "relay", where, "--user", f"{USER}:{PASSWORD}", "--peer", named]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                relayed = Address.parse(process.stdout.readline().decode().strip())
                until, received = time.monotonic() + 10, b""
                while received != b"hello":  # the server drops datagrams that arrive before the permission
                    assert time.monotonic() < until
                    peer.sendto(b"hello", (relayed.host, relayed.port))
                    with contextlib.suppress(TimeoutError):
                        received, source = peer.recvfrom(100)
                        assert source == (relayed.host, relayed.port)
            finally:
                process.send_signal(signal.SIGINT)
                said = process.communicate(timeout=10)[1].decode()
        assert process.returncode == 130 and "echoed" in said and "0 datagrams" not in said


async def test_a_certificate_for_another_name_is_refused(server: Coturn) -> None:
    with pytest.raises(TransactionError, match="certificate"):
        await client(server, "tls", tls=lambda request: ssl.create_default_context()).allocate()
    other = TurnClient(f"turns:other.localhost:{server.tls_port}", **LOGIN, tls=trusting(server.certificate))
    with pytest.raises(TransactionError, match=r"no certificate for other\.localhost"):
        await other.allocate()


async def test_a_name_is_looked_up_and_checked_by_tls(server: Coturn) -> None:
    uri = f"turns:localhost:{server.tls_port}"
    async with echoing() as peer, TurnClient(uri, **LOGIN, tls=trusting(server.certificate)) as relay:
        assert relay.allocation.server.name == "localhost"
        await relay.bind(peer)
        await exchange(relay, peer)


async def test_a_relay_is_lost_with_a_reason_if_its_server_exits(tmp_path: Path) -> None:
    with coturn(tmp_path) as server:
        relay = client(server, "tcp")
        await relay.allocate()
    with pytest.raises(Exception, match=r"closed by the other side|reset"):
        await relay.recv()
    await relay.close()


async def test_an_unreachable_server_raises(server: Coturn) -> None:
    with pytest.raises(TransactionError, match="unreachable"):
        await TurnClient(f"turn:127.0.0.1:{free_port()}", **LOGIN).allocate()
