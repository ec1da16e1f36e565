"""The commands of the control plane to a data plane, and the data plane's reports.

    control plane --- Command (numbered) ---> data plane
    control plane <-- Done or Refused ------- data plane      exactly one for each command, in any order
    control plane <-- other reports --------- data plane      unknown packets, counters, ICMP errors, lost relays

The control plane answers a client only after the data plane has acknowledged all commands of its request: the promise
of an answer holds when the client reads it. A command about a relay that is not open is Refused; FreeRelay is Done.

The data plane enforces expiry by itself: relays, permissions and channels end when the clock reaches their `until`.
Both planes use the same clock (CLOCK_BOOTTIME where the system has it).

A command or report is made for every request, so the classes are slotted dataclasses that are not frozen. Don't change
one after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Datagram, IcmpKind

from .meters import SharedLimit
from .policy import PeerPolicy


class Client(NamedTuple):
    """The client's 5-tuple: the flow on which the server receives (a listener or a stream) and the client's address."""

    flow: Flow
    remote: Address

    def __str__(self) -> str:
        return str(self.remote)


Peer = NewType("Peer", Address)
"""The transport address of a peer, as the client writes it."""

Relay = NewType("Relay", Address)
"""A relayed transport address as it is bound on this host. Clients get its external address, which may differ."""


# ------------------------------------------------------------------------------------------------------------ commands


@dataclass(slots=True, kw_only=True)
class OpenRelay:
    """Bind a relay port. Without a client the port is reserved: it forwards nothing until `AssignRelay`."""

    number: int
    relay: Relay
    external: Address
    """The address of the relay outside a NAT; equal to `relay` where there is none."""
    client: Client | None
    stream: bool = False
    """Whether the client's flow is a stream: ChannelData is padded there (RFC 8656, section 12.5)."""
    until: Instant
    bytes_per_second: int = 0
    """Rate limit for both directions together; 0 for no limit."""
    shared: SharedLimit | None = None
    """Limits for all relays of the account together, if it has any."""


@dataclass(slots=True, kw_only=True)
class AssignRelay:
    """Assign a reserved relay port to a client."""

    number: int
    relay: Relay
    client: Client
    stream: bool = False
    until: Instant
    bytes_per_second: int = 0
    shared: SharedLimit | None = None


@dataclass(slots=True, kw_only=True)
class FreeRelay:
    """Close a relay port with its permissions and channels. Its last `Traffic` is reported before `Done`."""

    number: int
    relay: Relay


@dataclass(slots=True, kw_only=True)
class SetExpiry:
    """Set the expiry of a relay to `until`."""

    number: int
    relay: Relay
    until: Instant


@dataclass(slots=True, kw_only=True)
class Permit:
    """Install or refresh permissions for these hosts until `until`: all of them or none."""

    number: int
    relay: Relay
    hosts: tuple[str, ...]
    until: Instant


@dataclass(slots=True, kw_only=True)
class Unpermit:
    """Remove permissions."""

    number: int
    relay: Relay
    hosts: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class BindChannel:
    """Bind a channel number to a peer until `until`. The permission needs a `Permit` of its own."""

    number: int
    relay: Relay
    channel: int
    peer: Peer
    until: Instant


@dataclass(slots=True, kw_only=True)
class UnbindChannel:
    """Remove a channel binding."""

    number: int
    relay: Relay
    channel: int


@dataclass(slots=True, kw_only=True)
class SetPolicy:
    """Replace the peer policy. Until the first `SetPolicy` a data plane forwards to no peer."""

    number: int
    policy: PeerPolicy


Command = OpenRelay | AssignRelay | FreeRelay | SetExpiry | Permit | Unpermit | BindChannel | UnbindChannel | SetPolicy


@dataclass(slots=True)
class Forward:
    """A frame from a client's stream, which the data plane handles as a datagram of that client. Not acknowledged."""

    client: Client
    data: bytes


# ------------------------------------------------------------------------------------------------------------- reports


@dataclass(slots=True)
class Done:
    """A command was carried out."""

    number: int


@dataclass(slots=True)
class Refused:
    """A command failed and changed nothing. `errno` is the system's error, if it reported one."""

    number: int
    reason: str
    errno: int | None = None


@dataclass(slots=True, kw_only=True)
class PeerError:
    """An ICMP error about a datagram to a permitted peer (RFC 8656, section 11.5)."""

    client: Client
    peer: Peer
    kind: IcmpKind
    mtu: int | None = None


@dataclass(slots=True, kw_only=True)
class Traffic:
    """Datagrams and payload bytes that a relay has carried since it was opened."""

    relay: Relay
    to_peers: int = 0
    bytes_to_peers: int = 0
    from_peers: int = 0
    bytes_from_peers: int = 0
    dropped: int = 0
    reasons: dict[str, int] = field(default_factory=dict, compare=False)
    """Dropped datagrams by reason; there are about ten reasons."""

    def drop(self, reason: str) -> None:
        """Count a dropped datagram."""
        self.dropped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerForbidden:
    """The peer policy denied a datagram to or from a peer; reported once for each relay."""

    relay: Relay
    peer: Peer
    rule: str


@dataclass(slots=True)
class RelayLost:
    """A relay port was closed without `FreeRelay`. The data plane has removed all its state."""

    relay: Relay
    reason: str


Report = Done | Refused | PeerError | PeerForbidden | Traffic | RelayLost | Datagram
"""A report of the data plane. A `Datagram` is a client's packet that the data plane doesn't handle."""
