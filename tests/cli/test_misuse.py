"""Commands that are used wrongly, interrupted early, or whose output cannot be written: one line and an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polynya.cli.app import app
from tests.cli.conftest import COMMAND, environment, polynya

pytestmark = pytest.mark.slow

FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def run_shell(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell command, in which "$@" is `polynya`."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )


def one_line(text: str) -> str:
    """Returns the one line that was printed."""
    [line] = text.splitlines()
    return line


@full
@pytest.mark.parametrize("arguments", ["gather", "gather --json", "--version", "--help", "serve --print-config"])
def test_a_full_disk_is_one_line(arguments: str) -> None:
    done = run_shell(f'"$@" {arguments} >/dev/full')
    assert done.returncode == 1
    assert one_line(done.stderr) == "polynya: cannot write to standard output: No space left on device"


@full
def test_a_full_standard_error_changes_nothing() -> None:
    done = run_shell('"$@" gather --family 4 --interface lo --loopback 2>/dev/full')
    assert done.returncode == 0 and done.stdout.startswith("host")


@full
@pytest.mark.parametrize("option", ["--trace", "--pcap"])
def test_a_full_disk_ends_a_trace_and_not_the_command(option: str) -> None:
    arguments = ["--stun", "stun:127.0.0.1:9", "--family", "4", "--interface", "lo", "--loopback"]
    done = polynya("gather", option, str(FULL), *arguments)
    assert done.returncode == 1 and done.stdout.startswith(b"host")
    assert "polynya: /dev/full is incomplete: No space left on device" in done.stderr.decode().splitlines()


@pytest.mark.parametrize("arguments", ["gather --loopback", "gather --json", "serve --print-config", "--help"])
def test_a_reader_that_closes_the_pipe_ends_the_command_silently(arguments: str) -> None:
    done = run_shell(f'{{ "$@" {arguments}; echo "code $?" >&2; }} | true')
    assert done.stdout == ""
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.stderr.splitlines()[-1] in {"code 0", "code 1"}


def test_closed_standard_streams_are_no_error() -> None:
    assert run_shell('"$@" gather --family 4 --interface lo --loopback >&- 2>&-').returncode == 0


INTERRUPTS = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = {arguments!r}
from polynya.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", ["gather"]),
        ("polynya.cli.app", ["gather"]),
        ("polynya.aio.agent", ["gather"]),
        ("polynya.aio.meeting", ["connect", "kitchen", "--server", "http://127.0.0.1:1"]),
        ("polynya.serve.settings", ["serve", "--listen", "127.0.0.1:0"]),
        ("polynya.aio.signaling", ["gather", "--server", "http://127.0.0.1:1"]),
        ("polynya.demo.run", ["demo"]),
        ("polynya.demo.nats", ["demo"]),
    ],
)
def test_an_interrupt_while_a_command_is_imported_ends_it_silently(module: str, arguments: list[str]) -> None:
    code = INTERRUPTS.format(module=module, arguments=arguments)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment())
    assert (done.returncode, done.stderr) == (130, "")


WRONG = [
    ["gather", "--interface", "eth9"],
    ["gather", "--family", "5"],
    ["gather", "--stun", "http://192.0.2.1"],
    ["gather", "--stun", "stun:192.0.2.1:99999"],
    ["gather", "--stun", ""],
    ["gather", "--server", "ftp://192.0.2.1"],
    ["gather", "--server", "http://192.0.2.1:99999"],
    ["gather", "--server", "\udc80"],
    ["gather", "--trace", "/"],
    ["gather", "--trace", "/no/such/folder/trace"],
    ["gather", "--pcap", "/no/such/folder/capture"],
    ["gather", "--trace", "\0".replace("\0", "x" * 300)],
    ["connect", "kitchen", "--server", "nonsense"],
    ["connect", "", "--server", "http://127.0.0.1:1"],
    ["connect", "kitchen", "--server", "http://127.0.0.1:1", "--timeout", "nan"],
    ["connect", "kitchen", "--server", "http://127.0.0.1:1", "--interface", "eth9"],
    ["relay", "nonsense"],
    ["relay", "turn:192.0.2.1:99999"],
    ["relay", "turn:192.0.2.1", "--user", "name"],
    ["relay", "turn:192.0.2.1", "--user", "u:p", "--peer", "nonsense"],
    ["relay", "turn:192.0.2.1", "--user", "u:p", "--peer", "192.0.2.1:99999"],
    ["relay", "turns:192.0.2.1", "--user", "u:p", "--ca", "/no/such/file"],
    ["relay", "turns:192.0.2.1", "--user", "u:p", "--ca", "/dev/null"],
    ["relay", "turn:192.0.2.1", "--user", "u:p", "--timeout", "nan"],
    ["relay", "turn:192.0.2.1", "--user", "u:p", "--timeout", "inf"],
    ["serve", "--listen", "nonsense", "--check-config"],
    ["serve", "--listen", "127.0.0.1:99999", "--check-config"],
    ["serve", "--http", "127.0.0.1", "--check-config"],
    ["serve", "--config", "/no/such/file", "--check-config"],
    ["serve", "--config", "/", "--check-config"],
    ["serve", "--config", "/dev/null", "--tls-listen", "127.0.0.1:0", "--tls-cert", "/dev/null", "--tls-key",
     "/dev/null", "--check-config"],
    ["serve", "--drain", "nan", "--check-config"],
    ["demo", "--trace", "/no/such/folder/trace"],
    ["demo", "--timeout", "nan"],
    ["nonsense"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG, ids=[ascii(" ".join(each))[1:60] for each in WRONG])
def test_wrong_use_is_exit_code_2_without_a_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        app(arguments, prog_name="polynya")
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert said.strip() and "Traceback" not in said
