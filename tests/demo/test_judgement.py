"""Faults of the meeting and of the NAT table are reported."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import TraceEvent
from polynya.demo.nats import Cell, compare, run_table
from polynya.demo.records import Messages, Outcome, PairRecord
from polynya.demo.result import PeerResult, count_data, judge
from polynya.demo.watch import Times
from polynya.lab.table import Row
from polynya.nat import full_cone, symmetric
from polynya.nat.rules import expect

A, B = "127.0.0.1:1", "127.0.0.1:2"
TIMES = Times(gathered=0.1, checking=0.1, first_valid_pair=0.2, nominated=0.3)


def peer(name: str, local: str, remote: str, *, exit_code: int = 0, pair: Any = None, **changes: Any) -> PeerResult:
    selected = PairRecord(
        id=1, local=f"host {local}", remote=f"host {remote}", local_address=local, remote_address=remote,
        state="succeeded", writable=True, readable=True, valid=True, nominated=True, selected=True, priority=1,
        rtt_ms=1.0, reason="",
    )  # fmt: skip
    selected = msgspec.structs.replace(selected, **(pair or {}))
    whole = {"controlling": name == "alice", "messages": Messages(sent=3, received=3), "pairs": [selected], **changes}
    return PeerResult(name=name, pid=1, exit_code=exit_code, outcome=Outcome(**whole), times=TIMES)


def test_a_correct_meeting_has_no_faults() -> None:
    assert judge((peer("alice", A, B), peer("bob", B, A)), 3, []) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"error": "no pair worked"}, "bob: no pair worked"),
        ({"pairs": []}, "bob has no selected pair"),
        ({"pair": {"selected": False}}, "bob has no selected pair"),
        ({"pair": {"nominated": False}}, "bob: host 127.0.0.1:2 -> host 127.0.0.1:1 was not nominated"),
        ({"pair": {"local_address": "127.0.0.1:3"}}, "the two peers selected different pairs"),
        ({"controlling": True}, "not exactly one peer is controlling"),
        ({"messages": Messages(sent=3, received=2)}, "bob received 2 of 3 messages"),
        (
            {"messages": Messages(sent=3, received=3, wrong=1)},
            "bob received 1 datagrams that are not messages of the other peer",
        ),
        ({"exit_code": 1}, "bob exited with code 1"),
    ],
)
def test_each_fault_of_a_meeting_is_reported(changes: dict[str, Any], fault: str) -> None:
    assert judge((peer("alice", A, B), peer("bob", B, A, **changes)), 3, []) == [fault]


def test_transactions_that_start_too_soon_are_a_fault() -> None:
    def began(at: float, id: str) -> TraceEvent:
        fields: dict[str, Any] = {"transaction": id, "state": "sent", "sends": 1}
        return TraceEvent(int(at * MILLISECOND), "bob", "ice", "transaction", fields=fields)

    peers = (peer("alice", A, B), peer("bob", B, A))
    assert judge(peers, 3, [began(0, "00"), began(5, "01")]) == []
    [fault] = judge(peers, 3, [began(0, "00"), began(4.9, "01")])
    assert "within 4.9 ms" in fault


def test_data_is_counted_at_its_sender_and_at_the_server() -> None:
    server = "127.0.0.1:9"
    stun = b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12)

    def seen(node: str, source: str, destination: str, data: bytes) -> tuple[int, str, IpPacket]:
        return 0, node, IpPacket(1, Address.parse(source), Address.parse(destination), Protocol.UDP, data)

    packets = [
        seen("alice", A, B, b"\xff data"),
        seen("bob", A, B, b"\xff data"),
        seen("alice", A, B, stun),
        seen("alice", A, server, stun),
        seen("alice", server, A, b"\xff data"),
    ]
    assert count_data(packets, (peer("alice", A, B), peer("bob", B, A)), [Address.parse(server)]) == (1, 2, 1)


# ----------------------------------------------------------------------------------------------------------- the table


def row(**changes: Any) -> Row:
    whole = {
        "first": "EI/EI", "second": "APD/APD", "connected": True, "expected": True, "first_pair": "srflx -> prflx",
        "second_pair": "prflx -> srflx", "seconds": 0.1, "nominated_seconds": 0.2, "data": True, "faults": (),
    }  # fmt: skip
    return Row(**{**whole, **changes})


REACHED = expect(full_cone(), symmetric())


def test_a_run_as_predicted_does_not_differ() -> None:
    assert compare(row(), REACHED, []).differs == ""
    assert compare(row(), REACHED, []).implied == ("srflx -> prflx",)
    blocked = row(connected=False, expected=False, first_pair=None, second_pair=None, seconds=None, data=False)
    assert compare(blocked, expect(symmetric(), symmetric()), []).differs == ""


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"connected": False, "first_pair": None, "data": False}, "not connected, the rules imply connected"),
        ({"data": False}, "data did not arrive in both directions"),
        ({"first_pair": "srflx -> srflx"}, "connected by srflx -> srflx, which the rules do not predict"),
        ({"second_pair": "srflx -> srflx"}, "connected by srflx -> srflx, which the rules do not predict"),
        ({"faults": ("something sent after close",)}, "something sent after close"),
    ],
)
def test_each_difference_is_reported(changes: dict[str, Any], difference: str) -> None:
    assert compare(row(**changes), REACHED, []).differs == difference


def test_an_unpredicted_connection_is_reported() -> None:
    differs = compare(row(), expect(symmetric(), symmetric()), []).differs
    assert differs.startswith("connected, the rules imply not connected")


def test_a_pacing_fault_is_reported() -> None:
    assert compare(row(), REACHED, ["alice: two transactions within 1 ms"]).differs.endswith("within 1 ms")


def test_one_differing_cell_fails_the_table() -> None:
    done: list[Cell] = []

    def run(first: Any, second: Any, **_: Any) -> Row:
        expectation = expect(first, second)
        pair = next((p for p in expectation.pairs if p.side == 0), None)
        other = next((p for p in expectation.pairs if p.side == 1), None)
        changed = (first.label, second.label) == ("APD/APD", "APD/APD")
        return row(
            first=first.label, second=second.label, connected=expectation.always or changed,
            first_pair=f"{pair.local} -> {pair.remote}" if pair else "srflx -> prflx",
            second_pair=f"{other.local} -> {other.remote}" if other else "srflx -> prflx",
        )  # fmt: skip

    table = run_table(done.append, run=run)
    assert len(done) == 81 and not table.ok
    assert len(table.differing) == 1 and table.differing[0].startswith("APD/APD with APD/APD: connected, the rules")
    assert table.as_dict()["as_the_rules_imply"] is False
