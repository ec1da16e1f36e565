"""Gathering from several servers in parallel (RFC 8445, sections 5.1.1 and 14)."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.instants import MILLISECOND
from polynya.core.machine import (
    Close,
    Closed,
    IcmpError,
    IcmpKind,
    Interface,
    InterfaceAddress,
    InterfacesChanged,
    Open,
    Opened,
    Resolve,
    Send,
)
from polynya.ice.candidates import Candidate, CandidateType
from polynya.ice.config import IceConfig
from polynya.ice.events import LocalCandidateAdded, LocalCandidatesEnded
from polynya.session.events import GatheringState, GatheringStateChanged
from polynya.session.options import Policy, SessionConfig
from polynya.stun.attributes import ALTERNATE_SERVER
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class
from tests.reports import flat
from tests.session.conftest import ETH0, FIRST, MAPPED, SECOND_SERVER, WLAN0, candidates, ended


def test_a_socket_is_opened_on_every_address_and_each_is_emitted_at_once(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0, WLAN0)
    assert candidates(b) == [("host", Address("10.0.0.2", 5000)), ("host", Address("10.9.0.2", 5001))]
    assert not ended(b), "the servers have not answered"


def test_without_servers_gathering_ends_when_the_sockets_are_open(bench) -> None:
    b = bench()
    b.start(ETH0, answer=False)
    assert not ended(b)
    b.answer_opens()
    assert ended(b)


def test_without_any_usable_address_gathering_ends_and_says_why(bench) -> None:
    b = bench("stun:192.0.2.1", interfaces=lambda interface: False)
    b.start(ETH0)
    b.answer_names()
    assert ended(b)
    assert "eth0: 10.0.0.2 is not used: the interface filter refused it" in flat(b.session.why())


def test_all_servers_are_asked_at_once_at_the_pace_of_the_process(bench) -> None:
    """aiortc/aioice#3: one STUN server is not enough."""
    b = bench("stun:192.0.2.1", "stun:192.0.2.9")
    b.start(ETH0, WLAN0)
    times = []
    for _ in range(4):
        times += [b.now for _ in b.take(Send)]
        b.advance(0.005)
    assert times == [0, 5 * MILLISECOND, 10 * MILLISECOND, 15 * MILLISECOND]


def test_a_mapping_becomes_a_candidate_while_the_other_server_is_silent(bench) -> None:
    b = bench("stun:192.0.2.1", "stun:192.0.2.9")
    b.start(ETH0)
    b.advance(0.01)
    first, second = b.take(Send)
    assert (first.remote, second.remote) == (FIRST, SECOND_SERVER)
    b.answer_question(first, MAPPED)
    assert candidates(b)[1:] == [("srflx", MAPPED)]
    assert not ended(b)
    b.advance(1.01)
    assert ended(b), "one answer gives the others a grace period only"
    assert "192.0.2.9:3478 had not answered 1 s after the last answer" in flat(b.session.why())


def test_a_server_that_answered_one_component_gets_time_for_the_other(bench) -> None:
    """The server is reachable from this address, so packets were lost; the third send, at 1.5 s, arrives."""
    b = bench("stun:192.0.2.1", ice=IceConfig(controlling=True, components=(2,)))
    b.start(ETH0)
    b.advance(0.01)
    first, _ = b.take(Send)
    b.answer_question(first, MAPPED)
    b.advance(1.51)
    *_, third = b.take(Send)
    assert third.flow != first.flow and not ended(b)
    b.answer_question(third, Address("203.0.113.1", 40001))
    assert candidates(b)[-1] == ("srflx", Address("203.0.113.1", 40001))
    assert ended(b)


def test_the_patience_ends_that_time_and_another_address_gets_none(bench) -> None:
    """aiortc/aiortc#1183: an interface whose packets vanish delays nothing, even if another one gets answers."""
    b = bench("stun:192.0.2.1", ice=IceConfig(controlling=True, components=(2,)))
    b.start(ETH0)
    b.advance(0.01)
    b.answer_question(b.take(Send)[0], MAPPED)
    b.advance(4.98)
    assert not ended(b)
    b.advance(0.02)
    assert ended(b)
    other = bench("stun:192.0.2.1")
    other.start(ETH0, WLAN0)
    other.advance(0.01)
    other.answer_question(other.take(Send)[0], MAPPED)
    other.advance(1.01)
    assert ended(other)


def test_with_no_answer_at_all_gathering_ends_after_its_patience(bench) -> None:
    """aiortc/aiortc#1183: each session waited for responses that never arrived."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(4.99)
    assert not ended(b)
    b.advance(0.02)
    assert ended(b)
    assert candidates(b) == [("host", Address("10.0.0.2", 5000))]


def test_a_hard_icmp_error_ends_a_question_at_once(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    [question] = b.take(Send)
    error = IcmpError(flow=question.flow, remote=FIRST, kind=IcmpKind.PORT_UNREACHABLE)
    b.session.receive(error, now=b.now)
    b.drain()
    assert ended(b)


def test_names_are_looked_up_and_one_address_of_each_family_is_asked(bench) -> None:
    dual = Interface(
        name="eth0",
        index=2,
        addresses=tuple(InterfaceAddress(host=host, prefix_length=64) for host in ("10.0.0.2", "2001:db8::2")),
    )
    b = bench("stun:stun.example.org:3479")
    b.start(dual, answer=False)
    b.answer_opens()
    b.answer_names(**{"stun.example.org": ("2001:db8::9", "192.0.2.1", "192.0.2.2")})
    b.advance(0.02)
    assert sorted(str(send.remote) for send in b.take(Send)) == ["192.0.2.1:3479", "[2001:db8::9]:3479"]


def test_a_name_without_an_address_is_reported_and_not_waited_for(bench) -> None:
    b = bench("stun:nowhere.example")
    b.start(ETH0)
    assert ended(b)
    assert "stun:nowhere.example: no answer (nowhere.example has no address)" in flat(b.session.why())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "::ffff:192.0.2.1"])
def test_a_name_with_impossible_addresses_is_reported_and_not_asked(bench, host: str) -> None:
    b = bench("stun:blocked.example")
    b.start(ETH0, answer=False)
    b.answer_opens()
    b.answer_names(**{"blocked.example": (host,)})
    b.advance(0.1)
    assert ended(b) and not b.take(Send)
    assert f"stun:blocked.example: no answer ({Address.of(host, 3478)} is " in flat(b.session.why())


@pytest.mark.parametrize("mapped", ["0.0.0.0:0", "203.0.113.7:0", "224.0.0.1:5000", "[2001:db8::7]:5000"])
def test_an_impossible_mapped_address_is_no_candidate_and_is_explained(bench, mapped: str) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(0.02)
    [question] = b.take(Send)
    b.answer_question(question, Address.parse(mapped))
    assert ended(b) and [address.host for _, address in candidates(b)] == ["10.0.0.2"]
    assert f"the mapped address is impossible: {mapped} " in flat(b.session.why())


def test_a_socket_that_cannot_be_opened_is_reported_and_the_others_continue(bench) -> None:
    b = bench()
    b.start(ETH0, WLAN0, answer=False)
    first, second = b.take(Open)
    b.session.receive(Closed(flow=first.flow, reason="the port is in use", errno=98), now=b.now)
    b.outputs.append(second)
    b.answer_opens()
    assert [address.host for _, address in candidates(b)] == ["10.9.0.2"]
    assert ended(b)
    assert "eth0: 10.0.0.2 is not used: the port is in use" in flat(b.session.why())


def test_a_mapping_is_kept_open_until_a_pair_is_nominated(bench) -> None:
    """RFC 8445, section 11: Tr is 15 s; the peer may need minutes."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    [question] = b.take(Send)
    b.answer_question(question, MAPPED)
    b.advance(46)
    kept = b.take(Send)
    assert [decode(send.data).cls for send in kept] == [Class.INDICATION] * 3
    assert {send.remote for send in kept} == {FIRST}
    b.session.gathering.stop_keepalives()
    b.advance(60)
    assert b.take(Send) == []


def test_an_address_that_is_mapped_to_itself_makes_no_second_candidate(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    [question] = b.take(Send)
    b.answer_question(question, Address("10.0.0.2", 5000))
    assert candidates(b) == [("host", Address("10.0.0.2", 5000))]


def test_an_answer_of_another_server_or_to_another_question_changes_nothing(bench) -> None:
    """security.md 12: a response whose transaction id or source does not fit is dropped."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    [question] = b.take(Send)
    forged = Send(question.flow, SECOND_SERVER, question.data)
    b.answer_question(forged, MAPPED)
    stranger = bytearray(question.data)
    stranger[10] ^= 1
    stranger[-8:] = b""
    stranger[2:4] = (len(stranger) - 20).to_bytes(2, "big")
    b.answer_question(Send(question.flow, FIRST, bytes(stranger)), MAPPED)
    assert candidates(b) == [("host", Address("10.0.0.2", 5000))]
    assert b.session.counters["unexpected"] == 1


def test_no_host_signals_no_address_of_this_host(bench) -> None:
    b = bench("stun:192.0.2.1", policy=Policy.NO_HOST)
    b.start(ETH0)
    [question] = b.take(Send)
    b.answer_question(question, MAPPED)
    [added] = b.of(LocalCandidateAdded)
    assert added.candidate.type is CandidateType.SERVER_REFLEXIVE
    assert "10.0.0.2" not in str(added.candidate)


def test_closing_closes_every_socket_and_silences_every_timer(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0, WLAN0)
    b.take(Send)
    b.session.close(now=b.now)
    b.drain()
    assert len(b.take(Close)) == 2
    assert b.take(Send) == []
    assert b.session.next_timer() is None


@pytest.mark.parametrize(
    "wrong", [{"families": ()}, {"families": (5,)}, {"ports": (0, 5)}, {"ports": (9, 5)}, {"patience": 0}]
)
def test_invalid_options_are_refused_before_anything_is_opened(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        SessionConfig(ice=IceConfig(controlling=True), **wrong)  # type: ignore[arg-type]


def test_every_component_of_every_stream_has_a_socket_of_its_own(bench) -> None:
    """RFC 8445, section 5.1.1.1: a host candidate for each component."""
    b = bench("stun:192.0.2.1", ice=IceConfig(controlling=True, components=(2, 1)))
    b.start(ETH0)
    places = [(added.local.stream, added.candidate.component, added.candidate.address.port) for added in emitted(b)]
    assert places == [(0, 1, 5000), (0, 2, 5001), (1, 1, 5002)]
    b.advance(0.02)
    for number, question in enumerate(b.take(Send)):
        b.answer_question(question, Address("198.51.100.7", 40000 + number))
    mapped = [added for added in emitted(b) if added.candidate.type is CandidateType.SERVER_REFLEXIVE]
    assert [(added.local.stream, added.candidate.component) for added in mapped] == [(0, 1), (0, 2), (1, 1)]


def emitted(bench) -> list[LocalCandidateAdded]:  # type: ignore[no-untyped-def]
    added: list[LocalCandidateAdded] = bench.of(LocalCandidateAdded)
    return added


def test_a_configured_one_to_one_nat_gives_a_candidate(bench) -> None:
    b = bench(external={"10.0.0.2": "203.0.113.2"})
    b.start(ETH0)
    assert candidates(b) == [("host", Address("10.0.0.2", 5000)), ("srflx", Address("203.0.113.2", 5000))]


def test_a_rule_that_names_no_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not an IP address"):
        SessionConfig(ice=IceConfig(controlling=True), external={"10.0.0.2": "example.org"})


def test_a_new_interface_is_gathered_on_and_the_agent_restarts(bench) -> None:
    """A host that moves to another network (RFC 8445, section 9): new sockets, new credentials, servers asked again."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    [question] = b.take(Send)
    b.answer_question(question, MAPPED)
    b.advance(0.1)
    before = b.session.agent.local_description
    b.events.clear()
    assert b.session.interfaces_changed(InterfacesChanged(interfaces=(ETH0, WLAN0)), now=b.now)
    b.drain()
    assert b.session.agent.local_description.ufrag != before.ufrag
    b.answer_opens()
    b.advance(0.02)
    assert len(b.take(Send)) == 2, "the server is asked from the old socket and from the new one"
    assert [candidate[1].host for candidate in candidates(b)] == ["10.0.0.2", "198.51.100.7", "10.9.0.2"]


def test_an_address_that_is_gone_takes_its_socket_along(bench) -> None:
    b = bench()
    b.start(ETH0, WLAN0)
    eth_flow = b.session.gathering.bases[0].flow
    assert b.session.interfaces_changed(InterfacesChanged(interfaces=(WLAN0,)), now=b.now)
    b.drain()
    assert b.take(Close) == [Close(flow=eth_flow)]
    assert [local.base.host for local in b.session.agent.local_candidates()] == ["10.9.0.2"]


def with_address(host: str, **flags: bool) -> Interface:
    """Interface eth0 with one IPv6 address."""
    return Interface(name="eth0", index=2, addresses=(InterfaceAddress(host=host, prefix_length=64, **flags),))


@pytest.mark.parametrize("flag", ["deprecated", "tentative"])
def test_an_open_socket_stays_while_its_address_is_only_less_preferred(bench, flag: str) -> None:
    """IPv6 privacy addresses are deprecated every day, and connections on them go on."""
    b = bench()
    b.start(with_address("2001:db8::1"))
    for addresses in (with_address("2001:db8::1", **{flag: True}), with_address("2001:db8::1")):
        assert not b.session.interfaces_changed(InterfacesChanged(interfaces=(addresses,)), now=b.now)
    assert b.session.interfaces_changed(InterfacesChanged(interfaces=(with_address("2001:db8::2"),)), now=b.now)


def test_a_session_follows_new_interfaces_without_a_restart_before_it_is_connected(bench) -> None:
    """Its description may have been signaled by hand: new credentials would make that text useless."""
    b = bench()
    b.start(ETH0)
    before = b.session.agent.local_description
    b.session.receive(InterfacesChanged(interfaces=(ETH0, WLAN0)), now=b.now)
    b.drain()
    b.answer_opens()
    assert [candidate[1].host for candidate in candidates(b)] == ["10.0.0.2", "10.9.0.2"]
    b.session.receive(InterfacesChanged(interfaces=(WLAN0,)), now=b.now)
    b.drain()
    assert [local.base.host for local in b.session.agent.local_candidates()] == ["10.9.0.2"]
    assert b.session.agent.local_description == before


def test_interfaces_that_did_not_change_restart_nothing(bench) -> None:
    b = bench()
    b.start(ETH0)
    before = b.session.agent.local_description
    assert not b.session.interfaces_changed(InterfacesChanged(interfaces=(ETH0,)), now=b.now)
    assert b.session.agent.local_description == before


def test_sockets_are_pinned_to_their_interface_but_for_those_that_nothing_leaves_by(bench) -> None:
    """A bound source address does not choose the route; packets from lo or a dummy leave by another interface."""
    lo = Interface(
        name="lo", index=1, addresses=(InterfaceAddress(host="127.0.0.1", prefix_length=8),), loopback=True
    )  # fmt: skip
    dummy = Interface(
        name="service0", index=9, addresses=(InterfaceAddress(host="192.0.2.77", prefix_length=32),), dead_end=True
    )  # fmt: skip
    b = bench(loopback=True)
    b.start(ETH0, lo, dummy, answer=False)
    pinned = {str(opening.local): opening.interface for opening in b.take(Open)}
    assert pinned == {"10.0.0.2:0": "eth0", "127.0.0.1:0": None, "192.0.2.77:0": None}


def test_options_that_a_socket_could_not_get_are_reported(bench) -> None:
    b = bench()
    b.start(ETH0, answer=False)
    [opening] = b.take(Open)
    note = "may leave by other interfaces than eth0: Operation not permitted"
    b.session.receive(Opened(flow=opening.flow, local=Address("10.0.0.2", 5000), note=note), now=b.now)
    why = b.session.why()
    assert why.data["gathering"]["sockets"] == [{"interface": "eth0", "local": "10.0.0.2:5000", "note": note}]
    assert f"eth0: 10.0.0.2:5000 ({note})" in flat(why)
    b.drain()
    assert ended(b), "it is used"


def test_the_statistics_name_the_server_that_a_candidate_is_from(bench) -> None:
    """RTCIceCandidateStats: `url`."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    [question] = b.take(Send)
    b.answer_question(question, MAPPED)
    found = {each["candidateType"]: each for each in b.session.agent.stats().values() if "candidateType" in each}
    assert "url" not in found["host"] and found["host"]["interface"] == "eth0"
    assert found["srflx"]["url"] == "stun:192.0.2.1:3478"
    assert (found["srflx"]["relatedAddress"], found["srflx"]["relatedPort"]) == ("10.0.0.2", 5000)


@pytest.mark.parametrize("families", [(6, 4), (4, 6)])
def test_candidates_are_preferred_in_the_order_of_the_families_and_these_are_interleaved(bench, families) -> None:
    """RFC 8421, section 4: neither family waits for all of the other; link-local addresses come last."""
    hosts = ("192.0.2.1", "192.0.2.2", "2001:db8:1::1", "2001:db8:2::1")
    eth = Interface(
        name="eth0", index=1, addresses=tuple(InterfaceAddress(host=host, prefix_length=24) for host in hosts)
    )  # fmt: skip
    link = Interface(name="eth1", index=2, addresses=(InterfaceAddress(host="fe80::1", prefix_length=64),))
    b = bench(families=families)
    b.start(eth, link)
    found = sorted((event.candidate for event in b.of(LocalCandidateAdded)), key=lambda each: -each.priority)
    ordered = [each.address.family for each in found]
    assert ordered[:4] == [*families, *families]
    assert found[4].address.host == "fe80::1"
    assert len({each.priority for each in found}) == 5


# ------------------------------------------------------------------------------------------------------- late answers


def ends(bench) -> int:  # type: ignore[no-untyped-def]
    return len(bench.of(LocalCandidatesEnded))


def test_an_answer_that_comes_after_the_end_is_a_candidate_all_the_same(bench) -> None:
    """RFC 8445, section 14: the transaction continues to its end; the last of its seven sends is at 31.5 s."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(5.01)
    assert ended(b) and ends(b) == 1
    assert "192.0.2.1:3478 had not answered 5 s after gathering began; its requests continue" in flat(b.session.why())
    b.advance(27)
    questions = b.take(Send)
    assert len(questions) == 7
    b.answer_question(questions[-1], MAPPED)
    assert candidates(b) == [("host", Address("10.0.0.2", 5000)), ("srflx", MAPPED)]
    assert "192.0.2.1:3478 asked from 10.0.0.2:5000: 198.51.100.7:40000 (answered after 7 sends)" in flat(
        b.session.why()
    )
    assert len(b.of(GatheringStateChanged)) == 2 and ends(b) == 1, (
        "the end is emitted once, and gathering does not start again"
    )


def test_a_late_question_has_an_end_and_then_nothing_is_left(bench) -> None:
    """RFC 8489, section 6.2.1: 39.5 s after the first send."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(39)
    assert b.session.next_timer() is not None
    b.advance(1)
    assert "192.0.2.1:3478 did not answer 7 sends" in flat(b.session.why())
    assert b.session.next_timer() is None
    assert len(b.of(GatheringStateChanged)) == 2


def test_a_late_mapping_is_kept_open_like_any_other_and_only_until_a_pair_is_nominated(bench) -> None:
    for nominated in (False, True):
        b = bench("stun:192.0.2.1")
        b.start(ETH0)
        b.advance(6)
        if nominated:
            b.session.gathering.stop_keepalives()
        b.answer_question(b.take(Send)[-1], MAPPED)
        b.advance(40)
        assert len(b.take(Send)) == (0 if nominated else 2)


def test_closing_ends_what_is_late_and_an_answer_then_changes_nothing(bench) -> None:
    b = bench("stun:192.0.2.1", "stun:late.example")
    b.start(ETH0, answer=False)
    b.answer_opens()
    b.answer_names(**{"192.0.2.1": ("192.0.2.1",)})
    b.advance(6)
    question = b.take(Send)[-1]
    b.session.close(now=b.now)
    b.drain()
    assert b.session.next_timer() is None
    b.answer_question(question, MAPPED)
    assert len(candidates(b)) == 1 and b.take(Send) == []


def test_after_a_restart_a_late_candidate_belongs_to_the_new_generation(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(6)
    description = b.session.restart(now=b.now)
    b.drain()
    assert ends(b) == 2
    b.answer_question(b.take(Send)[-1], MAPPED)
    found = b.of(LocalCandidateAdded)[-1].candidate
    assert found.address == MAPPED
    assert (found.generation, dict(found.extensions)["ufrag"]) == (1, description.ufrag)
    assert ends(b) == 2


def test_a_change_of_network_repeats_late_questions_and_waits_for_these(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(6)
    old = b.take(Send)[-1]
    assert b.session.interfaces_changed(InterfacesChanged(interfaces=(ETH0, WLAN0)), now=b.now)
    b.drain()
    b.answer_question(old, MAPPED)
    assert candidates(b)[-1][0] == "host", "an answer through the old network does not count"
    b.answer_opens()
    b.advance(0.02)
    again = b.take(Send)
    assert len({send.flow for send in again}) == 2
    states = b.of(GatheringStateChanged)
    assert states[-1].new is GatheringState.GATHERING
    for number, question in enumerate(again):
        b.answer_question(question, Address("198.51.100.7", 41000 + number))
    assert b.of(GatheringStateChanged)[-1].new is GatheringState.COMPLETE and ends(b) == 2
    b.session.gathering.stop_keepalives()
    b.advance(60)
    assert b.take(Send) == [] and b.session.next_timer() is None


def test_an_address_that_is_gone_takes_its_late_questions_along(bench) -> None:
    b = bench("stun:192.0.2.1")
    b.start(ETH0, WLAN0)
    b.advance(6)
    b.take(Send)
    [_, wlan] = [base.flow for base in b.session.gathering.bases]
    assert b.session.interfaces_changed(InterfacesChanged(interfaces=(ETH0,)), now=b.now)
    b.drain()
    b.advance(60)
    sends = b.take(Send)
    assert sends and wlan not in {send.flow for send in sends}


def test_a_name_that_resolves_late_is_asked_and_delays_nothing(bench) -> None:
    """A name server that is down takes seconds, until the resolver asks the next one."""
    b = bench("stun:192.0.2.1", "stun:late.example")
    b.start(ETH0, answer=False)
    b.answer_opens()
    late = b.outputs[-1]
    b.outputs.remove(late)
    b.answer_names()
    b.answer_question(b.take(Send)[0], MAPPED)
    b.advance(1.01)
    assert ended(b)
    b.outputs.append(late)
    b.answer_names(**{"late.example": ("192.0.2.9",)})
    b.advance(0.01)
    [question] = b.take(Send)
    assert question.remote == SECOND_SERVER
    b.answer_question(question, Address("198.51.100.7", 40001))
    assert candidates(b)[-1] == ("srflx", Address("198.51.100.7", 40001))
    assert len(b.of(GatheringStateChanged)) == 2


def test_a_late_question_follows_its_server_to_another_one_and_stays_late(bench) -> None:
    """RFC 8489, section 10."""
    b = bench("stun:192.0.2.1")
    b.start(ETH0)
    b.advance(6)
    question = b.take(Send)[-1]
    answer = Message.error(decode(question.data), 300, None, {ALTERNATE_SERVER: (SECOND_SERVER,)})
    b.receive(question.flow, FIRST, answer.encode(fingerprint=True))
    [there] = b.take(Send)
    assert there.remote == SECOND_SERVER
    assert len(b.of(GatheringStateChanged)) == 2
    b.answer_question(there, MAPPED)
    assert candidates(b)[-1] == ("srflx", MAPPED)


# ------------------------------------------------------------------------------------------- names of the other side


@pytest.mark.parametrize("policy", [Policy.ALL, Policy.NO_HOST, Policy.RELAY])
def test_a_local_name_of_the_other_side_is_not_looked_up_if_only_relays_are_used(bench, policy: Policy) -> None:
    b = bench(policy=policy)
    b.start(ETH0)
    b.session.add_remote(Candidate.parse("candidate:1 1 udp 2122252543 host.local 6000 typ host"), now=b.now)
    b.drain()
    assert len(b.take(Resolve)) == (policy is not Policy.RELAY)
    assert ("host.local is ignored" in flat(b.session.why())) is (policy is Policy.RELAY)
