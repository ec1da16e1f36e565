"""The NAT table: every class against every other, as `nat.rules` predict."""

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

pytestmark = pytest.mark.slow

RANDOM = NatConfig(ports=PortAssignment.RANDOM)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(table())


def test_all_81_cells_agree_with_the_prediction(rows: list[Row]) -> None:
    assert len(rows) == 81
    assert len({(row.first, row.second) for row in rows}) == 81
    assert [row for row in rows if not row.agrees] == []


def test_the_table_is_symmetrical(rows: list[Row]) -> None:
    connected = {(row.first, row.second) for row in rows if row.connected}
    assert {(second, first) for first, second in connected} == connected
    assert ("EI/APD", "EI/APD") in connected
    assert ("EI/APD", "APD/APD") not in connected
    assert len(connected) == 45


def test_a_connected_cell_carried_data_in_both_directions(rows: list[Row]) -> None:
    for row in rows:
        assert row.data == row.connected
        assert (row.seconds is not None) == row.connected
        if row.seconds is not None and row.nominated_seconds is not None:
            assert 0.025 < row.seconds <= row.nominated_seconds < 3


def test_the_selected_pair_is_a_predicted_one(rows: list[Row]) -> None:
    classes = {config.label: config for config in every_class(RANDOM)}
    for row in rows:
        if not row.connected:
            continue
        pairs = expect(classes[row.first], classes[row.second]).pairs
        for side, shown in enumerate((row.first_pair, row.second_pair)):
            local, _, remote = str(shown).partition(" -> ")
            assert Pair(side=side, local=local, remote=remote) in pairs, row


def test_a_row_can_be_written_as_json(rows: list[Row]) -> None:
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
def test_the_other_nat_options_change_the_table_as_predicted(variant: dict[str, object]) -> None:
    for row in table(replace(RANDOM, **variant)):  # type: ignore[arg-type]
        assert row.agrees, row


def test_with_inbound_sessions_the_order_of_checks_decides() -> None:
    first = replace(RANDOM, filtering=Behavior.APD, inbound_sessions=True)
    second = replace(RANDOM, mapping=Behavior.AD, filtering=Behavior.EI, inbound_sessions=True)
    assert not expect(first, second).sure
    outcomes = set()
    for seed in range(20):
        topology = between_nats(first, second, network=Network(seed))
        outcomes.add(meet(topology, signaling_jitter=200 * MILLISECOND).connected)
    assert outcomes == {True, False}


def test_the_drops_of_an_unconnected_cell_have_reasons() -> None:
    network = Network(seed=1)
    meeting = meet(between_nats(symmetric(), symmetric(), network=network))
    assert not meeting.connected
    reasons = [reason for reason in network.drop_reasons() if reason.startswith("port-restricted filtering")]
    assert reasons
    assert all(" from 10.0." in reason for reason in reasons)


def test_a_cell_is_deterministic() -> None:
    assert cell(symmetric(), RANDOM, seed=7) == cell(symmetric(), RANDOM, seed=7)


@pytest.mark.parametrize(("signaling", "later"), [(1, 0), (200, 500), (1000, 500)])
def test_no_cell_waits_for_a_retransmission(signaling: int, later: int) -> None:
    """A filtered check is sent again by a triggered check, without waiting for the RTO.

    RFC 8445, section 7.3.1.4. With an RTO of 20 s there is no retransmission in this test. After the last candidate or
    description arrives, the slowest of the 45 cells connects within five one-way delays.
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
            signaled = max(
                event.at
                for event in events
                if event.kind in ("candidate", "description") and event.fields["side"] == "remote"
                if "check came" not in event.reason
            )
            assert max(at or 0 for at in connected) - signaled <= 5 * one_way + 20 * MILLISECOND, (
                first.label,
                second.label,
            )


def _connected_at(peer: Peer) -> Instant | None:
    times = (peer.first(AgentState.CONNECTED), peer.first(AgentState.COMPLETED))
    return min((at for at in times if at is not None), default=None)
