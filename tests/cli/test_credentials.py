"""`polynya credentials`: pairs that the server accepts, from each place of the secret."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polynya.cli.app import app
from polynya.cli.relay import split_login
from polynya.turn.server.users import time_limited_password

SECRET = "open sesame and more"


def run(*arguments: str, secret: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["credentials", *arguments], env={"POLYNYA_SHARED_SECRET": secret})
    return done.exit_code, done.output


@pytest.fixture(params=["environment", "file", "config", "file of the config"])
def arguments(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    secrets, settings = tmp_path / "secrets", tmp_path / "polynya.toml"
    secrets.write_text(f"# the first one counts\n{SECRET}\n\nanother\n")
    if request.param == "environment":
        monkeypatch.setenv("POLYNYA_SHARED_SECRET", SECRET)
        return []
    if request.param == "file":
        return ["--shared-secret-file", str(secrets)]
    key = f"shared_secrets = ['{SECRET}']" if request.param == "config" else f"shared_secrets_file = '{secrets}'"
    settings.write_text(f"[turn]\n{key}\n")
    return ["--config", str(settings)]


def test_a_pair_is_made_from_the_secret_wherever_it_is(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["credentials", *arguments, "--user", "alice", "--lifetime", "60"])
    assert done.exit_code == 0
    words = done.output.split()
    assert (words[0], words[2]) == ("username", "password")
    expires, _, user = words[1].partition(":")
    assert user == "alice" and 0 <= int(expires) - time.time() <= 60
    assert words[3] == time_limited_password(words[1], SECRET.encode())


def test_an_entry_of_ice_servers_is_printed() -> None:
    uris = ["turn:relay.example.org:3478", "turns:relay.example.org:5349?transport=tcp"]
    code, output = run("--uri", uris[0], "--uri", uris[1], secret=SECRET)
    entry = json.loads(output)
    assert code == 0 and entry["urls"] == uris
    assert entry["credential"] == time_limited_password(entry["username"], SECRET.encode())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "set --shared-secret-file"),
        (["--shared-secret-file", "/nowhere"], "cannot read the shared secrets of /nowhere"),
        (["--shared-secret-file", "/dev/null"], "has no shared secret"),
        (["--config", "/dev/null"], "has no shared secret"),
    ],
)
def test_without_a_secret_it_says_where_to_put_one(arguments: list[str], says: str) -> None:
    code, output = run(*arguments)
    assert code == 2 and says in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("1767225600:alice", time_limited_password("1767225600:alice", b"s")),
        ("1767225600:a:b", time_limited_password("1767225600:a:b", b"s")),
        ("alice:1767225600", time_limited_password("alice:1767225600", b"s")),
        ("alice", "secret"),
        ("alice", "se:cr:et"),
        ("1767225600", "not an HMAC"),
    ],
)
def test_the_pair_can_be_given_to_polynya_relay(name: str, password: str) -> None:
    assert split_login(f"{name}:{password}") == (name, password)


def test_a_user_that_no_name_can_hold_is_refused() -> None:
    assert run("--user", "a\nb", secret=SECRET)[0] == 2
