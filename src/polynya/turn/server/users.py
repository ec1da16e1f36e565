"""User directories: users with stored keys, or time-limited credentials made from shared secrets.

A directory returns candidates: none for an unknown name, and several if several secrets could have made the password.
It returns `LOOK_UP` if the user is known outside only; the control plane then emits `LookUp` and waits for `UserFound`.

Time-limited credentials (draft-uberti-behave-turn-rest): the user name is `EXPIRY:ID` with the expiry in Unix seconds,
the password base64(HMAC-SHA1(secret, user name)). Old programs write `ID:EXPIRY`, which counts only if the first field
has another character than digits. Quotas count by ID, and an allocation belongs to an ID, so a client
keeps its allocation when it renews its credentials.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from hmac import digest
from typing import Final, Protocol

from polynya.core.errors import ConfigurationError
from polynya.stun.integrity import IntegrityKey, long_term_key, userhash
from polynya.stun.registry import PasswordAlgorithmNumber

_CACHED: Final = 10_000
_EXPIRY_DIGITS: Final = 12
OPEN: Final = "open-"
"""Beginning of the account of credentials that any visitor can get: their traffic has limits of its own."""


class External(Enum):
    """Type of `LOOK_UP`, the result of a directory whose users are known outside only."""

    LOOK_UP = "look up"


LOOK_UP: Final = External.LOOK_UP


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user who may make allocations. Keys are by password algorithm; passwords are not stored."""

    name: str
    keys: Mapping[int, IntegrityKey]
    owner: str = ""
    """The account that quotas count for and that owns allocations; empty if it is the name."""
    expires: int | None = None
    """Unix seconds, for time-limited credentials."""
    max_allocations: int | None = None
    """Overrides the server's limit for each user; 0 is no limit."""

    @property
    def account(self) -> str:
        return self.owner or self.name

    @property
    def open(self) -> bool:
        """Whether any visitor of the signaling server can get these credentials."""
        return self.expires is not None and self.owner.startswith(OPEN)

    def __repr__(self) -> str:
        return f"User({self.name!r})"

    @classmethod
    def with_password(cls, name: str, realm: str, password: str, *, max_allocations: int | None = None) -> User:
        """Derive the keys of a user; the password is not stored. ConfigurationError if the text is not allowed."""
        keys = {int(each): IntegrityKey(long_term_key(name, realm, password, each)) for each in PasswordAlgorithmNumber}
        return cls(name=name, keys=keys, max_allocations=max_allocations)

    @classmethod
    def with_keys(cls, name: str, keys: Mapping[int, bytes], *, max_allocations: int | None = None) -> User:
        """Make a user with stored keys: algorithm -> MD5 or SHA-256 of `user:realm:password`."""
        sizes = {int(PasswordAlgorithmNumber.MD5): 16, int(PasswordAlgorithmNumber.SHA256): 32}
        for algorithm, key in keys.items():
            if sizes.get(algorithm) != len(key):
                raise ConfigurationError(f"user {name!r} has a key of {len(key)} bytes for algorithm {algorithm}")
        made = {int(algorithm): IntegrityKey(key) for algorithm, key in keys.items()}
        return cls(name=name, keys=made, max_allocations=max_allocations)


Candidates = Sequence[User] | External


class Directory(Protocol):
    """Finds users by name or USERHASH."""

    anonymous: bool
    """Whether all users are known here, so that USERHASH can be resolved (RFC 8489, section 9.2)."""

    def by_name(self, name: str) -> Candidates:
        """Return the candidates for a user name."""

    def by_hash(self, hashed: bytes) -> Candidates:
        """Return the candidates for a USERHASH."""


class StaticUsers:
    """A directory of configured users."""

    anonymous = True

    def __init__(self, realm: str, users: Iterable[User] = ()) -> None:
        self._by_name: dict[str, tuple[User, ...]] = {}
        self._by_hash: dict[bytes, tuple[User, ...]] = {}
        for user in users:
            if user.name in self._by_name:
                raise ConfigurationError(f"user {user.name!r} is configured twice: remove one of the entries")
            self._by_name[user.name] = (user,)
            self._by_hash[userhash(user.name, realm)] = (user,)

    def by_name(self, name: str) -> Sequence[User]:
        return self._by_name.get(name, ())

    def by_hash(self, hashed: bytes) -> Sequence[User]:
        return self._by_hash.get(hashed, ())


class SharedSecrets:
    """A directory of time-limited credentials. With several secrets, one can be replaced while the other is in use."""

    anonymous = False

    def __init__(self, realm: str, secrets: Iterable[str]) -> None:
        self._realm = realm
        self._secrets = tuple(secret.encode() for secret in secrets)
        if not self._secrets or not all(self._secrets):
            raise ConfigurationError("a shared secret must not be empty")
        self._made: dict[str, tuple[User, ...]] = {}

    def by_name(self, name: str) -> Sequence[User]:
        made = self._made.get(name)
        if made is None:
            made = self._make(name)
            if len(self._made) >= _CACHED:
                del self._made[next(iter(self._made))]
            self._made[name] = made
        return made

    def by_hash(self, hashed: bytes) -> Sequence[User]:  # noqa: ARG002 - such users cannot be enumerated
        return ()

    def _make(self, name: str) -> tuple[User, ...]:
        digits, _, owner = name.partition(":")
        if not _is_number(digits):
            owner, _, digits = name.rpartition(":")
            if not owner or not _is_number(digits):
                return ()
        if len(digits) > _EXPIRY_DIGITS:
            return ()
        users = []
        for secret in self._secrets:
            try:
                user = User.with_password(name, self._realm, time_limited_password(name, secret))
            except ConfigurationError:
                return ()  # the name is not allowed (RFC 8265)
            users.append(User(name=name, keys=user.keys, owner=owner, expires=int(digits)))
        return tuple(users)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class ExternalUsers:
    """A directory whose users are known outside only: in a database, by a callback. The control plane caches them."""

    anonymous = False

    def by_name(self, name: str) -> External:  # noqa: ARG002
        return LOOK_UP

    def by_hash(self, hashed: bytes) -> Sequence[User]:  # noqa: ARG002
        return ()


class Directories:
    """Several directories in order; the first that has a candidate counts."""

    def __init__(self, directories: Iterable[Directory]) -> None:
        self._directories = tuple(directories)
        self.anonymous = bool(self._directories) and all(each.anonymous for each in self._directories)

    def by_name(self, name: str) -> Candidates:
        for directory in self._directories:
            found = directory.by_name(name)
            if found:
                return found
        return ()

    def by_hash(self, hashed: bytes) -> Candidates:
        for directory in self._directories:
            found = directory.by_hash(hashed)
            if found:
                return found
        return ()


def time_limited_name(user: str, expires: int) -> str:
    """Return the time-limited name of a user, which expires at this Unix time in seconds."""
    if not user or not user.isprintable():
        raise ConfigurationError(f"the user of time-limited credentials must be printable text, not {user!r}")
    return f"{expires}:{user}"


def time_limited_password(name: str, secret: bytes) -> str:
    """Compute the password of a time-limited user name."""
    return base64.b64encode(digest(secret, name.encode(), "sha1")).decode()
