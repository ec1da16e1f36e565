"""Options of a session: its servers, local addresses and kinds of candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from polynya.core.addresses import IPV4, IPV6, Address, scope
from polynya.core.arguments import families, flag, shown, text
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND
from polynya.core.machine import Interface, InterfaceAddress
from polynya.ice.config import IceConfig
from polynya.stun.uris import StunUri, TurnUri

BLOCKED_UDP_WAIT: Final = 250 * MILLISECOND
"""The least time from the first request to servers over UDP until UDP counts as blocked."""

InterfaceFilter = Callable[[Interface], bool]
AddressFilter = Callable[[Interface, InterfaceAddress], bool]


class Policy(Enum):
    """The candidates that are signaled and used (RFC 8828 calls them modes)."""

    ALL = "all"
    NO_HOST = "no-host"
    """Host addresses are not signaled; they still serve as bases."""
    RELAY = "relay"
    """Relayed candidates only: the peer learns no address of this host."""


@dataclass(frozen=True, slots=True)
class TurnCredentials:
    """URI of a TURN server, and the credentials for it; without a user name requests are not signed."""

    uri: TurnUri
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Options of one session. Durations are nanoseconds. Raises ConfigurationError for invalid options."""

    ice: IceConfig
    stun_servers: tuple[StunUri, ...] = ()
    turn_servers: tuple[TurnCredentials, ...] = ()
    policy: Policy = Policy.ALL
    families: tuple[int, ...] = (IPV6, IPV4)
    """The address families to gather on, most preferred first; IPv6 first as in RFC 6724 and RFC 8421."""
    interfaces: InterfaceFilter | None = None
    """Returns whether an interface may be used; None allows all."""
    addresses: AddressFilter | None = None
    """Returns whether an address of an interface may be used; None allows all."""
    loopback: bool = False
    """Whether to gather loopback addresses, which connect programs on one host only."""
    ports: tuple[int, int] | None = None
    """The lowest and highest local port to use; None allows all."""
    external: Mapping[str, str] = field(default_factory=dict, hash=False)
    """External host by local host, for 1:1 NATs that keep the ports: candidates without asking a server."""
    addresses_per_interface: int = 3
    """Limit of IPv6 addresses of one interface (RFC 8421, section 4)."""
    patience: int = 5 * SECOND
    """Gathering ends after this time without an answer of any server."""
    grace: int = 1 * SECOND
    """Time for the other servers after the first answer."""
    blocked_udp: bool = True
    """Whether gathering ends early if a relay over TCP or TLS stands and no server has answered over UDP.

    Each is asked again in new transactions. The wait is twice the round trip of the stream, and at least
    `BLOCKED_UDP_WAIT` in all.
    """
    keepalive: int = 15 * SECOND
    """Tr (RFC 8445, section 11): interval of keepalives for mappings until a pair is nominated."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", families(self.families))
        if self.ports is not None:
            _check_ports(self.ports)
        flag("loopback", self.loopback)
        if self.external or not isinstance(self.external, Mapping):
            object.__setattr__(self, "external", _external(self.external))
        if min(self.patience, self.grace, self.keepalive) <= 0:
            raise ConfigurationError("patience, grace and keepalive must be more than zero")


def _check_ports(ports: object) -> None:
    if isinstance(ports, list) and len(ports) == 2:
        raise ConfigurationError(f"ports is a pair: write ports=({ports[0]!r}, {ports[1]!r})")
    if type(ports) is int:
        raise ConfigurationError(f"ports is a pair: write ports=({ports}, {ports}) for this port only")
    numbers = isinstance(ports, tuple) and len(ports) == 2 and all(type(each) is int for each in ports)
    if not numbers or not 1 <= ports[0] <= ports[1] <= 65535:  # type: ignore[index]
        raise ConfigurationError(f"ports must be (LOW, HIGH) within 1..65535, not {shown(ports)}")


def _external(hosts: Mapping[str, str]) -> dict[str, str]:
    """Returns the canonical hosts of `nat_1to1`, of which two of a kind and an impossible one are refused."""
    if not isinstance(hosts, Mapping):
        raise ConfigurationError(f'nat_1to1 is a dictionary, {{"LOCAL": "EXTERNAL"}}, not {shown(hosts)}')
    external = {}
    for old, new in hosts.items():
        local, seen = _host(old), _host(new)
        if (":" in local) != (":" in seen):
            raise ConfigurationError(f"nat_1to1: {local} and {seen} are not of the same IP version")
        external[local] = seen
    return external


def _host(host: str) -> str:
    try:
        address = Address.of(text("an address of nat_1to1", host), 0)
    except DecodeError as error:
        raise ConfigurationError(f"nat_1to1: {error}") from None
    if scope(address.host) in ("unspecified", "multicast"):
        raise ConfigurationError(f"nat_1to1: {address.host} is {scope(address.host)}, no address of a host")
    return address.host


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """A local address that is gathered on."""

    address: Address
    """With port 0."""
    interface: str
    temporary: bool = False
    loopback: bool = False
    preference: int | None = None
    """Local preference of its candidates (RFC 8445, section 5.1.2.1); None prefers IPv6."""
    pinned: bool = True
    """Whether packets from it are bound to its interface, independent of routes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An open socket on a local address, for one component."""

    flow: Flow
    host: HostAddress
    local: Address
    stream: int = 0
    component: int = 1
    note: str = ""
    """Options that the socket could not get."""
