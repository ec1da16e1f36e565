"""Configuration of a server, as objects. `settings` makes them from a file and flags."""

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

MAX_TOKEN = 512
"""Characters of a room token."""

LookUpUser = Callable[[str], Awaitable[User | None]]
"""Returns the user with a name, or None if there is none. An exception counts as None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """Options of the TURN part of a server. `users`, `shared_secrets` or `look_up` are required."""

    config: ServerConfig
    """Configuration of the TURN server. The server adds its own addresses to the peer policy."""
    users: tuple[User, ...] = ()
    shared_secrets: tuple[str, ...] = field(default=(), repr=False)
    """Secrets of time-limited credentials. All are accepted; signaling issues credentials with the first."""
    look_up: LookUpUser | None = None
    """Coroutine function that looks up users that are not in `users`."""
    workers: int = 0
    """Worker processes of the data plane; 0 runs it in the server's own process."""
    gather: float = 0.0
    """Seconds that the data plane waits for more packets after a wake-up: less CPU time, more delay."""
    credential_lifetime: int = 86_400
    """Seconds until credentials that signaling issues expire."""
    drain: float = 0.0
    """Seconds to keep existing allocations after the server was asked to stop."""
    alternates: tuple[Alternate, ...] = ()
    """Servers for new clients while this one drains: each client gets one of its transport and IP version."""

    def __post_init__(self) -> None:
        if not self.users and not self.shared_secrets and self.look_up is None:
            raise ConfigurationError("TURN has no users: set users, shared_secrets or look_up")
        if not 60 <= self.credential_lifetime <= 10 * 365 * 86_400:
            raise ConfigurationError(
                f"credential_lifetime must be 60 seconds to 10 years, not {self.credential_lifetime} seconds"
            )
        if not 0 <= self.workers <= 256:
            raise ConfigurationError(f"workers must be 0 to 256, not {self.workers}")
        if not 0 <= self.gather <= 0.1:
            raise ConfigurationError(f"gather must be 0 to 0.1 seconds, not {self.gather}")
        if not 0 <= self.drain <= 86_400:
            raise ConfigurationError(f"drain must be 0 to 86,400 seconds, not {self.drain}")
        self.directory()  # raises ConfigurationError before anything is opened

    def directory(self) -> Directory:
        """Return the directory of all users."""
        directories: list[Directory] = []
        if self.users:
            directories.append(StaticUsers(self.config.realm, self.users))
        if self.shared_secrets:
            directories.append(SharedSecrets(self.config.realm, self.shared_secrets))
        if self.look_up is not None:
            directories.append(ExternalUsers())  # last, as it answers for any name
        return directories[0] if len(directories) == 1 else Directories(directories)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A certificate with its chain, and its key, both PEM. A reload reads them again."""

    certificate: Path
    key: Path
    server_name: str = ""
    """The name in the certificate, for the URIs that signaling lists; by default the host that the client used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Configuration of a server. Port 0 takes any free port; `Server` has the actual addresses."""

    listen: tuple[Address, ...] = ()
    """Listeners for STUN over UDP and, with `turn`, for TURN over UDP and TCP."""
    tls_listen: tuple[Address, ...] = ()
    """Listeners for TURN over TLS."""
    http: tuple[Address, ...] = ()
    """Listeners for signaling and /healthz, without TLS: a proxy in front can add it."""
    admin: tuple[Address, ...] = ()
    """Listeners for /metrics, without TLS."""
    alternates: tuple[Address, ...] = ()
    """Alternate address and port for behavior discovery (RFC 5780), at most one of each family."""
    external_ips: Mapping[str, str] = field(default_factory=dict)
    """External address of each local one in `listen` and `alternates` behind a NAT, for behavior discovery."""
    turn: TurnOptions | None = None
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)
    room_tokens: tuple[str, ...] = field(default=(), repr=False)
    """Clients must show one of these to join a room or to get the server list; empty: rooms need none."""
    open_turn: bool = False
    """Whether signaling gives TURN credentials to any visitor although there is no room token."""
    origins: tuple[str, ...] = ()
    """Origins (`https://example.org`) whose web pages may use signaling, besides the server's own origin."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto headers are trusted."""
    metrics_token: str = field(default="", repr=False)
    """Bearer token for /metrics. Without one, only clients on this host can read it, and not through a proxy."""
    request_timeout: float = 10.0
    """Seconds from the opening of a connection, or its last response, to the end of the next response."""
    stop_timeout: float = 2.0
    """Seconds to wait until members have closed their connections when the server stops."""

    def __post_init__(self) -> None:
        if not self.listen and not self.tls_listen and not self.http:
            raise ConfigurationError("the server has no address to listen on: set listen, tls_listen or http")
        if self.tls_listen and self.turn is None:
            raise ConfigurationError("tls_listen needs TURN: set users or a shared secret, or remove tls_listen")
        if self.tls_listen and self.tls is None:
            raise ConfigurationError("tls_listen needs a certificate and its key")
        if self.turn is not None and not self.listen and not self.tls_listen:
            raise ConfigurationError("TURN has no address to listen on: set listen or tls_listen")
        if not all(0 < len(token) <= MAX_TOKEN for token in self.room_tokens):
            raise ConfigurationError(
                f"a room token has 1 to {MAX_TOKEN} characters; make one with: openssl rand -hex 16"
            )
        if self.room_tokens and self.open_turn:
            raise ConfigurationError("open_turn is for rooms without a token: remove one of open_turn and room_tokens")
        Discovery(self.listen, self.alternates, self.external_ips)  # raises ConfigurationError
        for seconds in (self.request_timeout, self.stop_timeout):
            if not 0 < seconds <= 3600:
                raise ConfigurationError(f"a timeout must be more than 0 and at most 3600 seconds, not {seconds}")
