"""The contract of every protocol machine: what comes in, what goes out, and when.

A machine holds state. It does no I/O, reads no clock and draws no randomness of its own. Its owner feeds it inputs and
the time; after *any* call it drains the machine once: first `outputs` (what the shell must do), then `events` (what the
user should know). A child never holds its parent, and nothing calls back.

    receive(input, now)   something happened outside
    tick(now)             do what is due; safe to call early, late or twice
    next_timer()          when something is due; changes nothing
    outputs(), events()   drained by the call, oldest first

`receive` never raises on what came from the network: it drops it, counts it and says why in the trace. It raises only
for a programming error of the caller.

Datagrams and sends are made once for each packet, so they are plain slotted dataclasses: build them and leave them be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from .addresses import Address
from .flows import Flow, Transport
from .instants import Instant

# ---------------------------------------------------------------------------------------------------- what IP offers


class Ecn(Enum):
    """The two ECN bits of the IP header (RFC 3168, section 5)."""

    NOT_ECT = 0
    ECT_1 = 1
    ECT_0 = 2
    CE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class IpFields:
    """What a datagram may carry besides its addresses. None leaves a field to the system, or says it is not known."""

    ecn: Ecn | None = None
    dscp: int | None = None
    """0..63 (RFC 2474)."""
    dont_fragment: bool | None = None
    segment_size: int | None = None
    """Bytes of each datagram when `data` holds several of one size (UDP GSO and GRO); the last may be shorter."""
    ttl: int | None = None

    def __post_init__(self) -> None:
        if self.dscp is not None and not 0 <= self.dscp <= 63:
            raise ValueError(f"a DSCP is within 0..63, not {self.dscp}")
        if self.segment_size is not None and self.segment_size < 1:
            raise ValueError(f"a segment has at least one byte, not {self.segment_size}")
        if self.ttl is not None and not 1 <= self.ttl <= 255:
            raise ValueError(f"a TTL is within 1..255, not {self.ttl}")


# ------------------------------------------------------------------------------------------------------------- inputs


@dataclass(slots=True)
class Datagram:
    """A datagram arrived."""

    flow: Flow
    remote: Address
    data: bytes
    ip: IpFields | None = None
    packet: int = 0
    """The trace's id of this packet, 0 where packets are not followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An `Open` was carried out, or (with `listener`) a stream was accepted on a listening flow."""

    flow: Flow
    local: Address
    remote: Address | None = None
    listener: Flow | None = None
    alpn: str | None = None
    note: str = ""
    """What could not be had as it was asked for, though the flow can be used."""


@dataclass(slots=True)
class StreamData:
    """Bytes arrived on a stream, in order, cut anywhere."""

    flow: Flow
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A flow is gone, or an `Open` failed: nothing more comes from it and it must not be used again.

    `errno` is the system's, where there is one. `reason` is for people.
    """

    flow: Flow
    reason: str
    errno: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFailed:
    """The system refused a datagram; `errno` says why. Nothing is assumed about the next one."""

    flow: Flow
    remote: Address
    errno: int


class IcmpKind(Enum):
    """What an ICMP or ICMPv6 error means to a transport (RFC 1122, section 4.2.3.9; RFC 4443, section 3)."""

    PORT_UNREACHABLE = "port unreachable"
    HOST_UNREACHABLE = "host unreachable"
    NET_UNREACHABLE = "network unreachable"
    PROHIBITED = "administratively prohibited"
    TOO_BIG = "packet too big"
    TTL_EXCEEDED = "time to live exceeded"
    OTHER = "other error"

    @property
    def hard(self) -> bool:
        """Whether it ends a transaction (RFC 8489, section 6.2.1): the others may pass."""
        return self is IcmpKind.PORT_UNREACHABLE or self is IcmpKind.PROHIBITED


@dataclass(frozen=True, slots=True, kw_only=True)
class IcmpError:
    """An ICMP error came back for a datagram that left by `flow` to `remote`."""

    flow: Flow
    remote: Address
    kind: IcmpKind
    origin: str | None = None
    """The host that sent the error, where it is known."""
    mtu: int | None = None
    """For TOO_BIG: the largest IP packet, in bytes, that fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A `Resolve` was answered. `error` is for people and empty on success; `hosts` keeps the resolver's order."""

    query: Resolve
    hosts: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """One address of an interface, with what RFC 8445 (5.1.1) and RFC 6724 need to know of it."""

    host: str
    prefix_length: int
    temporary: bool = False
    deprecated: bool = False
    tentative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface that is up."""

    name: str
    index: int
    addresses: tuple[InterfaceAddress, ...]
    mtu: int = 1500
    loopback: bool = False
    point_to_point: bool = False
    dead_end: bool = False
    """Nothing leaves by it (Linux' dummy and its like): packets from its addresses take another interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacesChanged:
    """The interfaces of this host as they are now: the first list, or a new one after a change."""

    interfaces: tuple[Interface, ...]


Input = (
    Datagram | Opened | StreamData | Closed | SendFailed | IcmpError | Resolved | InterfacesChanged
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ outputs


@dataclass(slots=True)
class Send:
    """Send this datagram now, or (on a stream, where `remote` is the stream's) these bytes."""

    flow: Flow
    remote: Address
    data: bytes
    ip: IpFields | None = None
    packet: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Make a socket or a stream and answer with `Opened` or `Closed` for this flow.

    UDP: bind to `local`; port 0 takes any port, or any free one of `ports` (low, high, inclusive). `interface` pins the
    socket where the system can. TCP and TLS: connect to `remote`, or listen on `local` when `remote` is None.
    """

    flow: Flow
    transport: Transport
    local: Address | None = None
    remote: Address | None = None
    ports: tuple[int, int] | None = None
    interface: str | None = None
    server_name: str | None = None
    """The name that a TLS certificate must be for."""
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Close this flow. No `Closed` follows: whoever closes knows."""

    flow: Flow


class RecordType(Enum):
    """What a name is looked up for."""

    ADDRESS = "A/AAAA"
    SRV = "SRV"
    NAPTR = "NAPTR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolve:
    """Look a name up and answer with `Resolved`. `token` tells two equal queries apart."""

    name: str
    record: RecordType = RecordType.ADDRESS
    token: int = 0


Output = Send | Open | Close | Resolve


# ------------------------------------------------------------------------------------------------------------ machine

InputT = TypeVar("InputT", contravariant=True)
OutputT = TypeVar("OutputT")
EventT = TypeVar("EventT")


class Machine(Protocol[InputT, OutputT, EventT]):
    """The calls that a shell or a simulated network makes. Each is safe to make early, late or twice."""

    def receive(self, input: InputT, *, now: Instant) -> None:
        """Take in what happened outside. Never raises on bytes from the network."""

    def tick(self, *, now: Instant) -> None:
        """Do what is due at `now`."""

    def next_timer(self) -> Instant | None:
        """When `tick` has something to do; None while nothing is waited for. Changes nothing."""

    def outputs(self) -> list[OutputT]:
        """What the shell must do, oldest first; drained by the call."""

    def events(self) -> list[EventT]:
        """What the user should know, oldest first; drained by the call."""


Counters = Mapping[str, int]
"""What a machine counted, by a name that is its own and never the user's."""
