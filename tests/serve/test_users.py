"""Stored users: keys instead of passwords, and errors without secrets."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.errors import ConfigurationError, TransactionError
from polynya.serve import Server
from polynya.serve.users import SCHEMA, UserDatabase, hash_line, read_users, stored_user
from polynya.turn.server.users import User
from tests.serve.turn_house import NAME, PASSWORD, REALM, client, config, options

pytestmark = pytest.mark.loops("asyncio", "uvloop")

LINE = hash_line(NAME, REALM, PASSWORD)


def keys_of(user: User) -> dict[int, bytes]:
    return {algorithm: key.sha1(b"x") for algorithm, key in user.keys.items()}


def test_a_line_holds_the_keys_and_not_the_password(tmp_path: Path) -> None:
    assert PASSWORD not in LINE
    (tmp_path / "users").write_text(f"# who may\n\n{LINE}\n{hash_line('bob', 'elsewhere', 'x')}\n")
    [user] = read_users(tmp_path / "users", REALM)
    assert user.name == NAME
    assert keys_of(user) == keys_of(User.with_password(NAME, REALM, PASSWORD))


def test_a_line_of_htdigest_is_accepted(tmp_path: Path) -> None:
    """MD5 of `user:realm:password`, as in RFC 7616 and Apache."""
    (tmp_path / "users").write_text("Mufasa:testrealm@host.com:939e7578ed9e3c518a452acee763bce9\n")
    [user] = read_users(tmp_path / "users", "testrealm@host.com")
    assert keys_of(user)[1] == keys_of(User.with_password("Mufasa", "testrealm@host.com", "Circle Of Life"))[1]
    assert list(user.keys) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "alice",
        "alice:realm",
        "alice:realm:secret password",
        f"{LINE}:00",
        f":{REALM}:{'0' * 32}",
        f"a:{REALM}:{'g' * 32}",
        f"a:{REALM}:{'0' * 32}:{'1' * 32}",
    ],
)
def test_an_invalid_line_is_reported_by_number_without_its_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "users").write_text(f"# first\n{text}\n")
    with pytest.raises(ConfigurationError, match=r"users, line 2: expected NAME:REALM:KEY") as refused:
        read_users(tmp_path / "users", REALM)
    assert "secret" not in str(refused.value)


def test_a_second_line_of_a_user_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"{LINE}\n{LINE}\n")
    with pytest.raises(ConfigurationError, match="line 2: user 'alice' appears twice"):
        read_users(tmp_path / "users", REALM)


@pytest.mark.parametrize(
    ("name", "realm"), [("a:b", "r"), ("", "r"), ("a", "r:s"), ("#a", "r"), ("a\nb", "r"), ("a", "")]
)
def test_an_invalid_name_or_realm_is_refused(name: str, realm: str) -> None:
    with pytest.raises(ConfigurationError):
        hash_line(name, realm, "x")


@given(st.binary(max_size=200))
def test_any_file_gives_users_or_a_configuration_error(data: bytes) -> None:
    class File:
        def read_text(self, encoding: str) -> str:
            return data.decode(encoding)

    with suppress(ConfigurationError):
        read_users(File(), REALM)  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [[], ["00"], ["0" * 32, "1" * 32], ["g" * 64]])
def test_invalid_keys_are_refused(keys: list[str]) -> None:
    with pytest.raises(ValueError, match=r"key|hexadecimal"):
        stored_user("a", keys)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "us?ers #1.db"
    with sqlite3.connect(path) as connection:
        connection.execute(SCHEMA)
        _, realm, md5, sha256 = LINE.split(":")
        row = "INSERT INTO turn_users (realm, name, md5, sha256, max_allocations) VALUES (?, ?, ?, ?, ?)"
        connection.execute(row, (realm, NAME, md5, sha256, 1))
        connection.execute(row, (realm, "old", md5, None, None))
        connection.execute(row, ("elsewhere", "bob", md5, None, None))
        connection.execute(row, (realm, "broken", "xx", None, None))
    connection.close()
    return path


async def test_a_database_look_up_is_for_one_user_of_one_realm(database: Path) -> None:
    users = UserDatabase(database, REALM)
    alice = await users(NAME)
    assert alice is not None and alice.max_allocations == 1
    assert keys_of(alice) == keys_of(User.with_password(NAME, REALM, PASSWORD))
    old = await users("old")
    assert old is not None and list(old.keys) == [1] and old.max_allocations is None
    assert await users("bob") is None and await users("mallory' OR 1=1 --") is None
    with pytest.raises(ConfigurationError, match="'broken'"):
        await users("broken")


def test_an_unusable_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nonsense " * 100)
    sqlite3.connect(tmp_path / "empty").close()
    for name, says in (("missing", "unable to open"), ("text", "not a database"), ("empty", "no such table")):
        with pytest.raises(ConfigurationError, match=f"cannot read the users of .*{name}: {says}|file is {says}"):
            UserDatabase(tmp_path / name, REALM)


async def test_a_server_accepts_users_of_a_database(database: Path) -> None:
    made = options(users=(), look_up=UserDatabase(database, REALM))
    async with Server(config(made)) as server:
        async with client(server):
            with pytest.raises(TransactionError, match="486"):
                await client(server).allocate(5)
        for name, password in ((NAME, "wrong"), ("bob", "x"), ("broken", "x"), ("mallory", "x")):
            with pytest.raises(TransactionError, match="401"):
                await client(server, username=name, password=password).allocate(5)
        os.unlink(database)  # noqa: PTH108
        with pytest.raises(TransactionError, match="401"):
            await client(server, username="old", password="x").allocate(5)
