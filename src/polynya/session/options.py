"""What a session is told to do: which servers, which addresses, which kinds of candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.empty import NOTHING
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import SECOND
from polynya.core.machine import Interface, InterfaceAddress
from polynya.ice.config import IceConfig
from polynya.stun.uris import StunUri, TurnUri

InterfaceFilter = Callable[[Interface], bool]
AddressFilter = Callable[[Interface, InterfaceAddress], bool]


class Policy(Enum):
    """Which candidates are offered and used (RFC 8828 calls them modes)."""

    ALL = "all"
    NO_HOST = "no-host"
    """Host addresses are told to nobody; they still serve as bases."""
    RELAY = "relay"
    """Only relayed candidates: the other side learns no address of this host."""


@dataclass(frozen=True, slots=True)
class TurnCredentials:
    """A TURN server and the credentials for it; without a user name it is asked without."""

    uri: TurnUri
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """The options of one session. Raises ConfigurationError for what cannot be."""

    ice: IceConfig
    stun_servers: tuple[StunUri, ...] = ()
    turn_servers: tuple[TurnCredentials, ...] = ()
    policy: Policy = Policy.ALL
    families: tuple[int, ...] = (IPV6, IPV4)
    """The address families to gather on, most preferred first: IPv6 as RFC 6724 and RFC 8421 have it."""
    interfaces: InterfaceFilter | None = None
    """Says whether an interface may be used; all may when it is None."""
    addresses: AddressFilter | None = None
    """Says whether one address of an interface may be used."""
    loopback: bool = False
    """Whether loopback addresses are gathered; they connect programs on one host and no others."""
    ports: tuple[int, int] | None = None
    """The lowest and highest local port that may be used; any port when it is None."""
    external: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    """Local host to external one, of NATs that map 1:1 with the same ports: candidates without asking a server."""
    addresses_per_interface: int = 3
    """How many IPv6 addresses of one interface are gathered (RFC 8421, section 4 asks to bound them)."""
    patience: int = 5 * SECOND
    """After this long without an answer from any server, gathering ends without it."""
    grace: int = 1 * SECOND
    """How much longer the others get once one server has answered."""
    keepalive: int = 15 * SECOND
    """Tr (RFC 8445, section 11): how often a server-reflexive mapping is kept open until a pair is nominated."""

    def __post_init__(self) -> None:
        if not self.families or any(family not in (IPV4, IPV6) for family in self.families):
            raise ConfigurationError(f"families are 4, 6 or both, not {self.families!r}")
        if self.ports is not None:
            low, high = self.ports
            if not 1 <= low <= high <= 65535:
                raise ConfigurationError(f"a port range is (LOW, HIGH) within 1..65535, not {self.ports!r}")
        if self.external:
            object.__setattr__(self, "external", {_host(old): _host(new) for old, new in self.external.items()})
        if min(self.patience, self.grace, self.keepalive) <= 0:
            raise ConfigurationError("patience, grace and keepalive are more than zero")


def _host(text: str) -> str:
    try:
        return Address.of(text, 0).host
    except DecodeError as error:
        raise ConfigurationError(f"external: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """A local address that was chosen to gather on."""

    address: Address
    """With port 0."""
    interface: str
    temporary: bool = False
    loopback: bool = False
    preference: int | None = None
    """Local preference of its candidates (RFC 8445, section 5.1.2.1); left out, the agent puts IPv6 first."""
    pinned: bool = True
    """Whether what is sent from it should leave by its interface, whatever other routes say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A socket that stands on a chosen address, for one component."""

    flow: Flow
    host: HostAddress
    local: Address
    stream: int = 0
    component: int = 1
    note: str = ""
    """What the socket could not be given."""
