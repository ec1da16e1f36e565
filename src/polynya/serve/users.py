"""Stored users: lines of a file or rows of an SQLite database, with keys instead of passwords.

A line is `NAME:REALM:KEY` or `NAME:REALM:KEY:KEY`. A key is the MD5 (32 digits) or SHA-256 (64 digits) of
`NAME:REALM:PASSWORD` in hexadecimal (RFC 8489, section 9.2.2), so lines of Apache's `htdigest` work, too. Lines that
begin with `#` are comments. Lines of other realms are ignored.

The database has a table `turn_users` with the columns of SCHEMA. The server reads it once for each user, and caches the
row for a minute.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from polynya.core.errors import ConfigurationError
from polynya.stun.integrity import long_term_key
from polynya.stun.registry import PasswordAlgorithmNumber
from polynya.turn.server.users import User

SCHEMA: Final = """CREATE TABLE turn_users (
    realm TEXT NOT NULL,
    name TEXT NOT NULL,
    md5 TEXT,
    sha256 TEXT,
    max_allocations INTEGER,
    PRIMARY KEY (realm, name)
)"""
_ALGORITHMS: Final = {32: PasswordAlgorithmNumber.MD5, 64: PasswordAlgorithmNumber.SHA256}


def hash_line(name: str, realm: str, password: str) -> str:
    """Return the line of a user for a file of users. Raises ConfigurationError for an invalid name or realm."""
    for what, text in (("name", name), ("realm", realm)):
        if not text or ":" in text or not text.isprintable() or text.startswith("#"):
            raise ConfigurationError(
                f"the {what} of a stored user must not be empty, begin with # or contain a colon: {text!r}"
            )
    keys = (long_term_key(name, realm, password, each).hex() for each in _ALGORITHMS.values())
    return ":".join((name, realm, *keys))


def read_users(path: Path, realm: str) -> tuple[User, ...]:
    """Return the users of a realm in a file. Raises ConfigurationError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read the users of {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a file of users: its text is not UTF-8") from None
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, its_realm, *keys = line.strip().split(":")
            user = stored_user(name, keys)
        except (ValueError, ConfigurationError):  # the error omits the line, which may contain a password
            raise ConfigurationError(
                f"{path}, line {number}: expected NAME:REALM:KEY, as `polynya serve --hash-user` prints it"
            ) from None
        if its_realm != realm:
            continue
        if name in users:
            raise ConfigurationError(f"{path}, line {number}: user {name!r} appears twice")
        users[name] = user
    return tuple(users.values())


def stored_user(name: str, keys: list[str], max_allocations: int | None = None) -> User:
    """Return a user with these keys in hexadecimal. Raises ValueError or ConfigurationError for an invalid key."""
    by_algorithm = {}
    for key in keys:
        algorithm = _ALGORITHMS.get(len(key))
        if algorithm is None or algorithm in by_algorithm:  # one key for each algorithm
            raise ConfigurationError(
                f"user {name!r}: a key must be 32 (MD5) or 64 (SHA-256) hexadecimal digits, one of each at most"
            )
        by_algorithm[int(algorithm)] = bytes.fromhex(key)
    if not by_algorithm or not name:
        raise ConfigurationError(f"user {name!r} needs a name and a key")
    return User.with_keys(name, by_algorithm, max_allocations=max_allocations)


class UserDatabase:
    """Looks up users in an SQLite database. Raises ConfigurationError if it cannot be read."""

    def __init__(self, path: Path, realm: str) -> None:
        self._uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        self._realm = realm
        try:
            self._find("")
        except sqlite3.Error as error:
            raise ConfigurationError(f"cannot read the users of {path}: {error}") from None

    async def __call__(self, name: str) -> User | None:
        """Return the user with this name, or None. Raises sqlite3.Error if the database cannot be read."""
        return await asyncio.to_thread(self._find, name)

    def _find(self, name: str) -> User | None:
        query = "SELECT md5, sha256, max_allocations FROM turn_users WHERE realm = ? AND name = ?"
        with closing(sqlite3.connect(self._uri, uri=True, timeout=2.0)) as database:
            row = database.execute(query, (self._realm, name)).fetchone()
        return None if row is None else stored_user(name, [key for key in row[:2] if key], row[2])
