"""Issue A: every class of mapping and filtering against every other is as the rules of `nat` imply."""

import json
from dataclasses import replace

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice import AgentState
from polynya.lab import Network
from polynya.lab.exchange import Peer
from polynya.lab.table import Row, cell, meet, session_config, table
from polynya.lab.topologies import between_nats
from polynya.nat import Behavior, FilterScope, NatConfig, PortAssignment, every_class, symmetric
from polynya.nat.rules import Pair, expect
from polynya.stun.transactions import Schedule

RANDOM = NatConfig(ports=PortAssignment.RANDOM)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(table())


def test_all_81_cells_agree_with_the_rules(rows: list[Row]) -> None:
    assert len(rows) == 81
    assert len({(row.first, row.second) for row in rows}) == 81
    assert [row for row in rows if not row.agrees] == []


def test_the_table_has_cells_of_both_kinds_and_is_symmetrical(rows: list[Row]) -> None:
    connected = {(row.first, row.second) for row in rows if row.connected}
    assert {(second, first) for first, second in connected} == connected
    assert ("EI/APD", "EI/APD") in connected
    assert ("EI/APD", "APD/APD") not in connected
    assert len(connected) == 45


def test_a_connected_cell_carried_data_both_ways_and_took_virtual_time(rows: list[Row]) -> None:
    for row in rows:
        assert row.data == row.connected
        assert (row.seconds is not None) == row.connected
        if row.seconds is not None and row.nominated_seconds is not None:
            assert 0.025 < row.seconds <= row.nominated_seconds < 3


def test_the_selected_pair_is_one_that_the_rules_say_can_work(rows: list[Row]) -> None:
    classes = {config.label: config for config in every_class(RANDOM)}
    for row in rows:
        if not row.connected:
            continue
        pairs = expect(classes[row.first], classes[row.second]).pairs
        for side, shown in enumerate((row.first_pair, row.second_pair)):
            local, _, remote = str(shown).partition(" -> ")
            assert Pair(side=side, local=local, remote=remote) in pairs, row


def test_a_row_is_fit_for_json(rows: list[Row]) -> None:
    shown = json.loads(json.dumps(rows[0].as_dict()))
    assert shown["first"] == "EI/EI"
    assert shown["agrees"] is True


@pytest.mark.parametrize(
    "variant",
    [
        {"filter_scope": FilterScope.MAPPING},
        {"inbound_sessions": True},
        {"filter_scope": FilterScope.MAPPING, "inbound_sessions": True},
        {"ports": PortAssignment.PRESERVATION},
        {"ports": PortAssignment.CONTIGUOUS},
    ],
    ids=lambda variant: ", ".join(f"{name}={value}" for name, value in variant.items()),
)
def test_the_other_axes_change_the_table_as_the_rules_say(variant: dict[str, object]) -> None:
    for row in table(replace(RANDOM, **variant)):  # type: ignore[arg-type]
        assert row.agrees, row


def test_where_sessions_decide_the_order_of_the_first_checks_does() -> None:
    first = replace(RANDOM, filtering=Behavior.APD, inbound_sessions=True)
    second = replace(RANDOM, mapping=Behavior.AD, filtering=Behavior.EI, inbound_sessions=True)
    assert not expect(first, second).sure
    outcomes = set()
    for seed in range(20):
        topology = between_nats(first, second, network=Network(seed))
        outcomes.add(meet(topology, signaling_jitter=200 * MILLISECOND).connected)
    assert outcomes == {True, False}


def test_a_cell_that_cannot_connect_says_why_in_the_reasons_of_its_drops() -> None:
    network = Network(seed=1)
    meeting = meet(between_nats(symmetric(), symmetric(), network=network))
    assert not meeting.connected
    reasons = [reason for reason in network.drop_reasons() if reason.startswith("port-restricted filtering")]
    assert reasons
    assert all(" from 10.0." in reason for reason in reasons)


def test_a_cell_is_the_same_whenever_it_is_run() -> None:
    assert cell(symmetric(), RANDOM, seed=7) == cell(symmetric(), RANDOM, seed=7)


@pytest.mark.parametrize(("signaling", "later"), [(1, 0), (200, 500), (1000, 500)])
def test_no_cell_waits_for_a_retransmission(signaling: int, later: int) -> None:
    """A check that met a closed filter is made again as soon as the other side's shows that the filter is open.

    RFC 8445, section 7.3.1.4. With an RTO of 20 s nothing is ever resent here, and the last thing that either side has
    to know is followed by no more than a few one-way delays: of 45 cells the slowest needs five of them.
    """
    one_way = 25 * MILLISECOND
    for first in every_class(RANDOM):
        for second in every_class(RANDOM):
            if not expect(first, second).always:
                continue
            events: list[TraceEvent] = []
            topology = between_nats(first, second, network=Network(0, trace=Tracer(events.append)))
            configs = [session_config(topology, controlling=controls) for controls in (True, False)]
            patient = [replace(each, ice=replace(each.ice, schedule=Schedule(rto=20.0))) for each in configs]
            meeting = meet(
                topology,
                configs=(patient[0], patient[1]),
                signaling_delay=signaling * MILLISECOND,
                later=later * MILLISECOND,
                limit=20 * SECOND,
            )
            connected = [_connected_at(peer) for peer in meeting.peers]
            assert None not in connected, (first.label, second.label)
            told = max(
                event.at
                for event in events
                if event.kind in ("candidate", "description") and event.fields["side"] == "remote"
                if "check came" not in event.reason
            )
            assert max(at or 0 for at in connected) - told <= 5 * one_way + 20 * MILLISECOND, (
                first.label,
                second.label,
            )


def _connected_at(peer: Peer) -> Instant | None:
    times = (peer.first(AgentState.CONNECTED), peer.first(AgentState.COMPLETED))
    return min((at for at in times if at is not None), default=None)
