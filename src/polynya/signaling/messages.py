"""What is said between a member and the signaling server: JSON text, one message each, told apart by `type`.

    member -> server   join, signal, keepalive, leave
    server -> member   welcome, joined, left, signal, error

A `signal` carries a `body` from one member to another. The server looks at its size and at nothing else, so that bodies
can grow, or be sealed, without it: what is inside is between the two members, told apart by `kind`:

    description   ufrag, pwd and options of one generation of an ICE session (RFC 8445, section 5.3; RFC 8839)
    candidate     one candidate of that generation, or the end of candidates (RFC 8838)

Fields that are not known are ignored, and so may be added. A change of meaning raises VERSION.
Every decoder here raises DecodeError and nothing else.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from polynya.core.errors import DecodeError

VERSION: Final = 1
PATH: Final = "/signaling"
"""Where the server's WebSocket is, below the address of the server."""
SUBPROTOCOL: Final = "polynya.signaling"
MESSAGE_BYTES: Final = 16_384
"""No message of this protocol is longer, whatever the server's own limit."""
NESTING: Final = 64
"""No message is nested deeper, so that every member can read what a server passes on, whatever its own limit."""

PeerId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""128 random bits in lower-case hexadecimal, given out by the server. Ids compare as text: the larger one controls."""
Token = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
RoomName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Uri = Annotated[str, Meta(max_length=256)]
Generation = Annotated[int, Meta(ge=0, le=2**31)]
_Ufrag = Annotated[str, Meta(min_length=4, max_length=256, pattern=r"^[A-Za-z0-9+/]*\Z")]
_Password = Annotated[str, Meta(min_length=22, max_length=256, pattern=r"^[A-Za-z0-9+/]*\Z")]
_Option = Annotated[str, Meta(min_length=1, max_length=64)]


class IceServer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A STUN or TURN server that the signaling server offers, by one or more URIs (RFC 7064, 7065)."""

    uris: Annotated[tuple[Uri, ...], Meta(max_length=16)]
    username: Annotated[str, Meta(max_length=512)] = ""
    credential: Annotated[str, Meta(max_length=512)] = ""
    lifetime: int | None = None
    """Seconds for which the credential is good; None when it does not expire."""

    def __repr__(self) -> str:
        return f"IceServer(uris={self.uris!r}, username={self.username!r})"


# ---------------------------------------------------------------------------------------------------- member to server


class Resume(Struct, frozen=True):
    """Proof of having been a member: the id and the token of the last welcome."""

    peer: PeerId
    token: Token

    def __repr__(self) -> str:
        return f"Resume(peer={self.peer!r})"


class Join(Struct, frozen=True, kw_only=True, tag="join", omit_defaults=True):
    """Enter a room, which is made when it is not there. Must be the first message."""

    version: int
    room: RoomName
    limit: Annotated[int, Meta(ge=1)] | None = None
    """How many members the room may have at most; the first member's limit stays the room's."""
    resume: Resume | None = None


class Signal(Struct, frozen=True, kw_only=True, tag="signal"):
    """A body for one other member of the room, or (from the server) of the one named by `peer`."""

    peer: PeerId
    body: msgspec.Raw


class Keepalive(Struct, frozen=True, tag="keepalive"):
    """Says nothing but that the member is there."""


class Leave(Struct, frozen=True, tag="leave"):
    """The member is done and does not come back."""


FromMember = Join | Signal | Keepalive | Leave

# ---------------------------------------------------------------------------------------------------- server to member


class Pace(Struct, frozen=True, kw_only=True):
    """How much a member may send: what it stays within is never refused for its rate."""

    message_bytes: Annotated[int, Meta(ge=256)]
    messages_per_second: Annotated[int, Meta(ge=1)]
    burst: Annotated[int, Meta(ge=1)]
    keepalive: Annotated[int, Meta(ge=1)]
    """Seconds after which a silent member should send a keepalive."""
    resume: Annotated[int, Meta(ge=0)]
    """Seconds for which the place of a member whose connection broke is kept."""


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The member is in. `peers` are the others in the order of their coming."""

    version: int
    peer: PeerId
    token: Token
    peers: tuple[PeerId, ...]
    pace: Pace
    servers: tuple[IceServer, ...] = ()
    resumed: bool = False
    """Whether this is the place that the member had before."""

    def __repr__(self) -> str:
        return f"Welcome(peer={self.peer!r}, peers={self.peers!r}, servers={self.servers!r}, resumed={self.resumed})"


class Joined(Struct, frozen=True, tag="joined"):
    """Another member came."""

    peer: PeerId


class Left(Struct, frozen=True, tag="left"):
    """Another member went."""

    peer: PeerId
    reason: str = ""


class Error(Struct, frozen=True, kw_only=True, tag="error", omit_defaults=True):
    """Something was refused. After a fatal one the server closes the connection."""

    code: str
    message: str = ""
    fatal: bool = False
    peer: str = ""
    """For `unknown-peer`: whom the refused signal was for."""


FromServer = Welcome | Joined | Left | Signal | Error

# ---------------------------------------------------------------------------------------------------- member to member


class Description(Struct, frozen=True, kw_only=True, tag="description", tag_field="kind", omit_defaults=True):
    """What a member's ICE agent says of itself. A higher generation is an ICE restart (RFC 8445, section 9)."""

    ufrag: _Ufrag
    pwd: _Password
    options: Annotated[tuple[_Option, ...], Meta(max_length=32)] = ()
    lite: bool = False
    pacing: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    """`ice-pacing` (RFC 8839, section 5.9): milliseconds."""
    generation: Generation = 0

    def __repr__(self) -> str:
        return f"Description(ufrag={self.ufrag!r}, generation={self.generation})"


class Candidate(Struct, frozen=True, kw_only=True, tag="candidate", tag_field="kind"):
    """One candidate as its SDP attribute (`candidate:...`), or None: there are no more in this generation."""

    candidate: Annotated[str, Meta(max_length=1024)] | None
    generation: Generation = 0


Body = Description | Candidate

# --------------------------------------------------------------------------------------------------------------- codec

_encoder: Final = msgspec.json.Encoder()
_from_member: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(FromMember)
_from_server: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(FromServer)
_body: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Body)

T = TypeVar("T")


def encode(message: FromMember | FromServer) -> str:
    """A message as the text that is sent."""
    return _encoder.encode(message).decode()


def signal(peer: str, body: Body) -> Signal:
    """The signal that carries a body to, or from, a peer."""
    return Signal(peer=peer, body=msgspec.Raw(_encoder.encode(body)))


def decode_from_member(text: str | bytes) -> FromMember:
    """What a member said."""
    message: FromMember = _decode(_from_member, text)
    if isinstance(message, Signal):
        _check_object(message.body)
    return message


def decode_from_server(text: str | bytes) -> FromServer:
    """What the server said."""
    message: FromServer = _decode(_from_server, text)
    return message


def decode_body(raw: msgspec.Raw) -> Body:
    """What another member said; a kind that is not known is a DecodeError too."""
    body: Body = _decode(_body, bytes(raw))
    return body


_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_STEPS: Final = {"{": 1, "[": 1, "}": -1, "]": -1}


def _too_deep(text: str) -> bool:
    """Whether JSON is nested deeper than NESTING; brackets inside strings do not count."""
    if text.count("{") + text.count("[") <= NESTING:
        return False
    steps = (_STEPS[character] for character in _STRING.sub("", text) if character in _STEPS)
    return max(accumulate(steps), default=0) > NESTING


def _check_object(raw: msgspec.Raw) -> None:
    if not bytes(raw).startswith(b"{"):
        raise DecodeError("the body of a signal is an object")


def _decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    if isinstance(text, bytes) and decoder is not _body:
        raise DecodeError("a message is text, not binary")
    if len(text) > MESSAGE_BYTES:
        raise DecodeError(f"a message has at most {MESSAGE_BYTES} bytes")
    if _too_deep(text if isinstance(text, str) else text.decode("latin-1")):
        raise DecodeError(f"a message is nested at most {NESTING} deep")
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        # the decoder quotes what it was given: keep it short and printable
        raise DecodeError(ascii(str(error))[1:161]) from None
