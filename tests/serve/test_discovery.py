"""Behavior discovery (RFC 5780) of a server: four listeners on each data plane, and configuration errors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import polynya
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.trace import Tracer
from polynya.serve import ServeConfig, Server
from polynya.serve.settings import load, server_config
from polynya.stun.attributes import (
    CHANGE_REQUEST,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from tests.free_ports import free_port
from tests.serve.turn_house import NAME, PASSWORD, options

pytestmark = pytest.mark.loops("asyncio", "uvloop")

# loopback addresses of this process, so that other servers on this host are not in the way
_OWN = f"127.{os.getpid() >> 8 & 127 | 128}.{os.getpid() & 255}"
FIRST, OTHER = Address(f"{_OWN}.1", 23478), Address(f"{_OWN}.2", 23479)
PLANES = {
    "STUN only": {},
    "portable": {"turn": options()},
    "two workers": {"turn": options(workers=2)},
    "reference": {"turn": options(), "trace": True},
}


@contextmanager
def client() -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind((f"{_OWN}.9", 0))
        yield sock


def own(sock: socket.socket) -> Address:
    return Address(*sock.getsockname())


async def ask(
    sock: socket.socket,
    server: Address,
    attributes: dict[Any, Any] | None = None,
    *,
    receiver: socket.socket | None = None,
) -> tuple[Address, Message]:
    """Return the source address of the answer, and the answer."""
    request = Message.request(Method.BINDING, os.urandom(12), attributes)
    sock.sendto(request.encode(), (server.host, server.port))
    data, source = await asyncio.to_thread((receiver or sock).recvfrom, 4096)
    answer = decode(data)
    assert answer.transaction_id == request.transaction_id
    return Address(*source), answer


@pytest.mark.parametrize("plane", PLANES)
async def test_every_listener_names_the_others_and_answers_from_them(plane: str) -> None:
    made = {**PLANES[plane]}
    trace = Tracer(lambda event: None, "server") if made.pop("trace", False) else None
    config = ServeConfig(listen=(FIRST,), alternates=(OTHER,), **made)
    async with Server(config, **({"trace": trace} if trace else {})) as server:
        assert server.stun_addresses == (FIRST,)
        with client() as sock, client() as second:
            for here in (FIRST, FIRST.with_port(OTHER.port), OTHER, OTHER.with_port(FIRST.port)):
                there = OTHER if here.host == FIRST.host else FIRST
                port = FIRST.port if here.port == OTHER.port else OTHER.port
                for change in [None, *(ChangeRequest(host, port) for host in (0, 1) for port in (0, 1))]:
                    source, answer = await ask(sock, here, {CHANGE_REQUEST: change} if change else None)
                    moved = change or ChangeRequest()
                    assert source == Address(
                        there.host if moved.address else here.host, port if moved.port else here.port
                    )
                    assert answer.attributes == {
                        XOR_MAPPED_ADDRESS: own(sock),
                        MAPPED_ADDRESS: own(sock),
                        RESPONSE_ORIGIN: source,
                        OTHER_ADDRESS: Address(there.host, port),
                    }
            source, answer = await ask(sock, FIRST, {RESPONSE_PORT: own(second).port}, receiver=second)
            assert (source, answer[XOR_MAPPED_ADDRESS]) == (FIRST, own(sock))
            source, answer = await ask(sock, OTHER, {PADDING: bytes(1500)})
            assert (source, len(answer[PADDING])) == (OTHER, 1500)


async def test_answers_have_the_external_addresses() -> None:
    outside = {FIRST.host: "192.0.2.1", OTHER.host: "192.0.2.2"}
    config = ServeConfig(listen=(FIRST,), alternates=(OTHER,), external_ips=outside, turn=options())
    async with Server(config):
        with client() as sock:
            source, answer = await ask(sock, FIRST)
            assert source == FIRST
            assert answer[RESPONSE_ORIGIN] == Address("192.0.2.1", FIRST.port)
            assert answer[OTHER_ADDRESS] == Address("192.0.2.2", OTHER.port)
            source, answer = await ask(sock, FIRST, {CHANGE_REQUEST: ChangeRequest(address=True)})
            assert answer[RESPONSE_ORIGIN] == Address("192.0.2.2", FIRST.port)


@pytest.mark.parametrize("turn", [None, options()], ids=["STUN only", "with TURN"])
async def test_without_an_alternate_behavior_discovery_is_refused(turn: Any) -> None:
    async with Server(ServeConfig(listen=(FIRST,), turn=turn)):
        with client() as sock:
            for attributes in ({CHANGE_REQUEST: ChangeRequest(port=True)}, {RESPONSE_PORT: 5}, {PADDING: b"1234"}):
                _, answer = await ask(sock, FIRST, attributes)
                assert answer[ERROR_CODE].code == 420
            _, answer = await ask(sock, FIRST)
            assert answer.attributes == {XOR_MAPPED_ADDRESS: own(sock)}


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ('listen = ["0.0.0.0:3478"]\n[stun]\nalternates = ["192.0.2.2:3479"]', "is a wildcard address"),
        ('listen = ["192.0.2.1:3478"]\n[stun]\nalternates = ["0.0.0.0:3479"]', "is a wildcard address"),
        ('listen = ["192.0.2.1:3478"]\n[stun]\nalternates = ["192.0.2.2:3478"]', "needs another port"),
        ('listen = ["192.0.2.1:3478"]\n[stun]\nalternates = ["192.0.2.1:3478"]', "needs another port"),
        ('listen = ["192.0.2.1:0"]\n[stun]\nalternates = ["192.0.2.2:3479"]', "need fixed ports"),
        (
            'listen = ["192.0.2.1:3478"]\n[stun]\nalternates = ["[2001:db8::2]:3479"]',
            "of its IP version, not 0",
        ),
        ('listen = ["192.0.2.1:1", "192.0.2.3:1"]\n[stun]\nalternates = ["192.0.2.2:3"]', "IP version, not 2"),
        ('listen = ["192.0.2.1:1"]\n[stun]\nalternates = ["192.0.2.2:3", "192.0.2.3:3"]', "two STUN alternates"),
        ('listen = ["192.0.2.1:1"]\n[stun]\nalternates = ["stun.example.org:3"]', "stun.alternates"),
        (
            'listen = ["192.0.2.1:1"]\n[stun]\nalternates = ["192.0.2.2:3"]\nexternal_ips = ["198.51.100.1/192.0.2.9"]',
            "where no listener with a STUN alternate is",
        ),
        (
            'listen = ["192.0.2.1:1"]\n[stun]\nalternates = ["192.0.2.2:3"]\nexternal_ips = ["2001:db8::1/192.0.2.1"]',
            "must have the same IP version",
        ),
        (
            'listen = ["192.0.2.1:1"]\n[stun]\nalternates = ["192.0.2.2:3"]\nexternal_ips = ["here/192.0.2.1"]',
            "not an IP address",
        ),
        ('listen = ["192.0.2.1:1"]\n[stun]\nexternal_ips = ["198.51.100.1"]', "write EXTERNAL/ADDR"),
    ],
)
def test_an_invalid_alternate_is_a_configuration_error(tmp_path: Any, file: str, error: str) -> None:
    (tmp_path / "polynya.toml").write_text(file)
    with pytest.raises(ConfigurationError, match=error):
        server_config(load(tmp_path / "polynya.toml"))


async def test_its_listeners_are_denied_as_peers() -> None:
    """security.md, line 2: the server's own listeners are denied, though their hosts are allowed here."""
    config = ServeConfig(listen=(FIRST,), alternates=(OTHER,), turn=options())
    async with Server(config) as server:
        uri = f"turn:{FIRST}"
        async with polynya.TurnClient(uri, username=NAME, password=PASSWORD) as relay:
            for own in (FIRST, OTHER, FIRST.with_port(OTHER.port), OTHER.with_port(FIRST.port)):
                with pytest.raises(polynya.TransactionError) as caught:
                    await relay.bind(own)
                assert caught.value.code == 403
        assert server.turn_uris == (uri,), "the alternates are not listed"


async def test_a_change_of_alternates_needs_a_restart() -> None:
    config = ServeConfig(listen=(FIRST,), alternates=(OTHER,), external_ips={FIRST.host: "192.0.2.1"})
    async with Server(config) as server:
        assert server.reload(config) == []
        assert server.reload(replace(config, alternates=(), external_ips={})) == [
            "stun.alternates",
            "stun.external_ips",
        ]
        with client() as sock:
            _, answer = await ask(sock, FIRST)
            assert answer[OTHER_ADDRESS] == OTHER, "it goes on as it was"


async def test_an_address_of_another_host_fails_the_start() -> None:
    elsewhere = Address("192.0.2.77", free_port())
    for turn in (None, options()):
        with pytest.raises(ConfigurationError, match=r"cannot listen on udp 192\.0\.2\.77"):
            async with Server(ServeConfig(listen=(FIRST,), alternates=(elsewhere,), turn=turn)):
                pass
