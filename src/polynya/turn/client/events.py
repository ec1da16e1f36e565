"""Events of a TURN client and of a search among servers."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.machine import IcmpKind
from polynya.stun.attributes import AddressError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Address and transport of a TURN server. Its TLS certificate must be issued for `name`."""

    address: Address
    transport: Transport = Transport.UDP
    name: str = ""

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name and self.name != self.address.host else ""
        return f"{self.address}{name} over {self.transport.value}"

    @property
    def uri(self) -> str:
        """The server as a URI (RFC 7065)."""
        where = f"{self.name}:{self.address.port}" if self.name else str(self.address)
        transport = "tcp" if self.transport.reliable else "udp"
        return f"turn{'s' if self.transport.secure else ''}:{where}?transport={transport}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerChosen:
    """The client talks to `server` by `flow` from now on: all packets from there, and no others, are for this client.

    It is the first event, and is emitted again after a redirection (300) and when another local port is tried.
    """

    flow: Flow
    server: ServerAddress
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """The server made the allocation: it relays datagrams that peers send to one of the `relayed` addresses."""

    relayed: tuple[Address, ...]
    """In the order of the requested families."""
    mapped: Address | None
    """The client's address as seen by the server."""
    lifetime: int
    """Seconds that the server granted; the client refreshes earlier."""
    flow: Flow
    server: ServerAddress
    refused: tuple[AddressError, ...] = ()
    """The requested families that the server did not allocate, each with the reason."""
    ignored: tuple[str, ...] = ()
    """Impossible addresses of the response, such as `0.0.0.0:0`, each with the reason."""
    reservation_token: bytes | None = None
    """Reserves the next higher port for 30 s; another client's configuration takes it."""
    dont_fragment: bool = False
    """Whether the server can send datagrams with DF set."""
    software: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationFailed:
    """The allocation failed for good. `code` is the STUN error code, None if no response arrived."""

    code: int | None
    reason: str
    server: ServerAddress | None
    """The server that failed, the last of several; None if the URI names no usable server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFailed:
    """One server of a search gave no allocation; the search continues with the others, if there are any."""

    server: ServerAddress
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsNeeded:
    """The server asks for credentials, or rejects the present ones.

    Requests wait for `set_credentials`. Without new credentials an existing allocation ends with its lifetime.
    """

    realm: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Permitted:
    """The server relays datagrams from and to these peers. Emitted once for each peer, not at every refresh."""

    peers: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionFailed:
    """The server refused permissions for these peers, or they could not be renewed."""

    peers: tuple[Address, ...]
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBound:
    """A channel to this peer is bound and carries its data. Emitted once, not at every refresh."""

    peer: Address
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFailed:
    """No channel to this peer could be bound or renewed; its data travels in Send indications."""

    peer: Address
    code: int | None
    reason: str


@dataclass(slots=True)
class RelayedData:
    """A peer's datagram that came through the relay. Treat it as immutable; it is not frozen for speed."""

    peer: Address
    data: bytes
    packet: int = 0
    """Id of the packet in the trace; 0 without a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUnreachable:
    """The relay received an ICMP error for a datagram to this peer (RFC 8656, section 11.5)."""

    peer: Address
    kind: IcmpKind
    type: int
    code: int
    mtu: int | None = None
    """For TOO_BIG: the largest IP packet, in bytes, that fits the path from the relay to the peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The allocation is lost, and its relayed addresses with it."""

    code: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """`close` is complete: the server has freed the allocation, or did not confirm it in time."""

    reason: str


TurnEvent = (
    ServerChosen | Allocated | AllocationFailed | ServerFailed | CredentialsNeeded | Permitted | PermissionFailed
    | ChannelBound | ChannelFailed | RelayedData | PeerUnreachable | Lost | Released
)  # fmt: skip
