"""Messages of the signaling protocol: their types and their codec. Each is one JSON text with a `type`.

    client -> server   join, servers, signal, keepalive, leave
    server -> client   welcome, servers, joined, resumed, away, left, signal, error

A `signal` carries a `body` from one member of a room to another. The server checks the size of a body and nothing else,
so that members can extend or encrypt bodies without changing the server. The `kind` of a body is one of:

    description   ufrag, pwd and options of one generation of an ICE session (RFC 8445, section 5.3; RFC 8839)
    candidate     one candidate of that generation, or the end of candidates (RFC 8838)

Receivers ignore unknown fields, so fields can be added without a new version. New types of message can be added, too: a
receiver that does not know one drops it, or answers with an error. Any change of meaning raises VERSION.
Every decoder here raises DecodeError and nothing else.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from polynya.core.errors import DecodeError

VERSION: Final = 2
VERSIONS: Final = (1, VERSION)
"""Versions that the server supports. Clients of version 1 drop `away` and `resumed`, and know no `clean`."""
PATH: Final = "/signaling"
"""Path of the WebSocket, relative to the URL of the server."""
SUBPROTOCOL: Final = "polynya.signaling"
MESSAGE_BYTES: Final = 16_384
"""Upper bound of a message; a server's own limit can only be lower."""
NESTING: Final = 64
"""Upper bound of the nesting of a message, so that every member can parse whatever the server relays."""

PeerId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""128 random bits in lower-case hexadecimal, drawn by the server. The member with the larger id, as text, controls."""
Token = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
RoomToken = Annotated[str, Meta(max_length=512)]
"""A secret of the server's operator, which a client shows to use its rooms; empty for none."""
RoomName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Uri = Annotated[str, Meta(max_length=256)]
Generation = Annotated[int, Meta(ge=0, le=2**31)]
_Ufrag = Annotated[str, Meta(min_length=4, max_length=256, pattern=r"^[A-Za-z0-9+/]*\Z")]
_Password = Annotated[str, Meta(min_length=22, max_length=256, pattern=r"^[A-Za-z0-9+/]*\Z")]
_Option = Annotated[str, Meta(min_length=1, max_length=64)]


class IceServer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A STUN or TURN server in the signaling server's list, with one or more URIs (RFC 7064, 7065)."""

    uris: Annotated[tuple[Uri, ...], Meta(max_length=16)]
    username: Annotated[str, Meta(max_length=512)] = ""
    credential: Annotated[str, Meta(max_length=512)] = ""
    lifetime: int | None = None
    """Seconds until the credential expires; None if it does not expire."""

    def __repr__(self) -> str:
        return f"IceServer(uris={self.uris!r}, username={self.username!r})"


# ----------------------------------------------------------------------------------------------------- client to server


class Resume(Struct, frozen=True):
    """Proof of an earlier membership: the id and the token of the last `welcome`."""

    peer: PeerId
    token: Token

    def __repr__(self) -> str:
        return f"Resume(peer={self.peer!r})"


class Join(Struct, frozen=True, kw_only=True, tag="join", omit_defaults=True):
    """Enters a room; the server creates it if it does not exist. Must precede every `signal`."""

    version: int
    room: RoomName
    limit: Annotated[int, Meta(ge=1)] | None = None
    """The most members that the room may have. The limit of the first member applies for the life of the room."""
    resume: Resume | None = None
    token: RoomToken = ""
    """The token of the server's operator, if its rooms need one."""

    def __repr__(self) -> str:
        return f"Join(version={self.version}, limit={self.limit}, resume={self.resume!r})"


class ListServers(Struct, frozen=True, tag="servers", omit_defaults=True):
    """Requests the current list of STUN and TURN servers. Allowed before `join`, too, with the operator's token."""

    token: RoomToken = ""

    def __repr__(self) -> str:
        return "ListServers()"


class Signal(Struct, frozen=True, kw_only=True, tag="signal"):
    """A body for another member of the room. `peer` is the recipient; in messages from the server, the sender."""

    peer: PeerId
    body: msgspec.Raw


class Keepalive(Struct, frozen=True, tag="keepalive"):
    """Restarts the idle timeout of the server."""


class Leave(Struct, frozen=True, tag="leave"):
    """Leaves the room for good."""


FromClient = Join | ListServers | Signal | Keepalive | Leave

# ----------------------------------------------------------------------------------------------------- server to client


class Pace(Struct, frozen=True, kw_only=True):
    """Limits of one client. The server never refuses for its rate a client that stays within them."""

    message_bytes: Annotated[int, Meta(ge=256)]
    messages_per_second: Annotated[int, Meta(ge=1)]
    burst: Annotated[int, Meta(ge=1)]
    keepalive: Annotated[int, Meta(ge=1)]
    """Seconds of silence after which a member should send a `keepalive`."""
    resume: Annotated[int, Meta(ge=0)]
    """Seconds for which the server keeps the place of a member whose connection broke."""


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """Answer to `join`: the client is a member. `peers` are the other members in the order in which they joined."""

    version: int
    peer: PeerId
    token: Token
    peers: tuple[PeerId, ...]
    pace: Pace
    servers: tuple[IceServer, ...] = ()
    resumed: bool = False
    """Whether the member has taken up its earlier place, with the same id."""
    no_relay: str = ""
    """The reason why `servers` has no TURN server, for people."""

    def __repr__(self) -> str:
        return f"Welcome(peer={self.peer!r}, peers={self.peers!r}, servers={self.servers!r}, resumed={self.resumed})"


class ServerList(Struct, frozen=True, tag="servers"):
    """Answer to `ListServers`, with new credentials where servers need them."""

    servers: tuple[IceServer, ...] = ()
    no_relay: str = ""
    """The reason why `servers` has no TURN server, for people."""


class Joined(Struct, frozen=True, tag="joined"):
    """Another member joined the room."""

    peer: PeerId


class Resumed(Struct, frozen=True, tag="resumed"):
    """Another member resumed its place on a new connection. Signals that were sent to it just before may be lost."""

    peer: PeerId


class Left(Struct, frozen=True, tag="left"):
    """Another member left the room for good."""

    peer: PeerId
    reason: str = ""
    clean: bool = False
    """Whether it left by itself. Then it has closed its connections, too."""


class Away(Struct, frozen=True, tag="away"):
    """The connection of another member to the server broke. It may resume; or its host or program may be gone."""

    peer: PeerId


class Error(Struct, frozen=True, kw_only=True, tag="error", omit_defaults=True):
    """Reports a refused message. After a fatal error the server closes the connection."""

    code: str
    message: str = ""
    fatal: bool = False
    peer: str = ""
    """With `unknown-peer`: the recipient of the refused signal."""


FromServer = Welcome | ServerList | Joined | Resumed | Left | Away | Signal | Error

# ----------------------------------------------------------------------------------------------------- member to member


class Description(Struct, frozen=True, kw_only=True, tag="description", tag_field="kind", omit_defaults=True):
    """Description of a member's ICE agent. An ICE restart raises `generation` (RFC 8445, section 9)."""

    ufrag: _Ufrag
    pwd: _Password
    options: Annotated[tuple[_Option, ...], Meta(max_length=32)] = ()
    lite: bool = False
    pacing: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    """`ice-pacing` in milliseconds (RFC 8839, section 5.9)."""
    generation: Generation = 0

    def __repr__(self) -> str:
        return f"Description(ufrag={self.ufrag!r}, generation={self.generation})"


class Candidate(Struct, frozen=True, kw_only=True, tag="candidate", tag_field="kind"):
    """One candidate as its SDP attribute (`candidate:...`), or None for the end of candidates of this generation."""

    candidate: Annotated[str, Meta(max_length=1024)] | None
    generation: Generation = 0


Body = Description | Candidate

# ---------------------------------------------------------------------------------------------------------------- codec

_encoder: Final = msgspec.json.Encoder()
_from_client: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(FromClient)
_from_server: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(FromServer)
_body: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Body)

T = TypeVar("T")


def encode(message: FromClient | FromServer) -> str:
    """Return the JSON text of a message."""
    return _encoder.encode(message).decode()


def signal(peer: str, body: Body) -> Signal:
    """Return the signal that carries a body to, or from, a peer."""
    return Signal(peer=peer, body=msgspec.Raw(_encoder.encode(body)))


def decode_from_client(text: str | bytes) -> FromClient:
    """Decode a message from a client. Raises DecodeError."""
    message: FromClient = _decode(_from_client, text)
    if isinstance(message, Signal):
        _check_object(message.body)
    return message


def decode_from_server(text: str | bytes) -> FromServer:
    """Decode a message from the server. Raises DecodeError."""
    message: FromServer = _decode(_from_server, text)
    return message


def decode_body(raw: msgspec.Raw) -> Body:
    """Decode the body of a signal. Raises DecodeError, for an unknown kind, too."""
    body: Body = _decode(_body, bytes(raw))
    return body


_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_STEPS: Final = {"{": 1, "[": 1, "}": -1, "]": -1}


def _too_deep(text: str) -> bool:
    """Whether JSON is nested deeper than NESTING. Brackets inside strings do not count."""
    if text.count("{") + text.count("[") <= NESTING:
        return False
    steps = (_STEPS[character] for character in _STRING.sub("", text) if character in _STEPS)
    return max(accumulate(steps), default=0) > NESTING


def _check_object(raw: msgspec.Raw) -> None:
    if not bytes(raw).startswith(b"{"):
        raise DecodeError("the body of a signal must be a JSON object")


def _decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    if isinstance(text, bytes) and decoder is not _body:
        raise DecodeError("a message must be text, not binary")
    if len(text) > MESSAGE_BYTES:
        raise DecodeError(f"a message may have at most {MESSAGE_BYTES} bytes")
    if _too_deep(text if isinstance(text, str) else text.decode("latin-1")):
        raise DecodeError(f"a message may be nested at most {NESTING} levels deep")
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        # the decoder quotes its input: keep the text short and printable
        raise DecodeError(ascii(str(error))[1:161]) from None
