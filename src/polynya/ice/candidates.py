"""Candidates and their priorities: the transport addresses of an agent (RFC 8445, section 5; RFC 8421 for dual stack).

`Candidate` is a candidate as both sides see it, with its SDP line. `Gathered` is an address that gathering found and
gives to the agent. `LocalCandidates` drops it if it is redundant, or gives it a foundation and a priority; the result
is a `LocalCandidate`: a candidate with its base and the flow that its packets leave by.

The priority of a candidate is `2^24 * type + 2^8 * local + (256 - component)`. Type preferences order host above
peer-reflexive above server-reflexive above relayed. Local preferences order the addresses of one host: the first IPv6
address, the first IPv4 address, the second IPv6 address and so on, so that neither family waits for all addresses of
the other (RFC 8421, section 4). No two candidates of a component have the same priority.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Final

from polynya.core.addresses import IPV6, Address, scope
from polynya.core.arguments import instance, number, text
from polynya.core.flows import Flow

from .sdp.candidate import CandidateLine, format_line, parse_line

HOST: Final = 126
PEER_REFLEXIVE: Final = 110
SERVER_REFLEXIVE: Final = 100
RELAYED: Final = 0

MAX_PRIORITY: Final = 2**32 - 1
HIGHEST_PREFERENCE: Final = 65535
PREFERENCE_STEP: Final = 256
"""The distance between two addresses; candidates that share a base take preferences between them."""
LINK_LOCAL_PREFERENCE: Final = 16384
"""Link-local addresses come after all others: they reach no further than the link."""


class CandidateType(Enum):
    """Type of a candidate (RFC 8445, section 5.1.1); the values are those of SDP."""

    HOST = "host"
    SERVER_REFLEXIVE = "srflx"
    PEER_REFLEXIVE = "prflx"
    RELAYED = "relay"

    @property
    def preference(self) -> int:
        """The recommended type preference (RFC 8445, section 5.1.2.2)."""
        return _TYPE_PREFERENCES[self]


_TYPE_PREFERENCES: Final = {
    CandidateType.HOST: HOST,
    CandidateType.PEER_REFLEXIVE: PEER_REFLEXIVE,
    CandidateType.SERVER_REFLEXIVE: SERVER_REFLEXIVE,
    CandidateType.RELAYED: RELAYED,
}


class TcpType(Enum):
    """The side that opens the connection of a TCP candidate (RFC 6544, section 4.5)."""

    ACTIVE = "active"
    PASSIVE = "passive"
    SIMULTANEOUS_OPEN = "so"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Candidate:
    """A candidate as both sides see it. `str()` is its SDP value, `candidate:...` (RFC 8839, section 5.1)."""

    foundation: str
    component: int
    priority: int
    address: Address
    type: CandidateType
    transport: str = "udp"
    host_name: str | None = None
    """A name in place of the address (mDNS, or an FQDN). Until it is resolved, only the port of `address` counts."""
    related: Address | None = None
    """The base of a reflexive candidate, the mapped address of a relayed one (RFC 8839, section 5.1)."""
    tcp_type: TcpType | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    """Unknown extension attributes, in order; they are written again unchanged."""
    generation: int = 0

    def __post_init__(self) -> None:
        if not (
            type(self.component) is int
            and 1 <= self.component <= 256
            and type(self.priority) is int
            and 0 <= self.priority <= MAX_PRIORITY
            and type(self.address) is Address
            and type(self.foundation) is type(self.transport) is str
            and (self.related is None or type(self.related) is Address)
            and type(self.type) is CandidateType
            and type(self.extensions) is tuple
            and self.host_name is None
            and self.tcp_type is None
            and type(self.generation) is int
            and self.generation >= 0
        ):
            self._check()

    def _check(self) -> None:
        """The slow half of the constructor: raises ConfigurationError that names the field that is wrong."""
        text("foundation", self.foundation)
        number("component", self.component, 1, 256)
        number("priority", self.priority, 0, MAX_PRIORITY)
        instance("address", self.address, Address, hint="write Address.of(host, port)")
        instance("type", self.type, CandidateType)
        text("transport", self.transport)
        if self.host_name is not None:
            text("host_name", self.host_name)
        if self.related is not None:
            instance("related", self.related, Address, hint="write Address.of(host, port)")
        if self.tcp_type is not None:
            instance("tcp_type", self.tcp_type, TcpType)
        instance("extensions", self.extensions, tuple)
        number("generation", self.generation, 0, sys.maxsize)

    @classmethod
    def parse(cls, line: str) -> Candidate:
        """Read an SDP candidate line, with or without `a=`. Raises DecodeError, which names the wrong part."""
        read = parse_line(line)
        return cls(
            foundation=read.foundation,
            component=read.component,
            priority=read.priority,
            address=read.address,
            type=CandidateType(read.type),
            transport=read.transport,
            host_name=read.host_name,
            related=read.related,
            tcp_type=None if read.tcp_type is None else TcpType(read.tcp_type),
            extensions=read.extensions,
            generation=read.generation,
        )

    def to_sdp(self) -> str:
        """Return the SDP value, `candidate:...`."""
        return format_line(
            CandidateLine(
                foundation=self.foundation,
                component=self.component,
                transport=self.transport,
                priority=self.priority,
                address=self.address,
                host_name=self.host_name,
                type=self.type.value,
                related=self.related,
                tcp_type=None if self.tcp_type is None else self.tcp_type.value,
                generation=self.generation,
                extensions=self.extensions,
            )
        )

    __str__ = to_sdp

    def __repr__(self) -> str:
        return f"<Candidate {self.label} {self.transport}, component {self.component}, priority {self.priority}>"

    @property
    def label(self) -> str:
        """Type and address, for people: `srflx 198.51.100.1:4000`."""
        host = f"{self.host_name}:{self.address.port}" if self.host_name else str(self.address)
        return f"{self.type.value} {host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """An address that gathering found: of a socket, a mapping that a STUN server reported, or a relayed address."""

    type: CandidateType
    address: Address
    flow: Flow
    """The flow of the candidate's base. A relayed candidate has its own."""
    base: Address | None = None
    """The address that packets are sent from. Default: `address` (host and relayed candidates)."""
    stream: int = 0
    component: int = 1
    transport: str = "udp"
    server: str | None = None
    """The STUN or TURN server that reported it."""
    url: str = ""
    """URI of this server (RFC 7064, 7065) with the address and transport that were used."""
    related: Address | None = None
    """The `raddr` to signal. Default: the base of a reflexive candidate."""
    interface: str = ""
    preference: int | None = None
    """Local preference, 0..65535. Default: bases are ordered as they are added, families interleaved."""
    host_name: str | None = None
    """An mDNS name to signal in place of the address."""
    advertise: bool = True
    """False: it is used as a base but not signaled (policies such as `no-host`)."""
    gated: bool = False
    """Each path must be opened before it is used, such as a relay's by a permission: `PathWanted`, `path_ready`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidate:
    """A candidate of this agent, with its base, flow and other fields that are not signaled."""

    candidate: Candidate
    base: Address
    flow: Flow
    stream: int = 0
    server: str | None = None
    url: str = ""
    interface: str = ""
    preference: int = 0
    advertise: bool = True
    gated: bool = False

    @property
    def type(self) -> CandidateType:
        return self.candidate.type

    @property
    def address(self) -> Address:
        return self.candidate.address

    @property
    def component(self) -> int:
        return self.candidate.component

    @property
    def key(self) -> tuple[int, int]:
        """Stream and component."""
        return self.stream, self.component

    @property
    def is_base(self) -> bool:
        """Whether the candidate is its own base."""
        return self.candidate.address == self.base


class LocalCandidates:
    """All candidates of this agent. Assigns foundations and priorities, and drops redundant candidates."""

    __slots__ = ("_extensions", "_foundations", "_generation", "all")

    def __init__(self) -> None:
        self.all: list[LocalCandidate] = []
        self._foundations = 0
        self._generation = 0
        self._extensions: tuple[tuple[str, str], ...] = ()

    def renew(self, generation: int, ufrag: str) -> None:
        """Mark the candidates with a new generation and its ufrag (RFC 8838, section 13)."""
        self._generation = generation
        self._extensions = (("ufrag", ufrag),)
        self.all = [
            replace(local, candidate=replace(local.candidate, generation=generation, extensions=self._extensions))
            for local in self.all
        ]

    def add(self, gathered: Gathered) -> LocalCandidate | str:
        """Return the new candidate, or the reason why it is redundant (RFC 8445, sections 5.1.3 and 5.1.1.2)."""
        base = gathered.base or gathered.address
        for known in self.of_flow(gathered.flow):
            if known.address == gathered.address and known.base == base:
                return f"redundant with {known.candidate.label}"
        if gathered.type is CandidateType.RELAYED:
            for known in self.all:
                if known.type is CandidateType.HOST and known.address == gathered.address:
                    return f"the relayed address is our own {known.candidate.label}"
        local = self._make(gathered, base)
        self.all.append(local)
        return local

    def peer_reflexive(self, base: LocalCandidate, address: Address, priority: int) -> LocalCandidate:
        """Return the local candidate of a mapped address in a response (RFC 8445, section 7.2.5.3.1), new or known.

        A new one has the priority that the request carried in PRIORITY.
        """
        for known in self.of_flow(base.flow):
            if known.address == address:
                return known
        candidate = Candidate(
            foundation=self._foundation(CandidateType.PEER_REFLEXIVE, base.base.host, None, base.candidate.transport),
            component=base.component,
            priority=priority,
            address=address,
            type=CandidateType.PEER_REFLEXIVE,
            transport=base.candidate.transport,
            related=base.base,
        )
        local = replace(base, candidate=candidate, server=None, url="", advertise=False)
        self.all.append(local)
        return local

    def base(self, flow: Flow) -> LocalCandidate | None:
        """Return the candidate that pairs use for a flow: its base, or else the first candidate of the flow."""
        first = None
        for local in self.all:
            if local.flow == flow:
                if local.is_base:
                    return local
                first = first or local
        return first

    def of_flow(self, flow: Flow) -> list[LocalCandidate]:
        return [local for local in self.all if local.flow == flow]

    def remove(self, flow: Flow) -> list[LocalCandidate]:
        """Remove and return the candidates of a closed flow."""
        gone = self.of_flow(flow)
        self.all = [local for local in self.all if local.flow != flow]
        return gone

    def retain(self, components: tuple[int, ...]) -> None:
        """Remove the candidates of streams and components that do not exist: `components` has those of each stream."""
        self.all = [
            local
            for local in self.all
            if local.stream < len(components) and local.component <= components[local.stream]
        ]

    def _make(self, gathered: Gathered, base: Address) -> LocalCandidate:
        kind = gathered.type
        siblings = [local for local in self.all if local.key == (gathered.stream, gathered.component)]
        preference = gathered.preference
        if preference is None:
            sharing = self.base(gathered.flow)
            taken = {local.preference for local in siblings}
            preference = sharing.preference if sharing else next_preference(base, taken)
        related = gathered.related
        if related is None and kind in (CandidateType.SERVER_REFLEXIVE, CandidateType.PEER_REFLEXIVE):
            related = base
        candidate = Candidate(
            foundation=self._foundation(kind, base.host, gathered.server, gathered.transport),
            component=gathered.component,
            priority=unique_priority(
                candidate_priority(kind.preference, preference, gathered.component),
                {local.candidate.priority for local in siblings},
            ),
            address=gathered.address,
            type=kind,
            transport=gathered.transport,
            host_name=gathered.host_name,
            related=related,
            generation=self._generation,
            extensions=self._extensions,
        )
        return LocalCandidate(
            candidate=candidate,
            base=base,
            flow=gathered.flow,
            stream=gathered.stream,
            server=gathered.server,
            url=gathered.url,
            interface=gathered.interface,
            preference=preference,
            advertise=gathered.advertise,
            gated=gathered.gated,
        )

    def _foundation(self, kind: CandidateType, host: str, server: str | None, transport: str) -> str:
        """Return the foundation: equal for the same type, base address, server and transport (RFC 8445, 5.1.1.3)."""
        for local in self.all:
            same_server = kind is CandidateType.HOST or local.server == server
            if (
                local.type is kind
                and same_server
                and local.base.host == host
                and local.candidate.transport == transport
            ):
                return local.candidate.foundation
        self._foundations += 1
        return str(self._foundations)


@lru_cache(maxsize=1024)
def candidate_priority(type_preference: int, local_preference: int, component: int) -> int:
    """Return the priority of a candidate (RFC 8445, section 5.1.2.1). Raises ValueError for a term out of range."""
    if not (0 <= type_preference <= 126 and 0 <= local_preference <= 65535 and 1 <= component <= 256):
        raise ValueError(f"no priority for type {type_preference}, local {local_preference}, component {component}")
    return (type_preference << 24) + (local_preference << 8) + (256 - component)


def local_preference_of(priority: int) -> int:
    """Return the local preference in the priority of a candidate."""
    return (priority >> 8) & 0xFFFF


@lru_cache(maxsize=1024)
def pair_priority(controlling: int, controlled: int) -> int:
    """Return the priority of a pair from the candidate priorities of both sides (RFC 8445, section 6.1.2.3).

    Both agents compute the same number.
    """
    low, high = (controlling, controlled) if controlling < controlled else (controlled, controlling)
    return (low << 32) + 2 * high + (1 if controlling > controlled else 0)


def next_preference(address: Address, taken: Collection[int]) -> int:
    """Return the local preference of a component's next base: families interleaved, IPv6 first, link-local last.

    `taken` has the preferences of its other bases.
    """
    start = LINK_LOCAL_PREFERENCE if scope(address.host) == "link-local" else HIGHEST_PREFERENCE
    preference = start - (0 if address.family == IPV6 else PREFERENCE_STEP)
    while preference in taken and preference >= 2 * PREFERENCE_STEP:
        preference -= 2 * PREFERENCE_STEP
    return preference


def unique_priority(priority: int, taken: Collection[int]) -> int:
    """Return `priority`, or the next lower one that is free: the preference changes, not the type."""
    while priority in taken and priority >= PREFERENCE_STEP:
        priority -= PREFERENCE_STEP
    return priority
