"""What a server is told when it is started, in the objects that it works with; `settings` reads them from a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.signaling.limits import Limits
from polynya.turn.server.alternates import Alternate
from polynya.turn.server.config import ServerConfig
from polynya.turn.server.users import Directories, Directory, ExternalUsers, SharedSecrets, StaticUsers, User

from .discovery import Discovery

LookUpUser = Callable[[str], Awaitable[User | None]]
"""Given a user's name, answers with the user, or None for a stranger. What it raises counts as a stranger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """The TURN part of a server. Somebody must be able to use it: users, shared secrets, or a look-up."""

    config: ServerConfig
    """The peer policy in it need not name the server's own addresses: they are added when the server knows them."""
    users: tuple[User, ...] = ()
    shared_secrets: tuple[str, ...] = field(default=(), repr=False)
    """Any of them makes good credentials. Those that the signaling hands out are made with the first."""
    look_up: LookUpUser | None = None
    """Asked for users that are not known otherwise."""
    workers: int = 0
    """Processes of the data plane; 0: in the server's own."""
    gather: float = 0.0
    """Seconds that the data plane waits after a wake-up for more packets: cheaper, and so much later."""
    credential_lifetime: int = 86_400
    """Seconds for which the credentials are good that the signaling hands out."""
    drain: float = 0.0
    """Seconds that allocations get to end by themselves when the server is told to stop."""
    alternates: tuple[Alternate, ...] = ()
    """Servers that clients are sent to while this one drains, each by the transport and IP version that it came by."""

    def __post_init__(self) -> None:
        if not self.users and not self.shared_secrets and self.look_up is None:
            raise ConfigurationError("a TURN server that nobody can use: give users, a shared secret or a look-up")
        if not 60 <= self.credential_lifetime <= 10 * 365 * 86_400:
            raise ConfigurationError(
                f"the lifetime of credentials is at least 60 seconds, not {self.credential_lifetime}"
            )
        if not 0 <= self.workers <= 256:
            raise ConfigurationError(f"there are 0 to 256 workers, not {self.workers}")
        if not 0 <= self.gather <= 0.1:
            raise ConfigurationError(f"a data plane gathers packets for 0 to 0.1 seconds, not {self.gather}")
        if not 0 <= self.drain <= 86_400:
            raise ConfigurationError(f"a drain takes 0 to 86,400 seconds, not {self.drain}")
        self.directory()  # what cannot be is told before anything is opened

    def directory(self) -> Directory:
        """All who may use the server."""
        directories: list[Directory] = []
        if self.users:
            directories.append(StaticUsers(self.config.realm, self.users))
        if self.shared_secrets:
            directories.append(SharedSecrets(self.config.realm, self.shared_secrets))
        if self.look_up is not None:
            directories.append(ExternalUsers())  # last, for it answers about everybody
        return directories[0] if len(directories) == 1 else Directories(directories)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A certificate with its chain, and its key, both PEM. They are read again when the server reloads."""

    certificate: Path
    key: Path
    server_name: str = ""
    """The name in the certificate, which clients are told to come by; left out: the name by which they came here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Addresses to listen on and limits. Port 0 takes any free port; `Server` tells which."""

    listen: tuple[Address, ...] = ()
    """For STUN over UDP, and with `turn` for TURN over UDP and TCP."""
    tls_listen: tuple[Address, ...] = ()
    """For TURN over TLS."""
    http: tuple[Address, ...] = ()
    """For signaling, /healthz and /metrics, without TLS: put a proxy in front for that."""
    alternates: tuple[Address, ...] = ()
    """Another address and port, one for a family at most, from which STUN is answered for those who ask for that."""
    external_ips: Mapping[str, str] = field(default_factory=dict)
    """What addresses of `listen` and `alternates` are called outside a NAT; behavior discovery tells them."""
    turn: TurnOptions | None = None
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)
    origins: tuple[str, ...] = ()
    """Origins (`https://example.org`) whose web pages may use the signaling, besides pages of this server itself."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    metrics_token: str = field(default="", repr=False)
    """Who shows it may read /metrics; without one, only who comes from this host and through no proxy."""
    request_timeout: float = 10.0
    """Seconds from a connection's opening to its first whole request."""
    stop_timeout: float = 2.0
    """Seconds that members get to take their goodbye."""

    def __post_init__(self) -> None:
        if not self.listen and not self.tls_listen and not self.http:
            raise ConfigurationError("a server without an address to listen on: give listen, http or both")
        if self.tls_listen and self.turn is None:
            raise ConfigurationError("TLS is for TURN: give users or a shared secret, or leave tls_listen out")
        if self.tls_listen and self.tls is None:
            raise ConfigurationError("TLS needs a certificate and its key")
        if self.turn is not None and not self.listen and not self.tls_listen:
            raise ConfigurationError("a TURN server without an address to listen on: give listen or tls_listen")
        Discovery(self.listen, self.alternates, self.external_ips)  # what cannot be is told
        for seconds in (self.request_timeout, self.stop_timeout):
            if not 0 < seconds <= 3600:
                raise ConfigurationError(f"a timeout is more than 0 and at most 3600 seconds, not {seconds}")
