"""Long-term credentials of a TURN client (RFC 8489, section 9.2).

    response                              | what the client learns         | the request
    --------------------------------------+--------------------------------+-----------------------------------
    401 to an unsigned request            | realm, nonce, algorithms       | is repeated, signed
    401, another realm or algorithm       | these; it derives a new key    | is repeated, signed
    401 to a request with the present key | the credentials are refused    | waits for new credentials
    438                                   | a fresh nonce                  | is repeated, signed
    401 or 438, bid down                  | nothing                        | fails: the response was modified
    441 after a change of credentials     | the earlier ones are in use    | is repeated, signed with those

If a server announces SHA-256 in its nonce and does not offer it, or withdraws an earlier offer, the response was
modified on the way (section 9.2.5.1). The client never signs with a weaker algorithm than agreed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from polynya.core.errors import ConfigurationError
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
from polynya.stun.integrity import IntegrityKey, userhash
from polynya.stun.opaque_string import opaque_string
from polynya.stun.registry import ErrorCode, PasswordAlgorithmNumber
from polynya.stun.security import SecurityFeature, bid_down, choose_algorithm, features_of

if TYPE_CHECKING:
    from polynya.stun.message import Message

_SHA256 = PasswordAlgorithm(PasswordAlgorithmNumber.SHA256)


@dataclass(frozen=True, slots=True)
class Credentials:
    """User name and password. Raises ConfigurationError for invalid text; `repr` never shows the password."""

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.username:
            raise ConfigurationError("the TURN user name is empty: pass a user name, or no credentials at all")
        if len(opaque_string(self.username).encode()) > 508:
            raise ConfigurationError("the TURN user name is longer than 508 bytes")
        opaque_string(self.password)


class Verdict(Enum):
    """The consequence of a challenge for its request."""

    RETRY = "repeat it, signed with the present state"
    WAIT = "wait for other credentials"
    FAIL = "do not repeat it"


@dataclass(frozen=True, slots=True)
class Signature:
    """The key and algorithm of one request; its response must be signed with the same."""

    credentials: Credentials
    realm: str
    key: IntegrityKey
    algorithm: PasswordAlgorithm | None
    """Chosen from the server's offer; None for a server of RFC 5389, which knows MD5 and SHA-1 only."""

    def verifies(self, message: Message) -> bool:
        """Whether the response is signed with this key, and with no weaker algorithm."""
        if self.algorithm is not None and not message.has_integrity_sha256:
            return False
        return message.verify(self.key)


class Authentication:
    """Signs the requests to one server, with the realm and nonce from its challenges."""

    __slots__ = ("_credentials", "_earlier", "_nonce", "_offered", "_realm", "_signature", "reason")

    def __init__(self, credentials: Credentials | None = None) -> None:
        self._credentials = credentials
        self._earlier: Credentials | None = None
        self._realm: str | None = None
        self._nonce = b""
        self._offered: tuple[PasswordAlgorithm, ...] | None = None
        self._signature: Signature | None = None
        self.reason = ""
        """Reason of the last verdict, for people."""

    @property
    def realm(self) -> str | None:
        """The server's realm; None before its first challenge."""
        return self._realm

    @property
    def credentials(self) -> Credentials | None:
        return self._credentials

    def set_credentials(self, credentials: Credentials) -> None:
        """Sign with these credentials. The earlier ones are kept, since a server binds an allocation to its user."""
        if credentials != self._credentials:
            self._earlier = self._credentials
            self._credentials = credentials
            self._signature = None

    def revert(self, used: Signature | None) -> bool:
        """Return to the earlier credentials after a 441; return whether the request can be repeated."""
        if self._earlier is None or used is None or used.credentials != self._credentials:
            return used is not None and used.credentials != self._credentials
        self._credentials, self._earlier = self._earlier, None
        self._signature = None
        return True

    def forget(self) -> None:
        """Drop realm, nonce and key: another server is used from now on."""
        self._realm = None
        self._nonce = b""
        self._offered = None
        self._signature = None

    # -------------------------------------------------------------------------------------------------------- signing

    def sign(self, message: Message) -> tuple[bytes, Signature | None]:
        """Encode the message; it is signed once the server has asked for credentials."""
        signature = self._current()
        if signature is None:
            return message.encode(), None
        message.attributes.update(self._attributes(signature))
        if signature.algorithm is not None:
            return message.encode(sha256=signature.key), signature
        return message.encode(integrity=signature.key), signature

    def _attributes(self, signature: Signature) -> dict[Attribute[Any], Any]:
        features = features_of(self._nonce) or SecurityFeature.NONE
        username, realm = signature.credentials.username, signature.realm
        values: dict[Attribute[Any], Any] = {}
        if features & SecurityFeature.USERNAME_ANONYMITY:
            values[USERHASH] = userhash(username, realm)
        else:
            values[USERNAME] = opaque_string(username)
        values[REALM] = realm
        values[NONCE] = self._nonce
        if self._offered is not None and signature.algorithm is not None:
            values[PASSWORD_ALGORITHMS] = self._offered
            values[PASSWORD_ALGORITHM] = signature.algorithm
        return values

    def _current(self) -> Signature | None:
        if self._signature is None and self._credentials is not None and self._realm is not None:
            algorithm = _choose(self._offered) if self._offered else None
            number = algorithm.number if algorithm is not None else PasswordAlgorithmNumber.MD5
            key = IntegrityKey.long_term(self._credentials.username, self._realm, self._credentials.password, number)
            self._signature = Signature(self._credentials, self._realm, key, algorithm)
        return self._signature

    # ----------------------------------------------------------------------------------------------------- challenges

    def challenged(self, message: Message, code: int, used: Signature | None) -> Verdict:
        """Handle a 401 or 438 to a request that was signed with `used`, and set `reason`."""
        nonce = message.get(NONCE)
        realm = message.get(REALM) or (self._realm if code == ErrorCode.STALE_NONCE else None)
        offered = message.get(PASSWORD_ALGORITHMS)
        if problem := self._problem(realm, nonce, offered):
            self.reason = problem
            return Verdict.FAIL
        assert nonce is not None
        if realm != self._realm or offered != self._offered:
            self._realm, self._offered = realm, offered
            self._signature = None
        self._nonce = nonce
        signature = self._current()
        if signature is None:
            self.reason = f"it asks for a user name and password (realm {self._realm!r})"
            return Verdict.WAIT
        if code == ErrorCode.UNAUTHENTICATED and signature == used:
            self.reason = f"it refuses the credentials of {signature.credentials.username!r}"
            return Verdict.WAIT
        return Verdict.RETRY

    def _problem(self, realm: str | None, nonce: bytes | None, offered: tuple[PasswordAlgorithm, ...] | None) -> str:
        if realm is None or nonce is None:
            return "its challenge lacks a realm or a nonce"
        try:
            opaque_string(realm)
        except ConfigurationError as error:
            return f"its realm is invalid: {error}"
        if bid_down(nonce, offered) or (self._offered and not offered):
            return "its offer of SHA-256 was removed on the way (bid-down attack)"
        if offered and _choose(offered) is None:
            return "it offers no known password algorithm"
        if offered is not None and not offered:
            return "its list of password algorithms is empty"
        return ""


def _choose(offered: tuple[PasswordAlgorithm, ...]) -> PasswordAlgorithm | None:
    """Return SHA-256 if it is offered at any place (RFC 8656, section 6); None if no algorithm is known."""
    return _SHA256 if _SHA256 in offered else choose_algorithm(offered)
