"""The demo as tshark sees it on the wire: what we say of it ourselves is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from polynya.stun.message import Message
from polynya.stun.registry import Method
from tests.real.capture import Datagram, captured, datagrams, read, send_until_captured, tcp_payloads
from tests.real.netns import namespace

pytestmark = [pytest.mark.root, pytest.mark.peer("ip", "tshark")]

REQUEST, SUCCESS, ERROR = 0x0001, 0x0101, 0x0111
USERNAME, MESSAGE_INTEGRITY, PRIORITY, USE_CANDIDATE = 0x0006, 0x0008, 0x0024, 0x0025
XOR_MAPPED_ADDRESS, FINGERPRINT, CONTROLLED, CONTROLLING = 0x0020, 0x8028, 0x8029, 0x802A
MINIMUM_INTERVAL = 0.005
"""RFC 8445, section 14.2: seconds between two new transactions of a process."""
LATENESS = 0.015
"""Seconds for which the system may keep a process from sending what it has decided to send: that shortens a gap."""
MESSAGES = 25

Place = tuple[str, int]


@dataclass(frozen=True)
class Shown:
    """What the demo said, and what was captured of it."""

    said: dict[str, Any]
    file: Path
    packets: list[Datagram]
    places: dict[str, set[Place]]
    """The addresses of each peer, as it signaled them."""
    servers: set[Place]

    def owner(self, place: Place) -> str | None:
        return next((name for name, places in self.places.items() if place in places), None)

    def between_peers(self) -> list[Datagram]:
        return [each for each in self.packets if self.owner(each.source) and self.owner(each.destination)]

    def checks(self, kind: int = REQUEST) -> list[Datagram]:
        return [each for each in self.between_peers() if each.stun == kind]


def place(text: str) -> Place:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def place_of_candidate(line: str) -> Place:
    fields = line.split()
    return fields[4], int(fields[5])


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    file = tmp_path_factory.mktemp("capture") / "demo.pcapng"
    with namespace("capture") as here, captured(here, file):
        demo = [sys.executable, "-m", "polynya", "demo", "--json", "--messages", str(MESSAGES)]
        with here.popen(*demo, stdout=subprocess.PIPE, text=True) as process:
            said = json.loads(process.communicate(timeout=60)[0])
    peers = said["meeting"]["peers"]
    assert all(peer["connected"] for peer in peers.values())
    return Shown(
        said=said,
        file=file,
        packets=datagrams(file),
        places={name: {place_of_candidate(line) for line in peer["candidates"]} for name, peer in peers.items()},
        servers={place(text) for text in said["meeting"]["server"]["stun"]},
    )


def test_stun_is_told_by_its_looks_and_not_by_its_port(tmp_path: Path) -> None:
    """Wireshark knows 41170 as another protocol's, and the system may give a server that port."""
    file = tmp_path / "port.pcapng"
    request = Message.request(Method.BINDING, bytes(range(12))).encode(fingerprint=True)
    with namespace("port") as here, captured(here, file):
        send_until_captured(here, file, request, 41170)
    assert {each.stun for each in datagrams(file)} == {REQUEST}


def test_two_processes_met(shown: Shown) -> None:
    peers = shown.said["meeting"]["peers"].values()
    assert len({peer["pid"] for peer in peers}) == 2
    assert [len(places) > 0 for places in shown.places.values()] == [True, True]
    one, other = shown.places.values()
    assert not one & other


def test_nothing_is_malformed(shown: Shown) -> None:
    assert read(shown.file, "_ws.malformed || _ws.expert.severity == error") == []
    assert len(shown.packets) > 2 * MESSAGES


def test_all_that_is_sent_by_udp_is_stun_with_the_server_or_goes_between_the_two(shown: Shown) -> None:
    for each in shown.packets:
        ends = {each.source, each.destination}
        if ends & shown.servers:
            assert each.stun in {REQUEST, SUCCESS}, each
            assert USERNAME not in each.attributes, each
        else:
            assert {shown.owner(end) for end in ends} == set(shown.places), each


def test_checks_go_both_ways_and_are_answered_both_ways(shown: Shown) -> None:
    answered = {(each.transaction, each.destination) for each in shown.checks(SUCCESS)}
    for name in shown.places:
        sent = [each for each in shown.checks() if shown.owner(each.source) == name]
        assert sent, f"{name} sent no check"
        assert any((each.transaction, each.source) in answered for each in sent), f"no check of {name} was answered"


def test_every_check_and_every_answer_is_authenticated(shown: Shown) -> None:
    """RFC 8445, section 7.2.2; RFC 8489, section 9.1: integrity, then fingerprint, and nothing after."""
    assert shown.checks()
    for each in shown.checks():
        assert {USERNAME, PRIORITY} <= set(each.attributes), each
        assert len({CONTROLLED, CONTROLLING} & set(each.attributes)) == 1, each
        assert each.attributes[-2:] == (MESSAGE_INTEGRITY, FINGERPRINT), each
    for each in shown.checks(SUCCESS):
        assert XOR_MAPPED_ADDRESS in each.attributes, each
        assert each.attributes[-2:] == (MESSAGE_INTEGRITY, FINGERPRINT), each
    assert shown.checks(ERROR) == []


def test_one_side_controls_and_it_alone_nominates(shown: Shown) -> None:
    roles: dict[str | None, set[int]] = defaultdict(set)
    for each in shown.checks():
        roles[shown.owner(each.source)] |= {CONTROLLED, CONTROLLING} & set(each.attributes)
        assert USE_CANDIDATE not in each.attributes or CONTROLLING in each.attributes, each
    assert sorted(map(sorted, roles.values())) == [[CONTROLLED], [CONTROLLING]]
    assert any(USE_CANDIDATE in each.attributes for each in shown.checks())


def test_both_ends_name_the_pair_that_the_data_takes(shown: Shown) -> None:
    selected = [peer["selected"] for peer in shown.said["meeting"]["peers"].values()]
    assert selected[0]["local_address"] == selected[1]["remote_address"]
    assert selected[0]["remote_address"] == selected[1]["local_address"]
    ends = {place(selected[0]["local_address"]), place(selected[0]["remote_address"])}
    data = [each for each in shown.between_peers() if each.stun is None]
    assert {each.source for each in data[-MESSAGES:]} | {each.destination for each in data[-MESSAGES:]} == ends


def test_new_transactions_are_paced(shown: Shown) -> None:
    """RFC 8445, section 14.2. Exact times are the machines' and judged by the demo itself; here are the wire's."""
    first: dict[str, dict[str, float]] = {name: {} for name in shown.places}
    for each in shown.packets:
        owner = shown.owner(each.source)
        if owner and each.stun == REQUEST:
            first[owner].setdefault(each.transaction, each.time)
    for name, transactions in first.items():
        times = sorted(transactions.values())
        gaps = sorted(later - earlier for earlier, later in pairwise(times))
        assert len(gaps) >= 2, name
        assert times[-1] - times[0] >= len(gaps) * MINIMUM_INTERVAL - LATENESS, f"{name}: {gaps}"
        assert gaps[len(gaps) // 2] >= MINIMUM_INTERVAL * 0.8, f"{name}: {gaps}"


def test_application_data_goes_end_to_end_and_never_through_the_server(shown: Shown) -> None:
    data = [each for each in shown.between_peers() if each.stun is None and each.payload]
    for name in shown.places:
        assert len([each for each in data if shown.owner(each.source) == name]) >= MESSAGES
    for each in shown.packets:
        if {each.source, each.destination} & shown.servers:
            assert each.stun is not None, each
    told = tcp_payloads(shown.file)
    assert any(b"candidate:" in text for text in told), "the signaling was not captured"
    assert [text for text in told for each in data if len(each.payload) > 8 and each.payload in text] == []
