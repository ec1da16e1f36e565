"""What a TURN client asks its owner to know."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.machine import IcmpKind
from polynya.stun.attributes import AddressError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """One address of a TURN server and how it is reached. `name` is what its TLS certificate must be for."""

    address: Address
    transport: Transport = Transport.UDP
    name: str = ""

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name and self.name != self.address.host else ""
        return f"{self.address}{name} over {self.transport.value}"

    @property
    def uri(self) -> str:
        """The very server as a URI (RFC 7065)."""
        where = f"{self.name}:{self.address.port}" if self.name else str(self.address)
        transport = "tcp" if self.transport.reliable else "udp"
        return f"turn{'s' if self.transport.secure else ''}:{where}?transport={transport}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerChosen:
    """From now on what comes by `flow` from `server.address` is for this client, and nothing else is.

    It comes first of all, and again when the server sends us to another one or another port is tried.
    """

    flow: Flow
    server: ServerAddress
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """The allocation stands: what a peer sends to one of `relayed` comes here."""

    relayed: tuple[Address, ...]
    """In the order of the families that were asked for."""
    mapped: Address | None
    """Our own address as the server sees it."""
    lifetime: int
    """Seconds until it is refreshed, at the latest."""
    flow: Flow
    server: ServerAddress
    refused: tuple[AddressError, ...] = ()
    """The families that were asked for and not given, with the reason."""
    reservation_token: bytes | None = None
    """Takes the next higher port, within 30 s, in the configuration of another client."""
    dont_fragment: bool = False
    """Whether the server can send datagrams with DF set."""
    software: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationFailed:
    """There will be no allocation. `code` is the STUN error, None where no answer came."""

    code: int | None
    reason: str
    server: ServerAddress | None
    """Which failed, the last of several; None where none was found to be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsNeeded:
    """The server wants credentials that we do not have, or no longer takes those that we have.

    What was asked waits for `set_credentials`; an allocation that stands ends at its time if none come.
    """

    realm: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Permitted:
    """What these peers send is let through, and ours to them. Told once for each, not at every refresh."""

    peers: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionFailed:
    """These peers are not permitted, or no longer."""

    peers: tuple[Address, ...]
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBound:
    """Data to and from this peer goes by a channel from now on. Told once, not at every refresh."""

    peer: Address
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFailed:
    """There is no channel to this peer, or no longer: its data goes by Send indications."""

    peer: Address
    code: int | None
    reason: str


@dataclass(slots=True)
class RelayedData:
    """A peer's datagram, through the relay. Made for each packet: leave it be."""

    peer: Address
    data: bytes
    packet: int = 0
    """The trace's id of the packet, 0 where packets are not followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUnreachable:
    """An ICMP error came back to the relay for a datagram to this peer (RFC 8656, section 11.5)."""

    peer: Address
    kind: IcmpKind
    type: int
    code: int
    mtu: int | None = None
    """For TOO_BIG: the largest IP packet, in bytes, that fits the relay's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The allocation stood and does no longer. Its relayed addresses are gone."""

    code: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """`close` has done its work: the server has freed the allocation, or did not say so in time."""

    reason: str


TurnEvent = (
    ServerChosen | Allocated | AllocationFailed | CredentialsNeeded | Permitted | PermissionFailed | ChannelBound
    | ChannelFailed | RelayedData | PeerUnreachable | Lost | Released
)  # fmt: skip
