"""A running server: reload, drain and metrics, while sessions continue."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polynya.aio.signaling import fetch_servers
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, TransactionError
from polynya.serve import ServeConfig, Server
from polynya.turn.server.alternates import Alternate
from polynya.turn.server.config import Limits
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.users import User, time_limited_password
from tests.interop.coturn import make_certificate
from tests.loops import until
from tests.serve import turn_house
from tests.serve.turn_house import (
    ALICE,
    ANY4,
    REALM,
    client,
    echo,
    forbidden,
    options,
    trusting,
    turn_config,
    works,
)

pytestmark = pytest.mark.loops("asyncio", "uvloop")

config = partial(turn_house.config, http=(ANY4,), admin=(ANY4,))
tls_config = partial(turn_house.tls_config, http=(ANY4,))


async def get(server: Server, path: str, *headers: str, host: str | None = None) -> tuple[int, str]:
    """Send an HTTP request; return status and body."""
    [address] = server.admin_addresses if path == "/metrics" else server.http_addresses
    reader, writer = await asyncio.open_connection(address.host, address.port)
    lines = (f"GET {path} HTTP/1.1", f"Host: {host or address}", "Connection: close", *headers, "", "")
    writer.write("\r\n".join(lines).encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


# --------------------------------------------------------------------------------------------------------------- reload


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_reload_keeps_sessions_and_applies_to_new_ones(workers: int) -> None:
    """coturn/coturn#878."""
    bob = User.with_password("bob", REALM, "builder")
    made = options(workers=workers, shared_secrets=("old",))
    async with Server(config(made)) as server, echo() as peer, client(server) as relay:
        await relay.permit(peer)
        await works(relay, peer)
        limited = turn_config(limits=Limits(allocations=2))
        changed = options(
            workers=workers,
            users=(ALICE, bob),
            shared_secrets=("new", "old"),
            config=limited,
            credential_lifetime=90,
        )
        assert server.reload(config(changed)) == []
        await works(relay, peer)
        async with client(server, username="bob", password="builder"):
            with pytest.raises(TransactionError, match="486"):
                await client(server).allocate(5)
        _, turn, _ = (await fetch_servers(server.url)).servers
        assert turn.password == time_limited_password(turn.username, b"new")
        # removing a rule takes effect at once for existing allocations
        closed = options(workers=workers, config=turn_config(policy=PeerPolicy(allow=("10.0.0.0/8",))))
        server.reload(config(closed))
        relay.send(peer, b"x")
        await forbidden(server)
        with pytest.raises(TransactionError, match="401"):
            await client(server, username="bob", password="builder").allocate(5)


async def test_keys_that_need_a_restart_are_named_and_keep_their_value() -> None:
    async with Server(config()) as server, echo() as peer, client(server) as relay:
        moved = options(config=turn_config(ports=(50000, 50001)), workers=3)
        changed = config(moved, listen=(ANY4, ANY4), trusted_proxies=("127.0.0.1",))
        named = ["listen", "signaling.trusted_proxies", "turn.ports", "turn.workers"]
        assert server.reload(changed) == named
        assert server.reload(changed) == named, "at every reload"
        assert server.reload(ServeConfig(listen=(ANY4,), http=(ANY4,), admin=(ANY4,))) == ["turn"]
        await relay.permit(peer)
        await works(relay, peer)
        async with client(server):
            pass


async def test_a_certificate_is_swapped_live(tmp_path: Path) -> None:
    """coturn/coturn#1446: existing streams keep the old certificate, new ones get the new one."""
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    old = trusting(tmp_path / "cert.pem")

    def swap() -> None:
        (tmp_path / "cert.pem").rename(tmp_path / "old.pem")
        make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")

    made = tls_config(tmp_path)
    trusts_old = trusting(tmp_path / "old.pem")
    async with Server(made) as server, echo() as peer, client(server, "tls", tls=old) as relay:
        swap()
        async with client(server, "tls", tls=trusts_old):
            pass  # there was no reload yet
        server.reload(made)
        await relay.permit(peer)
        await works(relay, peer)
        async with client(server, "tls", tls=trusting(tmp_path / "cert.pem")):
            pass
        with pytest.raises(TransactionError, match="no certificate"):
            await client(server, "tls", tls=trusts_old).allocate(5)


async def test_an_unusable_certificate_changes_nothing(tmp_path: Path) -> None:
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    (tmp_path / "good.pem").write_bytes((tmp_path / "cert.pem").read_bytes())
    tls = trusting(tmp_path / "good.pem")
    whole = (tmp_path / "cert.pem").read_text()
    async with Server(tls_config(tmp_path)) as server:
        changed = tls_config(tmp_path, options(users=(User.with_password("bob", REALM, "x"),)))
        for text in ("", "nonsense", whole[:200]):
            (tmp_path / "cert.pem").write_text(text)
            with pytest.raises(ConfigurationError, match="certificate"):
                server.reload(changed)
        make_certificate(tmp_path / "cert.pem", tmp_path / "other.pem")  # of another key
        with pytest.raises(ConfigurationError, match="certificate"):
            server.reload(changed)
        async with client(server, "tls", tls=tls):
            pass  # with the old certificate and the old users
    with pytest.raises(ConfigurationError, match="certificate"):
        async with Server(changed):
            pass


# ---------------------------------------------------------------------------------------------------------------- drain


async def test_the_death_of_a_worker_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with Server(config(options(workers=1))) as server:
        assert server.relaying is not None
        [process] = server.relaying.data_plane.processes
        os.kill(process, signal.SIGKILL)
        line = f"worker process {process} ended with code -9"
        await until(lambda: any(line in record.getMessage() for record in caplog.records))


async def test_a_drain_refuses_new_clients_and_ends_with_the_last_one() -> None:
    async with Server(config(options(drain=60.0, shared_secrets=("s",)))) as server, echo() as peer:
        relay = client(server)
        await relay.allocate()
        await relay.permit(peer)
        draining = asyncio.create_task(server.drain(asyncio.Event()))
        await until(lambda: server.stopping)
        await works(relay, peer)
        with pytest.raises(TransactionError, match="508"):
            await client(server).allocate(5)
        assert await get(server, "/healthz") == (503, "shutting down\n")
        offered = (await fetch_servers(server.url)).servers
        assert [each.uri for each in offered] == list(server.stun_uris), "TURN is no longer listed"
        assert not draining.done()
        await relay.close()
        await draining


async def test_a_drain_has_an_end_and_can_be_cut_short() -> None:
    for seconds, hurried in ((0.1, False), (60.0, True), (0.0, False)):
        async with Server(config(options(drain=seconds))) as server:
            relay = client(server)
            await relay.allocate()
            hurry = asyncio.Event()
            draining = asyncio.create_task(server.drain(hurry))
            await until(lambda server=server: server.stopping)
            if hurried:
                assert not draining.done()
                hurry.set()
            await asyncio.wait_for(draining, 5)
            assert server.relaying is not None and server.relaying.allocations == 1
        await relay.close()


async def test_clients_are_sent_to_the_alternate_server() -> None:
    async with Server(config()) as other:
        [there] = other.stun_addresses
        alternates = (Alternate.parse(f"tls:{ANY4.host}:1"), Alternate(there))
        async with Server(config(options(drain=60.0, alternates=alternates))) as server, client(server):
            draining = asyncio.create_task(server.drain(asyncio.Event()))
            await until(lambda: server.stopping)
            async with client(server) as relay:
                assert relay.allocation.server.address == there
            draining.cancel()
            await asyncio.wait([draining])


async def test_a_client_by_tls_is_sent_to_a_place_that_has_tls_only(tmp_path: Path) -> None:
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    tls = trusting(tmp_path / "cert.pem")
    async with Server(tls_config(tmp_path)) as other, Server(config()) as plain:
        [there], [elsewhere] = other.tls_addresses, plain.stun_addresses
        alternates = (Alternate(elsewhere), Alternate.parse(f"tls:{there}"))
        for given, expected in ((alternates, there), (alternates[:1], None)):
            made = options(drain=60.0, alternates=given)
            async with Server(tls_config(tmp_path, turn=made)) as server, client(server):
                draining = asyncio.create_task(server.drain(asyncio.Event()))
                await until(lambda server=server: server.stopping)
                if expected is None:
                    with pytest.raises(TransactionError, match="508"):
                        await client(server, "tls", tls=tls).allocate(5)
                else:
                    async with client(server, "tls", tls=tls) as relay:
                        assert relay.allocation.server.address == expected
                draining.cancel()
                await asyncio.wait([draining])


# -------------------------------------------------------------------------------------------------------------- metrics


def value(text: str, name: str) -> float:
    [found] = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("workers", [0, 1])
async def test_metrics_are_live(workers: int) -> None:
    """coturn/coturn#1235, #1898: current allocations, and the traffic of all, including ended ones."""
    async with Server(config(options(workers=workers))) as server, echo() as peer:
        for round_ in (1, 2):
            async with client(server) as relay, client(server, "tcp"):
                await relay.permit(peer)
                await works(relay, peer, b"1234567890")
                _, text = await get(server, "/metrics")
                assert value(text, 'polynya_turn_allocations{transport="udp"}') == 1
                assert value(text, 'polynya_turn_allocations{transport="tcp"}') == 1
                assert value(text, 'polynya_turn_bytes_total{direction="to_peers"}') == 10 * round_
                assert value(text, 'polynya_turn_bytes_total{direction="from_peers"}') == 15 * round_
            await until(lambda: server.relaying is not None and not server.relaying.allocations)
            text = ""
            while (
                'polynya_turn_allocations{transport="udp"} 0.0' not in text
            ):  # a worker reports when it has freed the allocation
                _, text = await get(server, "/metrics")
            assert value(text, 'polynya_turn_allocations{transport="udp"}') == 0
            assert value(text, "polynya_turn_allocations_created_total") == 2 * round_
            assert value(text, 'polynya_turn_bytes_total{direction="to_peers"}') == 10 * round_
            assert value(text, 'polynya_turn_messages_total{counter="success responses ALLOCATE"}') == 2 * round_
            assert value(text, "polynya_draining") == 0


async def test_no_label_of_a_metric_comes_from_a_client() -> None:
    """coturn/coturn#1026, #1933; security.md, line 11."""
    unknown = [f"unknown-{number}" for number in range(5)]
    async with Server(config()) as server:

        async def series() -> set[str]:
            _, text = await get(server, "/metrics")
            assert not any(each in text for each in ("alice", *unknown, "127.0.0.1"))
            return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

        async def visit(name: str) -> None:
            async with client(server):
                with pytest.raises(TransactionError):
                    await client(server, username=name).allocate(5)

        await visit(unknown[0])
        before = await series()
        for name in unknown[1:]:
            await visit(name)
        assert await series() == before


async def test_a_server_with_stun_alone_has_metrics_too() -> None:
    async with Server(ServeConfig(listen=(ANY4,), http=(ANY4,), admin=(ANY4,))) as server:
        status, text = await get(server, "/metrics")
        assert status == 200 and "polynya_turn" not in text
        assert value(text, "polynya_signaling_rooms") == 0
        assert value(text, 'polynya_sockets_total{counter="datagrams_in"}') == 0


@pytest.mark.parametrize(
    ("header", "host", "status"),
    [
        ("X: y", None, 200),
        ("X: y", "localhost:9", 200),
        ("X: y", "evil.example", 404),  # a web page with DNS rebinding
        ("X-Forwarded-For: 198.51.100.1", None, 404),  # a proxy on this host, for a client elsewhere
        ("Forwarded: for=198.51.100.1", None, 404),
    ],
)
async def test_metrics_are_only_for_this_host(header: str, host: str | None, status: int) -> None:
    async with Server(config()) as server:
        assert (await get(server, "/metrics", header, host=host))[0] == status


async def test_a_client_of_a_trusted_proxy_is_not_on_this_host() -> None:
    async with Server(config(trusted_proxies=("127.0.0.1",))) as server:
        assert (await get(server, "/metrics", "X-Forwarded-For: 198.51.100.1"))[0] == 404


async def test_metrics_have_a_listener_of_their_own_which_is_off_by_default() -> None:
    async with Server(turn_house.config(http=(ANY4,))) as server:
        assert server.admin_addresses == () and "admin" not in server.ready_line
    async with Server(config()) as server:
        [public], [admin] = server.http_addresses, server.admin_addresses
        assert f" admin=http://{admin}" in server.ready_line
        for address, path, status in (
            (public, "/metrics", 404),
            (public, "/healthz", 200),
            (admin, "/metrics", 200),
            (admin, "/healthz", 404),
            (admin, "/signaling", 404),
        ):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] == str(status).encode(), (address, path)
            writer.close()
        assert server.relaying is not None
        assert server.relaying.machine.control.policy.judge(admin), "clients cannot reach it through a relay"


async def test_metrics_with_a_token_need_the_token() -> None:
    async with Server(config(metrics_token="open")) as server:
        wanted: list[tuple[Any, int]] = [
            ("Authorization: Bearer open", 200),
            ("Authorization: Bearer closed", 404),
            ("Authorization: Bearer ", 404),
            ("X: y", 404),
        ]
        for header, status in wanted:
            assert (await get(server, "/metrics", header))[0] == status
        assert (await get(server, "/metrics", "Authorization: Bearer open", "Via: x", host="example.org"))[0] == 200


async def test_the_peer_policy_keeps_what_the_operator_denied() -> None:
    policy = PeerPolicy(allow=("127.0.0.0/8",), deny=("127.0.0.1:9",), listeners=(Address("127.0.0.1", 7),))
    async with Server(config(options(config=turn_config(policy=policy)))) as server:
        assert server.relaying is not None
        used = server.relaying.machine.control.policy
        assert used.judge(Address("127.0.0.1", 9)) and used.judge(Address("127.0.0.1", 7))
        assert used.judge(server.http_addresses[0]) and used.judge(server.stun_addresses[0])
        assert not used.judge(Address("127.0.0.1", 11))
