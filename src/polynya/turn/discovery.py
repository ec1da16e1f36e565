"""Server discovery for a TURN URI: its servers, best first (RFC 5928).

    the URI has                  queries                                    servers
    ---------------------------  -----------------------------------------  -----------------------------------------
    an IP address                none                                       this address
    a name and a port            A, AAAA                                    its addresses
    a name and a transport       SRV; A, AAAA                               by SRV, else its addresses, default port
    a name alone                 NAPTR; SRV for each transport; A, AAAA     by NAPTR, else by SRV, else its addresses

All queries that a name may need are sent at once, so that a zone without NAPTR and SRV records costs no round trip. The
list is computed from the answers; further queries follow for the targets and SRV records that they name.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.compact import Queue
from polynya.core.errors import DecodeError
from polynya.core.flows import Transport
from polynya.core.instants import Instant
from polynya.core.machine import Input, RecordType, Resolve, Resolved
from polynya.stun.reported import why_impossible
from polynya.stun.uris import TurnUri

from .client.events import ServerAddress

SERVICES: Final = {
    Transport.UDP: ("_turn._udp", "turn.udp"),
    Transport.TCP: ("_turn._tcp", "turn.tcp"),
    Transport.TLS: ("_turns._tcp", "turn.tls"),
}
"""The SRV prefix and the S-NAPTR protocol tag of each transport (RFC 5928, section 6)."""
MAX_SERVERS: Final = 16
MAX_DEPTH: Final = 4
"""Limit of NAPTR records that refer to another."""

Query = tuple[str, RecordType]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """The servers of a URI, best first. If there are none, `reason` explains it."""

    uri: TurnUri
    servers: tuple[ServerAddress, ...]
    reason: str = ""


class Discovery:
    """Machine of one server discovery: `Resolved` in, `Resolve` out, and one `Discovered` event."""

    def __init__(
        self,
        uri: TurnUri,
        *,
        random: random_module.Random,
        families: tuple[int, ...] = (IPV4, IPV6),
        transports: tuple[Transport, ...] = (Transport.UDP, Transport.TCP, Transport.TLS),
        token: int = 0,
    ) -> None:
        """`families` and `transports` are the usable ones; transports are given best first."""
        self.uri = uri
        self._random = random
        self._families = families
        self._usable = transports
        self._token = token
        self._known: dict[Query, tuple[str, ...]] = {}
        self._asked: dict[Query, None] = {}
        self._wanted: list[Query] = []
        self._errors: list[str] = []
        self._impossible: dict[str, None] = {}
        """Why addresses of names were ignored, such as a filter's `0.0.0.0`."""
        self._ended = False
        self._outputs: Queue[Resolve] = Queue()
        self._events: Queue[Discovered] = Queue()

    def start(self, *, now: Instant) -> None:  # noqa: ARG002 - a driver passes the time
        """Send the first queries."""
        self._advance()

    def receive(self, input: Input, *, now: Instant) -> None:  # noqa: ARG002
        """Handle an answer; any other input is ignored."""
        if not isinstance(input, Resolved) or input.query.token != self._token or self._ended:
            return
        query = (input.query.name, input.query.record)
        if query not in self._asked or query in self._known:
            return
        if input.error:
            self._errors.append(input.error)
        self._known[query] = self._in_order(input)
        self._advance()

    def tick(self, *, now: Instant) -> None:
        """There are no timers: the resolver has its own timeout."""

    def next_timer(self) -> Instant | None:
        return None

    def outputs(self) -> list[Resolve]:
        return self._outputs.drain()

    def events(self) -> list[Discovered]:
        return self._events.drain()

    # ----------------------------------------------------------------------------------------------------- the answers

    def _in_order(self, answer: Resolved) -> tuple[str, ...]:
        """Return SRV records in the order to try them: drawn once, by weight (RFC 2782)."""
        if answer.query.record is not RecordType.SRV:
            return answer.hosts
        left = sorted(
            (fields for fields in (_srv(text) for text in answer.hosts) if fields is not None),
            key=lambda fields: (fields[0], fields[1]),
        )
        ordered = []
        while left:
            first = [fields for fields in left if fields[0] == left[0][0]]
            point = self._random.randint(0, sum(weight for _, weight, _, _ in first))
            for fields in first:
                point -= fields[1]
                if point <= 0:
                    break
            left.remove(fields)
            ordered.append(fields)
        return tuple(f"{priority} {weight} {port} {target}" for priority, weight, port, target in ordered)

    def _ask(self, name: str, record: RecordType) -> tuple[str, ...]:
        """Return the answer to a query; an unknown one is added to the wanted queries."""
        query = (name, record)
        known = self._known.get(query)
        if known is None and query not in self._wanted:
            self._wanted.append(query)
        return known or ()

    # -------------------------------------------------------------------------------------------------------- the list

    def _advance(self) -> None:
        """Compute the list; send the queries that are missing, or emit the result."""
        self._wanted = []
        servers = list(dict.fromkeys(self._servers()))[:MAX_SERVERS]
        if self._wanted:
            for query in self._wanted:
                if query not in self._asked:
                    self._asked[query] = None
                    self._outputs.append(Resolve(name=query[0], record=query[1], token=self._token))
            return
        self._ended = True
        reason = "" if servers else self._why_none()
        self._events.append(Discovered(uri=self.uri, servers=tuple(servers), reason=reason))

    def _why_none(self) -> str:
        if not self._transports():
            return f"{self.uri} needs {self.uri.transport.value}, which is not supported here"
        return "; ".join([*self._errors, *self._impossible]) or f"{self.uri.host} has no address of a usable IP version"

    def _servers(self) -> list[ServerAddress]:
        uri = self.uri
        if not self._transports():
            return []
        plain = list(self._at(uri.host, uri.port, uri.transport))
        if uri.explicit_port is not None or _is_literal(uri.host):
            return plain
        by_srv = [
            server
            for transport in self._transports()
            for server in self._by_srv(f"{SERVICES[transport][0]}.{uri.host}", transport)
        ]
        by_naptr = list(self._by_naptr(uri.host, self._transports(), 1)) if uri.explicit_transport is None else []
        return by_naptr or by_srv or plain

    def _transports(self) -> tuple[Transport, ...]:
        """Return the usable transports that the URI allows, best first."""
        if self.uri.explicit_transport is not None or self.uri.secure:
            allowed: tuple[Transport, ...] = (self.uri.transport,)
        else:
            allowed = (Transport.UDP, Transport.TCP)
        return tuple(transport for transport in self._usable if transport in allowed and transport in SERVICES)

    def _by_naptr(self, name: str, transports: tuple[Transport, ...], depth: int) -> Iterator[ServerAddress]:
        records = sorted(
            fields for fields in (_naptr(text) for text in self._ask(name, RecordType.NAPTR)) if fields is not None
        )
        for _, _, flags, service, target in records:
            application, *tags = service.lower().split(":")
            if application != "relay":
                continue
            for transport in transports:
                if SERVICES[transport][1] not in tags:
                    continue
                if flags == "s":
                    yield from self._by_srv(target, transport)
                elif flags == "a":
                    yield from self._at(target, self.uri.port, transport)
                elif flags == "" and depth < MAX_DEPTH:
                    yield from self._by_naptr(target, (transport,), depth + 1)

    def _by_srv(self, name: str, transport: Transport) -> Iterator[ServerAddress]:
        for text in self._ask(name, RecordType.SRV):
            fields = _srv(text)
            if fields is not None and fields[3]:
                yield from self._at(fields[3], fields[2], transport)

    def _at(self, name: str, port: int, transport: Transport) -> Iterator[ServerAddress]:
        if transport not in self._usable:
            return
        hosts: Iterable[str] = (name,) if _is_literal(name) else self._ask(name, RecordType.ADDRESS)
        for host in hosts:
            try:
                address = Address.of(host, port)
            except DecodeError:
                continue
            if why := why_impossible(address):
                self._impossible[why] = None
            elif address.family in self._families:
                yield ServerAddress(address=address, transport=transport, name=self.uri.host)


def _is_literal(name: str) -> bool:
    try:
        Address.of(name, 0)
    except DecodeError:
        return False
    return True


def _srv(text: str) -> tuple[int, int, int, str] | None:
    """Return priority, weight, port and target of an SRV record; the target is empty if there is no service."""
    fields = text.split()
    if len(fields) != 4 or not all(field.isascii() and field.isdigit() for field in fields[:3]):
        return None
    priority, weight, port = (int(field) for field in fields[:3])
    if not 1 <= port <= 65535 and fields[3] != ".":
        return None
    return priority, weight, port, fields[3].rstrip(".")


def _naptr(text: str) -> tuple[int, int, str, str, str] | None:
    """Return order, preference, flags, service and replacement of a NAPTR record; None if it has an expression."""
    fields = text.split()
    if len(fields) != 6 or not (fields[0].isdigit() and fields[1].isdigit()):
        return None
    flags, service, expression = (field.strip('"') for field in fields[2:5])
    return None if expression else (int(fields[0]), int(fields[1]), flags.lower(), service, fields[5].rstrip("."))
