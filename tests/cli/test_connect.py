"""`polynya connect`: the input of one program becomes the output of the other."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polynya.core.trace import read_trace
from tests.cli.conftest import COMMAND, TIMEOUT, Process, Running, environment, polynya

pytestmark = pytest.mark.slow

Start = Callable[..., Process]


def both(server: Running, first: bytes, second: bytes, *arguments: str) -> list[subprocess.CompletedProcess[bytes]]:
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(polynya, "connect", "room", *arguments, input=data, server=server.url)
            for data in (first, second)
        ]
        return [each.result() for each in runs]


def test_each_program_prints_the_input_of_the_other(server: Running) -> None:
    one, two = both(server, b"from one\n", b"from two\x00\xff\n", "-v")
    assert (one.returncode, two.returncode) == (0, 0), (one.stderr, two.stderr)
    assert one.stdout == b"from two\x00\xff\n"
    assert two.stdout == b"from one\n"
    said = one.stderr.decode()
    assert f"servers: {server.stun} (no relay: this server has no TURN; " in said and "--shared-secret" in said
    assert "not encrypted" in said
    assert "(direct, " in said
    assert "this side: host 127.0.0.1:" in said
    assert "other side: host " in said
    assert "both sides sent all: 1 sent, 1 received" in said
    assert ("this side is controlling" in said) != ("this side is controlling" in two.stderr.decode())


def test_the_default_output_is_five_lines(server: Running) -> None:
    one, two = both(server, b"from one\n", b"")
    assert (one.returncode, two.returncode) == (0, 0)
    for side in (one, two):
        lines = [*dict.fromkeys(line.split(":")[0] for line in side.stderr.decode().splitlines())]  # a path may change
        begins = ["joined the room as ", "found ", "connected; ", "path", "both sides sent all"]
        assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins


LOSSY = """
from polynya.aio.connection import Connection
from polynya.cli import main
send, count = Connection.send, 0
def lossy(self, data):
    global count
    count += data[:1] == b"\\0"
    return True if data[:1] == b"\\0" and count % 3 == 0 else send(self, data)
Connection.send = lossy
main()
"""


@pytest.mark.parametrize("quiet", [True, False])
def test_the_side_that_misses_pieces_says_how_much_and_exits_with_3(server: Running, quiet: bool) -> None:
    data = os.urandom(20_000)
    arguments = ["connect", "room", *(["--quiet"] if quiet else [])]
    with ThreadPoolExecutor() as pool:
        loser = pool.submit(polynya, *arguments, server=server.url)
        env = environment(POLYNYA_SERVER=server.url)
        command = [sys.executable, "-c", LOSSY, *arguments]
        sender = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT, env=env, check=False)
        lost = loser.result()
    assert (sender.returncode, lost.returncode) == (0, 3), (sender.stderr, lost.stderr)
    said = re.search(r"polynya: (\d+) of (\d+) pieces, (\d+) bytes of the other side are missing", lost.stderr.decode())
    assert said is not None, lost.stderr
    missing, sent, size = map(int, said.groups())
    assert missing == sent // 3 and size == len(data) - len(lost.stdout)
    assert not quiet or len(lost.stderr.splitlines()) == 1


def test_a_big_file_reaches_a_slow_reader_whole(server: Running) -> None:
    """The reader takes nothing for two seconds: the sender is asked to wait."""
    data = os.urandom(8_000_000)
    env = environment(POLYNYA_SERVER=server.url)
    with ThreadPoolExecutor() as pool:
        sender = pool.submit(polynya, "connect", "room", "--quiet", input=data, server=server.url)
        command, pipe = [*COMMAND, "connect", "room", "--quiet"], subprocess.PIPE
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env) as reader:
            assert reader.stdout is not None and reader.stderr is not None
            received = reader.stdout.read(1)
            time.sleep(2)
            received += reader.stdout.read()
            assert reader.wait(TIMEOUT) == 0, reader.stderr.read()
        assert sender.result().returncode == 0, sender.result().stderr
    assert len(received) == len(data) and sorted(received) == sorted(data)


def test_two_empty_inputs_end_both(server: Running) -> None:
    one, two = both(server, b"", b"")
    assert (one.returncode, two.returncode) == (0, 0), (one.stderr, two.stderr)
    assert "0 sent, 0 received" in one.stderr.decode()


def test_an_output_that_cannot_be_written_is_an_error(server: Running) -> None:
    with ThreadPoolExecutor() as pool, Path("/dev/full").open("wb") as full:
        sender = pool.submit(polynya, "connect", "room", "--quiet", input=b"x" * 5000, server=server.url)
        env = environment(POLYNYA_SERVER=server.url)
        done = subprocess.run(
            [*COMMAND, "connect", "room", "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT,
            env=env,
            check=False,
        )
        sender.result()
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "write standard output: No space left on device" in line


def test_a_side_that_is_killed_is_noticed_soon(server: Running, start: Start) -> None:
    one, two = (start("connect", "room", server=server.url) for _ in range(2))
    one.until("path:")
    two.until("path:")
    one.signal(signal.SIGKILL)
    began = time.monotonic()
    assert two.wait() == 1
    assert time.monotonic() - began < 20, "consent would last for 30 s"
    assert any("3 consent checks" in line for line in (*two.printed, *rest(two)))


def rest(process: Process) -> list[str]:
    """Return the lines of standard error that were not read yet."""
    lines = []
    while (line := process.lines.get(timeout=TIMEOUT)) is not None:
        lines.append(line)
    return lines


def test_lines_arrive_as_they_are_typed_and_both_end_with_one(server: Running, start: Start) -> None:
    one, two = (start("connect", "room", server=server.url) for _ in range(2))
    one.write(b"ping\n")
    assert two.read(5) == b"ping\n"
    two.write(b"pong\n")
    assert one.read(5) == b"pong\n"
    one.end_input()
    assert one.wait() == 0
    assert two.wait() == 0
    assert two.read(-1) == b""


def test_a_file_arrives_complete_on_loopback(server: Running) -> None:
    data = os.urandom(60_000)  # fits into the socket buffer, so that a slow reader loses nothing
    one, two = both(server, data, b"", "--quiet")
    assert one.returncode == two.returncode == 0
    assert two.stdout == data
    assert one.stderr == two.stderr == b""


def test_an_interrupt_of_one_ends_both(server: Running, start: Start) -> None:
    one, two = (start("connect", "room", server=server.url) for _ in range(2))
    one.until("path:")
    two.until("path:")
    one.signal(signal.SIGINT)
    assert one.wait() == 130
    assert two.wait() == 0
    assert not any("Traceback" in line for line in one.printed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_of_the_wait_ends_it_cleanly(
    server: Running, start: Start, number: signal.Signals, code: int
) -> None:
    waiting = start("connect", "room", server=server.url)
    waiting.until("waiting for the other side")
    waiting.signal(number)
    assert waiting.wait() == code
    waiting.end()
    assert waiting.lines.get(timeout=5) is None, "no further line"


def test_closing_the_output_ends_it(server: Running) -> None:
    with ThreadPoolExecutor() as pool:
        sender = pool.submit(polynya, "connect", "room", input=b"x\n" * 100_000, server=server.url)
        env = environment(POLYNYA_SERVER=server.url)
        command = [*COMMAND, "connect", "room"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env) as reader:
            assert reader.stdout is not None and reader.stderr is not None
            assert reader.stdout.read(2) == b"x\n"
            reader.stdout.close()
            assert b"Traceback" not in reader.stderr.read()
            assert reader.wait(TIMEOUT) == 0
        sender.result()


def test_a_timeout_without_another_member_is_exit_code_1(server: Running) -> None:
    done = polynya("connect", "room", "--timeout", "3", server=server.url)
    assert done.returncode == 1
    assert "no other member joined the room 'room' within 3 s" in done.stderr.decode()


def test_the_report_is_printed_when_no_pair_works(server: Running, start: Start) -> None:
    """The two sides have no common IP version."""
    other = start("connect", "room", "--family", "6", "--loopback", server=server.url)
    other.until("waiting for the other side")
    done = polynya("connect", "room", "--family", "4", "--timeout", "5", server=server.url)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "no relay: this server has no TURN; " in said.rpartition("no connection within 5 s")[2]
    assert "gathering complete" in said
    assert done.stdout == b""
    other.signal(signal.SIGINT)
    assert other.wait() == 130


def test_a_missing_server_is_one_line_and_exit_code_1() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        done = polynya("connect", "room", "--server", url)
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "no server listens" in line and "polynya serve --http" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["room"], "POLYNYA_SERVER"),
        (["room", "--server", "127.0.0.1:8080"], "http://HOST:PORT"),
        (["", "--server", "http://127.0.0.1:1"], "a room's name"),
        (["room", "--server", "http://127.0.0.1:1", "--stun", "http://x"], "stun"),
        (["room", "--server", "http://127.0.0.1:1", "--family", "5"], "4 or 6"),
        (["room", "--server", "http://127.0.0.1:1", "--trace", "/nowhere/at/all"], "cannot write"),
    ],
)
def test_wrong_use_is_an_error_with_exit_code_2(arguments: list[str], says: str) -> None:
    done = polynya("connect", *arguments)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.decode().split())
    assert b"Traceback" not in done.stderr


def test_the_trace_and_the_capture_are_written_without_secrets(server: Running, tmp_path: Path) -> None:
    trace, pcap = tmp_path / "trace.jsonl", tmp_path / "capture.pcapng"
    with ThreadPoolExecutor() as pool:
        files = ["--trace", str(trace), "--pcap", str(pcap)]
        one = pool.submit(polynya, "connect", "room", *files, input=b"seen on the wire", server=server.url)
        two = pool.submit(polynya, "connect", "room", input=b"", server=server.url)
        assert one.result().returncode == two.result().returncode == 0
    with trace.open() as file:
        kinds = {event.kind for event in read_trace(file)}
    assert {"flow-opened", "packet-sent", "packet-received", "pair", "selected", "signaling"} <= kinds
    assert "seen on the wire" not in trace.read_text()
    assert pcap.read_bytes().startswith(b"\x0a\x0d\x0d\x0a") and b"seen on the wire" in pcap.read_bytes()
