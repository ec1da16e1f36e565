"""Long-term credentials on the client's side (RFC 8489, section 9.2).

    the server says                  | we then have                        | and the request
    ---------------------------------+-------------------------------------+--------------------------------------
    401, sent without credentials    | its realm, nonce, algorithms        | is sent again, signed
    401, another realm or algorithm  | these, and a key made for them      | is sent again, signed
    401, signed with what we have    | credentials that are refused        | waits for new ones
    438                              | a fresh nonce                       | is sent again, signed
    401 or 438, bid down             | what we had                         | fails: somebody is in between
    441 after the credentials change | the earlier ones                    | is sent again, signed with those

A server that announces SHA-256 in its nonce and does not offer it, or offered it before and does not now, has been
tampered with on the way (section 9.2.5.1); nothing is signed with less than what was agreed.
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
    """A user name and password. ConfigurationError for text that cannot be one; the password is never shown."""

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.username:
            raise ConfigurationError("a TURN user name is not empty")
        if len(opaque_string(self.username).encode()) > 508:
            raise ConfigurationError("a TURN user name has at most 508 bytes")
        opaque_string(self.password)


class Verdict(Enum):
    """What a challenge means for the request that met it."""

    RETRY = "send it again, signed with what we have now"
    WAIT = "it needs credentials that we do not have"
    FAIL = "it must not be sent again"


@dataclass(frozen=True, slots=True)
class Signature:
    """What one request was signed with; its answer must be signed with the same."""

    credentials: Credentials
    realm: str
    key: IntegrityKey
    algorithm: PasswordAlgorithm | None
    """As chosen from the server's offer; None for a server of RFC 5389, where MD5 and SHA-1 are all there is."""

    def verifies(self, message: Message) -> bool:
        """Whether the answer was signed with this key, and no weaker than agreed."""
        if self.algorithm is not None and not message.has_integrity_sha256:
            return False
        return message.verify(self.key)


class Authentication:
    """Signs the requests to one server and learns from its challenges."""

    __slots__ = ("_credentials", "_earlier", "_nonce", "_offered", "_realm", "_signature", "reason")

    def __init__(self, credentials: Credentials | None = None) -> None:
        self._credentials = credentials
        self._earlier: Credentials | None = None
        self._realm: str | None = None
        self._nonce = b""
        self._offered: tuple[PasswordAlgorithm, ...] | None = None
        self._signature: Signature | None = None
        self.reason = ""
        """Why the last verdict was what it was, for people."""

    @property
    def realm(self) -> str | None:
        """The server's, once it has told."""
        return self._realm

    @property
    def credentials(self) -> Credentials | None:
        return self._credentials

    def set_credentials(self, credentials: Credentials) -> None:
        """Sign with these from now on. The earlier ones are kept for a server that binds an allocation to its user."""
        if credentials != self._credentials:
            self._earlier = self._credentials
            self._credentials = credentials
            self._signature = None

    def revert(self, used: Signature | None) -> bool:
        """Go back to the earlier credentials, after a request that was signed with the present ones met 441."""
        if self._earlier is None or used is None or used.credentials != self._credentials:
            return used is not None and used.credentials != self._credentials
        self._credentials, self._earlier = self._earlier, None
        self._signature = None
        return True

    def forget(self) -> None:
        """Another server is asked from now on: its realm, nonce and key are its own."""
        self._realm = None
        self._nonce = b""
        self._offered = None
        self._signature = None

    # -------------------------------------------------------------------------------------------------------- signing

    def sign(self, message: Message) -> tuple[bytes, Signature | None]:
        """The message as bytes: with credentials, once the server has asked for them."""
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
        """Learn from a 401 or 438 that answered a request signed with `used`. `reason` then says why the verdict."""
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
            self.reason = f"it does not accept the credentials of {signature.credentials.username!r}"
            return Verdict.WAIT
        return Verdict.RETRY

    def _problem(self, realm: str | None, nonce: bytes | None, offered: tuple[PasswordAlgorithm, ...] | None) -> str:
        if realm is None or nonce is None:
            return "it asks for credentials, but its challenge lacks a realm or a nonce"
        try:
            opaque_string(realm)
        except ConfigurationError as error:
            return f"its realm cannot be used: {error}"
        if bid_down(nonce, offered) or (self._offered and not offered):
            return "its offer of SHA-256 was taken out on the way (bid-down)"
        if offered and _choose(offered) is None:
            return "it offers no password algorithm that is known"
        if offered is not None and not offered:
            return "its list of password algorithms is empty"
        return ""


def _choose(offered: tuple[PasswordAlgorithm, ...]) -> PasswordAlgorithm | None:
    """SHA-256 wherever it is offered, whatever stands before it (RFC 8656, section 6); None when none is known."""
    return _SHA256 if _SHA256 in offered else choose_algorithm(offered)
