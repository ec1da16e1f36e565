"""The first sentence of `why()`, for each outcome and obstacle, and the width of the whole report."""

from __future__ import annotations

from typing import Any

import pytest

from polynya.core.wrapping import COLUMNS, wrapped
from polynya.session.report import SessionReport
from polynya.session.summary import summary

HOST = "candidate:1 1 udp 2130706431 192.168.1.2 5000 typ host"
REFLEXIVE = "candidate:2 1 udp 1694498815 198.51.100.129 5000 typ srflx raddr 192.168.1.2 rport 5000"
RELAY = "candidate:3 1 udp 16777215 203.0.113.9 49152 typ relay raddr 198.51.100.1 rport 5000"
ICMP = (
    "198.51.100.129:5000 is unreachable: port unreachable (ICMP port unreachable from 198.51.100.129: 1 times, "
    "our own check came back: 2 times)"
)
SILENT = "198.51.100.129:5000 did not answer 7 sends"


def pair(local: str = "host 192.168.1.2:5000", remote: str = "srflx 198.51.100.129:5000", **values: Any) -> Any:
    default = {
        "id": 1,
        "stream": 0,
        "component": 1,
        "local": local,
        "remote": remote,
        "state": "failed",
        "writable": False,
        "readable": False,
        "valid": False,
        "nominated": False,
        "selected": False,
        "relayed": "relay" in local,
        "rtt": None,
        "reason": SILENT,
        "transitions": [],
    }
    return {**default, **values}


RELAYED = pair("relay 203.0.113.9:49152", "host 192.0.2.7:1", state="succeeded", valid=True, selected=True, rtt=0.02)


def report(*pairs: Any, state: str = "checking", gathering: str = "complete", **values: Any) -> Any:
    ice = {
        "state": state,
        "reason": "stream 0 component 1: all 3 pairs failed",
        "role": "controlling",
        "generation": 0,
        "ufrag": "abcd",
        "remote_ufrag": "efgh",
        "local_candidates": [HOST],
        "remote_candidates": [REFLEXIVE],
        "pairs": list(pairs),
        "history": [],
        "ignored_lines": [],
        "names": {},
    }
    refused = values.pop("refused", [])
    data = {"state": gathering, "sockets": [], "refused": refused, "servers": []}
    return {"gathering": data, "ice": {**ice, **values}}


CASES = [
    (
        report(RELAYED, pair(reason=ICMP)),
        "Relayed: the router 198.51.100.129 answered 'port unreachable' to the direct checks.",
    ),
    (
        report(RELAYED, pair(remote="host 198.51.100.129:5000", reason=ICMP)),
        "Relayed: the host 198.51.100.129 answered 'port unreachable' to the direct checks.",
    ),
    (report(RELAYED, pair(), pair()), "Relayed: no answer came to the direct checks of all 2 pairs of addresses."),
    (
        report(RELAYED, pair(readable=True)),
        "Relayed: checks arrive from 198.51.100.129, but no answer to ours does.",
    ),
    (report(RELAYED, pair(state="in-progress")), "Relayed: the direct checks are not finished."),
    (report(RELAYED, pair(valid=True)), "Relayed: a direct path works, and data will move to it."),
    (report(RELAYED, local_candidates=[RELAY]), "Relayed: this side has relayed candidates only."),
    (report(RELAYED, remote_candidates=[RELAY]), "Relayed: the other side signaled relayed candidates only."),
    (report(RELAYED), "Relayed: no direct pair of addresses could be made."),
    (
        report(pair(selected=True, valid=True, nominated=True, rtt=0.0124), state="completed"),
        "Connected directly: 192.168.1.2 to 198.51.100.129, 12 ms round trip.",
    ),
    (
        report(pair(selected=True, valid=True), pair(component=2)),
        "Connected directly: 192.168.1.2 to 198.51.100.129; the path may still improve; 1 of 2 components have a path.",
    ),
    (report(pair(), state="closed"), "Closed: the agent was closed on this side."),
    (
        report(pair(), state="failed"),
        "Not connected: no answer came to the checks of the only pair of addresses, and neither side has a relay.",
    ),
    (
        report(pair(), state="failed", local_candidates=[HOST, RELAY]),
        "Not connected: no answer came to the checks of the only pair of addresses.",
    ),
    (report(state="failed"), "Not connected: no address of this side fits one of the other side."),
    (report(state="failed", remote_candidates=[]), "Not connected: the other side signaled no candidate."),
    (
        report(state="failed", reason="pair 1: no answer to a consent check for 30 s"),
        "Not connected: the other side stopped answering, so that the path was given up.",
    ),
    (report(remote_ufrag=None), "Not connected yet: the description of the other side is missing."),
    (report(remote_candidates=[]), "Not connected yet: the other side has signaled no candidate so far."),
    (
        report(pair(state="waiting"), pair()),
        "Not connected yet: 1 of 2 pairs of addresses is still checked.",
    ),
    (
        report(local_candidates=[], refused=[{"interface": "lo", "host": "::1", "reason": "IPv6 is not enabled"}]),
        "Not connected yet: no address of this host is used (IPv6 is not enabled).",
    ),
    (report(local_candidates=[]), "Not connected yet: this host has no usable address."),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_first_sentence_says_what_came_of_it_and_why(case: int) -> None:
    data, sentence = CASES[case]
    assert summary(data) == sentence
    assert " ".join(str(SessionReport(data)).split()).startswith(sentence)


def test_a_report_fits_80_columns() -> None:
    long = "[2001:db8:1111:2222:3333:4444:5555:6666]"
    data = report(pair(f"host {long}:50000", f"srflx {long}:50000", reason=ICMP), state="failed")
    data["gathering"]["servers"] = [
        {"server": f"{long}:3478", "base": f"{long}:50000", "mapped": None, "lost": False, "reason": "did not answer"}
    ]
    for line in str(SessionReport(data)).splitlines():
        assert len(line) <= COLUMNS, line


def test_long_lines_continue_further_indented_and_long_words_stay_whole() -> None:
    assert wrapped(["short", "  " + "word " * 20]).splitlines()[1:] == [
        "  " + "word " * 14 + "word",
        "      word word word word word",
    ]
    assert wrapped(["x" * 100]) == "x" * 100
