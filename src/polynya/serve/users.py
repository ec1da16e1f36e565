"""Users as they are stored: lines of a file, or rows of an SQLite database, with keys in place of passwords.

A line is `NAME:REALM:KEY` or `NAME:REALM:KEY:KEY`: keys in hexadecimal, MD5 (32 digits) or SHA-256 (64 digits) of
`NAME:REALM:PASSWORD` (RFC 8489, section 9.2.2); so a line of Apache's `htdigest` is one, too. What begins with `#` is a
comment. Lines of other realms are passed over.

The database has a table `turn_users` with the columns of SCHEMA; it is read for each user who comes, and what it said
holds for a minute.
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
    """The line that stands for a user in a file of users. ConfigurationError for what cannot be stored."""
    for what, text in (("name", name), ("realm", realm)):
        if not text or ":" in text or not text.isprintable() or text.startswith("#"):
            raise ConfigurationError(f"the {what} of a stored user has no colon or control character, unlike {text!r}")
    keys = (long_term_key(name, realm, password, each).hex() for each in _ALGORITHMS.values())
    return ":".join((name, realm, *keys))


def read_users(path: Path, realm: str) -> tuple[User, ...]:
    """The users of a realm in a file. ConfigurationError, with file and line, for what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read the users of {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a file of users: it is not UTF-8") from None
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, its_realm, *keys = line.strip().split(":")
            user = stored_user(name, keys)
        except (ValueError, ConfigurationError):  # without the line: it may hold a password
            raise ConfigurationError(f"{path}, line {number}: not NAME:REALM:KEY of `--hash-user`") from None
        if its_realm != realm:
            continue
        if name in users:
            raise ConfigurationError(f"{path}, line {number}: user {name!r} is there twice")
        users[name] = user
    return tuple(users.values())


def stored_user(name: str, keys: list[str], max_allocations: int | None = None) -> User:
    """A user by its keys in hexadecimal. ValueError or ConfigurationError for what is no key."""
    by_algorithm = {}
    for key in keys:
        algorithm = _ALGORITHMS.get(len(key))
        if algorithm is None or algorithm in by_algorithm:  # one key each
            raise ConfigurationError(f"a key of user {name!r} is 32 (MD5) or 64 (SHA-256) hexadecimal digits")
        by_algorithm[int(algorithm)] = bytes.fromhex(key)
    if not by_algorithm or not name:
        raise ConfigurationError(f"user {name!r} has no key")
    return User.with_keys(name, by_algorithm, max_allocations=max_allocations)


class UserDatabase:
    """Looks users up in an SQLite database. Raises ConfigurationError when it cannot be read."""

    def __init__(self, path: Path, realm: str) -> None:
        self._uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        self._realm = realm
        try:
            self._find("")
        except sqlite3.Error as error:
            raise ConfigurationError(f"cannot read the users of {path}: {error}") from None

    async def __call__(self, name: str) -> User | None:
        """The user of this name, None for a stranger. Raises sqlite3.Error when the database is gone."""
        return await asyncio.to_thread(self._find, name)

    def _find(self, name: str) -> User | None:
        question = "SELECT md5, sha256, max_allocations FROM turn_users WHERE realm = ? AND name = ?"
        with closing(sqlite3.connect(self._uri, uri=True, timeout=2.0)) as database:
            row = database.execute(question, (self._realm, name)).fetchone()
        return None if row is None else stored_user(name, [key for key in row[:2] if key], row[2])
