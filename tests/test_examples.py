"""The examples run, do what they say, and are what the documentation shows."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "howto" / "sans-io.md"
SHOWN = ["agent_by_hand.py", "session_by_hand.py"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@contextmanager
def example(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Starts an example in a process of its own, with warnings as errors."""
    process = subprocess.Popen(
        [sys.executable, "-b", "-W", "error", EXAMPLES / name, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def printed(process: subprocess.Popen[str]) -> list[str]:
    """Returns the lines that an example prints until its end."""
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    return stdout.splitlines()


def run(name: str, *arguments: str) -> list[str]:
    with example(name, *arguments) as process:
        return printed(process)


def first_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(pattern, line.rstrip("\n"))
    assert found, line
    return found


def test_two_agents_are_driven_by_hand() -> None:
    *selected, at_alice, at_bob = run("agent_by_hand.py")
    assert [at_alice, at_bob] == ["alice received 'hello, alice'", "bob received 'hello, bob'"]
    for name in ("alice", "bob"):
        reasons = [line.rpartition(": ")[2] for line in selected if line.startswith(f"{name}: host 127.0.0.1:")]
        assert reasons == ["the first valid pair", "it was nominated"]


def test_sessions_and_a_stun_server_are_driven_by_hand() -> None:
    lines = run("session_by_hand.py")
    assert lines[-2:] == ["alice received 'bob greets alice'", "bob received 'alice greets bob'"]
    [answer] = [line for line in lines if " asked from " in line]
    found = re.fullmatch(r"  (\S+) asked from (\S+): (\S+) \(answered .*", answer)
    assert found, answer
    server, base, mapped = found.groups()
    assert base == mapped != server


def test_two_programs_signal_over_a_connection_of_their_own() -> None:
    with example("two_programs.py", "listen", "0") as listener:
        port = first_line(listener, r"listening on port (\d+)")[1]
        with example("two_programs.py", "dial", port) as dialer:
            at_dialer, at_listener = printed(dialer), printed(listener)
    assert (at_dialer[0], at_listener[0]) == ("hello from the listening program", "hello from the dialing program")
    ends = re.compile(r"path: host (\S+) -> host (\S+) \(direct, nominated\)")
    ours, theirs = ends.fullmatch(at_dialer[1]), ends.fullmatch(at_listener[1])
    assert ours and theirs
    assert ours[1] != ours[2]


def test_a_lite_server_serves_clients_at_once_and_in_sequence_on_one_port() -> None:
    with example("lite_server.py", "serve", "0") as server:
        port = first_line(server, r"serving on 127\.0\.0\.1:(\d+)")[1]
        with (
            example("lite_server.py", "call", port, "one") as one,
            example("lite_server.py", "call", port, "two") as two,
        ):
            assert [printed(one), printed(two)] == [["one"], ["two"]]
        assert run("lite_server.py", "call", port, "three") == ["three"]
        server.send_signal(signal.SIGINT)
        assert printed(server) == []


def test_many_agents_share_a_process() -> None:
    [line] = run("many_agents.py", "20")
    assert re.fullmatch(r"40 agents made 20 connections: the first after [\d.]+ s, the last after [\d.]+ s", line)


def test_a_server_has_one_port_for_all_clients_and_no_signaling() -> None:
    [line] = run("one_port.py", "12")
    assert re.fullmatch(r"12 clients were answered through port \d+", line)


def test_three_programs_form_a_mesh() -> None:
    names = ("alice", "bob", "carol")
    server = [sys.executable, "-m", "polynya", "serve", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
        try:
            assert serving.stdout is not None
            url = serving.stdout.readline().rpartition("http=")[2].strip()
            with (
                example("mesh.py", url, "alice") as alice,
                example("mesh.py", url, "bob") as bob,
                example("mesh.py", url, "carol") as carol,
            ):
                for name, process in zip(names, (alice, bob, carol), strict=True):
                    assert process.stdout is not None
                    heard = {process.stdout.readline().strip() for _ in range(2)}
                    assert heard == {f"hello from {other}" for other in names if other != name}
        finally:
            serving.terminate()


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert names
    assert [name for name in names if not re.search(rf'(run|example)\("{name}"', text)] == []


@pytest.mark.parametrize("block", BLOCK.findall(PAGE.read_text(encoding="utf-8")))
def test_the_code_that_the_page_shows_is_that_of_the_examples(block: str) -> None:
    shown = "\n".join((EXAMPLES / name).read_text(encoding="utf-8") for name in SHOWN)
    assert any(textwrap.indent(block, " " * depth) in shown for depth in (0, 4, 8)), block
