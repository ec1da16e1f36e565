"""A meeting, also with processes that fail: it ends, reports the reason, and leaves no process."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import warnings
from typing import Any

import pytest

from polynya.core.errors import ConfigurationError
from polynya.core.trace import TraceEvent
from polynya.demo.recording import Recording
from polynya.demo.records import Messages, Outcome, PacketRecord, Progress, TraceRecord, encode
from polynya.demo.result import MeetingResult
from polynya.demo.run import (
    MeetingOptions,
    Notice,
    PeerChanged,
    PeerStarted,
    PeerTalked,
    ServerReady,
    meet,
    usable_hosts,
)

pytestmark = pytest.mark.slow

LIMIT = 30


async def held(notify: Any = lambda _: None, recording: Recording | None = None, **options: Any) -> MeetingResult:
    async with asyncio.timeout(LIMIT):
        return await meet(MeetingOptions(**options), notify, recording)


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def line(record: Any) -> str:
    return f"print({encode(record).decode().strip()!r}, flush=True)"


def gone(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_two_processes_connect_and_notices_are_in_order() -> None:
    notices: list[Notice] = []
    recording = Recording()
    result = await held(notices.append, recording, messages=5)
    assert result.peers[0].exit_code == result.peers[1].exit_code == 0
    assert result.same_pair and result.data_datagrams == 10 and result.server_data_datagrams == 0
    assert isinstance(notices[0], ServerReady)
    assert [each.name for each in notices if isinstance(each, PeerStarted)] == ["alice", "bob"]
    changes = [each for each in notices if isinstance(each, PeerChanged)]
    assert [each.event.at for each in changes] == sorted(each.event.at for each in changes)
    assert [e for e in recording.events() if e.node in ("alice", "bob") and e.kind == "pair"]
    for view in {id(each.view): each.view for each in notices if isinstance(each, PeerTalked)}.values():
        assert (view.sent, view.received) == (5, 5)
        assert view.state == "completed"
        assert any(pair.selected and pair.nominated and pair.valid for pair in view.pairs.values())
        assert {label.split()[0] for label in view.candidates} == {"host", "srflx"}
    assert all(gone(peer.pid) for peer in result.peers)


async def test_a_peer_that_exits_at_once_is_reported_with_its_standard_error() -> None:
    result = await held(command=python("import sys; sys.exit('no such module')"))
    assert "alice exited with code 1 without an outcome" in result.faults
    assert [peer.errors for peer in result.peers] == ["no such module"] * 2
    assert not result.ok and not result.same_pair
    assert result.as_dict()["peers"]["bob"]["stderr"] == "no such module"


async def test_a_peer_that_cannot_be_started_raises() -> None:
    with pytest.raises(ConfigurationError, match="cannot start alice: /no/such/python: No such file"):
        await held(command=("/no/such/python",))


async def test_a_peer_that_hangs_is_killed_after_the_grace_period() -> None:
    result = await held(command=python("import time; time.sleep(1000)"), timeout=0.1, grace=0.2)
    assert [peer.exit_code for peer in result.peers] == [-9, -9]
    assert "alice exited with code -9 without an outcome" in result.faults
    assert all(gone(peer.pid) for peer in result.peers)


async def test_an_unknown_record_is_reported() -> None:
    result = await held(command=python('print(\'{"record": "surprise"}\', flush=True); import sys; sys.stdin.read()'))
    assert [peer.outcome for peer in result.peers] == [None, None]
    assert "not a record of a peer" in result.peers[0].errors


async def test_a_peer_cannot_write_events_of_another_node() -> None:
    event = TraceRecord({"t": 1, "node": "server", "machine": "ice", "kind": "note"})
    result = await held(command=python(f"{line(event)}; import sys; sys.stdin.read()"))
    assert result.peers[0].errors == "alice wrote a trace event of another node: server"


async def test_a_failed_outcome_is_a_fault_with_its_error() -> None:
    outcome = Outcome(error="no pair worked", messages=Messages(sent=3, received=0))
    result = await held(command=python(f"{line(outcome)}; import sys; sys.stdin.read(); sys.exit(1)"))
    assert "alice: no pair worked" in result.faults
    assert "alice has no selected pair" in result.faults


async def test_data_sent_through_the_server_is_a_fault() -> None:
    """The captures of the peers show it."""
    text = (
        "import json, sys\n"
        "from polynya.demo.records import *\n"
        "task = decode_task(sys.stdin.buffer.readline())\n"
        "server = task.url.removeprefix('http://')\n"
        "sys.stdout.buffer.write(encode(PacketRecord(1, 1, '127.0.0.1:9', server, b'\\xff hello')))\n"
        "sys.stdout.buffer.write(encode(Outcome(messages=Messages(sent=0, received=0))))\n"
        "sys.stdout.flush()\n"
        "sys.stdin.read()\n"
    )
    result = await held(command=python(text))
    assert result.server_data_datagrams == 2
    assert "2 datagrams of application data were sent to or by the server" in result.faults


async def test_cancelling_ends_both_processes_and_closes_the_server() -> None:
    pids: list[int] = []
    url: list[str] = []
    talking = asyncio.Event()

    def notify(notice: Notice) -> None:
        if isinstance(notice, PeerStarted):
            pids.append(notice.pid)
        elif isinstance(notice, ServerReady):
            url.append(notice.url)
        elif isinstance(notice, PeerTalked):
            talking.set()

    meeting = asyncio.create_task(meet(MeetingOptions(messages=1000), notify))
    async with asyncio.timeout(LIMIT):
        await talking.wait()
        meeting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await meeting
    assert len(pids) == 2 and all(map(gone, pids))
    host, _, port = url[0].removeprefix("http://").rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


async def test_without_ipv6_the_peers_connect_over_ipv4() -> None:
    loopback = ("127.0.0.1", "192.0.2.1")  # RFC 5737: an address of no host
    assert usable_hosts(loopback) == ("127.0.0.1",)
    result = await held(messages=2, loopback=loopback)
    assert result.same_pair and len(result.stun) == 1
    assert [pair.local_address.partition(":")[0] for peer in result.peers for pair in peer.outcome.pairs] == [
        "127.0.0.1",
        "127.0.0.1",
    ]


async def test_a_host_without_loopback_raises() -> None:
    with pytest.raises(ConfigurationError, match="no loopback address"):
        await held(loopback=("192.0.2.1",))


@pytest.mark.parametrize("wrong", [{"messages": 0}, {"messages": 1001}, {"timeout": 0}, {"timeout": 601}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        MeetingOptions(**wrong)


async def test_a_meeting_causes_no_resource_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await held(command=python("pass"))


def test_records_survive_encoding_and_decoding() -> None:
    from polynya.demo.records import decode_record

    event = TraceEvent(7, "alice", "ice", "note", "reason", {"pair": 3})
    for record in (TraceRecord.of(event), PacketRecord(1, 2, "[::1]:3", "[::1]:4", b"\0\xff"), Progress(1, 2)):
        assert decode_record(encode(record)) == record
    assert TraceRecord.of(event).event() == event
    assert str(PacketRecord(1, 2, "[::1]:3", "[::1]:4", b"x").packet().source) == "[::1]:3"
