"""TURN end to end on real sockets: our client through our server to a peer, by every transport and every data plane."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import polynya
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, TransactionError
from polynya.core.trace import NO_TRACE, Tracer
from polynya.serve import ServeConfig, Server
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.turn.server.config import Limits, RelayHost
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.users import User, time_limited_password
from tests.free_ports import free_port
from tests.interop.coturn import make_certificate
from tests.loops import until
from tests.serve.turn_house import (
    ANY4,
    ANY6,
    NAME,
    PASSWORD,
    REALM,
    client,
    config,
    echo,
    forbidden,
    options,
    tls_config,
    trusting,
    turn_config,
    works,
)

pytestmark = pytest.mark.loops("asyncio", "uvloop")

PLANES = {"portable": 0, "two workers": 2, "reference": -1}


def house(plane: str, **changes: Any) -> tuple[Any, Tracer]:
    """Return the options that select this plane. A trace selects the reference forwarder."""
    workers = PLANES[plane]
    trace = Tracer(lambda _: None, "server") if workers < 0 else NO_TRACE
    return options(workers=max(workers, 0), **changes), trace


@pytest.mark.parametrize(
    ("plane", "transport"),
    # every plane gets data of TLS clients by a stream
    [*((plane, transport) for plane in PLANES for transport in ("udp", "tcp")), ("portable", "tls")],
)
async def test_a_client_is_relayed(tmp_path: Path, plane: str, transport: str) -> None:
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    made, trace = house(plane)
    tls = trusting(tmp_path / "cert.pem")
    async with Server(tls_config(tmp_path, made), trace=trace) as server, echo() as peer:
        async with client(server, transport, tls=tls) as relay, client(server, transport, tls=tls) as other:
            await relay.permit(peer)
            await works(relay, peer, b"by Send")
            await relay.bind(peer)
            for number in range(50):
                await works(relay, peer, b"by channel %d" % number)
            # two clients of one server can reach each other's relayed addresses
            await other.permit(relay.relayed[0])
            await relay.permit(other.relayed[0])
            other.send(relay.relayed[0], b"from the other")
            assert await relay.recv() == (b"from the other", other.relayed[0])
            relaying = server.relaying
            assert relaying is not None and relaying.allocations == 2
        await until(lambda: not relaying.machine.control.allocations.claimed)
        await until(lambda: relaying.carried.from_peers == 52)  # a worker reports it when it has freed the relay
        carried = relaying.carried
        assert carried.to_peers == 52
        assert carried.bytes_from_peers == carried.bytes_to_peers + 51 * len(b"echo ")


async def test_ipv6_and_both_ip_versions() -> None:
    async with Server(config(listen=(ANY4, ANY6))) as server:
        assert {each.family for each in server.stun_addresses} == {4, 6}
        by_ipv6 = f"turn:[::1]:{server.stun_addresses[1].port}"
        async with client(server, families=(4, 6)) as both:
            assert [each.host for each in both.relayed] == ["127.0.0.1", "::1"]
        async with polynya.TurnClient(by_ipv6, username=NAME, password=PASSWORD, families=(6,)) as relay:
            assert relay.relayed[0].host == relay.mapped.host == "::1"


@pytest.mark.parametrize("plane", PLANES)
async def test_stun_is_answered_beside_turn(plane: str) -> None:
    made, trace = house(plane)
    async with Server(config(made), trace=trace) as server:
        [address] = server.stun_addresses
        reader, writer = await asyncio.open_connection(address.host, address.port)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect((address.host, address.port))
            request = Message.request(Method.BINDING, bytes(12)).encode()
            await loop.sock_sendall(asking, request)
            assert decode(await loop.sock_recv(asking, 2048))[XOR_MAPPED_ADDRESS].port == asking.getsockname()[1]
        writer.write(request)
        assert decode(await reader.readexactly(32))[XOR_MAPPED_ADDRESS].port == writer.get_extra_info("sockname")[1]
        writer.close()
        await writer.wait_closed()


# --------------------------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize("plane", PLANES)
async def test_addresses_that_are_not_public_are_denied_unless_allowed(plane: str) -> None:
    made, trace = house(plane, config=turn_config(policy=PeerPolicy()))
    async with Server(config(made), trace=trace) as server, client(server) as relay, echo() as peer:
        for host in ("10.0.0.1", "169.254.169.254", "192.168.1.1"):
            with pytest.raises(TransactionError, match="403"):
                await relay.permit(Address(host, 80))
        # the host of a live relay is permitted, but only the ports of relays on it
        await relay.permit(peer)
        relay.send(peer, b"x")
        await forbidden(server)


@pytest.mark.parametrize("plane", PLANES)
async def test_the_servers_own_listeners_are_denied_even_if_their_hosts_are_allowed(plane: str) -> None:
    made, trace = house(plane)
    async with Server(config(made), trace=trace) as server, client(server) as relay, echo() as peer:
        [own] = server.stun_addresses
        await relay.permit(own)
        relay.send(own, Message.request(Method.BINDING, bytes(12)).encode())
        await forbidden(server)
        await works(relay, peer)


# ---------------------------------------------------------------------------------------------------------------- users


async def test_users_secrets_and_look_ups() -> None:
    async def look_up(name: str) -> User | None:
        if name == "broken":
            raise OSError("the database is gone")
        return User.with_password(name, REALM, "looked up") if name == "bob" else None

    secrets = ("new", "old")
    async with Server(config(options(shared_secrets=secrets, look_up=look_up))) as server:
        rest = {secret: f"99999999999:{secret}" for secret in secrets}
        good = {NAME: PASSWORD, "bob": "looked up"} | {
            name: time_limited_password(name, secret.encode()) for secret, name in rest.items()
        }
        for name, password in good.items():
            async with client(server, username=name, password=password):
                pass
        expired = "1000000000:me"
        bad = {NAME: "wrong", "mallory": "x", "broken": "x", expired: time_limited_password(expired, b"new")}
        for name, password in bad.items():
            with pytest.raises(TransactionError, match="401"):
                await client(server, username=name, password=password).allocate(5)


async def test_quotas_are_enforced() -> None:
    limits = Limits(allocations_per_user=1)
    async with Server(config(options(config=turn_config(limits=limits)))) as server:
        async with client(server):
            with pytest.raises(TransactionError, match="486"):
                await client(server).allocate(5)
        async with client(server):
            pass


# ------------------------------------------------------------------------------------------------------- log and errors


async def test_the_log_names_the_client(caplog: pytest.LogCaptureFixture) -> None:
    """coturn/coturn#756: to ban clients, an operator needs their address."""
    caplog.set_level(logging.INFO, "polynya")
    async with Server(config()) as server:
        async with client(server, families=(4,)) as relay:
            mapped, [relayed] = relay.mapped, relay.relayed
            with pytest.raises(TransactionError):
                await relay.permit("10.0.0.1:1")
        with pytest.raises(TransactionError):
            await client(server, password="wrong").allocate(5)
    said = [record.getMessage() for record in caplog.records if record.name == "polynya.serve.turn"]
    assert f"allocation for {mapped}, user alice: {relayed}" in said
    assert any(each.startswith(f"allocation for {mapped}, user alice, ended: ended by its client; ") for each in said)
    denied = "refused: 403 peer 10.0.0.1: denied by 10.0.0.0/8 (private)"
    assert f"CREATE_PERMISSION from {mapped}, user alice {denied}" in said
    assert any(each.startswith("ALLOCATE from 127.0.0.1:") and each.endswith("401 wrong password") for each in said)
    assert not any("no credentials" in each for each in said), "every client's first step is nothing to tell"


@pytest.mark.parametrize("plane", PLANES)
async def test_the_log_has_dropped_datagrams_by_reason_and_the_rule_of_a_denied_peer(
    caplog: pytest.LogCaptureFixture, plane: str
) -> None:
    caplog.set_level(logging.DEBUG, "polynya")
    made, trace = house(plane, config=turn_config())
    async with Server(config(made), trace=trace) as server:
        async with echo() as peer, client(server) as relay:
            await relay.permit(peer)
            await works(relay, peer)
            mapped = relay.mapped
            rules = PeerPolicy(allow=("127.0.0.0/8",), deny=("127.0.0.1",))
            assert server.reload(config(replace(made, config=turn_config(policy=rules)))) == []
            for _ in range(3):
                relay.send(peer, b"x")
            await until(lambda: " is denied: " in caplog.text)
            while server.counters.get("turn.not-forwarded.peer denied by policy", 0) < 3:
                await server.refresh()
                await asyncio.sleep(0.01)
            await relay.close()
        await until(lambda: "ended: ended by its client" in caplog.text)
    said = [record.getMessage() for record in caplog.records if record.name == "polynya.serve.turn"]
    [denial] = [each for each in said if " is denied: " in each]
    assert denial == f"relay of {mapped}, user alice: peer {peer} is denied: denied by 127.0.0.1"
    [end] = [each for each in said if "ended: ended by its client" in each]
    assert end.endswith("3 datagrams dropped (3 peer denied by policy)")


@pytest.mark.parametrize(
    ("relay", "warned"),
    [
        (RelayHost(host="127.0.0.1", external="10.0.0.5"), True),
        (RelayHost(host="127.0.0.1", external="203.0.113.5"), True),
        (RelayHost(host="127.0.0.1", external="8.8.4.4"), False),
        (RelayHost(host="127.0.0.1"), False),
    ],
    ids=["private", "documentation", "public", "loopback"],
)
async def test_a_relay_address_that_is_not_public_is_logged_as_a_warning(
    caplog: pytest.LogCaptureFixture, relay: RelayHost, warned: bool
) -> None:
    """The most common mistake behind a NAT: clients allocate, and no datagram ever arrives."""
    caplog.set_level(logging.INFO, "polynya")
    async with Server(config(options(config=turn_config(relays=(relay,))))):
        pass
    said = [record.getMessage() for record in caplog.records if "is not public" in record.getMessage()]
    assert len(said) == warned and all(relay.outside in each and "--external-ip" in each for each in said)


async def test_allocations_survive_the_death_of_a_worker() -> None:
    async with Server(config(options(workers=2))) as server, echo() as peer, client(server) as relay:
        await relay.permit(peer)
        await relay.bind(peer)
        await works(relay, peer)
        relaying = server.relaying
        assert relaying is not None
        first = relaying.data_plane.processes
        for process in first:
            os.kill(process, signal.SIGKILL)
        async with asyncio.timeout(10):
            while True:
                relay.send(peer, b"again")
                try:
                    assert await asyncio.wait_for(relay.recv(), 0.2) == (b"echo again", peer)
                    break
                except TimeoutError:
                    pass
        await until(lambda: set(first).isdisjoint(relaying.data_plane.processes))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
async def test_a_port_in_use_for_either_transport_is_an_error_and_nothing_stays_open(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", free_port()))  # free for the other transport, too
        if kind == socket.SOCK_STREAM:
            taken.listen()
        address = Address.of(*taken.getsockname())
        name = "tcp" if kind == socket.SOCK_STREAM else "udp"
        with pytest.raises(ConfigurationError, match=rf"cannot listen on {name} {address}: .*in use"):
            async with Server(config(listen=(ANY4, address))):
                pass
    async with Server(config(listen=(address,))) as server:
        assert server.stun_addresses == (address,)


async def test_nothing_is_open_when_it_has_closed() -> None:
    async def once(workers: int) -> int:
        async with Server(config(options(workers=workers))) as server:
            relay = client(server)
            await relay.allocate(5)
            relaying = server.relaying
            assert relaying is not None
            processes = relaying.data_plane.processes
        await relay.close()
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)
        return len(descriptors())

    assert await once(0) == await once(0) == await once(1), "the first may have opened what the loop keeps"


def descriptors() -> list[Path]:
    return list(Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"users": ()}, "TURN has no users"),
        ({"credential_lifetime": 1}, "credential_lifetime"),
        ({"drain": -1.0}, "drain"),
        ({"workers": -1}, "workers"),
        ({"gather": 5.0}, "gather"),
        ({"shared_secrets": ("",)}, "secret must not be empty"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_opened(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        options(**changes)


def test_tls_needs_turn_and_a_certificate() -> None:
    with pytest.raises(ConfigurationError, match="tls_listen needs TURN"):
        ServeConfig(tls_listen=(ANY4,))
    with pytest.raises(ConfigurationError, match="certificate"):
        config(tls_listen=(ANY4,))
