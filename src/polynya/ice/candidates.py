"""Candidates: the transport addresses that an agent may be reached at (RFC 8445, section 5).

`Candidate` is what both sides speak of: it crosses the signaling and has an SDP line (`sdp.py`). `Gathered` is what
somebody found and hands to the agent; the agent gives it a foundation and a priority and drops it when it is
redundant. `LocalCandidate` is the outcome: a candidate together with its base and the flow that packets leave by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow

from . import priorities
from .priorities import candidate_priority, next_preference, unique_priority


class CandidateType(Enum):
    """How an address came to be known (RFC 8445, section 5.1.1); the values are those of SDP."""

    HOST = "host"
    SERVER_REFLEXIVE = "srflx"
    PEER_REFLEXIVE = "prflx"
    RELAYED = "relay"

    @property
    def preference(self) -> int:
        """The recommended type preference (RFC 8445, section 5.1.2.2)."""
        return TYPE_PREFERENCES[self]


TYPE_PREFERENCES: Final = {
    CandidateType.HOST: priorities.HOST,
    CandidateType.PEER_REFLEXIVE: priorities.PEER_REFLEXIVE,
    CandidateType.SERVER_REFLEXIVE: priorities.SERVER_REFLEXIVE,
    CandidateType.RELAYED: priorities.RELAYED,
}


class TcpType(Enum):
    """Who opens the connection of a TCP candidate (RFC 6544, section 4.5)."""

    ACTIVE = "active"
    PASSIVE = "passive"
    SIMULTANEOUS_OPEN = "so"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A candidate as both sides see it. `str()` is its SDP value, `candidate:...` (RFC 8839, section 5.1)."""

    foundation: str
    component: int
    priority: int
    address: Address
    type: CandidateType
    transport: str = "udp"
    host_name: str | None = None
    """A name in place of the address (mDNS, or an FQDN); `address` then has the port and means nothing else yet."""
    related: Address | None = None
    """The base of a reflexive candidate, the mapped address of a relayed one (RFC 8839, section 5.1)."""
    tcp_type: TcpType | None = None
    extensions: tuple[tuple[str, str], ...] = ()
    """Extension attributes that are not known here, in order, to be handed on unchanged."""
    generation: int = 0

    @classmethod
    def parse(cls, line: str) -> Candidate:
        """Read an SDP candidate, with or without `a=`; DecodeError says what is wrong with it."""
        from .sdp import parse_candidate  # noqa: PLC0415 - sdp needs this module's classes

        return parse_candidate(line)

    def to_sdp(self) -> str:
        """The SDP value, `candidate:...`."""
        from .sdp import format_candidate  # noqa: PLC0415

        return format_candidate(self)

    __str__ = to_sdp

    @property
    def label(self) -> str:
        """Where it is, for people: `srflx 198.51.100.1:4000`."""
        host = f"{self.host_name}:{self.address.port}" if self.host_name else str(self.address)
        return f"{self.type.value} {host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """An address that was found: a bound socket, what a STUN server saw, what a TURN server gave."""

    type: CandidateType
    address: Address
    flow: Flow
    """Packets from this candidate's base leave by it. A relayed candidate has a flow of its own."""
    base: Address | None = None
    """What packets are sent from; left out, it is `address` itself (host and relayed candidates)."""
    stream: int = 0
    component: int = 1
    transport: str = "udp"
    server: str | None = None
    """The STUN or TURN server that told it."""
    url: str = ""
    """The same as a URI (RFC 7064, 7065), of the very address and transport."""
    related: Address | None = None
    """What to tell the other side in `raddr`; left out, the base of a reflexive candidate."""
    interface: str = ""
    preference: int | None = None
    """Local preference, 0..65535; left out, the agent orders bases as they come, families interleaved."""
    host_name: str | None = None
    """The mDNS name that is signaled in place of the address."""
    advertise: bool = True
    """False: it is used as a base, but the other side is not told of it (policies such as `no-host`)."""
    gated: bool = False
    """A path from it must be opened first, as a relay's by a permission: `PathWanted` asks, `path_ready` answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCandidate:
    """A candidate of this agent, with what the other side does not see."""

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
        """Whether packets leave from the candidate's own address."""
        return self.candidate.address == self.base


class LocalCandidates:
    """All candidates of this agent: gives foundations and priorities, and drops what is redundant."""

    __slots__ = ("_extensions", "_foundations", "_generation", "all")

    def __init__(self) -> None:
        self.all: list[LocalCandidate] = []
        self._foundations = 0
        self._generation = 0
        self._extensions: tuple[tuple[str, str], ...] = ()

    def renew(self, generation: int, ufrag: str) -> None:
        """A generation begins: its candidates say to which they belong (RFC 8838, section 13)."""
        self._generation = generation
        self._extensions = (("ufrag", ufrag),)
        self.all = [
            replace(local, candidate=replace(local.candidate, generation=generation, extensions=self._extensions))
            for local in self.all
        ]

    def add(self, gathered: Gathered) -> LocalCandidate | str:
        """The new candidate, or why it is redundant (RFC 8445, sections 5.1.3 and 5.1.1.2)."""
        base = gathered.base or gathered.address
        for known in self.of_flow(gathered.flow):
            if known.address == gathered.address and known.base == base:
                return f"redundant with {known.candidate.label}"
        if gathered.type is CandidateType.RELAYED:
            for known in self.all:
                if known.type is CandidateType.HOST and known.address == gathered.address:
                    return f"a relayed address that is our own {known.candidate.label}"
        local = self._make(gathered, base)
        self.all.append(local)
        return local

    def peer_reflexive(self, base: LocalCandidate, address: Address, priority: int) -> LocalCandidate:
        """The local candidate that an answer showed (RFC 8445, section 7.2.5.3.1), new or known.

        Its priority is the PRIORITY that the request carried.
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
        """The candidate that stands for a flow in pairs: the base itself, or what was first known of it."""
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
        """Forget every candidate of a flow that is gone."""
        gone = self.of_flow(flow)
        self.all = [local for local in self.all if local.flow != flow]
        return gone

    def retain(self, components: tuple[int, ...]) -> None:
        """Forget every candidate of a stream or component that there is not: `components` of each stream, in order."""
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
        """Equal for the same type, base address, server and transport, and no other (RFC 8445, section 5.1.1.3)."""
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
        return _foundation_text(self._foundations)


@lru_cache(maxsize=64)
def _foundation_text(number: int) -> str:
    return str(number)
