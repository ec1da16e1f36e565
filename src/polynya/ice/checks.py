"""The messages of connectivity checks: made, examined and answered (RFC 8445, section 7).

Nothing here keeps state. `Credentials` are the two sides' keys in one generation; `request_check` makes a request,
`examine` says what a request from the network is (an `InboundCheck`, or a `Refusal` with the answer that it gets),
and `mapped_address` reads an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.stun.attributes import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    MAPPED_ADDRESS,
    NOMINATION,
    PRIORITY,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
)
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, Received
from polynya.stun.registry import ErrorCode, Method

from .description import Description
from .pairs import Pair
from .priorities import PEER_REFLEXIVE, candidate_priority
from .roles import Role

MAX_PRIORITY: Final = 2**31 - 1
MAX_NOMINATION: Final = 2**24 - 1
"""A nomination's number has 24 bits; those above them say nothing."""


@dataclass(slots=True)
class Check:
    """A check of ours that is under way."""

    pair: Pair
    controlling: bool
    """The role that the request says: a late 487 is judged by it."""
    nominate: bool
    priority: int
    sent_at: Instant
    triggered: bool = False
    nomination: int = 0
    """The number of the nomination, where both sides use such numbers."""
    consent: bool = False
    """A consent check: it decides nothing about the pair but its consent (RFC 7675)."""


@dataclass(slots=True)
class InboundCheck:
    """An authenticated Binding request of the other side."""

    flow: Flow
    remote: Address
    remote_ufrag: str
    priority: int
    nominate: bool
    packet: int = 0
    nomination: int = 0
    """The NOMINATION attribute; it counts only where both sides have signaled it."""


@dataclass(slots=True)
class Refusal:
    """A request that is not a good check: why, and what to answer."""

    reason: str
    answer: bytes
    signed: bool = False
    """The one who asked is authenticated."""


class Credentials:
    """The keys of one generation. Ours are there from the start, the other side's come with its description."""

    __slots__ = ("local_key", "local_ufrag", "remote_key", "remote_ufrag")

    def __init__(self, local: Description) -> None:
        self.local_ufrag = local.ufrag
        self.local_key = IntegrityKey.short_term(local.password)
        self.remote_ufrag: str | None = None
        self.remote_key: IntegrityKey | None = None

    @property
    def username(self) -> str:
        """What our requests say: the other side's ufrag, a colon, ours (section 7.2.2)."""
        return f"{self.remote_ufrag}:{self.local_ufrag}"

    def set_remote(self, remote: Description) -> None:
        self.remote_ufrag = remote.ufrag
        self.remote_key = IntegrityKey.short_term(remote.password)


def reflexive_priority(pair: Pair) -> int:
    """What PRIORITY says: the priority of the peer-reflexive candidate that the check may make (section 7.1.1)."""
    return candidate_priority(PEER_REFLEXIVE, pair.local.preference, pair.component)


def request_check(
    credentials: Credentials, transaction_id: bytes, role: Role, priority: int, *, nominate: bool, nomination: int = 0
) -> bytes:
    """The bytes of a Binding request (sections 7.1 and 7.2.4). `nomination` is its number, 0 where none are in use."""
    attributes: dict[Attribute[Any], Any] = {USERNAME: credentials.username, PRIORITY: priority}
    attributes[ICE_CONTROLLING if role.controlling else ICE_CONTROLLED] = role.tie_breaker
    if nominate:
        attributes[USE_CANDIDATE] = True
        if nomination:
            attributes[NOMINATION] = nomination
    message = Message.request(Method.BINDING, transaction_id, attributes)
    return message.encode(integrity=credentials.remote_key, fingerprint=True)


def keepalive(transaction_id: bytes) -> bytes:
    """The bytes of a Binding indication (section 11)."""
    return Message.indication(Method.BINDING, transaction_id).encode(fingerprint=True)


def username_of(message: Message) -> tuple[str, str] | None:
    """The two ufrags of a check's USERNAME, the receiver's first; None when it has no such name."""
    name = message.get(USERNAME)
    if name is None:
        return None
    local, colon, remote = name.partition(":")
    return (local, remote) if colon else None


def examine(received: Received, credentials: Credentials) -> InboundCheck | Refusal:
    """Authenticate a Binding request (RFC 8489, section 9.1.3; RFC 8445, section 7.3)."""
    message = received.message
    names = username_of(message)
    if names is None or not message.has_integrity:
        answer = Message.error(message, ErrorCode.BAD_REQUEST).encode(fingerprint=True)
        return Refusal("a check without USERNAME or MESSAGE-INTEGRITY", answer)
    if names[0] != credentials.local_ufrag or not message.verify(credentials.local_key):
        why = "a check for another ufrag" if names[0] != credentials.local_ufrag else "a check with wrong integrity"
        return Refusal(why, Message.error(message, ErrorCode.UNAUTHENTICATED).encode(fingerprint=True))
    if message.unknown_required:
        unknown = {UNKNOWN_ATTRIBUTES: message.unknown_required}
        answer = refuse(message, credentials, ErrorCode.UNKNOWN_ATTRIBUTE, unknown)
        return Refusal("a check with unknown attributes that must be understood", answer, signed=True)
    priority = message.get(PRIORITY)
    if priority is None or not 0 < priority <= MAX_PRIORITY:
        answer = refuse(message, credentials, ErrorCode.BAD_REQUEST)
        return Refusal("a check without a usable PRIORITY", answer, signed=True)
    nominate, nomination = USE_CANDIDATE in message, (message.get(NOMINATION) or 0) & MAX_NOMINATION
    return InboundCheck(
        received.flow, received.remote, names[1], priority, nominate, received.packet, nomination
    )  # fmt: skip


def accept(received: Received, credentials: Credentials) -> bytes:
    """The success response: what the source looked like from here (section 7.3.1.2)."""
    source = Address(received.remote.host, received.remote.port)  # a zone does not leave the host
    answer = Message.success(received.message, {XOR_MAPPED_ADDRESS: source})
    return answer.encode(integrity=credentials.local_key, fingerprint=True)


def refuse(
    request: Message,
    credentials: Credentials,
    code: ErrorCode,
    attributes: dict[Attribute[Any], Any] | None = None,
) -> bytes:
    """A signed error response, for a request that was authenticated."""
    answer = Message.error(request, code, attributes=attributes)
    return answer.encode(integrity=credentials.local_key, fingerprint=True)


def mapped_address(answer: Message) -> Address | None:
    """How the other side sees us."""
    return answer.get(XOR_MAPPED_ADDRESS) or answer.get(MAPPED_ADDRESS)
