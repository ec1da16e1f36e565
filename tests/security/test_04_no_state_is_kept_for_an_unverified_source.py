"""security.md, line 4: nonces are stateless, bound to their source, and expire; streams are limited."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import pytest

from polynya.aio.handshakes import HandshakeLimits
from polynya.aio.tcp import StreamLimits
from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND
from polynya.serve import Server
from polynya.stun import attributes as a
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.turn.server.config import Limits
from polynya.turn.server.users import ExternalUsers
from tests.interop.coturn import make_certificate
from tests.loops import until
from tests.serve.turn_house import client, options, tls_config, turn_config
from tests.turn.server.harness import CLIENT, OTHER, Person, Table, code, config

ALLOCATE = {a.REQUESTED_TRANSPORT: 17}


def table_with_nonce() -> tuple[Table, Person]:
    table = Table(config())
    alice = Person(table)
    assert alice.learn(alice.say(alice.build(Method.ALLOCATE, ALLOCATE)))
    return table, alice


def test_unauthenticated_requests_leave_no_state() -> None:
    table = Table(config())

    def visit(first: int) -> None:
        for number in range(first, first + 2000):
            request = Message.request(Method.ALLOCATE, number.to_bytes(12, "big"), ALLOCATE).encode()
            table.from_client(request, Address("198.51.100.3", 1024 + number % 60_000))
        table.sent.clear(), table.log.clear()

    visit(0)
    table.run_for(100)
    gc.collect()
    before = len(gc.get_objects())
    visit(2000)
    table.run_for(100)
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert table.server.control.allocations.claimed == 0


def test_a_nonce_is_valid_for_its_source_only() -> None:
    table, alice = table_with_nonce()
    for address in (Address(CLIENT.host, CLIENT.port + 1), OTHER):
        thief = Person(table, address)
        thief.nonce, thief.offered = alice.nonce, alice.offered
        assert code(thief.say(thief.build(Method.ALLOCATE, ALLOCATE))) == 438
    assert code(alice.say(alice.build(Method.ALLOCATE, ALLOCATE))) == 0


def test_an_expired_nonce_gets_438_with_a_new_one() -> None:
    table, alice = table_with_nonce()
    table.run_for(599)
    assert code(alice.say(alice.build(Method.REFRESH))) == 437
    table.run_for(2)
    answer = alice.say(alice.build(Method.ALLOCATE, ALLOCATE))
    assert code(answer) == 438 and alice.learn(answer)
    assert code(alice.say(alice.build(Method.ALLOCATE, ALLOCATE))) == 0


def test_a_changed_nonce_is_stale() -> None:
    table, alice = table_with_nonce()
    genuine = alice.nonce
    for position in range(len(genuine)):
        for bit in (1, 2, 64):
            changed = bytearray(genuine)
            changed[position] ^= bit
            alice.nonce = bytes(changed)
            table.now += SECOND  # restores the budget of responses
            assert code(alice.say(alice.build(Method.ALLOCATE, ALLOCATE))) in (438, -1)
    for forged in (b"obMatJos2", genuine[:-1], genuine + b"=", genuine * 2, b"obMatJos2AAAD" + bytes(16)):
        alice.nonce = forged
        assert code(alice.say(alice.build(Method.ALLOCATE, ALLOCATE))) == 438, forged
    assert table.flows == {}


def test_a_nonce_of_another_server_is_stale() -> None:
    _, alice = table_with_nonce()
    other = Table(config(), seed=2)
    alice.table = other
    assert code(alice.say(alice.build(Method.ALLOCATE, ALLOCATE))) == 438


def test_a_forged_source_causes_no_user_lookup() -> None:
    table = Table(config(), ExternalUsers())
    alice = Person(table)
    alice.nonce = b"obMatJos2AAADAAAAAAAAAAA"
    assert code(alice.say(alice.build(Method.ALLOCATE, ALLOCATE))) == 438
    assert table.log[:-1] == []
    assert not any(type(event).__name__ == "LookUp" for event in table.log)


def test_streams_are_limited_in_all_and_for_each_source_and_have_a_timeout() -> None:
    table = Table(config(limits=Limits(streams=4, streams_per_address=2)))
    for number in range(3):
        table.open_stream(Flow(700 + number), CLIENT)
    assert table.closed == [Flow(702)]
    for number in range(3):
        table.open_stream(Flow(710 + number), Address(f"198.51.100.{10 + number}", 1))
    assert table.closed == [Flow(702), Flow(700)], "the oldest stream without an allocation"
    table.run_for(31)
    assert sorted(table.closed) == [Flow(each) for each in (700, 701, 702, 710, 711, 712)]
    table.open_stream(Flow(720), CLIENT)
    assert Flow(720) not in table.closed


def test_idle_streams_cannot_lock_out_clients_that_allocate() -> None:
    table = Table(config(limits=Limits(streams=10, streams_per_address=4)))
    alice = Person(table, Address("198.51.100.200", 1), stream=Flow(600))
    table.open_stream(Flow(600), alice.address)
    assert code(alice.allocate()) == 0
    for number in range(30):  # from many addresses
        table.open_stream(Flow(700 + number), Address(f"198.51.100.{number % 10}", 1000 + number))
    assert table.closed == [Flow(700 + number) for number in range(21)], "the oldest stream is closed first"
    bob = Person(table, Address("198.51.100.201", 1), "bob", stream=Flow(601))
    table.open_stream(Flow(601), bob.address)
    assert code(bob.allocate()) == 0
    assert code(alice.refresh()) == 0, "streams with an allocation are not closed"
    for number in range(8):
        one = Person(table, Address(f"198.51.100.{210 + number}", 1), stream=Flow(610 + number))
        table.open_stream(Flow(610 + number), one.address)
        assert code(one.allocate()) == 0
    table.open_stream(Flow(800), CLIENT)
    assert table.closed[-1] == Flow(800), "no stream without an allocation is left to close"
    assert table.server.control.counters["streams refused: too many"] == 1


def test_a_host_at_its_limit_cannot_close_streams_of_others() -> None:
    table = Table(config(limits=Limits(streams=3, streams_per_address=2)))
    table.open_stream(Flow(700), OTHER)
    for number in range(10):
        table.open_stream(Flow(710 + number), Address(CLIENT.host, 1000 + number))
    assert Flow(700) not in table.closed and len(table.closed) == 8


@pytest.mark.loops("asyncio", "uvloop")
async def test_half_open_tls_and_idle_tcp_streams_are_limited_and_counted(tmp_path: Path) -> None:
    handshakes = StreamLimits(handshakes=HandshakeLimits(timeout=2.0, at_once_per_source=3))
    make_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    limits = Limits(streams_per_address=2, stream_patience=SECOND // 2)

    async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            assert await reader.read(1) == b""
        writer.close()

    made = tls_config(tmp_path, options(config=turn_config(limits=limits)))
    async with Server(made, stream_limits=handshakes) as server:
        tls, plain = server.tls_addresses[0], server.stun_addresses[0]
        silent = [await asyncio.open_connection(tls.host, tls.port) for _ in range(4)]
        await until(lambda: server.socket_counters["handshakes_refused"] == 1)
        for _, writer in silent:
            writer.close()
        await until(lambda: server.socket_counters["handshakes_failed"] == 3)
        await ended(*await asyncio.open_connection(tls.host, tls.port))
        await until(lambda: server.socket_counters["handshakes_failed"] == 4)
        idle = [await asyncio.open_connection(plain.host, plain.port) for _ in range(3)]
        await asyncio.gather(*(ended(*each) for each in idle))
        counted = server.counters
        assert counted["turn.streams closed: no allocation"] + counted.get("turn.streams refused: too many", 0) == 3
        async with client(server) as relay:
            assert relay.relayed, "a client that allocates is served"
