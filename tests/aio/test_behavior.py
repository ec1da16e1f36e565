"""RFC 5780 on real sockets: a server of ours with two addresses, where no NAT is in the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import polynya
from polynya.aio.behavior import discover_behavior, discover_lifetime
from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.errors import ConfigurationError, ConnectError
from polynya.serve import ServeConfig, Server
from polynya.stun.transactions import Schedule
from tests.free_ports import free_port
from tests.interop.coturn import make_certificate
from tests.serve import turn_house

# loopback addresses of this process, so that other servers on this host are not in the way
NET = f"127.{os.getpid() >> 8 & 31 | 32}.{os.getpid() & 255}"
FIRST, OTHER = Address(f"{NET}.1", 23478), Address(f"{NET}.2", 23479)


async def test_a_server_with_two_addresses_answers_every_question() -> None:
    async with Server(ServeConfig(listen=(FIRST,), alternates=(OTHER,))):
        report = await discover_behavior(f"stun:{FIRST}")
        assert report.local == report.mapped and report.other == OTHER
        assert (report.translated, report.mapping, report.filtering) == (False, Behavior.EI, Behavior.EI)
        report = await discover_behavior(f"stun:{OTHER}", local=f"{NET}.9")
        assert report.local is not None and report.local.host == f"{NET}.9" and report.other == FIRST


async def test_without_a_nat_nothing_is_forgotten() -> None:
    async with Server(ServeConfig(listen=(FIRST,), alternates=(OTHER,))):
        report = await discover_lifetime(f"stun:{FIRST}", longest=0.1)
        assert (report.survived, report.gone_after) == (0.1, None)


async def test_a_server_with_one_address_leaves_filtering_open() -> None:
    async with Server(ServeConfig(listen=(Address("::1", 0),))) as server:
        report = await discover_behavior(f"stun:localhost:{server.stun_addresses[0].port}", local="::1")
        assert report.server == server.stun_addresses[0]
        assert (report.translated, report.filtering) == (False, None)
        assert "420" in report.filtering_reason


async def test_a_server_that_does_not_answer_ends_in_time() -> None:
    schedule = Schedule(rto=0.01, sends=2, last_wait=1)
    report = await discover_behavior(f"stun:{NET}.7:9", schedule=schedule)
    assert report.mapping is report.filtering is None and report.mapping_reason and report.filtering_reason


@pytest.mark.parametrize(
    ("server", "error"),
    [
        ("stuns:192.0.2.1", ConfigurationError),
        ("turn:192.0.2.1", ConfigurationError),
        ("stun:unknown.invalid", ConnectError),
    ],
)
async def test_a_server_that_cannot_be_asked_is_an_error(server: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await discover_behavior(server)


@pytest.mark.parametrize("scheme", ["stun", "stuns"])
async def test_streams_are_asked_from_one_port(scheme: str, tmp_path: Path) -> None:
    """RFC 5780, section 4.3, by TCP and TLS: two connections of one local port to places of one server."""
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    two = (Address("127.0.0.1", 0), Address("127.0.0.1", 0))

    async def check(places: tuple[Address, ...]) -> None:
        uris = [f"{scheme}:{place}" for place in places]
        report = await polynya.discover_stream_mapping(uris, tls=turn_house.trusting(tmp_path / "cert.pem"))
        assert set(report.mapped) == {report.local} and report.translated is False
        assert "does not depend on the remote port" in report.reason

    async with Server(turn_house.tls_config(tmp_path, listen=two)) as house:
        places = house.stun_addresses
        if scheme == "stuns":
            async with Server(turn_house.tls_config(tmp_path)) as other:
                places = (*house.tls_addresses, *other.tls_addresses)
                await check(places)
        else:
            await check(places)


async def test_streams_that_cannot_be_asked_are_refused() -> None:
    for servers, message in (
        (("stun:127.0.0.1",), "two servers or more"),
        (("stun:127.0.0.1", "stuns:127.0.0.1"), "two servers or more"),
        (("stun:127.0.0.1", "stun:127.0.0.1:3478"), "one address and port"),
        ("stun:127.0.0.1", "servers is a list"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            await polynya.discover_stream_mapping(servers)
    port = free_port()
    report = await polynya.discover_stream_mapping([f"stun:127.0.0.1:{port}", "stun:127.0.0.1:1"])
    assert report.mapping is None and report.reason.startswith(f"127.0.0.1:{port}: ")


@pytest.mark.parametrize("discover", [discover_behavior, discover_lifetime])
async def test_families_and_resolve_choose_the_address_of_the_server(discover: Any) -> None:
    names: list[str] = []

    async def resolve(name: str) -> list[str]:
        names.append(name)
        return [FIRST.host]

    uri = f"stun:stun.example.org:{FIRST.port}"
    with pytest.raises(ConnectError, match="has no IPv6 address"):
        await discover(uri, families=(6,), resolve=resolve)
    with pytest.raises(ConfigurationError, match="families must be"):
        await discover(uri, families=(5,), resolve=resolve)
    options = {"longest": 0.05} if discover is discover_lifetime else {}
    async with Server(ServeConfig(listen=(FIRST,), alternates=(OTHER,))):
        report = await discover(uri, resolve=resolve, **options)
        assert report.server == FIRST and set(names) == {"stun.example.org"}
