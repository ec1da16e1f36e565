"""The contract of protocol machines: their inputs, outputs, timers and events.

A machine holds state. It does no I/O, reads no clock and has no randomness of its own. Its owner passes it inputs and
the time. After *any* call the owner drains the machine once: first `outputs` (actions for the shell), then `events`
(news for the user). A machine has no reference to its owner and calls no callbacks.

    receive(input, now=)  handle an input
    tick(now=)            handle the timers that are due; safe to call early, late or twice
    next_timer()          the time of the next timer; changes nothing
    outputs(), events()   drained by the call, oldest first

`receive` never raises for input from the network: invalid input is dropped, counted and traced with the reason. It
raises only for programming errors of the caller.

`Datagram` and `Send` are created for each packet and therefore are not frozen; do not change them after creation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from .addresses import Address
from .flows import Flow, Transport
from .instants import Instant

# ------------------------------------------------------------------------------------------------------------ IP fields


class Ecn(Enum):
    """The two ECN bits of the IP header (RFC 3168, section 5)."""

    NOT_ECT = 0
    ECT_1 = 1
    ECT_0 = 2
    CE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class IpFields:
    """The IP header fields of a datagram. None leaves a field to the system, or means that it is not known."""

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
    """The id of this packet in the trace; 0 if packets are not traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A flow is open: the result of an `Open`, or (with `listener`) a stream that a listener accepted."""

    flow: Flow
    local: Address
    remote: Address | None = None
    listener: Flow | None = None
    alpn: str | None = None
    note: str = ""
    """The part of the request that the system could not fulfill; empty if there is none."""


@dataclass(slots=True)
class StreamData:
    """Bytes arrived on a stream, in order; message boundaries are not kept."""

    flow: Flow
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A flow closed, or an `Open` failed. The flow has no further input and must not be used again.

    `errno` is the system's error number, if there is one. `reason` is for people.
    """

    flow: Flow
    reason: str
    errno: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFailed:
    """The system refused data; `errno` says why. The next `Send` may succeed."""

    flow: Flow
    remote: Address
    errno: int


class IcmpKind(Enum):
    """The kinds of ICMP and ICMPv6 errors (RFC 1122, section 4.2.3.9; RFC 4443, section 3)."""

    PORT_UNREACHABLE = "port unreachable"
    HOST_UNREACHABLE = "host unreachable"
    NET_UNREACHABLE = "network unreachable"
    PROHIBITED = "administratively prohibited"
    TOO_BIG = "packet too big"
    TTL_EXCEEDED = "time to live exceeded"
    OTHER = "other error"

    @property
    def hard(self) -> bool:
        """Whether the error ends a transaction (RFC 8489, section 6.2.1); other errors may be temporary."""
        return self is IcmpKind.PORT_UNREACHABLE or self is IcmpKind.PROHIBITED


@dataclass(frozen=True, slots=True, kw_only=True)
class IcmpError:
    """An ICMP error arrived for a datagram that was sent on `flow` to `remote`."""

    flow: Flow
    remote: Address
    kind: IcmpKind
    origin: str | None = None
    """The host that sent the error, if it is known."""
    mtu: int | None = None
    """For TOO_BIG: the largest IP packet, in bytes, that fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The answer to a `Resolve`. `hosts` has the resolver's order; `error` is for people and empty on success."""

    query: Resolve
    hosts: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address of an interface, with the flags that RFC 8445 (5.1.1) and RFC 6724 use."""

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
    """No packet leaves by this interface (such as Linux' dummy): packets from its addresses use another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacesChanged:
    """The present interfaces of this host: the first list, or a new one after a change."""

    interfaces: tuple[Interface, ...]


Input = (
    Datagram | Opened | StreamData | Closed | SendFailed | IcmpError | Resolved | InterfacesChanged
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ outputs


@dataclass(slots=True)
class Send:
    """Send a datagram to `remote`, or bytes on a stream, whose remote address is then `remote`."""

    flow: Flow
    remote: Address
    data: bytes
    ip: IpFields | None = None
    packet: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Open a socket, stream or listener; the answer is `Opened` or `Closed` for this flow.

    UDP: bind to `local`. Port 0 stands for any port, or for any free port of `ports` (low, high, inclusive). With
    `interface`, packets leave by that interface if the system supports it.

    TCP and TLS: connect to `remote`, or listen on `local` if `remote` is None.
    """

    flow: Flow
    transport: Transport
    local: Address | None = None
    remote: Address | None = None
    ports: tuple[int, int] | None = None
    interface: str | None = None
    server_name: str | None = None
    """The name that the TLS certificate must have."""
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Close a flow. No `Closed` follows."""

    flow: Flow


class RecordType(Enum):
    """The type of a look-up."""

    ADDRESS = "A/AAAA"
    SRV = "SRV"
    NAPTR = "NAPTR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolve:
    """Look up a name; the answer is `Resolved`. `token` distinguishes equal queries."""

    name: str
    record: RecordType = RecordType.ADDRESS
    token: int = 0
    by_peer: bool = False
    """Whether the other side chose the name: many slow look-ups of it must not delay others."""


Output = Send | Open | Close | Resolve


# ------------------------------------------------------------------------------------------------------------ machine

InputT = TypeVar("InputT", contravariant=True)
OutputT = TypeVar("OutputT")
EventT = TypeVar("EventT")


class Machine(Protocol[InputT, OutputT, EventT]):
    """The methods that a shell or a simulated network calls."""

    def receive(self, input: InputT, *, now: Instant) -> None:
        """Handle an input. Never raises for bytes from the network."""

    def tick(self, *, now: Instant) -> None:
        """Handle the timers that are due at `now`. Safe to call early, late or twice."""

    def next_timer(self) -> Instant | None:
        """Return the time of the next timer, or None. Changes nothing."""

    def outputs(self) -> list[OutputT]:
        """Remove and return the outputs, oldest first."""

    def events(self) -> list[EventT]:
        """Remove and return the events, oldest first."""


Counters = Mapping[str, int]
"""The counters of a machine by name. Names are constants of the machine and contain no user data."""
