"""Names: what needs no asking, what the system's resolver says, and records from a name server of the test's own."""

from __future__ import annotations

import asyncio
import socket
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
from tests.aio.conftest import Run


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
def test_literal_addresses_and_this_host_need_no_asking(name: str, hosts: tuple[str, ...]) -> None:
    assert known(name) == hosts


def test_a_literal_is_answered_without_the_systems_resolver(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("nobody is to be asked")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    query = Resolve(name="192.0.2.1", token=3)
    assert run(Resolver().resolve(query)) == Resolved(query=query, hosts=("192.0.2.1",))


def answering(*hosts: str) -> Any:
    """A `getaddrinfo` that knows these hosts, each for two socket types as the real one does."""

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        families = [(socket.AF_INET6 if ":" in host else socket.AF_INET, host) for host in hosts]
        return [(family, kind, 0, "", (host, 0)) for family, host in families for kind in (1, 2)]

    return getaddrinfo


def test_the_systems_order_is_kept_and_each_host_is_told_once(
    run_on_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answering("2001:db8::1", "192.0.2.1", "192.0.2.2"))
    answer = run_on_asyncio(Resolver().resolve(Resolve(name="stun.example")))
    assert answer.hosts == ("2001:db8::1", "192.0.2.1", "192.0.2.2")
    assert answer.error == ""


def test_an_unknown_name_is_an_answer_with_the_reason(run_on_asyncio: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    query = Resolve(name="nowhere.example")
    assert run_on_asyncio(Resolver().resolve(query)) == Resolved(
        query=query, error="nowhere.example: Name or service not known"
    )


@pytest.mark.parametrize("name", ["a" * 70 + ".example", "..", "bad\0name", "\ud800.example"])
def test_a_name_that_cannot_be_is_an_answer_too(run: Run, name: str) -> None:
    answer = run(Resolver(timeout=0.5).resolve(Resolve(name=name)))
    assert answer.hosts == ()
    assert answer.error


def test_a_resolver_that_does_not_answer_is_given_up(run: Run) -> None:
    async def silent(name: str) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    answer = run(Resolver(resolve=silent, timeout=0.01).resolve(Resolve(name="stun.example")))
    assert answer.error == "stun.example: no answer within 0.01 s"


# ----------------------------------------------------------------------------------------------- a custom `resolve`


def resolved(run: Run, result: object, name: str = "stun.example") -> Resolved:
    """The answer of a resolver whose `resolve` returns or raises `result`."""

    async def resolve(asked: str) -> Any:
        assert asked == "stun.example"
        if isinstance(result, Exception):
            raise result
        return result

    answer: Resolved = run(Resolver(resolve=resolve).resolve(Resolve(name=name)))
    return answer


def test_a_custom_resolve_answers_in_place_of_the_systems_resolver(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the system's resolver was used"))
    answer = resolved(run, ["2001:DB8:0::1", "192.0.2.1", "2001:db8::1"])
    assert (answer.hosts, answer.error) == (("2001:db8::1", "192.0.2.1"), "")


def test_literal_addresses_do_not_reach_a_custom_resolve(run: Run) -> None:
    assert resolved(run, AssertionError("not called"), "192.0.2.7").hosts == ("192.0.2.7",)


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (KeyError("stun.example"), "resolve() raised KeyError: 'stun.example'"),
        (OSError("no route"), "no route"),
        ("192.0.2.1", "resolve() returned '192.0.2.1': return a list of IP addresses"),
        (["192.0.2.1", "other.example"], "resolve() returned 'other.example', which is not an IP address"),
        ([], "resolve() returned no addresses"),
        (None, "resolve() returned None: return a list of IP addresses"),
    ],
)
def test_a_custom_resolve_that_fails_is_an_answer_with_the_reason(run: Run, result: object, error: str) -> None:
    assert resolved(run, result) == Resolved(query=Resolve(name="stun.example"), error=f"stun.example: {error}")


# -------------------------------------------------------------------------------------------------------- SRV, NAPTR

ZONE = """\
_turn._udp.example. 60 IN SRV 20 0 3478 b.example.
_turn._udp.example. 60 IN SRV 10 5 3478 a.example.
example. 60 IN NAPTR 100 10 "S" "RELAY:turn.udp" "" _turn._udp.example.
"""


class NameServer(asyncio.DatagramProtocol):
    """Answers from ZONE, in its order."""

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
    """Let dnspython ask a server on loopback instead of those of this host."""
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


def test_records_are_told_as_text_and_all_of_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with name_server(monkeypatch):
            srv = await Resolver().resolve(Resolve(name="_turn._udp.example", record=RecordType.SRV))
            assert sorted(srv.hosts) == ["10 5 3478 a.example.", "20 0 3478 b.example."]
            naptr = await Resolver().resolve(Resolve(name="example", record=RecordType.NAPTR))
            assert naptr.hosts == ('100 10 "S" "RELAY:turn.udp" "" _turn._udp.example.',)

    run(main())


def test_a_name_without_records_is_an_answer_with_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with name_server(monkeypatch):
            answer = await Resolver().resolve(Resolve(name="other.example", record=RecordType.SRV))
            assert answer.hosts == ()
            assert "does not exist" in answer.error

    run(main())
