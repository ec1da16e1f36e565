"""The keys of the configuration file, each with its description. Times are in seconds, sizes in bytes; 0 is no limit.

The reference page of the documentation and `--print-config` are generated from these descriptions.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from polynya.signaling.limits import Limits as SignalingDefaults
from polynya.turn.server.config import Limits as TurnDefaults

_SECOND: Final = 1_000_000_000
_turn: Final = TurnDefaults()
_rooms: Final = SignalingDefaults()

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


def _about(text: str) -> Meta:
    return Meta(description=text)


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The certificate of `tls_listen`, read again on SIGHUP."""

    certificate: Annotated[str, _about("PEM file with the certificate and its chain.")] = ""
    key: Annotated[str, _about("PEM file with the key, without a passphrase.")] = ""
    server_name: Annotated[
        str, _about("Host name for the TLS URIs that signaling lists; by default the host that the client used.")
    ] = ""


class User(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TURN user with a password, or with keys from `polynya serve --hash-user`."""

    name: Annotated[str, _about("The user's name.")]
    password: Annotated[str, _about("The password in clear text; keys are safer.")] = ""
    keys: Annotated[tuple[str, ...], _about("MD5 and SHA-256 of NAME:REALM:PASSWORD in hexadecimal, one or both.")] = ()
    max_allocations: Annotated[Count | None, _about("Overrides turn.limits.allocations_per_user; 0 is no limit.")] = (
        None
    )


class Peers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peers that clients may reach. By default only publicly routed addresses are allowed. The longest rule wins."""

    allow: Annotated[tuple[str, ...], _about("ADDRESS, ADDRESS/LENGTH or ADDRESS:PORT to allow.")] = ()
    deny: Annotated[tuple[str, ...], _about("ADDRESS, ADDRESS/LENGTH or ADDRESS:PORT to deny.")] = ()


class TurnLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TURN limits for each user, for each client address and in total. An address is an IPv4 host or an IPv6 /64."""

    allocations: Annotated[Count, _about("Allocations in total.")] = _turn.allocations
    allocations_per_user: Annotated[
        Count, _about("Allocations of each user; with time-limited credentials, of each client.")
    ] = _turn.allocations_per_user
    allocations_per_address: Annotated[Count, _about("Allocations of each client address.")] = (
        _turn.allocations_per_address
    )
    permissions: Annotated[Count, _about("Permissions of each allocation.")] = _turn.permissions
    channels: Annotated[
        Count, _about("Channels of each allocation, including expired ones that cannot be bound again yet.")
    ] = _turn.channels
    peers_per_request: Annotated[Count, _about("Peer addresses in one CreatePermission request.")] = (
        _turn.peers_per_request
    )
    bytes_per_second: Annotated[
        Count, _about("Bytes per second of each relayed address, in both directions, including headers.")
    ] = _turn.bytes_per_second
    open_bytes_per_second: Annotated[
        Count,
        _about("Bytes per second of each source whose credentials come from open_turn, over all of its relays."),
    ] = _turn.open_bytes_per_second
    open_bytes_per_hour: Annotated[
        Count, _about("Bytes per hour of each such source. With workers, each has its part of both limits.")
    ] = _turn.open_bytes_per_hour
    requests_per_second: Annotated[
        Count, _about("Requests per second of each client address; further requests are dropped.")
    ] = _turn.requests_per_second
    unauthenticated_answers_per_second: Annotated[
        Count, _about("Unauthenticated answers per second to each address, as the source address may be forged.")
    ] = _turn.unauthenticated_answers_per_second
    unauthenticated_burst: Annotated[Count, _about("Unauthenticated answers to each address at once.")] = (
        _turn.unauthenticated_burst
    )
    streams: Annotated[Count, _about("TCP and TLS connections in total.")] = _turn.streams
    streams_per_address: Annotated[Count, _about("TCP and TLS connections of each client address.")] = (
        _turn.streams_per_address
    )
    stream_patience: Annotated[Seconds, _about("Seconds for which a connection without an allocation stays open.")] = (
        _turn.stream_patience / _SECOND
    )
    pending_lookups: Annotated[Count, _about("Requests that may wait for users_database.")] = _turn.pending_lookups
    lookup_patience: Annotated[Seconds, _about("Seconds for which a request waits for users_database.")] = (
        _turn.lookup_patience / _SECOND
    )


class Stun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """STUN is served on every `listen` address. With an alternate, so is NAT behavior discovery (RFC 5780)."""

    alternates: Annotated[
        tuple[str, ...],
        _about(
            "ADDR:PORT, one for each IP version: another address of this host, and another port than in listen. "
            "With just another port, clients can discover less."
        ),
    ] = ()
    external_ips: Annotated[
        tuple[str, ...], _about("EXTERNAL/ADDR: external address of a listener with an alternate, behind a NAT.")
    ] = ()


class Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TURN is enabled if it has users, in this file, in `users_file` or `users_database`, or a shared secret."""

    realm: Annotated[str, _about("Realm of the users, which the server sends to clients.")] = "polynya"
    users_file: Annotated[str, _about("File with one user on each line, as `polynya serve --hash-user` prints it.")] = (
        ""
    )
    users_database: Annotated[str, _about("SQLite database with a table turn_users.")] = ""
    shared_secrets: Annotated[
        tuple[str, ...],
        _about("Secrets of time-limited credentials. All are accepted; signaling issues credentials with the first."),
    ] = ()
    shared_secrets_file: Annotated[
        str,
        _about("File with more of them, one on each line; read again on SIGHUP. Lines that begin with # are comments."),
    ] = ""
    workers: Annotated[Count, _about("Worker processes that relay; 0 relays in the server's own process.")] = 0
    gather: Annotated[
        Seconds,
        _about(
            "Seconds to wait for more packets after a wake-up, 0 to 0.1: less CPU time at low load, more delay. "
            "Without workers it is rounded up to milliseconds."
        ),
    ] = 0
    credential_lifetime: Annotated[int, _about("Seconds until credentials that signaling issues expire.")] = 86_400
    refuse_expired_refresh: Annotated[
        bool, _about("Whether an allocation with expired time-limited credentials ends at its next refresh.")
    ] = False
    relay_ips: Annotated[
        tuple[str, ...],
        _about("Addresses of this host to relay on; by default those in listen, or that of the default route."),
    ] = ()
    external_ips: Annotated[
        tuple[str, ...], _about("EXTERNAL or EXTERNAL/RELAY: external address of a relay address, behind a NAT.")
    ] = ()
    ports: Annotated[str, _about("LOW-HIGH: range of the relay ports.")] = "49152-65535"
    port_rest: Annotated[Seconds, _about("Seconds for which a released relay port is not used again.")] = 2
    channel_range: Annotated[
        Literal["rfc8656", "rfc5766"],
        _about("Channel numbers; rfc5766 allows 0x4000 to 0x7FFF, as old clients use them, rfc8656 only up to 0x4FFF."),
    ] = "rfc5766"
    algorithms: Annotated[
        tuple[Literal["sha256", "md5"], ...],
        _about("Password algorithms in the order in which they are offered; old clients support md5 only."),
    ] = ("sha256", "md5")
    default_lifetime: Annotated[
        Seconds, _about("Seconds; lifetime of an allocation if the client requests less or none.")
    ] = 600
    max_lifetime: Annotated[Seconds, _about("Seconds; the longest lifetime that a client can request.")] = 3600
    nonce_lifetime: Annotated[Seconds, _about("Seconds; lifetime of a nonce, at most 3600.")] = 600
    drain: Annotated[
        Seconds, _about("Seconds to keep existing allocations after SIGTERM. A second SIGTERM ends them.")
    ] = 0
    alternates: Annotated[
        tuple[str, ...],
        _about(
            "[udp:|tcp:|tls:]ADDR:PORT of servers for new clients while this one drains. Each client gets one of its "
            "transport and IP version. Without a transport, an entry is for UDP and TCP."
        ),
    ] = ()
    peers: Peers = Peers()
    limits: TurnLimits = TurnLimits()
    users: tuple[User, ...] = ()


class SignalingLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of signaling: messages, members, rooms, connections and timeouts."""

    message_bytes: Annotated[int, _about("Bytes of one message.")] = _rooms.message_bytes
    messages_per_second: Annotated[int, _about("Messages per second of each client.")] = _rooms.messages_per_second
    burst: Annotated[int, _about("Messages of each client at once after a silence.")] = _rooms.burst
    bytes_per_second: Annotated[int, _about("Bytes per second of each client.")] = _rooms.bytes_per_second
    bytes_burst: Annotated[int, _about("Bytes of each client at once after a silence.")] = _rooms.bytes_burst
    server_lists: Annotated[
        int, _about("Server lists that a client may request at once; one more is granted every 10 seconds.")
    ] = _rooms.server_lists
    offenses: Annotated[
        int, _about("Refused messages before a client is disconnected; one is forgiven every 10 seconds.")
    ] = _rooms.offenses
    room_members: Annotated[int, _about("Members of one room, at most 256.")] = _rooms.room_members
    rooms: Annotated[int, _about("Rooms in total.")] = _rooms.rooms
    links: Annotated[int, _about("Connections in total.")] = _rooms.links
    links_per_host: Annotated[int, _about("Connections of each host.")] = _rooms.links_per_host
    join_timeout: Annotated[int, _about("Seconds from the opening of a connection to its join.")] = _rooms.join_timeout
    idle_timeout: Annotated[int, _about("Seconds of silence after which a member is disconnected.")] = (
        _rooms.idle_timeout
    )
    room_timeout: Annotated[int, _about("Seconds without a join or a signal after which a room is closed.")] = (
        _rooms.room_timeout
    )
    silence_timeout: Annotated[
        int, _about("Seconds in which the members of a full room answer a ping when a newcomer waits.")
    ] = _rooms.silence_timeout
    resume_timeout: Annotated[
        int, _about("Seconds for which the place of a member with a broken connection is kept.")
    ] = _rooms.resume_timeout
    away_messages: Annotated[int, _about("Messages that are kept for such a member.")] = _rooms.away_messages
    away_bytes: Annotated[int, _about("Bytes of the messages that are kept for such a member.")] = _rooms.away_bytes
    away_bytes_in_all: Annotated[int, _about("Bytes of the messages that are kept for all such members.")] = (
        _rooms.away_bytes_in_all
    )


class Signaling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signaling is served on every `http` address."""

    room_tokens: Annotated[
        tuple[str, ...],
        _about(
            "Tokens of which a client must show one to join a room and to get TURN credentials. "
            "Several tokens are valid at once, so that one can be replaced."
        ),
    ] = ()
    room_tokens_file: Annotated[str, _about("File with room tokens, one on each line, in addition to room_tokens.")] = (
        ""
    )
    open_turn: Annotated[
        bool,
        _about(
            "Give TURN credentials to any visitor, without a room token: for one hour, with turn.limits.open_*. "
            "A server whose TURN listeners are all on loopback does this anyway."
        ),
    ] = False
    origins: Annotated[
        tuple[str, ...],
        _about("Origins (https://example.org) whose web pages may use signaling, besides the server's own."),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], _about("Addresses of proxies whose X-Forwarded-For header is trusted.")
    ] = ()
    limits: SignalingLimits = SignalingLimits()


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics for Prometheus are served at /metrics on every `admin` address."""

    token: Annotated[
        str, _about("Bearer token for reading the metrics; without one, only clients on this host can read them.")
    ] = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Listeners and the log."""

    listen: Annotated[
        tuple[str, ...],
        _about("ADDR:PORT for STUN over UDP, and for TURN over UDP and TCP. Port 0 takes any free port."),
    ] = ()
    tls_listen: Annotated[tuple[str, ...], _about("ADDR:PORT for TURN over TLS.")] = ()
    http: Annotated[tuple[str, ...], _about("ADDR:PORT for signaling and /healthz, without TLS.")] = ()
    admin: Annotated[tuple[str, ...], _about("ADDR:PORT for /metrics, without TLS; off by default.")] = ()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _about("Lowest level of the messages that are logged.")
    ] = "info"
    tls: Tls = Tls()
    stun: Stun = Stun()
    turn: Turn = Turn()
    signaling: Signaling = Signaling()
    metrics: Metrics = Metrics()


TABLES: Final[dict[str, type[Struct]]] = {
    "": Settings,
    "[tls]": Tls,
    "[stun]": Stun,
    "[turn]": Turn,
    "[[turn.users]]": User,
    "[turn.peers]": Peers,
    "[turn.limits]": TurnLimits,
    "[signaling]": Signaling,
    "[signaling.limits]": SignalingLimits,
    "[metrics]": Metrics,
}
"""All tables by their heading in the file."""

SECRETS: Final = frozenset({"password", "keys", "room_tokens", "shared_secrets", "token"})
"""Keys whose values are never printed."""
