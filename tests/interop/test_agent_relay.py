"""Our agents relayed by coturn, over real sockets, without a signaling server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import polynya
from tests.interop.coturn import PASSWORD, USER, coturn
from tests.reports import flat

pytestmark = pytest.mark.peer("coturn")


async def signal_all(source: polynya.Agent, target: polynya.Agent) -> None:
    async for candidate in source.candidates():
        target.add_candidate(str(candidate))
    target.add_candidate(None)


def relayed_agent(uri: str, *, controlling: bool, password: str = PASSWORD, **options: object) -> polynya.Agent:
    return polynya.Agent(
        servers=[polynya.IceServer(uri, USER, password)],
        controlling=controlling,
        policy="relay",
        loopback=True,
        interfaces=["lo"],
        families=(4,),
        **options,  # type: ignore[arg-type]
    )


async def talk(a: polynya.Agent, b: polynya.Agent) -> None:
    a.set_remote(b.description)
    b.set_remote(a.description)
    _, _, here, there = await asyncio.gather(signal_all(a, b), signal_all(b, a), a.connect(20), b.connect(20))
    for stage in ("first valid pair", "nominated"):
        for number in range(20):
            here.send(f"{stage} {number}".encode())
            there.send(f"{stage} {number}".encode())
        expected = [f"{stage} {number}".encode() for number in range(20)]
        async with asyncio.timeout(10):
            assert [await there.recv() for _ in range(20)] == expected
            assert [await here.recv() for _ in range(20)] == expected
            await asyncio.gather(a.completed(), b.completed())
    for path in (here.path, there.path):
        assert path.relayed
        assert (path.local.type.value, path.remote.type.value) == ("relay", "relay")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_two_relay_only_agents_exchange_data_through_coturn(tmp_path: Path, transport: str) -> None:
    with coturn(tmp_path) as server:
        uri = f"turn:127.0.0.1:{server.port}?transport={transport}"
        async with relayed_agent(uri, controlling=True) as a, relayed_agent(uri, controlling=False) as b:
            await talk(a, b)


async def test_refused_credentials_are_requested_again_and_the_relay_is_gathered(tmp_path: Path) -> None:
    with coturn(tmp_path) as server:
        asked = []

        async def ask(uri: str, realm: str) -> tuple[str, str]:
            asked.append((uri, realm))
            return USER, PASSWORD

        uri = f"turn:127.0.0.1:{server.port}"
        async with (
            relayed_agent(uri, controlling=True, password="wrong", credentials=ask) as a,
            relayed_agent(uri, controlling=False) as b,
        ):
            await talk(a, b)
        assert asked == [(uri, "example.org")]


async def test_a_server_without_a_relay_is_reported_with_its_reason(tmp_path: Path) -> None:
    with coturn(tmp_path) as server:
        async with relayed_agent(f"turn:127.0.0.1:{server.port}", controlling=True, password="wrong") as agent:
            assert [candidate async for candidate in agent.candidates()] == []
            assert f"127.0.0.1:{server.port}" in flat(agent.why())
