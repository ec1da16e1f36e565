"""Who may use the server: users with keys, or time-limited credentials of shared secrets.

A directory answers with candidates: none for a stranger, several where several secrets could have made the password, or
`ASK` when somebody outside must be asked; the control plane then says `LookUp` and waits for `UserFound`.

Time-limited credentials (draft-uberti-behave-turn-rest): the user name is `EXPIRY:ID` with the expiry in Unix seconds,
the password base64(HMAC-SHA1(secret, user name)). What counts towards a quota, and what keeps an allocation when the
credentials were renewed, is the ID.
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


class Asked(Enum):
    """A directory's answer when it cannot know by itself."""

    ASK = "ask"


ASK: Final = Asked.ASK


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may allocate. Keys are by password algorithm; passwords are not kept."""

    name: str
    keys: Mapping[int, IntegrityKey]
    owner: str = ""
    """Whose quota is used and who may go on with an allocation; the name where nothing else is said."""
    expires: int | None = None
    """Unix seconds, for time-limited credentials."""
    max_allocations: int | None = None
    """In place of the server's limit for each user; 0 is no limit."""

    @property
    def account(self) -> str:
        return self.owner or self.name

    def __repr__(self) -> str:
        return f"User({self.name!r})"

    @classmethod
    def with_password(cls, name: str, realm: str, password: str, *, max_allocations: int | None = None) -> User:
        """A user whose keys are made here; the password is forgotten. ConfigurationError for text that cannot be."""
        keys = {int(each): IntegrityKey(long_term_key(name, realm, password, each)) for each in PasswordAlgorithmNumber}
        return cls(name=name, keys=keys, max_allocations=max_allocations)

    @classmethod
    def with_keys(cls, name: str, keys: Mapping[int, bytes], *, max_allocations: int | None = None) -> User:
        """A user with stored keys: algorithm -> MD5 or SHA-256 of `user:realm:password`."""
        sizes = {int(PasswordAlgorithmNumber.MD5): 16, int(PasswordAlgorithmNumber.SHA256): 32}
        for algorithm, key in keys.items():
            if sizes.get(algorithm) != len(key):
                raise ConfigurationError(f"user {name!r} has a key of {len(key)} bytes for algorithm {algorithm}")
        made = {int(algorithm): IntegrityKey(key) for algorithm, key in keys.items()}
        return cls(name=name, keys=made, max_allocations=max_allocations)


Candidates = Sequence[User] | Asked


class Directory(Protocol):
    """Where users are found."""

    anonymous: bool
    """Whether all users are known here, so that a USERHASH can be resolved (RFC 8489, section 9.2)."""

    def by_name(self, name: str) -> Candidates:
        """Who has this name."""

    def by_hash(self, hashed: bytes) -> Candidates:
        """Whose USERHASH this is."""


class StaticUsers:
    """Users that are all known beforehand."""

    anonymous = True

    def __init__(self, realm: str, users: Iterable[User] = ()) -> None:
        self._by_name: dict[str, tuple[User, ...]] = {}
        self._by_hash: dict[bytes, tuple[User, ...]] = {}
        for user in users:
            if user.name in self._by_name:
                raise ConfigurationError(f"user {user.name!r} is there twice")
            self._by_name[user.name] = (user,)
            self._by_hash[userhash(user.name, realm)] = (user,)

    def by_name(self, name: str) -> Sequence[User]:
        return self._by_name.get(name, ())

    def by_hash(self, hashed: bytes) -> Sequence[User]:
        return self._by_hash.get(hashed, ())


class SharedSecrets:
    """Whoever holds a password that one of these secrets made. Several of them let one be replaced in peace."""

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
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
            return ()
        users = []
        for secret in self._secrets:
            try:
                user = User.with_password(name, self._realm, time_limited_password(name, secret))
            except ConfigurationError:
                return ()  # a name that cannot be
            users.append(User(name=name, keys=user.keys, owner=owner, expires=int(digits)))
        return tuple(users)


class AskedUsers:
    """Users that only somebody outside knows: a database, a callback. Answers are kept by the control plane."""

    anonymous = False

    def by_name(self, name: str) -> Asked:  # noqa: ARG002
        return ASK

    def by_hash(self, hashed: bytes) -> Sequence[User]:  # noqa: ARG002
        return ()


class Directories:
    """Several directories, asked in their order; the first that knows somebody counts."""

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


def time_limited_password(name: str, secret: bytes) -> str:
    """The password of a time-limited user name."""
    return base64.b64encode(digest(secret, name.encode(), "sha1")).decode()
