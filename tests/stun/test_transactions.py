"""RFC 8489, sections 6.2.1 to 6.3.4, and RFC 8445, section 7.3.1.4: the life of a request."""

import random

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import UsageError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Closed, IcmpError, IcmpKind, IpFields, Send, SendFailed
from polynya.core.trace import TraceEvent, Tracer
from polynya.stun.transactions import (
    ONCE,
    RELIABLE,
    TRANSITIONS,
    UNRELIABLE,
    ClientTransaction,
    Ended,
    Schedule,
    State,
    Transactions,
)

FLOW = Flow(1)
SERVER = Address("203.0.113.1", 3478)
OTHER = Address("203.0.113.2", 3478)
ID = bytes(range(12))
START = Instant(5 * SECOND)


def transaction(schedule: Schedule = UNRELIABLE) -> ClientTransaction[str]:
    return ClientTransaction(
        transaction_id=ID, request=Send(FLOW, SERVER, b"request"), context="context", schedule=schedule
    )


def started(schedule: Schedule = UNRELIABLE) -> ClientTransaction[str]:
    machine = transaction(schedule)
    machine.start(now=START)
    return machine


def run_until_silent(machine: ClientTransaction[str]) -> list[float]:
    """When the machine sends, in seconds from its start, with a clock that jumps from timer to timer."""
    machine.start(now=START)
    sent, now = [], START
    while True:
        sent += [(now - START) / SECOND for _ in machine.outputs()]
        due = machine.next_timer()
        if due is None:
            return [*sent, (now - START) / SECOND]
        now = due
        machine.tick(now=now)


def table() -> Transactions[str]:
    return Transactions()


def begin(transactions: Transactions[str], transaction_id: bytes = ID, **options: object) -> None:
    transactions.start(
        transaction_id, b"request", FLOW, options.pop("remote", SERVER), now=START, context="pair", **options
    )  # type: ignore[arg-type]


def test_it_sends_at_the_times_of_the_rfc_and_fails_at_39_and_a_half_seconds() -> None:
    machine = transaction()
    assert run_until_silent(machine) == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 39.5]
    assert machine.events() == [
        Ended(
            transaction_id=ID,
            state=State.FAILED,
            reason="203.0.113.1:3478 did not answer 7 sends",
            sends=7,
            context="context",
        )
    ]


def test_over_a_stream_it_sends_once_and_waits_ti() -> None:
    """Section 6.2.2."""
    assert run_until_silent(transaction(RELIABLE)) == [0, 39.5]


@pytest.mark.parametrize("schedule", [UNRELIABLE, RELIABLE, ONCE, Schedule(rto=1.0, sends=3, last_wait=2)])
def test_a_schedules_total_is_when_it_fails(schedule: Schedule) -> None:
    assert run_until_silent(transaction(schedule))[-1] * SECOND == schedule.total


@pytest.mark.parametrize("wrong", [{"rto": 0}, {"sends": 0}, {"last_wait": 0}])
def test_an_impossible_schedule_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"rto|schedule"):
        Schedule(**wrong)


def test_an_answer_ends_it_once() -> None:
    machine = started()
    machine.answer(now=Instant(START + 20 * MILLISECOND))
    machine.answer(now=Instant(START + 30 * MILLISECOND))
    machine.unreachable("port unreachable")
    machine.tick(now=Instant(START + 100 * SECOND))
    [ended] = machine.events()
    assert (ended.state, ended.rtt) == (State.ANSWERED, 20 * MILLISECOND)
    assert machine.next_timer() is None


def test_the_round_trip_is_taken_only_where_it_is_certain() -> None:
    """Karn's rule; RFC 7982 says which send was answered."""
    for answered_send, rtt in [(0, None), (2, None), (1, 700 * MILLISECOND)]:
        machine = started()
        machine.tick(now=Instant(START + 500 * MILLISECOND))
        machine.answer(now=Instant(START + 700 * MILLISECOND), answered_send=answered_send)
        assert machine.rtt == rtt


def test_a_tick_before_time_or_after_the_end_does_nothing() -> None:
    machine = started(Schedule(sends=1, last_wait=1))
    machine.outputs()
    machine.tick(now=Instant(START + 500 * MILLISECOND - 1))
    assert machine.outputs() == []
    assert machine.state is State.SENT
    machine.tick(now=Instant(START + 500 * MILLISECOND))
    machine.tick(now=Instant(START + SECOND))
    assert [ended.state for ended in machine.events()] == [State.FAILED]


def test_starting_twice_is_the_callers_error() -> None:
    machine = started()
    with pytest.raises(UsageError, match="has been started"):
        machine.start(now=START)


def test_the_table_of_transitions_is_what_the_machine_does() -> None:
    reach = {
        State.IDLE: lambda m: None,
        State.SENT: lambda m: m.start(now=START),
        State.QUIET: lambda m: (m.start(now=START), m.cancel()),
        State.ANSWERED: lambda m: (m.start(now=START), m.answer(now=START)),
        State.FAILED: lambda m: (m.start(now=START), m.unreachable("x")),
        State.FORGOTTEN: lambda m: (m.start(now=START), m.cancel(), m.unreachable("x")),
    }
    events = {
        "timer, none left": lambda m: m.tick(now=Instant(START + 1000 * SECOND)),
        "answer": lambda m: m.answer(now=START),
        "unreachable": lambda m: m.unreachable("x"),
        "cancel": lambda m: m.cancel(),
    }
    for state in State:
        by_name = {event.value: after for event, after in TRANSITIONS[state].items()}
        for name, act in events.items():
            machine = transaction(Schedule(sends=1))
            reach[state](machine)
            assert machine.state is state
            act(machine)
            assert machine.state is by_name.get(name, state), (state, name)


# ---------------------------------------------------------------------------------------------------------- the table


def test_an_answer_is_matched_by_id_source_and_flow() -> None:
    """security.md 12: what does not fit is dropped, and the transaction lives on."""
    transactions = table()
    begin(transactions)
    assert transactions.match(ID, FLOW, OTHER) is None
    assert transactions.match(ID, Flow(2), SERVER) is None
    assert transactions.match(bytes(12), FLOW, SERVER) is None
    assert transactions.counters == {"unmatched answers": 3}
    found = transactions.match(ID, FLOW, SERVER)
    assert found is not None
    assert found.context == "pair"
    assert ID in transactions
    transactions.answer(found, now=Instant(START + MILLISECOND))
    assert found.rtt == MILLISECOND
    assert ID not in transactions
    assert (len(transactions), transactions.next_timer(), transactions.events()) == (0, None, [])


def test_silence_becomes_an_event_with_its_context() -> None:
    transactions = table()
    begin(transactions)
    sends = 0
    while (due := transactions.next_timer()) is not None:
        transactions.tick(now=due)
        sends += len(transactions.outputs())
    [ended] = transactions.events()
    assert (sends, ended.state, ended.context, ended.sends) == (7, State.FAILED, "pair", 7)
    assert len(transactions) == 0


def test_a_canceled_request_is_not_resent_but_its_answer_counts() -> None:
    """RFC 8445, section 7.3.1.4."""
    transactions = table()
    begin(transactions)
    transactions.outputs()
    transactions.cancel(ID, now=Instant(START + 100 * MILLISECOND))
    assert transactions.next_timer() == START + 39_500 * MILLISECOND
    transactions.tick(now=Instant(START + 20 * SECOND))
    assert transactions.outputs() == []
    found = transactions.match(ID, FLOW, SERVER)
    assert found is not None
    assert transactions.answer(found, now=Instant(START + 21 * SECOND)).rtt == 21 * SECOND


def test_a_canceled_request_without_an_answer_fails_nothing() -> None:
    transactions = table()
    begin(transactions)
    transactions.cancel(ID, now=START)
    transactions.tick(now=Instant(START + 39_500 * MILLISECOND))
    assert (transactions.events(), len(transactions), transactions.next_timer()) == ([], 0, None)
    transactions.cancel(ID, now=START)
    transactions.drop(ID)


def test_a_hard_icmp_error_ends_what_went_there_by_that_flow() -> None:
    transactions = table()
    begin(transactions)
    begin(transactions, bytes(12), remote=OTHER)
    for kind in (IcmpKind.NET_UNREACHABLE, IcmpKind.TOO_BIG, IcmpKind.TTL_EXCEEDED):
        transactions.receive(IcmpError(flow=FLOW, remote=SERVER, kind=kind), now=START)
    transactions.receive(IcmpError(flow=Flow(2), remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE), now=START)
    assert transactions.events() == []
    transactions.receive(IcmpError(flow=FLOW, remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE), now=START)
    [ended] = transactions.events()
    assert ended.reason == "203.0.113.1:3478 is unreachable: port unreachable"
    assert list(transactions.by_id) == [bytes(12)]


def test_a_refused_send_counts_as_a_lost_packet_and_is_named_at_the_end() -> None:
    """pjsip/pjproject#5031: EPERM failed all checks at once."""
    transactions = table()
    begin(transactions, schedule=Schedule(sends=2, last_wait=1))
    transactions.receive(SendFailed(flow=FLOW, remote=SERVER, errno=1), now=START)
    while (due := transactions.next_timer()) is not None:
        transactions.tick(now=due)
    [ended] = transactions.events()
    assert ended.reason == "203.0.113.1:3478 did not answer 2 sends (the system refused with errno 1)"


def test_a_closed_flow_ends_all_that_went_by_it() -> None:
    transactions = table()
    begin(transactions)
    begin(transactions, bytes(12), remote=OTHER)
    transactions.receive(Closed(flow=Flow(9), reason="x"), now=START)
    assert len(transactions) == 2
    transactions.receive(Closed(flow=FLOW, reason="the interface is gone"), now=START)
    assert [ended.transaction_id for ended in transactions.events()] == [ID, bytes(12)]


def test_an_id_in_use_is_the_callers_error() -> None:
    transactions = table()
    begin(transactions)
    with pytest.raises(UsageError, match="has been started"):
        begin(transactions)


def test_every_send_is_an_output_of_its_own_with_the_ip_fields_asked_for() -> None:
    """The trace numbers each send; one object sent twice would have one number."""
    transactions = table()
    fields = IpFields(dscp=34)
    begin(transactions, ip=fields)
    transactions.tick(now=Instant(START + 500 * MILLISECOND))
    first, second = transactions.outputs()
    assert first == second == Send(FLOW, SERVER, b"request", fields)
    assert first is not second


def test_clear_forgets_all() -> None:
    transactions = table()
    begin(transactions)
    transactions.clear()
    assert (len(transactions), transactions.next_timer(), transactions.outputs()) == (0, None, [])


def test_the_trace_has_the_life_of_a_request() -> None:
    events: list[TraceEvent] = []
    transactions: Transactions[str] = Transactions(Tracer(events.append, "alice", "stun"))
    begin(transactions, schedule=Schedule(sends=2, last_wait=1))
    while (due := transactions.next_timer()) is not None:
        transactions.tick(now=due)
    assert [(event.reason, event.fields["state"]) for event in events] == [
        ("request to 203.0.113.1:3478", "sent"),
        ("send 2", "sent"),
        ("203.0.113.1:3478 did not answer 2 sends", "failed"),
    ]


def test_a_thousand_transactions_keep_their_own_times() -> None:
    """Against a model: every request by itself, in the order of its timers."""
    rng = random.Random(3)
    transactions = table()
    alone: dict[bytes, ClientTransaction[str]] = {}
    for _ in range(1000):
        transaction_id, at = rng.randbytes(12), Instant(rng.randrange(SECOND))
        transactions.start(transaction_id, transaction_id, FLOW, SERVER, now=at, context="")
        alone[transaction_id] = ClientTransaction(
            transaction_id=transaction_id, request=Send(FLOW, SERVER, transaction_id), context=""
        )
        alone[transaction_id].start(now=at)
    for now in range(0, 45 * SECOND, 250 * MILLISECOND):
        transactions.tick(now=Instant(now))
        expected: list[bytes] = []
        for machine in alone.values():
            machine.tick(now=Instant(now))
            expected += [send.data for send in machine.outputs()]
        assert sorted(send.data for send in transactions.outputs()) == sorted(expected)
    assert len(transactions.events()) == 1000
