"""Responses to inbound requests (RFC 8445, section 7.3; RFC 8489, sections 6.3.1 and 9.1.3)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, Send
from polynya.core.pacer import Pacer
from polynya.ice import (
    Candidate,
    CandidateType,
    Description,
    Gathered,
    IceAgent,
    IceConfig,
    PairState,
    RemoteAuthenticated,
)
from polynya.ice.generation import REMOTE_LIMIT
from polynya.ice.server import REFUSALS
from polynya.stun.attributes import (
    ERROR_CODE,
    ICE_CONTROLLING,
    PRIORITY,
    UNKNOWN_ATTRIBUTES,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
)
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method

NOW = Instant(10 * SECOND)
HERE, THERE = Address("192.168.0.1", 5000), Address("192.168.0.2", 6000)
FLOW = Flow(1)
OURS = IntegrityKey.short_term("ourpasswordourpassword")
THEIRS = Description(ufrag="them", password="theirpasswordtheirpass", options=("ice2",))


def agent(remote: bool = True, **options: Any) -> IceAgent:
    config = IceConfig(**({"controlling": False, "ufrag": "ours", "password": "ourpasswordourpassword"} | options))
    made = IceAgent(config, random=Random(1), pacer=Pacer())
    made.add_local(Gathered(type=CandidateType.HOST, address=HERE, flow=FLOW), now=NOW)
    if remote:
        made.set_remote(THEIRS, now=NOW)
    made.events()
    made.outputs()
    return made


def request(number: int = 1, *, key: IntegrityKey | None = OURS, drop: Any = None, **attributes: Any) -> bytes:
    values: dict[Any, Any] = {USERNAME: "ours:them", PRIORITY: 1862270975, ICE_CONTROLLING: 7}
    values |= {by_name[name]: value for name, value in attributes.items()}
    values.pop(drop, None)
    message = Message.request(Method.BINDING, number.to_bytes(12, "big"), values)
    return message.encode(integrity=key, fingerprint=True)


by_name = {"username": USERNAME, "priority": PRIORITY, "use_candidate": USE_CANDIDATE}


def answers(made: IceAgent, data: bytes, source: Address = THERE, *, now: Instant = NOW) -> list[Message]:
    made.receive(Datagram(FLOW, source, data), now=now)
    sent = [output for output in made.outputs() if isinstance(output, Send)]
    return [decode(send.data) for send in sent if decode(send.data).cls is not Class.REQUEST]


def test_a_good_check_is_answered_with_what_its_source_looked_like() -> None:
    """RFC 8445, section 7.3.1.2."""
    made = agent()
    [answer] = answers(made, request(3))
    assert (answer.cls, answer.transaction_id) == (Class.SUCCESS, (3).to_bytes(12, "big"))
    assert answer[XOR_MAPPED_ADDRESS] == THERE
    assert answer.has_fingerprint and answer.verify(OURS)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (request(key=None), 400),
        (request(drop=USERNAME), 400),
        (request(username="ours"), 400),
        (request(username="other:them"), 401),
        (request(key=IntegrityKey.short_term("wrong")), 401),
    ],
)
def test_an_unauthenticated_request_gets_an_unsigned_refusal_and_moves_nothing(data: bytes, code: int) -> None:
    """RFC 8489, section 9.1.3. OvenMediaEngine#2107: a bad MAC must not end the session."""
    made = agent()
    [answer] = answers(made, data)
    assert (answer[ERROR_CODE].code, answer.has_integrity) == (code, False)
    assert made.pairs() == [] and made.events() == []
    assert made.counters["messages dropped"] == 1
    assert answers(made, request())[0].cls is Class.SUCCESS


def test_unsigned_refusals_are_few_a_second() -> None:
    """security.md, 5: an agent is not to be used to send packets at others."""
    made = agent()
    bad = request(key=None)
    assert sum(len(answers(made, bad)) for _ in range(100)) == REFUSALS
    assert answers(made, bad, now=Instant(NOW + SECOND)) != []
    assert answers(made, request()) != []


def test_attributes_that_must_be_understood_are_named_in_a_420() -> None:
    """RFC 8489, section 6.3.1."""
    plain = Message.request(Method.BINDING, bytes(12), {USERNAME: "ours:them", PRIORITY: 1}).encode()
    body = plain[20:] + bytes.fromhex("7f000004deadbeef")
    unsigned = plain[:2] + (len(body) + 24).to_bytes(2, "big") + plain[4:20] + body
    signed = unsigned + bytes.fromhex("00080014") + OURS.sha1(unsigned)
    made = agent()
    [answer] = answers(made, signed)
    assert (answer[ERROR_CODE].code, answer[UNKNOWN_ATTRIBUTES]) == (420, (0x7F00,))
    assert answer.verify(OURS) and made.pairs() == []


def test_a_check_without_a_priority_is_refused() -> None:
    """RFC 8445, section 7.1.1: it is what the peer-reflexive candidate would get."""
    made = agent()
    [answer] = answers(made, request(drop=PRIORITY))
    assert answer[ERROR_CODE].code == 400 and answer.verify(OURS)


@pytest.mark.parametrize("priority", [0, 1, 2**31, 2**32 - 1])
def test_any_priority_of_a_check_is_taken_as_those_of_candidate_lines_are(priority: int) -> None:
    made = agent()
    [answer] = answers(made, request(priority=priority))
    assert answer.cls is Class.SUCCESS
    assert [view.remote.priority for view in made.pairs()] == [priority]


def test_a_signed_check_gets_a_pair_however_many_candidates_are_known() -> None:
    made = agent()
    for number in range(300):
        candidate = Candidate(
            foundation=str(number), component=1, priority=2**31 - 1 - number, address=Address(f"10.0.{number // 200}."
            f"{number % 200 + 1}", 4000), type=CandidateType.HOST,
        )  # fmt: skip
        made.add_remote(candidate, now=NOW)
    assert len(made.remote_candidates()) == REMOTE_LIMIT
    [answer] = answers(made, request())
    assert answer.cls is Class.SUCCESS
    assert THERE in [view.remote_address for view in made.pairs()]


@pytest.mark.parametrize("described", [True, False])
def test_candidates_of_earlier_generations_leave_room_for_those_of_the_next(described: bool) -> None:
    def signaled(ufrag: str, number: int) -> Candidate:
        return Candidate(
            foundation="1", component=1, priority=2**30, address=Address("10.0.0.9", number), type=CandidateType.HOST,
            extensions=(("ufrag", ufrag),),
        )  # fmt: skip

    made = agent()
    if described:
        made.restart(now=NOW)
    for number in range(1, 301):
        made.add_remote(signaled("them" if number % 2 else "lost", number), now=NOW)
    made.add_remote(signaled("next", 5000), now=NOW)
    made.set_remote(Description(ufrag="next", password="nextpasswordnextpassword", generation=1), now=NOW)
    assert [view.remote_address.port for view in made.pairs()] == [5000]


@pytest.mark.parametrize("data", [b"", b"\0" * 19, b"hello", bytes(100), request()[:-1], request() + b"\0\0\0\0"])
def test_what_is_not_stun_is_dropped_and_counted(data: bytes) -> None:
    made = agent()
    assert answers(made, data) == [] and made.pairs() == []
    assert made.counters["messages dropped"] == 1


def test_other_methods_indications_and_stray_answers_get_nothing() -> None:
    made = agent()
    allocate = Message.request(Method.ALLOCATE, bytes(12), {}).encode(fingerprint=True)
    indication = Message.indication(Method.BINDING, bytes(12), {}).encode(fingerprint=True)
    stray = Message.success(decode(request()), {XOR_MAPPED_ADDRESS: HERE}).encode(integrity=OURS)
    for data in (allocate, indication, stray):
        assert answers(made, data) == []
    assert made.counters["keepalives received"] == 1
    assert made.receive(Datagram(FLOW, THERE, indication), now=NOW)
    assert not made.receive(Datagram(FLOW, THERE, stray), now=NOW), "its owner may know the transaction"


def test_a_check_on_a_flow_that_is_not_ours_is_dropped() -> None:
    made = agent()
    made.receive(Datagram(Flow(9), THERE, request()), now=NOW)
    assert made.outputs() == [] and made.pairs() == []


# ------------------------------------------------------------------------------------------- what follows from a check


def test_an_unknown_source_becomes_peer_reflexive_and_is_checked_at_once() -> None:
    """RFC 8445, sections 7.3.1.3 and 7.3.1.4."""
    made = agent()
    answers(made, request(priority=1234567))
    [view] = made.pairs()
    assert (view.remote.type, view.remote.address, view.remote.priority) == (
        CandidateType.PEER_REFLEXIVE, THERE, 1234567,
    )  # fmt: skip
    assert (view.state, view.readable, view.writable) == (PairState.IN_PROGRESS, True, False)
    assert made.events()[0] == RemoteAuthenticated(flow=FLOW, remote=THERE, stream=0, component=1)


def test_a_candidate_that_is_signaled_later_is_adopted_with_everything_kept() -> None:
    """algesten/str0m#485, #489, #908: false disconnects when a nominated candidate was signaled later."""
    made = agent()
    answers(made, request())
    [before] = made.pairs()
    candidate = Candidate(
        foundation="9", component=1, priority=2130706431, address=THERE, type=CandidateType.HOST
    )  # fmt: skip
    made.add_remote(candidate, now=NOW)
    [after] = made.pairs()
    assert (after.id, after.state, after.readable) == (before.id, before.state, before.readable)
    assert after.remote is candidate and after.priority > before.priority


def test_checks_that_come_before_the_description_are_answered_and_kept() -> None:
    """RFC 8445, section 7.3: the answer needs nothing of the other side's."""
    made = agent(remote=False)
    assert answers(made, request(1))[0].cls is Class.SUCCESS
    assert answers(made, request(2, use_candidate=True))[0].cls is Class.SUCCESS
    assert made.pairs() == []
    assert [type(event) for event in made.events()] == [RemoteAuthenticated]
    made.set_remote(THEIRS, now=NOW)
    [view] = made.pairs()
    assert view.readable and view.state is PairState.IN_PROGRESS
    assert made.generation.checklists.lists[0].pairs[0].nominate_on_success


def test_checks_of_another_ufrag_than_the_one_that_is_signaled_then_are_forgotten() -> None:
    made = agent(remote=False)
    answers(made, request(username="ours:evil"))
    made.set_remote(THEIRS, now=NOW)
    assert made.pairs() == []


def test_what_is_kept_early_is_bounded() -> None:
    made = agent(remote=False)
    for port in range(1, 200):
        assert answers(made, request(port), Address(THERE.host, port))[0].cls is Class.SUCCESS
    made.set_remote(THEIRS, now=NOW)
    assert len(made.pairs()) == 16


def test_any_number_of_sources_makes_a_bounded_number_of_pairs() -> None:
    made = agent(pair_limit=20)
    for port in range(1, 400):
        answers(made, request(port), Address(THERE.host, port))
    assert len(made.pairs()) <= 20
    assert len(made.generation.checklists.lists[0].remotes) <= 256


def test_sources_that_return_again_and_again_make_no_more_pairs_either() -> None:
    """A pair that went for the limit is made again a few times, not forever: two agents have to come to an end."""
    made = agent(pair_limit=10)
    for turn in range(40):
        for port in range(1, 21):
            answers(made, request(turn * 100 + port), Address(THERE.host, port))
            for pair in list(made.generation.checklists):
                made.generation.checklists.fail(pair, "for the test", now=NOW)
    assert made.counters["checks received"] == 800
    assert made.generation.checklists.last_id <= 256


def test_a_retransmitted_check_does_not_restart_a_fresh_triggered_one() -> None:
    """Two agents would otherwise trigger each other for ever; a deviation that generation.py explains."""
    made = agent()
    answers(made, request(1))
    made.receive(Datagram(FLOW, THERE, request(1)), now=NOW)
    made.tick(now=Instant(NOW + SECOND // 10))
    assert [output for output in made.outputs() if _is_request(output)] == []
    later = Instant(NOW + SECOND * 3 // 4)
    made.receive(Datagram(FLOW, THERE, request(1)), now=later)
    made.tick(now=later)
    assert len([output for output in made.outputs() if _is_request(output)]) >= 1


def _is_request(output: object) -> bool:
    return isinstance(output, Send) and decode(output.data).cls is Class.REQUEST
