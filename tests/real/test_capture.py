"""The demo as tshark captures it, without the demo's own files."""

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
"""Seconds between two new transactions of a process (RFC 8445, section 14.2)."""
LATENESS = 0.015
"""Seconds by which the scheduler may delay a packet, which shortens the next gap."""
MESSAGES = 25

Place = tuple[str, int]


@dataclass(frozen=True)
class Shown:
    """The document of the demo and its capture."""

    said: dict[str, Any]
    file: Path
    packets: list[Datagram]
    places: dict[str, set[Place]]
    """The addresses that each peer signaled."""
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


def test_tshark_recognizes_stun_by_content_not_by_port(tmp_path: Path) -> None:
    """Port 41170 is registered in Wireshark for another protocol."""
    file = tmp_path / "port.pcapng"
    request = Message.request(Method.BINDING, bytes(range(12))).encode(fingerprint=True)
    with namespace("port") as here, captured(here, file):
        send_until_captured(here, file, request, 41170)
    assert {each.stun for each in datagrams(file)} == {REQUEST}


def test_two_processes_connected(shown: Shown) -> None:
    peers = shown.said["meeting"]["peers"].values()
    assert len({peer["pid"] for peer in peers}) == 2
    assert [len(places) > 0 for places in shown.places.values()] == [True, True]
    one, other = shown.places.values()
    assert not one & other


def test_no_packet_is_malformed(shown: Shown) -> None:
    assert read(shown.file, "_ws.malformed || _ws.expert.severity == error") == []
    assert len(shown.packets) > 2 * MESSAGES


def test_every_udp_datagram_is_stun_with_the_server_or_between_the_peers(shown: Shown) -> None:
    for each in shown.packets:
        ends = {each.source, each.destination}
        if ends & shown.servers:
            assert each.stun in {REQUEST, SUCCESS}, each
            assert USERNAME not in each.attributes, each
        else:
            assert {shown.owner(end) for end in ends} == set(shown.places), each


def test_checks_are_sent_and_answered_in_both_directions(shown: Shown) -> None:
    answered = {(each.transaction, each.destination) for each in shown.checks(SUCCESS)}
    for name in shown.places:
        sent = [each for each in shown.checks() if shown.owner(each.source) == name]
        assert sent, f"{name} sent no check"
        assert any((each.transaction, each.source) in answered for each in sent), f"no check of {name} was answered"


def test_every_check_and_every_answer_is_authenticated(shown: Shown) -> None:
    """RFC 8445, section 7.2.2; RFC 8489, section 9.1: integrity, then fingerprint at the end."""
    assert shown.checks()
    for each in shown.checks():
        assert {USERNAME, PRIORITY} <= set(each.attributes), each
        assert len({CONTROLLED, CONTROLLING} & set(each.attributes)) == 1, each
        assert each.attributes[-2:] == (MESSAGE_INTEGRITY, FINGERPRINT), each
    for each in shown.checks(SUCCESS):
        assert XOR_MAPPED_ADDRESS in each.attributes, each
        assert each.attributes[-2:] == (MESSAGE_INTEGRITY, FINGERPRINT), each
    assert shown.checks(ERROR) == []


def test_one_peer_is_controlling_and_it_alone_nominates(shown: Shown) -> None:
    roles: dict[str | None, set[int]] = defaultdict(set)
    for each in shown.checks():
        roles[shown.owner(each.source)] |= {CONTROLLED, CONTROLLING} & set(each.attributes)
        assert USE_CANDIDATE not in each.attributes or CONTROLLING in each.attributes, each
    assert sorted(map(sorted, roles.values())) == [[CONTROLLED], [CONTROLLING]]
    assert any(USE_CANDIDATE in each.attributes for each in shown.checks())


def test_both_peers_report_the_pair_that_carries_the_data(shown: Shown) -> None:
    selected = [peer["selected"] for peer in shown.said["meeting"]["peers"].values()]
    assert selected[0]["local_address"] == selected[1]["remote_address"]
    assert selected[0]["remote_address"] == selected[1]["local_address"]
    ends = {place(selected[0]["local_address"]), place(selected[0]["remote_address"])}
    data = [each for each in shown.between_peers() if each.stun is None]
    assert {each.source for each in data[-MESSAGES:]} | {each.destination for each in data[-MESSAGES:]} == ends


def test_new_transactions_are_paced(shown: Shown) -> None:
    """RFC 8445, section 14.2. The demo checks the exact times; this test checks the captured ones."""
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


def test_application_data_is_never_sent_through_the_server(shown: Shown) -> None:
    data = [each for each in shown.between_peers() if each.stun is None and each.payload]
    for name in shown.places:
        assert len([each for each in data if shown.owner(each.source) == name]) >= MESSAGES
    for each in shown.packets:
        if {each.source, each.destination} & shown.servers:
            assert each.stun is not None, each
    texts = tcp_payloads(shown.file)
    assert any(b"candidate:" in text for text in texts), "the signaling was not captured"
    assert [text for text in texts for each in data if len(each.payload) > 8 and each.payload in text] == []
