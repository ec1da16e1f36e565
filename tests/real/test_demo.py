"""The demo in a network namespace: its files compared with a capture, and hosts without IPv6 or loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from polynya.aio import clock
from polynya.core.pacer import MINIMUM_INTERVAL
from polynya.core.trace import TraceEvent, read_trace
from tests.real.capture import Datagram, captured, datagrams
from tests.real.netns import Namespace, alone, namespace

pytestmark = [pytest.mark.root, pytest.mark.peer("ip"), pytest.mark.usefixtures("free_of_leftovers")]

BINDING_INDICATION = 0x0011
CLOCKS_APART = 0.001
"""Seconds by which the clock of captures (time of day) and our clock may diverge during a run."""
DEMO = [sys.executable, "-m", "polynya", "demo", "--json"]


def demo(where: Namespace, *arguments: str | Path) -> dict[str, Any]:
    command = where.command(*DEMO, *map(str, arguments))
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["faults"] == []
    assert (done.returncode, done.stderr) == (0, b"")
    return document


@dataclass(frozen=True)
class Seen:
    """One run: its own files, and the capture of the kernel."""

    document: dict[str, Any]
    events: list[TraceEvent]
    epoch: int
    written: list[Datagram]
    captured: list[Datagram]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("demo")
    trace, written, wire = folder / "trace.jsonl", folder / "written.pcapng", folder / "wire.pcapng"
    with namespace("demo") as here, captured(here, wire):
        epoch = time.time_ns() - clock.now()
        document = demo(here, "--trace", trace, "--pcap", written)
    with trace.open(encoding="utf-8") as file:
        events = read_trace(file)
    return Seen(document, events, epoch, datagrams(written), datagrams(wire))


def key(datagram: Datagram) -> tuple[Any, ...]:
    return datagram.source, datagram.destination, datagram.payload


@pytest.mark.peer("tshark")
def test_the_written_packets_are_those_that_the_kernel_captured(seen: Seen) -> None:
    """Both peers write a packet between them; one peer writes a packet from or to the server.

    A notice of the end may arrive when its receiver is closed: then its sender alone writes it.
    """
    servers = {_place(text) for text in seen.document["meeting"]["server"]["stun"]}
    on_the_wire = Counter(key(each) for each in seen.captured)
    written = Counter(key(each) for each in seen.written)
    notices = {key(each) for each in seen.captured if each.stun == BINDING_INDICATION}
    expected: Counter[tuple[Any, ...]] = Counter()
    for each, count in on_the_wire.items():
        expected[each] = count if {each[0], each[1]} & servers else 2 * count
        if each in notices:
            assert count <= written[each] <= 2 * count
            expected[each] = written[each]
    assert written == expected and len(notices) <= 2
    assert sum(each.stun is None for each in seen.captured) == 40


@pytest.mark.peer("tshark")
def test_transactions_are_paced_and_none_is_sent_before_its_time(seen: Seen) -> None:
    """RFC 8445, section 14.2. The times in the trace are exact and at least 5 ms apart.

    The kernel captures a packet later than the trace, by a varying delay. So a gap in the capture can be shorter than
    5 ms, and the test compares each packet with its own time in the trace.
    """
    wire: dict[str, float] = {}
    for each in seen.captured:
        wire.setdefault(each.transaction.replace(":", ""), each.time)
    for node in ("alice", "bob"):
        began = [
            event
            for event in seen.events
            if event.node == node and event.kind == "transaction" and event.fields["state"] == "sent"
            if event.fields["sends"] == 1
        ]
        assert len(began) >= 3, "a Binding request from each of two addresses, and checks"
        assert all(later.at - earlier.at >= MINIMUM_INTERVAL for earlier, later in pairwise(began))
        for event in began:
            decided = (event.at + seen.epoch) / 1e9
            left = wire[str(event.fields["transaction"])]
            assert left >= decided - CLOCKS_APART, f"{event} was captured {decided - left} s too early"


def test_the_demo_runs_with_ipv4_loopback_alone() -> None:
    with namespace("v4only") as here:
        here.run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1")
        assert "inet6" not in here.ip("address", "show")
        document = demo(here, "--messages", "2")
    meeting = document["meeting"]
    assert len(meeting["server"]["stun"]) == 1
    for peer in meeting["peers"].values():
        assert [pair["local_address"].partition(":")[0] for pair in peer["pairs"]] == ["127.0.0.1"]


def test_other_addresses_of_the_host_are_not_used() -> None:
    """Neither other addresses of the loopback interface."""
    with alone(["198.51.100.7/24", "2001:db8::7/64"]) as here:
        here.ip("address", "add", "192.0.2.7/32", "dev", "lo")
        document = demo(here, "--messages", "2")
    text = json.dumps([peer["candidates"] for peer in document["meeting"]["peers"].values()])
    assert "127.0.0.1" in text and "192.0.2.7" not in text and "198.51.100.7" not in text and "2001:db8" not in text


def test_a_host_without_loopback_gets_an_error_in_time() -> None:
    with namespace("down") as here:
        here.ip("link", "set", "lo", "down")
        done = subprocess.run(here.command(*DEMO, "--timeout", "2"), capture_output=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"loopback" in done.stderr if done.returncode == 2 else json.loads(done.stdout)["faults"]


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
