"""Name resolution: literal addresses, the system's resolver, a custom one, and records of a local name server."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from polynya.aio.dns import Resolver, known
from polynya.core.machine import RecordType, Resolve, Resolved

pytestmark = pytest.mark.loops("asyncio", "uvloop")


@pytest.mark.parametrize(
    ("name", "hosts"),
    [
        ("192.0.2.1", ("192.0.2.1",)),
        ("2001:DB8:0::1", ("2001:db8::1",)),
        ("[2001:db8::1]", ("2001:db8::1",)),
        ("fe80::1%eth0", ("fe80::1%eth0",)),
        ("localhost", ("127.0.0.1", "::1")),
        ("Localhost.", ("127.0.0.1", "::1")),
        ("stun.localhost", ("127.0.0.1", "::1")),
        ("notlocalhost", ()),
        ("stun.example", ()),
        ("1.2.3", ()),
        ("", ()),
    ],
)
def test_literal_addresses_and_localhost_need_no_query(name: str, hosts: tuple[str, ...]) -> None:
    assert known(name) == hosts


async def test_a_literal_address_does_not_reach_the_systems_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the system's resolver was used"))
    query = Resolve(name="192.0.2.1", token=3)
    assert await Resolver().resolve(query) == Resolved(query=query, hosts=("192.0.2.1",))


def answering(*hosts: str) -> Any:
    """Make a `getaddrinfo` that returns these hosts, each for two socket types as the real one does."""

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        families = [(socket.AF_INET6 if ":" in host else socket.AF_INET, host) for host in hosts]
        return [(family, kind, 0, "", (host, 0)) for family, host in families for kind in (1, 2)]

    return getaddrinfo


@pytest.mark.loops("asyncio")  # uvloop calls getaddrinfo of C
async def test_the_order_of_the_system_is_kept_without_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answering("2001:db8::1", "192.0.2.1", "192.0.2.2"))
    answer = await Resolver().resolve(Resolve(name="stun.example"))
    assert answer.hosts == ("2001:db8::1", "192.0.2.1", "192.0.2.2")
    assert answer.error == ""


@pytest.mark.loops("asyncio")
async def test_an_unknown_name_is_answered_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    query = Resolve(name="nowhere.example")
    assert await Resolver().resolve(query) == Resolved(query=query, error="nowhere.example: Name or service not known")


@pytest.mark.parametrize("by_peer", [False, True])
async def test_slow_names_block_neither_the_executor_of_the_loop_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, by_peer: bool
) -> None:
    """16 names of a peer once made the program's own `run_in_executor` and `asyncio.run` wait."""
    answer, blocked = threading.Event(), threading.Semaphore(0)

    def slow(*_: Any, **__: Any) -> Any:
        blocked.release()
        answer.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolver = Resolver(timeout=0.2)
    names = [Resolve(name=f"slow{number}.example", by_peer=by_peer) for number in range(16)]
    try:
        answers = await asyncio.gather(*map(resolver.resolve, names))
        assert all("no answer within" in each.error for each in answers)
        assert blocked.acquire(blocking=False), "they are still being looked up"
        assert await asyncio.get_running_loop().run_in_executor(None, int, "7") == 7
        ours = [thread for thread in threading.enumerate() if thread.name.startswith("polynya: names")]
        assert len(ours) == 16 and all(thread.daemon for thread in ours)
    finally:
        answer.set()
    for thread in ours:
        thread.join(10)
    monkeypatch.setattr(socket, "getaddrinfo", answering("192.0.2.1"))
    assert (await Resolver().resolve(names[0])).hosts == ("192.0.2.1",)


async def test_slow_names_of_peers_leave_the_names_of_servers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    quick = answering("192.0.2.1")

    def getaddrinfo(name: str, *rest: Any, **options: Any) -> Any:
        if name.endswith(".local"):
            answer.wait()
        return quick(name, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    slow = [
        asyncio.ensure_future(Resolver(timeout=60).resolve(Resolve(name=f"host{number}.local", by_peer=True)))
        for number in range(100)
    ]
    try:
        assert (await Resolver().resolve(Resolve(name="stun.example"))).hosts == ("192.0.2.1",)
        ours = [thread for thread in threading.enumerate() if thread.name == "polynya: names of peers"]
        assert len(ours) == 16
    finally:
        answer.set()
    assert all(each.hosts == ("192.0.2.1",) for each in await asyncio.gather(*slow)), "the others follow"


@pytest.mark.parametrize("name", ["a" * 70 + ".example", "..", "bad\0name", "\ud800.example"])
async def test_an_invalid_name_is_answered_with_an_error(name: str) -> None:
    answer = await Resolver(timeout=0.5).resolve(Resolve(name=name))
    assert answer.hosts == ()
    assert answer.error


async def test_a_resolver_that_does_not_answer_times_out() -> None:
    async def silent(name: str) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    answer = await Resolver(resolve=silent, timeout=0.01).resolve(Resolve(name="stun.example"))
    assert answer.error == "stun.example: no answer within 0.01 s"


# ----------------------------------------------------------------------------------------------- a custom `resolve`


async def resolved(result: object, name: str = "stun.example") -> Resolved:
    """Return the answer of a resolver whose `resolve` returns or raises `result`."""

    async def resolve(asked: str) -> Any:
        assert asked == "stun.example"
        if isinstance(result, Exception):
            raise result
        return result

    return await Resolver(resolve=resolve).resolve(Resolve(name=name))


async def test_a_custom_resolve_answers_in_place_of_the_systems_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the system's resolver was used"))
    answer = await resolved(["2001:DB8:0::1", "192.0.2.1", "2001:db8::1"])
    assert (answer.hosts, answer.error) == (("2001:db8::1", "192.0.2.1"), "")


async def test_literal_addresses_do_not_reach_a_custom_resolve() -> None:
    assert (await resolved(AssertionError("not called"), "192.0.2.7")).hosts == ("192.0.2.7",)


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (KeyError("stun.example"), "resolve() raised KeyError: 'stun.example'"),
        (OSError("no route"), "no route"),
        (ConnectionResetError(), "ConnectionResetError"),
        ("192.0.2.1", "resolve() returned '192.0.2.1': return a list of IP addresses"),
        (["192.0.2.1", "other.example"], "resolve() returned 'other.example', which is not an IP address"),
        ([], "resolve() returned no addresses"),
        (None, "resolve() returned None: return a list of IP addresses"),
    ],
)
async def test_a_failed_custom_resolve_is_answered_with_the_reason(result: object, error: str) -> None:
    assert await resolved(result) == Resolved(query=Resolve(name="stun.example"), error=f"stun.example: {error}")


# -------------------------------------------------------------------------------------------------------- SRV, NAPTR

ZONE = """\
_turn._udp.example. 60 IN SRV 20 0 3478 b.example.
_turn._udp.example. 60 IN SRV 10 5 3478 a.example.
example. 60 IN NAPTR 100 10 "S" "RELAY:turn.udp" "" _turn._udp.example.
"""


class NameServer(asyncio.DatagramProtocol):
    """A name server that answers from ZONE, in its order."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        [question] = query.question
        for line in ZONE.splitlines():
            name, ttl, klass, kind, text = line.split(" ", 4)
            if (name, kind) == (question.name.to_text(), question.rdtype.name):
                if response.answer:
                    response.answer[0].add(dns.rrset.from_text(name, int(ttl), klass, kind, text)[0])
                else:
                    response.answer.append(dns.rrset.from_text(name, int(ttl), klass, kind, text))
        if not response.answer:
            response.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(response.to_wire(), addr)


@asynccontextmanager
async def name_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Make dnspython use a name server on loopback."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    real = dns.asyncresolver.Resolver

    def resolver() -> Any:
        made = real(configure=False)
        made.nameservers = ["127.0.0.1"]
        made.port = port
        return made

    monkeypatch.setattr(dns.asyncresolver, "Resolver", resolver)
    try:
        yield
    finally:
        transport.close()
        await asyncio.sleep(0)


async def test_all_records_are_returned_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async with name_server(monkeypatch):
        srv = await Resolver().resolve(Resolve(name="_turn._udp.example", record=RecordType.SRV))
        assert sorted(srv.hosts) == ["10 5 3478 a.example.", "20 0 3478 b.example."]
        naptr = await Resolver().resolve(Resolve(name="example", record=RecordType.NAPTR))
        assert naptr.hosts == ('100 10 "S" "RELAY:turn.udp" "" _turn._udp.example.',)


async def test_a_name_without_records_is_answered_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async with name_server(monkeypatch):
        answer = await Resolver().resolve(Resolve(name="other.example", record=RecordType.SRV))
        assert answer.hosts == ()
        assert "does not exist" in answer.error
