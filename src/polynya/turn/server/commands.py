"""What the control plane tells a data plane, and what a data plane tells back.

    control plane --- Command (numbered) ---> data plane
    control plane <-- Done or Refused ------- data plane      exactly one for each command, in any order
    control plane <-- everything else ------- data plane      what it does not know, counters, ICMP errors, losses

A client is answered only after the commands that its request led to were acknowledged: what an answer promises holds
when it is read. A command about a relay that is not open is Refused, but for FreeRelay, which is Done.

The data plane enforces expiry by itself: what has `until` is over when the clock reads `until`. The control plane's and
the plane's clock are one (CLOCK_BOOTTIME where there is one).

Both are made for every request, so they are plain slotted dataclasses: build them and leave them be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Datagram, IcmpKind, Send

from .policy import PeerPolicy


class Client(NamedTuple):
    """The client's 5-tuple: the flow of ours that it sends to (a listener, or its stream) and its own address."""

    flow: Flow
    remote: Address

    def __str__(self) -> str:
        return str(self.remote)


Peer = NewType("Peer", Address)
"""A transport address that a client talks to through us, as the client writes it."""

Relay = NewType("Relay", Address)
"""A relayed transport address as it is bound on this host. What clients are told may be its external address."""


# ------------------------------------------------------------------------------------------------------------ commands


@dataclass(slots=True, kw_only=True)
class OpenRelay:
    """Bind a relay port. Without a client it is only held: nothing is forwarded until `AssignRelay`."""

    number: int
    relay: Relay
    external: Address
    """What the relay is called outside; equal to `relay` where nothing translates."""
    client: Client | None
    stream: bool = False
    """Whether the client's flow is a stream: then ChannelData is padded (RFC 8656, section 12.5)."""
    until: Instant
    bytes_per_second: int = 0
    """In both directions together; 0 for no limit."""


@dataclass(slots=True, kw_only=True)
class AssignRelay:
    """Give a held relay port to a client."""

    number: int
    relay: Relay
    client: Client
    stream: bool = False
    until: Instant
    bytes_per_second: int = 0


@dataclass(slots=True, kw_only=True)
class FreeRelay:
    """Close a relay port with all its permissions and channels. Its last `Traffic` comes before `Done`."""

    number: int
    relay: Relay


@dataclass(slots=True, kw_only=True)
class SetExpiry:
    """The allocation of a relay now ends at `until`."""

    number: int
    relay: Relay
    until: Instant


@dataclass(slots=True, kw_only=True)
class Permit:
    """Let these hosts and the client reach each other until then. All of them or none."""

    number: int
    relay: Relay
    hosts: tuple[str, ...]
    until: Instant


@dataclass(slots=True, kw_only=True)
class Unpermit:
    """Take permissions back."""

    number: int
    relay: Relay
    hosts: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class BindChannel:
    """Let a channel number stand for a peer until then; its permission is a command of its own."""

    number: int
    relay: Relay
    channel: int
    peer: Peer
    until: Instant


@dataclass(slots=True, kw_only=True)
class UnbindChannel:
    """Take a channel back."""

    number: int
    relay: Relay
    channel: int


@dataclass(slots=True, kw_only=True)
class SetPolicy:
    """From now on ask these rules of every peer. Before the first of these a plane reaches no peer at all."""

    number: int
    policy: PeerPolicy


Command = OpenRelay | AssignRelay | FreeRelay | SetExpiry | Permit | Unpermit | BindChannel | UnbindChannel | SetPolicy


@dataclass(slots=True)
class Forward:
    """A frame that came on a client's stream, for the plane to treat as that client's datagram. Not acknowledged."""

    client: Client
    data: bytes


# ------------------------------------------------------------------------------------------------------------- reports


@dataclass(slots=True)
class Done:
    """A command was carried out."""

    number: int


@dataclass(slots=True)
class Refused:
    """A command was not carried out, and changed nothing. `errno` is the system's, where there is one."""

    number: int
    reason: str
    errno: int | None = None


@dataclass(slots=True, kw_only=True)
class PeerError:
    """An ICMP error came back for what was sent to a peer that is permitted (RFC 8656, section 11.5)."""

    client: Client
    peer: Peer
    kind: IcmpKind
    mtu: int | None = None


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What a relay carried since it was opened: datagrams and payload bytes."""

    relay: Relay
    to_peers: int = 0
    bytes_to_peers: int = 0
    from_peers: int = 0
    bytes_from_peers: int = 0
    dropped: int = 0
    reasons: dict[str, int] = field(default_factory=dict, compare=False)
    """What was dropped, by why; there are about ten reasons."""

    def drop(self, reason: str) -> None:
        """Count a datagram that was not let through."""
        self.dropped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerForbidden:
    """The rules forbid what a relay was to carry; told the first time for each relay."""

    relay: Relay
    peer: Peer
    rule: str


@dataclass(slots=True)
class RelayLost:
    """A relay port is gone although nobody freed it. Nothing of it is left in the plane."""

    relay: Relay
    reason: str


Report = Done | Refused | PeerError | PeerForbidden | Traffic | RelayLost | Datagram | Send
"""A `Datagram` is one that a client sent and the plane does not know what to do with. A `Send` is a frame for a client
on a stream, from a plane that has no streams; the reference forwarder gives it as an output."""
