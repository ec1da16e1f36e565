"""The keys of the configuration file, each with what it means. Times are in seconds, sizes in bytes; 0 is no limit.

What is written here is the reference: the documentation and `--print-config` take their words from it.
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


def _says(text: str) -> Meta:
    return Meta(description=text)


class Tls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The certificate of `tls_listen`, read again on SIGHUP."""

    certificate: Annotated[str, _says("PEM file: the certificate and its chain.")] = ""
    key: Annotated[str, _says("PEM file: its key, without a passphrase.")] = ""
    server_name: Annotated[
        str, _says("The name in the certificate, by which clients are told to come; left out: as they came here.")
    ] = ""


class User(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who may allocate: a password, or keys as `polynya serve --hash-user` makes them."""

    name: Annotated[str, _says("The user's name.")]
    password: Annotated[str, _says("The password in clear; keys are better.")] = ""
    keys: Annotated[tuple[str, ...], _says("MD5 and SHA-256 of NAME:REALM:PASSWORD in hexadecimal, one or both.")] = ()
    max_allocations: Annotated[Count | None, _says("In place of turn.limits.allocations_per_user; 0: no limit.")] = None


class Peers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom clients may reach. What is not publicly routed is denied unless a rule names it; the longest decides."""

    allow: Annotated[tuple[str, ...], _says("ADDRESS, ADDRESS/LENGTH or ADDRESS:PORT that may be reached.")] = ()
    deny: Annotated[tuple[str, ...], _says("The same, that may not be reached.")] = ()


class TurnLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one user, one address and all together may take of TURN. An address is an IPv4 host or an IPv6 /64."""

    allocations: Annotated[Count, _says("In all.")] = _turn.allocations
    allocations_per_user: Annotated[Count, _says("Of one user, or one holder of time-limited credentials.")] = (
        _turn.allocations_per_user
    )
    allocations_per_address: Annotated[Count, _says("Of one client address.")] = _turn.allocations_per_address
    permissions: Annotated[Count, _says("Of one allocation.")] = _turn.permissions
    channels: Annotated[Count, _says("Of one allocation, those that rest included.")] = _turn.channels
    peers_per_request: Annotated[Count, _says("In one CreatePermission.")] = _turn.peers_per_request
    bytes_per_second: Annotated[Count, _says("Of one relayed address, both ways, with headers.")] = (
        _turn.bytes_per_second
    )
    requests_per_second: Annotated[Count, _says("Of one client address; what is beyond is dropped unread.")] = (
        _turn.requests_per_second
    )
    unauthenticated_answers_per_second: Annotated[
        Count, _says("To one address: what a forged source can be made to hear.")
    ] = _turn.unauthenticated_answers_per_second
    unauthenticated_burst: Annotated[Count, _says("As many of them may be sent at once.")] = _turn.unauthenticated_burst
    streams: Annotated[Count, _says("TCP and TLS connections in all.")] = _turn.streams
    streams_per_address: Annotated[Count, _says("TCP and TLS connections of one client address.")] = (
        _turn.streams_per_address
    )
    stream_patience: Annotated[Seconds, _says("For which a connection may stay without an allocation.")] = (
        _turn.stream_patience / _SECOND
    )
    pending_lookups: Annotated[Count, _says("Requests that wait for users_database.")] = _turn.pending_lookups
    lookup_patience: Annotated[Seconds, _says("For which they wait.")] = _turn.lookup_patience / _SECOND


class Stun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """STUN answers on every `listen`. With an alternate it also serves NAT behavior discovery (RFC 5780)."""

    alternates: Annotated[
        tuple[str, ...],
        _says(
            "ADDR:PORT, one for each family: another address of this host and another port than listen has. "
            "Another port alone lets clients find out less."
        ),
    ] = ()
    external_ips: Annotated[
        tuple[str, ...], _says("EXTERNAL/ADDR: what these addresses are called outside a NAT.")
    ] = ()


class Turn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TURN is on when somebody can use it: `users`, `users_file`, `users_database` or `shared_secrets`."""

    realm: Annotated[str, _says("What passwords are for; clients are told it.")] = "polynya"
    users_file: Annotated[str, _says("A file of lines as `polynya serve --hash-user` prints them.")] = ""
    users_database: Annotated[str, _says("An SQLite database with a table turn_users.")] = ""
    shared_secrets: Annotated[
        tuple[str, ...],
        _says("Secrets of time-limited credentials. All are good; the signaling hands out credentials of the first."),
    ] = ()
    workers: Annotated[Count, _says("Processes that relay; 0: the server's own does.")] = 0
    gather: Annotated[
        Seconds,
        _says(
            "For which to wait for more packets after the first: cheaper where packets come one by one, and so much "
            "later; without workers in whole milliseconds."
        ),
    ] = 0
    credential_lifetime: Annotated[int, _says("For which credentials are good that the signaling hands out.")] = 86_400
    refuse_expired_refresh: Annotated[
        bool, _says("Whether time-limited credentials that have expired end their allocation at its next refresh.")
    ] = False
    relay_ips: Annotated[
        tuple[str, ...],
        _says("Addresses of this host to relay on; left out: those listened on, or that of the default route."),
    ] = ()
    external_ips: Annotated[
        tuple[str, ...], _says("EXTERNAL, or EXTERNAL/RELAY: what relay addresses are called outside a NAT.")
    ] = ()
    ports: Annotated[str, _says("LOW-HIGH: the relay ports.")] = "49152-65535"
    port_rest: Annotated[Seconds, _says("For which a freed port is not given out again.")] = 2
    channel_range: Annotated[
        Literal["rfc8656", "rfc5766"], _says("rfc5766 also allows the channels 0x5000 to 0x7FFF, for old clients.")
    ] = "rfc8656"
    algorithms: Annotated[
        tuple[Literal["sha256", "md5"], ...],
        _says("Password algorithms in the order offered; old clients know md5 only."),
    ] = ("sha256", "md5")
    default_lifetime: Annotated[Seconds, _says("Of an allocation, where the client wishes for less or nothing.")] = 600
    max_lifetime: Annotated[Seconds, _says("Of an allocation between two refreshes.")] = 3600
    nonce_lifetime: Annotated[Seconds, _says("Of a nonce; at most an hour.")] = 600
    drain: Annotated[Seconds, _says("For which allocations may go on after SIGTERM; a second one ends them.")] = 0
    alternates: Annotated[
        tuple[str, ...],
        _says(
            "[udp:|tcp:|tls:]ADDR:PORT of servers that clients are sent to meanwhile, each to one of its transport and "
            "IP version; without a transport it is for UDP and TCP."
        ),
    ] = ()
    peers: Peers = Peers()
    limits: TurnLimits = TurnLimits()
    users: tuple[User, ...] = ()


class SignalingLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What members of rooms may say, how many there may be, and for how long one may be silent."""

    message_bytes: Annotated[int, _says("Of one message.")] = _rooms.message_bytes
    messages_per_second: Annotated[int, _says("Of one member.")] = _rooms.messages_per_second
    burst: Annotated[int, _says("Messages at once after a silence.")] = _rooms.burst
    bytes_per_second: Annotated[int, _says("Of one member.")] = _rooms.bytes_per_second
    bytes_burst: Annotated[int, _says("Bytes at once after a silence.")] = _rooms.bytes_burst
    server_lists: Annotated[
        int, _says("Server lists that a client may request at once; one more is granted every 10 seconds.")
    ] = _rooms.server_lists
    offenses: Annotated[
        int, _says("Refused messages before a client is disconnected; one is forgiven every 10 seconds.")
    ] = _rooms.offenses
    room_members: Annotated[int, _says("In one room, at most 256.")] = _rooms.room_members
    rooms: Annotated[int, _says("In all.")] = _rooms.rooms
    links: Annotated[int, _says("Connections in all.")] = _rooms.links
    links_per_host: Annotated[int, _says("Connections of one host.")] = _rooms.links_per_host
    join_timeout: Annotated[int, _says("From the opening of a connection to its join.")] = _rooms.join_timeout
    idle_timeout: Annotated[int, _says("Silence after which a member is cut off.")] = _rooms.idle_timeout
    room_timeout: Annotated[int, _says("Silence after which a room is closed.")] = _rooms.room_timeout
    resume_timeout: Annotated[int, _says("For which the place of a member is kept whose connection broke.")] = (
        _rooms.resume_timeout
    )
    away_messages: Annotated[int, _says("Messages kept for such a member.")] = _rooms.away_messages
    away_bytes: Annotated[int, _says("Their size.")] = _rooms.away_bytes
    away_bytes_in_all: Annotated[int, _says("The size of what is kept for all of them.")] = _rooms.away_bytes_in_all


class Signaling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rooms on `http`."""

    origins: Annotated[
        tuple[str, ...], _says("Sites (https://example.org) whose web pages may use the signaling, besides our own.")
    ] = ()
    trusted_proxies: Annotated[tuple[str, ...], _says("Addresses of proxies whose X-Forwarded-For is believed.")] = ()
    limits: SignalingLimits = SignalingLimits()


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """/metrics on `http`, for Prometheus."""

    token: Annotated[
        str, _says("Who shows it as a bearer token may read; left out: only who comes from this host itself.")
    ] = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    listen: Annotated[
        tuple[str, ...], _says("ADDR:PORT for STUN over UDP, and for TURN over UDP and TCP. Port 0 takes any free one.")
    ] = ()
    tls_listen: Annotated[tuple[str, ...], _says("ADDR:PORT for TURN over TLS.")] = ()
    http: Annotated[tuple[str, ...], _says("ADDR:PORT for signaling, /healthz and /metrics, without TLS.")] = ()
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _says("How much is logged.")] = "info"
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
"""Every table by its heading in the file."""

SECRETS: Final = frozenset({"password", "keys", "shared_secrets", "token"})
"""Keys whose values are never shown."""
