"""`polynya gather`: the candidates of this host as text and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from polynya import Candidate
from tests.cli.conftest import COMMAND, Running, environment, polynya

pytestmark = pytest.mark.slow


def test_gather_uses_the_stun_server_of_a_local_server_and_loopback(server: Running) -> None:
    done = polynya("gather", "--json", server=server.url)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    hosts = {each["address"] for each in document["candidates"] if each["type"] == "host"}
    assert "127.0.0.1" in hosts
    assert {answer["server"] for answer in document["servers"]} == {server.stun.removeprefix("stun:")}
    assert any(answer["mapped"] for answer in document["servers"])
    for each in document["candidates"]:
        assert Candidate.parse(each["sdp"]).address.port == each["port"]
    assert done.stderr == b""


def test_loopback_is_used_only_on_request() -> None:
    document = json.loads(polynya("gather", "--json").stdout)
    assert all(each["address"] not in {"127.0.0.1", "::1"} for each in document["candidates"])
    document = json.loads(polynya("gather", "--json", "--loopback", "--family", "4", "--interface", "lo").stdout)
    assert [each["address"] for each in document["candidates"]] == ["127.0.0.1"]


def test_each_line_is_a_candidate(server: Running) -> None:
    done = polynya("gather", "--stun", server.stun, "--loopback", "--family", "4", "--interface", "lo")
    [line] = done.stdout.decode().splitlines()
    assert line.split()[0] == "host" and line.split()[1].startswith("127.0.0.1:")


def test_a_stun_server_without_an_answer_is_reported() -> None:
    done = polynya("gather", "--stun", "stun:127.0.0.1:9", "--loopback", "--family", "4", "--interface", "lo")
    assert done.returncode == 1, "no server answered"
    assert "127.0.0.1:9 is unreachable: port unreachable" in done.stderr.decode()
    assert "only addresses of this host are known" in done.stderr.decode()
    as_json = polynya("gather", "--json", "--stun", "stun:127.0.0.1:9", "--loopback", "--interface", "lo")
    assert as_json.returncode == 1 and json.loads(as_json.stdout)["candidates"]


def test_no_candidate_is_exit_code_1() -> None:
    done = polynya("gather", "--interface", "lo", "--no-loopback")
    assert done.returncode == 1
    assert "no candidate" in done.stderr.decode()


def test_an_unspecified_address_is_not_shown(server: Running) -> None:
    """A hidden base, and a relay over TCP that was not opened, have no address."""
    hidden = polynya("gather", "--policy", "no-host", "--loopback", "--family", "4", server=server.url)
    refused = polynya("gather", "--policy", "relay", "--loopback", "--family", "4", server=server.url)
    for done in (hidden, refused):
        assert "0.0.0.0" not in (done.stdout + done.stderr).decode()


# ------------------------------------------------------------------------------------------------- the command itself


def test_the_version_is_printed_without_the_packages_of_the_commands() -> None:
    done = polynya("--version")
    assert done.returncode == 0
    assert done.stdout.decode().startswith("polynya 0.")
    code = "import sys; sys.argv[1:] = ['--version']; from polynya.cli import main; main(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"typer", "rich", "uvicorn", "starlette", "websockets", "msgspec"} & set(loaded)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("typer", ["gather"], "polynya[cli]"),
        ("starlette", ["serve", "--listen", "127.0.0.1:0"], "polynya[serve]"),
        ("websockets", ["connect", "r", "--server", "http://127.0.0.1:1"], "polynya[signaling]"),
    ],
)
def test_a_missing_extra_is_named(missing: str, arguments: list[str], extra: str) -> None:
    hide = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {arguments!r}"
    code = f"{hide}; from polynya.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2, done.stderr
    assert f"pip install '{extra}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_input_counts_as_empty() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "gather", "--json"],
        capture_output=True,
        check=False,
        timeout=30,
        env=environment(),
    )
    assert done.returncode in {0, 1}
    json.loads(done.stdout)
