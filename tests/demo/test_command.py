"""`polynya demo`: the JSON document, the text output, the files, the exit codes, and that no process is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from polynya.core.addresses import Address, scope
from polynya.demo.watch import OVER
from tests.demo.conftest import COMMAND, TIMEOUT, Run, environment, run_demo

pytestmark = pytest.mark.slow


def failures(text: str) -> list[str]:
    return [line for line in text.splitlines() if "FAILED" in line]


LABELS = [f"{mapping}/{filtering}" for mapping in ("EI", "AD", "APD") for filtering in ("EI", "AD", "APD")]


def test_standard_output_is_one_document_and_standard_error_is_silent(run: Run) -> None:
    assert run.done.stderr == b""
    assert run.done.stdout.startswith(b"{") and run.done.stdout.endswith(b"}\n")
    assert {"format", "polynya", "python", "system", "ok", "faults", "seconds", "meeting", "table"} == set(run.document)


def test_the_demo_succeeds(run: Run) -> None:
    assert run.document["faults"] == []
    assert run.document["ok"] is True
    assert run.done.returncode == 0
    assert run.document["seconds"] > 0


def test_the_peers_are_two_processes_that_selected_the_same_pair(run: Run) -> None:
    meeting = run.document["meeting"]
    alice, bob = meeting["peers"]["alice"], meeting["peers"]["bob"]
    assert meeting["same_pair"] is True
    assert alice["selected"]["local_address"] == bob["selected"]["remote_address"]
    assert alice["selected"]["remote_address"] == bob["selected"]["local_address"]
    assert alice["selected"]["nominated"] and bob["selected"]["nominated"]
    assert sorted([alice["controlling"], bob["controlling"]]) == [False, True]
    assert alice["controlling"] is (alice["peer_id"] > bob["peer_id"])
    assert alice["pid"] != bob["pid"] and os.getpid() not in (alice["pid"], bob["pid"])
    assert [alice["exit_code"], bob["exit_code"]] == [0, 0]


def test_each_peer_received_every_message_and_none_through_the_server(run: Run) -> None:
    meeting = run.document["meeting"]
    for peer in meeting["peers"].values():
        counts = peer["messages"]
        assert (counts["sent"], counts["received"], counts["duplicates"], counts["wrong"]) == (20, 20, 0, 0)
        assert counts["latency_ms"] > 0
    assert meeting["data_datagrams"] == 40
    assert meeting["data_through_server"] == 0
    assert meeting["server_datagrams"] >= 4, "each peer sent a request to the server from each of its addresses"


def test_every_address_is_a_loopback_address(run: Run) -> None:
    meeting = run.document["meeting"]
    shown = [*meeting["server"]["stun"]]
    for peer in meeting["peers"].values():
        assert peer["candidates"]
        shown += [pair[end] for pair in peer["pairs"] for end in ("local_address", "remote_address")]
    assert {scope(Address.parse(each).host) for each in shown} == {"loopback"}


def test_times_are_in_the_order_of_the_steps(run: Run) -> None:
    for peer in run.document["meeting"]["peers"].values():
        times = peer["times"]
        assert 0 <= times["checking"] <= times["first_valid_pair"] <= times["nominated"] < 10
        assert 0 < times["gathered"] < 10


def test_the_document_has_the_answers_of_the_servers(run: Run) -> None:
    meeting = run.document["meeting"]
    for peer in meeting["peers"].values():
        assert {answer["server"] for answer in peer["servers"]} == set(meeting["server"]["stun"])
        assert all(answer["mapped"] == answer["base"] for answer in peer["servers"]), "there is no NAT on loopback"


def test_the_table_has_every_pair_of_classes_as_predicted(run: Run) -> None:
    table = run.document["table"]
    assert table["classes"] == LABELS
    assert [(cell["first"], cell["second"]) for cell in table["cells"]] == [(a, b) for a in LABELS for b in LABELS]
    assert table["runs"] == 81 and table["as_the_rules_imply"] is True and table["differing"] == []
    assert table["connected"] == sum(cell["connected"] for cell in table["cells"])
    for cell in table["cells"]:
        assert cell["connected"] == cell["expected"], cell
        if cell["connected"]:
            assert cell["first_pair"] in cell["implied_pairs"] and cell["data"] and 0 < cell["seconds"] < 60
        else:
            assert cell["first_pair"] is None and cell["implied_pairs"] == []


def test_the_table_agrees_with_what_is_well_known_of_nats(run: Run) -> None:
    connected = {(cell["first"], cell["second"]): cell["connected"] for cell in run.document["table"]["cells"]}
    assert all(connected["EI/EI", other] for other in LABELS), "a full cone accepts packets from every endpoint"
    assert connected["EI/APD", "EI/APD"], "two port-restricted cones punch through"
    assert not connected["APD/APD", "APD/APD"], "two symmetric NATs need a relay"
    assert not connected["EI/APD", "APD/APD"], "a port-restricted cone and a symmetric NAT need a relay"
    assert all(connected[a, b] == connected[b, a] for a, b in connected)


def test_the_trace_merges_all_three_processes_by_time(run: Run) -> None:
    lines = run.trace.read_text(encoding="utf-8").splitlines()
    assert sum('"trace":"polynya"' in line for line in lines) == 1
    events = run.events()
    assert {event.node for event in events} == {"server", "alice", "bob"}
    assert all(one.at <= other.at for one, other in pairwise(events))
    assert {event.fields["role"] for event in events if event.kind == "node"} == {"server", "peer"}
    for node in ("alice", "bob"):
        changes = [event for event in events if event.node == node and event.kind == "agent"]
        states = [event.fields["new"] for event in changes if not event.reason.startswith(OVER)]
        # a pair that is nominated before its check is answered completes the agent at once (RFC 8445, section 7.3.1.5)
        assert states in (["checking", "connected", "completed", "closed"], ["checking", "completed", "closed"])


def test_a_packet_has_the_same_id_at_its_sender_and_its_receiver(run: Run) -> None:
    events = run.events()
    sent = {event.fields["packet"]: event for event in events if event.kind == "packet-sent"}
    received = {event.fields["packet"]: event for event in events if event.kind == "packet-received"}
    assert len(sent) == sum(event.kind == "packet-sent" for event in events)
    closed = {event.node: event.at for event in events if event.kind == "agent" and event.fields["new"] == "closed"}
    assert received.keys() <= sent.keys()
    for packet, event in sent.items():
        arrival = received.get(packet)
        if arrival is None:
            assert event.at >= closed[event.node], "loopback loses no packet; only a notice of the end comes too late"
            continue
        assert arrival.node != event.node
        assert arrival.at >= event.at
        for field in ("source", "destination", "length"):
            assert arrival.fields[field] == event.fields[field]


def test_no_secret_is_in_the_trace(run: Run) -> None:
    text = run.trace.read_text(encoding="utf-8")
    assert "password" not in text and "pwd" not in text


def test_output_without_a_terminal_is_plain_text() -> None:
    done = run_demo("--messages", "3")
    text = done.stdout.decode()
    assert done.returncode == 0, failures(text)
    assert done.stderr == b""
    assert "\x1b" not in text and "\r" not in text
    for expected in (
        "pair 1 new: host ",
        "was answered",
        "writable readable valid",
        "data goes over pair",
        "connected: every component has a valid pair",
        "completed: every component has a nominated pair",
        "sent 3 messages, received and verified 3",
        "6 datagrams of data between them, end to end",
        "81 runs in ",
        "Success: all as predicted",
    ):
        assert expected in text, expected
    times = [float(each) for each in re.findall(r"^ *(\d+\.\d{3}) s ", text, re.MULTILINE)]
    assert len(times) > 20 and times == sorted(times), "the events of both peers are in the order of time"
    rows = [line.split() for line in text.splitlines() if re.match(r"(EI|AD|APD)/", line)]
    assert [row[0] for row in rows] == LABELS
    assert rows[-1][-1] == "-" and rows[0][1:3] == ["ss", "0.12"]


@pytest.mark.skipif(shutil.which("script") is None, reason="the program script makes the terminal")
def test_panels_change_in_place_on_a_terminal() -> None:
    done = subprocess.run(
        ["script", "-qec", " ".join([*COMMAND, "--messages", "2"]), "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        env={**environment(), "TERM": "xterm"},
        check=False,
    )
    text = done.stdout.decode()
    assert done.returncode == 0, failures(text)
    assert "\x1b[" in text and "alice" in text and "Success: all as predicted" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize("option", ["--trace", "--pcap"])
def test_an_unwritable_file_is_reported_before_the_demo_starts(option: str, tmp_path: Path) -> None:
    done = run_demo(option, tmp_path / "missing" / "file")
    assert done.returncode == 2
    assert done.stdout == b"" and b"cannot write" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--messages", "0"), ("--timeout", "0"), ("--wrong",)])
def test_wrong_use_has_its_own_exit_code(arguments: tuple[str, ...]) -> None:
    assert run_demo(*arguments).returncode == 2


def test_a_timeout_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    done = run_demo("--timeout", "0.1", "--messages", "1000", "--trace", tmp_path / "trace.jsonl")
    text = done.stdout.decode()
    assert done.returncode == 1, failures(text)
    assert re.search(r"FAILED: alice: (not done within 0.1 s|.*cannot be reached|.*did not answer)", text), text
    assert "Success: all as predicted" not in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_or_killed_demo_leaves_no_process(number: signal.Signals, code: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    command = [*COMMAND, "--messages", "1000", "--trace", str(trace)]
    # a new session, as for Ctrl-C of a terminal; the children are in other sessions
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        pids: list[int] = []
        talking = False
        for line in demo.stdout:
            pids += [int(each) for each in re.findall(rb"is process (\d+)", line)]
            talking = talking or b"data goes over" in line
            if len(pids) == 2 and talking:
                break
        assert len(pids) == 2, "the demo ended before both peers ran"
        os.kill(demo.pid, number)
        _, errors = demo.communicate(timeout=TIMEOUT)
    assert demo.returncode == code
    assert b"Traceback" not in errors
    _wait_until_gone(pids)
    if number is signal.SIGINT:
        assert len(trace.read_text(encoding="utf-8").splitlines()) > 10, "the events until the interrupt are written"


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]:
        assert time.monotonic() < deadline, f"processes {left} still run"
        time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
