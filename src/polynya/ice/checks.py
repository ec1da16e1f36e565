"""Messages of connectivity checks: requests, their examination and responses (RFC 8445, section 7).

These functions keep no state. `Credentials` has the keys of both sides in one generation. `request_check` makes a
request; `examine` classifies an inbound request as an `InboundCheck`, or as a `Refusal` with its error response;
`mapped_address` reads a response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.stun.attributes import (
    ICE_CLOSED,
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

from .candidates import PEER_REFLEXIVE, candidate_priority
from .description import Description
from .pairs import Pair
from .roles import Role

MAX_NOMINATION: Final = 2**24 - 1
"""The number of a nomination has 24 bits; the higher ones are ignored."""


@dataclass(slots=True)
class Check:
    """A check under way."""

    pair: Pair
    controlling: bool
    """The role in the request; a late 487 is compared with it."""
    nominate: bool
    priority: int
    sent_at: Instant
    triggered: bool = False
    nomination: int = 0
    """The number of the nomination, if both sides use numbers."""
    consent: bool = False
    """A consent check, which changes only the consent of its pair (RFC 7675)."""


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
    """The NOMINATION attribute; it counts only if both sides signaled `renomination`."""

    def merge(self, later: InboundCheck) -> None:
        """Add the nomination of a later check on the same path."""
        self.nominate |= later.nominate
        self.nomination = max(self.nomination, later.nomination)


@dataclass(slots=True)
class Refusal:
    """A request that is no valid check, with the reason and the error response."""

    reason: str
    answer: bytes
    signed: bool = False
    """Whether the sender is authenticated."""


class Credentials:
    """The keys of one generation; those of the other side are known with its description."""

    __slots__ = ("local_key", "local_ufrag", "remote_key", "remote_ufrag")

    def __init__(self, local: Description) -> None:
        self.local_ufrag = local.ufrag
        self.local_key = IntegrityKey.short_term(local.password)
        self.remote_ufrag: str | None = None
        self.remote_key: IntegrityKey | None = None

    @property
    def username(self) -> str:
        """USERNAME of our requests: the remote ufrag, a colon, the local ufrag (section 7.2.2)."""
        return f"{self.remote_ufrag}:{self.local_ufrag}"

    def set_remote(self, remote: Description) -> None:
        self.remote_ufrag = remote.ufrag
        self.remote_key = IntegrityKey.short_term(remote.password)


def reflexive_priority(pair: Pair) -> int:
    """Return the PRIORITY of a check: that of the peer-reflexive candidate which it may create (section 7.1.1)."""
    return candidate_priority(PEER_REFLEXIVE, pair.local.preference, pair.component)


def request_check(
    credentials: Credentials, transaction_id: bytes, role: Role, priority: int, *, nominate: bool, nomination: int = 0
) -> bytes:
    """Return the bytes of a Binding request (sections 7.1 and 7.2.4). `nomination` is a number, or 0 without one."""
    attributes: dict[Attribute[Any], Any] = {USERNAME: credentials.username, PRIORITY: priority}
    attributes[ICE_CONTROLLING if role.controlling else ICE_CONTROLLED] = role.tie_breaker
    if nominate:
        attributes[USE_CANDIDATE] = True
        if nomination:
            attributes[NOMINATION] = nomination
    message = Message.request(Method.BINDING, transaction_id, attributes)
    return message.encode(integrity=credentials.remote_key, fingerprint=True)


def keepalive(transaction_id: bytes) -> bytes:
    """Return the bytes of a Binding indication (section 11)."""
    return Message.indication(Method.BINDING, transaction_id).encode(fingerprint=True)


def farewell(credentials: Credentials, transaction_id: bytes) -> bytes:
    """Return the bytes of a Binding indication by which an agent that closes revokes its consent.

    Peers that do not know ICE-CLOSED ignore it, as any indication (RFC 8489, sections 6.3.2 and 14).
    """
    name = credentials.username
    message = Message.indication(Method.BINDING, transaction_id, {USERNAME: name, ICE_CLOSED: name})
    return message.encode(integrity=credentials.remote_key, fingerprint=True)


def is_farewell(message: Message, credentials: Credentials) -> bool:
    """Return whether an indication ends the generation of these credentials; it names both ufrags and is signed."""
    if credentials.remote_ufrag is None or not message.has_integrity or message.unknown_required:
        return False
    name = f"{credentials.local_ufrag}:{credentials.remote_ufrag}"
    return message.get(USERNAME) == message.get(ICE_CLOSED) == name and message.verify(credentials.local_key)


def username_of(message: Message) -> tuple[str, str] | None:
    """Return the two ufrags in the USERNAME of a check, the receiver's first; None without such a USERNAME."""
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
    if priority is None:
        answer = refuse(message, credentials, ErrorCode.BAD_REQUEST)
        return Refusal("a check without PRIORITY", answer, signed=True)
    nominate, nomination = USE_CANDIDATE in message, (message.get(NOMINATION) or 0) & MAX_NOMINATION
    return InboundCheck(
        received.flow, received.remote, names[1], priority, nominate, received.packet, nomination
    )  # fmt: skip


def accept(received: Received, credentials: Credentials) -> bytes:
    """Return the success response, with the source address of the request (section 7.3.1.2)."""
    source = Address(received.remote.host, received.remote.port)  # a zone is local to its host
    answer = Message.success(received.message, {XOR_MAPPED_ADDRESS: source})
    return answer.encode(integrity=credentials.local_key, fingerprint=True)


def refuse(
    request: Message,
    credentials: Credentials,
    code: ErrorCode,
    attributes: dict[Attribute[Any], Any] | None = None,
) -> bytes:
    """Return a signed error response to an authenticated request."""
    answer = Message.error(request, code, attributes=attributes)
    return answer.encode(integrity=credentials.local_key, fingerprint=True)


def mapped_address(answer: Message) -> Address | None:
    """Return our address as the other side sees it, possible or not."""
    return answer.get(XOR_MAPPED_ADDRESS) or answer.get(MAPPED_ADDRESS)
