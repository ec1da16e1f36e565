"""RFC 5780 on real sockets: a server of ours with two addresses, where no NAT is in the way."""

from __future__ import annotations

import asyncio
import os

import pytest

from polynya.aio.behaviour import discover_behaviour, discover_lifetime
from polynya.core.addresses import Address
from polynya.core.behaviour import Behaviour
from polynya.core.errors import ConfigurationError, ConnectError
from polynya.core.instants import MILLISECOND
from polynya.serve import Server, ServerConfig
from polynya.stun.transactions import Schedule

# loopback addresses of this process, so that other servers on this host are not in the way
NET = f"127.{os.getpid() >> 8 & 31 | 32}.{os.getpid() & 255}"
FIRST, OTHER = Address(f"{NET}.1", 23478), Address(f"{NET}.2", 23479)


def test_a_server_with_two_addresses_tells_all_of_it() -> None:
    async def main() -> None:
        async with Server(ServerConfig(listen=(FIRST,), alternates=(OTHER,))):
            report = await discover_behaviour(f"stun:{FIRST}")
            assert report.local == report.mapped and report.other == OTHER
            assert (report.translated, report.mapping, report.filtering) == (False, Behaviour.EI, Behaviour.EI)
            report = await discover_behaviour(f"stun:{OTHER}", local=f"{NET}.9")
            assert report.local is not None and report.local.host == f"{NET}.9" and report.other == FIRST

    asyncio.run(main())


def test_without_a_nat_nothing_is_forgotten() -> None:
    async def main() -> None:
        async with Server(ServerConfig(listen=(FIRST,), alternates=(OTHER,))):
            report = await discover_lifetime(f"stun:{FIRST}", longest=0.1)
            assert (report.survived, report.gone_after) == (100 * MILLISECOND, None)

    asyncio.run(main())


def test_a_server_without_leaves_it_open() -> None:
    async def main() -> None:
        async with Server(ServerConfig(listen=(Address("::1", 0),))) as server:
            report = await discover_behaviour(f"stun:localhost:{server.stun_addresses[0].port}", local="::1")
            assert report.server == server.stun_addresses[0]
            assert (report.translated, report.filtering) == (False, None)
            assert "420" in report.filtering_reason

    asyncio.run(main())


def test_a_server_that_does_not_answer_ends_in_time() -> None:
    async def main() -> None:
        schedule = Schedule(rto=10 * MILLISECOND, sends=2, last_wait=1)
        report = await discover_behaviour(f"stun:{NET}.7:9", schedule=schedule)
        assert report.mapping is report.filtering is None and report.mapping_reason and report.filtering_reason

    asyncio.run(main())


@pytest.mark.parametrize(
    ("server", "error"),
    [
        ("stuns:192.0.2.1", ConfigurationError),
        ("turn:192.0.2.1", ConfigurationError),
        ("stun:nobody.invalid", ConnectError),
    ],
)
def test_what_cannot_be_asked_is_told(server: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        asyncio.run(discover_behaviour(server))
