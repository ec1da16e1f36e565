"""The process of a peer: with a task that fails, and without a task."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from polynya.core.instants import MILLISECOND, Instant
from polynya.demo.dialogue import Dialogue
from polynya.demo.records import Outcome, Task, decode_record, encode

pytestmark = pytest.mark.slow

TIMEOUT = 30


def peer(given: bytes, *, wait: bool = False) -> tuple[int, list[Any], bytes]:
    """Run one peer with `given` as standard input. With `wait`, the input ends only after the outcome."""
    command = [sys.executable, "-m", "polynya.demo.peer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        records = []
        if wait:
            process.stdin.write(given)
            process.stdin.flush()
            for line in process.stdout:
                records.append(decode_record(line))
                if isinstance(records[-1], Outcome):
                    break
            given = b""
        output, errors = process.communicate(given, timeout=TIMEOUT)
        records += map(decode_record, output.splitlines())
        return process.returncode, records, errors


def task(**changes: Any) -> bytes:
    options = {"name": "alice", "other": "bob", "url": "", "room": "r", "messages": 1, "timeout": 5.0, "families": [4]}
    return encode(Task(**{**options, **changes}))


@pytest.mark.parametrize("line", [b"", b"hello\n", b'{"name": "alice"}\n'])
def test_a_peer_started_by_hand_names_the_command_to_use(line: bytes) -> None:
    code, records, errors = peer(line)
    assert (code, records) == (2, [])
    assert b"`polynya demo` starts this program" in errors


def test_an_unreachable_server_is_reported_in_the_outcome() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        code, records, errors = peer(task(url=f"http://127.0.0.1:{taken.getsockname()[1]}", timeout=1.0), wait=True)
    outcomes = [record for record in records if isinstance(record, Outcome)]
    assert len(outcomes) == 1
    assert "within 1 s" in outcomes[0].error or "no server listens" in outcomes[0].error
    assert (code, errors) == (1, b"")


def test_a_peer_whose_input_ends_early_exits_without_an_outcome() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # accepts connections but never answers
        code, records, errors = peer(task(url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=TIMEOUT))
    assert code == 1 and errors == b""
    assert not any(isinstance(record, Outcome) for record in records)


def dialogues(messages: int = 3, room: str = "r") -> tuple[Dialogue, Dialogue]:
    return (
        Dialogue(name="alice", other="bob", room="r", messages=messages),
        Dialogue(name="bob", other="alice", room=room, messages=messages),
    )


def test_every_message_is_counted_once() -> None:
    alice, bob = dialogues()
    for at in range(3):
        message = alice.message(now=Instant(at * MILLISECOND))
        alice.count_sent(now=Instant(at * MILLISECOND))
        bob.take(message, now=Instant((at + 2) * MILLISECOND))
        bob.take(message, now=Instant((at + 3) * MILLISECOND))
    assert alice.all_sent and bob.all_received and not alice.all_received
    counts = bob.counts()
    assert (counts.received, counts.duplicates, counts.wrong) == (3, 3, 0)
    assert counts.latency_ms == 2.0


def test_a_message_that_was_not_counted_as_sent_is_sent_again() -> None:
    alice, _ = dialogues()
    assert alice.message(now=Instant(1)) == alice.message(now=Instant(1))


@pytest.mark.parametrize("spoil", [0, 15, 20, 30, -1])
def test_a_changed_message_is_not_accepted(spoil: int) -> None:
    alice, bob = dialogues()
    message = bytearray(alice.message(now=Instant(1)))
    message[spoil] ^= 1
    bob.take(bytes(message), now=Instant(2))
    assert (bob.received, bob.counts().wrong) == (0, 1)


def test_messages_of_another_room_and_own_messages_are_not_accepted() -> None:
    alice, stranger = dialogues(room="another")
    alice.take(stranger.message(now=Instant(1)), now=Instant(2))
    alice.take(alice.message(now=Instant(1)), now=Instant(2))
    alice.take(b"", now=Instant(2))
    assert (alice.received, alice.counts().wrong) == (0, 3)
