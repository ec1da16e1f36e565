"""The long-term credential mechanism, the server's side (RFC 8489, section 9.2.4).

The nonce is checked before the user is searched: a packet whose source may be forged causes no user lookup. Requests
are checked in this order:

    | problem of the request                                              | response                  |
    |---------------------------------------------------------------------|---------------------------|
    | neither MESSAGE-INTEGRITY nor MESSAGE-INTEGRITY-SHA256              | 401 with a challenge      |
    | USERNAME or USERHASH, REALM or NONCE is missing                     | 400                       |
    | the nonce is not from this server, for another source, or too old   | 438 with a challenge      |
    | PASSWORD-ALGORITHM(S) are not as offered: a bid-down attack         | 400                       |
    | wrong realm, disabled algorithm, unknown user, wrong integrity      | 401 with a challenge      |
    | time-limited credentials that have expired                          | 401 with a challenge      |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from polynya.core.instants import Instant
from polynya.stun.attributes import (
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    Attribute,
    PasswordAlgorithm,
)
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message
from polynya.stun.registry import ErrorCode, Method, PasswordAlgorithmNumber
from polynya.stun.security import SecurityFeature

from .commands import Client
from .config import ServerConfig
from .nonces import Nonces
from .users import LOOK_UP, Directory, User

_DECOY: Final = IntegrityKey(b"key of an unknown user")


@dataclass(slots=True)
class Authenticated:
    """The user of a request; the response is signed with `key`, by HMAC-SHA256 if `sha256`, else by HMAC-SHA1."""

    user: User
    key: IntegrityKey
    sha256: bool


@dataclass(slots=True)
class Denied:
    """The error response to a request that was not authenticated. A `challenge` lets the client try again."""

    code: ErrorCode
    reason: str
    challenge: bool = True


@dataclass(frozen=True, slots=True)
class LookUpNeeded:
    """The directory cannot resolve this user name by itself: a lookup outside of it is needed."""

    name: str


class Authenticator:
    """Authenticates requests. It keeps no state about them."""

    def __init__(self, config: ServerConfig, directory: Directory, nonce_key: bytes) -> None:
        self._realm = config.realm
        self._directory = directory
        self._refuse_expired_refresh = config.refuse_expired_refresh
        self._algorithms = config.algorithms
        self._offered = tuple(PasswordAlgorithm(int(number)) for number in config.algorithms)
        features = SecurityFeature.NONE
        if any(number != PasswordAlgorithmNumber.MD5 for number in config.algorithms):
            features |= SecurityFeature.PASSWORD_ALGORITHMS
        if directory.anonymous:
            features |= SecurityFeature.USERNAME_ANONYMITY
        self._announces = bool(features & SecurityFeature.PASSWORD_ALGORITHMS)
        self._nonces = Nonces(nonce_key, features, config.nonce_lifetime)

    def challenge(self, client: Client, *, now: Instant) -> dict[Attribute[Any], Any]:
        """Make the attributes with which a client can sign its next request."""
        attributes: dict[Attribute[Any], Any] = {REALM: self._realm, NONCE: self._nonces.make(client.remote, now=now)}
        if self._announces:
            attributes[PASSWORD_ALGORITHMS] = self._offered
        return attributes

    def check(
        self, message: Message, client: Client, *, now: Instant, unix: int | None, known: tuple[User, ...] | None = None
    ) -> Authenticated | Denied | LookUpNeeded:
        """Authenticate a request. `unix` is the time of day, None if unknown; `known` is the result of a lookup."""
        if not (message.has_integrity or message.has_integrity_sha256):
            return Denied(ErrorCode.UNAUTHENTICATED, "no credentials")
        value = message.attributes.get
        name, hashed, realm, nonce = value(USERNAME), value(USERHASH), value(REALM), value(NONCE)
        if (name is None) == (hashed is None) or realm is None or nonce is None:
            return Denied(ErrorCode.BAD_REQUEST, "credentials are incomplete", challenge=False)
        if not self._nonces.valid(nonce, client.remote, now=now):
            return Denied(ErrorCode.STALE_NONCE, "stale nonce")
        algorithm = self._algorithm(message)
        if algorithm is None:
            return Denied(ErrorCode.BAD_REQUEST, "password algorithms are not those offered", challenge=False)
        if realm != self._realm:
            return Denied(ErrorCode.UNAUTHENTICATED, "wrong realm")
        if known is None:
            found = self._directory.by_name(name) if name is not None else self._directory.by_hash(hashed or b"")
            if found is LOOK_UP:
                return LookUpNeeded(name) if name is not None else Denied(ErrorCode.UNAUTHENTICATED, "unknown user")
            known = tuple(found)
        return self._verify(message, known, algorithm, unix)

    def _verify(
        self, message: Message, candidates: tuple[User, ...], algorithm: int, unix: int | None
    ) -> Authenticated | Denied:  # fmt: skip
        if algorithm not in self._algorithms:
            return Denied(ErrorCode.UNAUTHENTICATED, "password algorithm is disabled")
        if not candidates:
            message.verify(_DECOY)  # takes as long as a wrong password
            return Denied(ErrorCode.UNAUTHENTICATED, "unknown user")
        for user in candidates:
            key = user.keys.get(algorithm)
            if key is not None and message.verify(key):
                if self._expired(user, message.method, unix):
                    return Denied(ErrorCode.UNAUTHENTICATED, "credentials have expired")
                return Authenticated(user, key, message.has_integrity_sha256)
        return Denied(ErrorCode.UNAUTHENTICATED, "wrong password")

    def _algorithm(self, message: Message) -> int | None:
        """Return the algorithm of the key; None if the client's algorithms are not those that were offered."""
        offered, chosen = message.get(PASSWORD_ALGORITHMS), message.get(PASSWORD_ALGORITHM)
        if not self._announces or (offered is None and chosen is None):
            return PasswordAlgorithmNumber.MD5
        if offered != self._offered or chosen not in self._offered:
            return None
        return chosen.number

    def _expired(self, user: User, method: int, unix: int | None) -> bool:
        if user.expires is None:
            return False
        if method != Method.ALLOCATE and not (method == Method.REFRESH and self._refuse_expired_refresh):
            return False
        return unix is None or unix >= user.expires
