"""The life of a pair: the table at the top of pairs.py, and nothing else (RFC 8445, sections 6.1.2.6 and 7.2.5)."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.core.compact import HISTORY_LENGTH
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.ice import pairs
from polynya.ice.candidates import CandidateType, pair_priority
from polynya.ice.pairs import TRANSITIONS, Pair, PairEvent, PairState
from tests.ice.conftest import Make

NOW = Instant(0)
S, E = PairState, PairEvent

ALLOWED = [
    (S.FROZEN, E.UNFREEZE, S.WAITING),
    (S.WAITING, E.CHECK_SENT, S.IN_PROGRESS),
    (S.IN_PROGRESS, E.ANSWERED, S.SUCCEEDED),
    (S.IN_PROGRESS, E.FAILED, S.FAILED),
    (S.FROZEN, E.TRIGGERED, S.WAITING),
    (S.IN_PROGRESS, E.TRIGGERED, S.WAITING),
    (S.FAILED, E.TRIGGERED, S.WAITING),
    (S.WAITING, E.SET_ASIDE, S.FROZEN),
    (S.IN_PROGRESS, E.SET_ASIDE, S.FROZEN),
    (S.SUCCEEDED, E.FAILED, S.FAILED),
]


def pair(make: Make, state: PairState = S.FROZEN) -> Pair:
    made = Pair(1, make.local(), make.remote(), make.remote().address)
    made.state = state
    return made


@pytest.mark.parametrize(("old", "event", "new"), ALLOWED)
def test_the_moves_of_the_rfc(make: Make, old: PairState, event: PairEvent, new: PairState) -> None:
    moved = pair(make, old)
    assert moved.apply(event, "because", now=NOW) is old
    [transition] = moved.history.transitions()
    assert (transition.old, transition.new, transition.reason) == (old, new, "because")
    assert (moved.state, moved.reason) == (new, "because")


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (S.FROZEN, E.CHECK_SENT),  # a frozen pair is not checked
        (S.SUCCEEDED, E.TRIGGERED),  # section 7.3.1.4: nothing further is done
        (S.SUCCEEDED, E.CHECK_SENT),
        (S.SUCCEEDED, E.SET_ASIDE),
        (S.FAILED, E.CHECK_SENT),
        (S.FAILED, E.UNFREEZE),
        (S.IN_PROGRESS, E.UNFREEZE),
    ],
)
def test_what_is_not_in_the_table_changes_nothing(make: Make, state: PairState, event: PairEvent) -> None:
    kept = pair(make, state)
    assert kept.apply(event, "no", now=NOW) is None
    assert (kept.state, kept.reason, kept.history.transitions()) == (state, "new", [])


def test_an_answer_counts_in_every_state() -> None:
    """Section 7.3.1.4: the answer to a check that was cancelled is still an answer."""
    assert all(TRANSITIONS[state][E.ANSWERED] is S.SUCCEEDED for state in PairState)


@given(st.lists(st.sampled_from(PairEvent), max_size=60))
def test_the_table_is_closed_and_history_bounded(events: list[PairEvent]) -> None:
    made = pair(Make())
    for at, event in enumerate(events):
        before = made.state
        left = made.apply(event, event.value, now=Instant(at))
        assert made.state is TRANSITIONS[before].get(event, before)
        assert (left is None) == (event not in TRANSITIONS[before])
    history = made.history.transitions()
    assert len(history) <= HISTORY_LENGTH
    for first, second in pairwise(history[1:]):
        assert first.new is second.old


def test_the_first_transition_is_remembered_for_good(make: Make) -> None:
    made = pair(make)
    for number in range(50):
        made.apply(E.TRIGGERED, f"check {number}", now=NOW)
    assert made.history.transitions()[0].reason == "check 0"
    assert made.history.transitions()[-1].reason == "check 49"


def test_flags_say_whether_they_changed(make: Make) -> None:
    made = pair(make)
    assert made.flag(readable=True)
    assert not made.flag(readable=True)
    assert not made.flag()
    assert made.flag(readable=False, valid=True)
    assert (made.readable, made.valid, made.writable, made.nominated) == (False, True, False, False)


def test_priorities_follow_the_role_and_what_the_answer_showed(make: Make) -> None:
    """Section 7.2.5.3.2: the valid pair has the priority of its own candidates."""
    made = pair(make)
    ours, theirs = made.local.candidate.priority, made.remote.priority
    made.prioritize(True)
    assert made.priority == made.valid_priority == pair_priority(ours, theirs)
    made.prioritize(False)
    assert made.priority == pair_priority(theirs, ours)
    shown = make.local(2)
    made.seen = shown
    made.prioritize(True)
    assert made.priority == pair_priority(ours, theirs)
    assert made.valid_priority == pair_priority(shown.candidate.priority, theirs)
    assert made.view().local is shown.candidate


def test_what_was_noticed_on_the_way_explains_a_failure(make: Make) -> None:
    """pjsip/pjproject#5031: sends that the system refuses are named, and are not what fails the pair."""
    made = pair(make)
    assert made.explain("no answer") == "no answer"
    made.hint("the system refused to send, EPERM")
    made.hint("the system refused to send, EPERM")
    assert made.explain("no answer") == "no answer (the system refused to send, EPERM: 2 times)"
    for number in range(100):
        made.hint(f"noise {number}")
    assert len(made.explain("x")) < 400


def test_a_view_is_what_it_was(make: Make) -> None:
    made = Pair(7, make.local(), make.remote(type=CandidateType.RELAYED), Address("192.0.2.1", 6000))
    view = made.view(selected=True)
    made.apply(E.TRIGGERED, "later", now=NOW)
    made.flag(valid=True)
    assert (view.id, view.state, view.valid, view.selected, view.relayed) == (7, S.FROZEN, False, True, True)
    assert (view.flow, view.remote_address, view.base) == (Flow(11), Address("192.0.2.1", 6000), made.local.base)
    assert str(view) == "host 10.0.0.1:5000 -> relay 192.0.2.1:6000"


def test_only_pairs_py_assigns_the_attributes_of_a_pair() -> None:
    """Every change of a pair goes through a method of `Pair`, so that it cannot happen without its reason."""
    folder = Path(pairs.__file__).parent
    found = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for path in sorted(folder.rglob("*.py"))
        if path.name != "pairs.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr in Pair.__slots__
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    assert found == []


def test_a_view_reads_well(make: Make) -> None:
    made = Pair(7, make.local(), make.remote(), Address("192.0.2.1", 6000))
    made.response_received(12_300_000)
    made.flag(valid=True, nominated=True)
    assert repr(made.view()) == (
        "<PairView 7: host 10.0.0.1:5000 -> host 192.0.2.1:6000, frozen, valid, nominated, 12.3 ms>"
    )
    assert made.view().rtt == pytest.approx(0.0123)
    assert repr(made.remote) == f"<Candidate host 192.0.2.1:6000 udp, component 1, priority {made.remote.priority}>"
