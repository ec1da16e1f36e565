"""Our TURN client against the server of pion/turn, which LiveKit and many others use.

Over a stream it reads no frame of less than nine bytes: ChannelData of four bytes or less waits for more data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import polynya
from polynya.aio.turn import TurnClient
from polynya.core.errors import TransactionError
from tests.interop.coturn import PASSWORD, REALM, USER, make_certificate
from tests.interop.dialogue import peer
from tests.interop.exchange import echoing, exchange, trusting
from tests.interop.test_agent_relay import talk

pytestmark = pytest.mark.peer("pion")

PION = Path(__file__).resolve().parent.parent.parent / ".peers" / "pion" / "server"
READ = 5
"""The smallest data size that the server relays at once."""
TRANSPORTS = ["udp", "tcp", "tls"]


class Server:
    """A running server with its ports by transport and its certificate."""

    def __init__(self, ports: dict[str, int], certificate: Path) -> None:
        self.ports = ports
        self.certificate = certificate

    def uri(self, transport: str) -> str:
        port = self.ports[transport]
        return f"turns:localhost:{port}" if transport == "tls" else f"turn:127.0.0.1:{port}?transport={transport}"

    def client(self, transport: str = "udp", **options: Any) -> TurnClient:
        usual = {"username": USER, "password": PASSWORD, "tls": trusting(self.certificate)}
        return TurnClient(self.uri(transport), **{**usual, **options})


@contextmanager
def pion(folder: Path, *flags: str) -> Iterator[Server]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make_certificate(certificate, key)
    command = [PION, "-user", USER, "-password", PASSWORD, "-realm", REALM, "-certificate", certificate, "-key", key]
    with peer("pion", [*command, *flags]) as process:
        yield Server(process.expect("listening"), certificate)
        process.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pion(tmp_path_factory.mktemp("pion-server")) as running:
        yield running


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_data_is_relayed_in_indications_and_in_channels(server: Server, transport: str) -> None:
    async with echoing() as here, server.client(transport) as relay:
        assert relay.relayed[0].host == "127.0.0.1" and relay.mapped is not None
        await relay.permit(here)
        await exchange(relay, here, least=READ)
        await relay.bind(here)
        await exchange(relay, here, least=READ)
        assert relay.datagrams_dropped == 0


async def test_two_clients_exchange_data_through_their_relays(server: Server) -> None:
    async with server.client() as one, server.client("tcp") as two:
        await one.permit(two.relayed[0])
        await two.bind(one.relayed[0])
        assert one.send(two.relayed[0], b"a ping")
        assert await two.recv() == (b"a ping", one.relayed[0])
        assert two.send(one.relayed[0], b"a pong")
        assert await one.recv() == (b"a pong", two.relayed[0])


async def test_relays_are_refreshed_beyond_their_lifetime(tmp_path: Path) -> None:
    async def live(server: Server, transport: str) -> None:
        async with echoing() as here, server.client(transport) as relay:
            assert relay.allocation.lifetime == 2
            await relay.bind(here)
            for _ in range(10):
                await exchange(relay, here, 10, READ)
                await asyncio.sleep(0.5)

    with pion(tmp_path, "-lifetime", "2s") as server:
        await asyncio.gather(*(live(server, transport) for transport in TRANSPORTS))


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"username": "mallory"}], ids=["password", "user"])
async def test_wrong_credentials_raise_at_once(server: Server, wrong: dict[str, str]) -> None:
    with pytest.raises(TransactionError) as caught:
        await server.client(**wrong).allocate()
    assert caught.value.code in (400, 401)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_two_relay_only_agents_exchange_data_through_pion(server: Server, transport: str) -> None:
    def agent(*, controlling: bool) -> polynya.Agent:
        return polynya.Agent(
            servers=[polynya.IceServer(server.uri(transport), USER, PASSWORD)], controlling=controlling,
            policy="relay", loopback=True, interfaces=["lo"], families=(4,),
        )  # fmt: skip

    async with agent(controlling=True) as one, agent(controlling=False) as other:
        await talk(one, other)
