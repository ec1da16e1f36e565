"""Failures and their reasons (RFC 8445, section 8.1.2; RFC 8863)."""

from __future__ import annotations

import errno

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND
from polynya.core.machine import Closed, IcmpError, IcmpKind, SendFailed
from polynya.ice import (
    AgentState,
    AgentStateChanged,
    ConsentLost,
    Failed,
    IceConfig,
    PairState,
    RemoteRevoked,
    SelectedPairChanged,
)
from tests.ice.harness import Nat, World, behind_nats, plain

A, B = Address("192.168.0.1", 5000), Address("192.168.0.2", 5000)


def failed_after(world: World) -> float:
    return (world.a.when(Failed) - world.started) / SECOND


def test_a_dead_path_fails_when_its_transaction_has_and_says_how() -> None:
    world = plain()
    world.blocked = lambda _: True
    world.run(100)
    [failed] = world.a.of(Failed)
    assert 39.5 <= failed_after(world) < 39.7
    assert failed.reason == "stream 0 component 1: its only pair failed"
    [attempt] = failed.attempts
    assert str(attempt) == ("host 192.168.0.1:5000 -> host 192.168.0.2:5000: 192.168.0.2:5000 did not answer 7 sends")


def test_patience_lasts_as_long_as_a_transaction_though_every_pair_has_failed() -> None:
    """RFC 8863, section 4: a peer-reflexive candidate may still come."""
    world = plain()
    world.blocked = lambda _: True
    world.run(0.2)
    flow = next(iter(world.a.sockets))
    world.a.agent.receive(IcmpError(flow=flow, remote=B, kind=IcmpKind.PORT_UNREACHABLE), now=world.now)
    world.drain()
    [view] = world.a.agent.pairs()
    assert view.state is PairState.FAILED and "port unreachable" in view.reason
    assert world.a.agent.state is AgentState.CHECKING
    world.run(100)
    assert failed_after(world) == pytest.approx(39.5, abs=0.02)


def test_without_end_of_candidates_hope_is_longer_and_still_bounded() -> None:
    """RFC 8838, section 8: trickling may go on; but not for ever."""
    world = World()
    world.blocked = lambda _: True
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    world.run(200)
    assert failed_after(world) == pytest.approx(90, abs=0.1)


def test_candidates_that_do_not_fit_are_said_not_to() -> None:
    world = World()
    world.a.host("192.168.0.1")
    world.b.host("2001:db8::1")
    world.a.end()
    world.b.end()
    world.run(100)
    [failed] = world.a.of(Failed)
    assert failed.reason == "stream 0 component 1: no pair could be made"
    assert str(failed.attempts[0]) == "pairing: the other side signaled 1 candidates, and none fits an address of ours"


def test_patience_is_an_option() -> None:
    world = plain(a=IceConfig(controlling=True, patience=0))
    world.run(0.005)
    flow = next(iter(world.a.sockets))
    world.blocked = lambda _: True
    world.run(0.05)
    world.a.agent.receive(IcmpError(flow=flow, remote=B, kind=IcmpKind.PORT_UNREACHABLE), now=world.now)
    assert world.a.agent.state is AgentState.FAILED


def test_a_hard_icmp_error_fails_a_pair_and_the_other_sides_check_revives_it() -> None:
    """RFC 8445, section 7.2.5.2.4 and 7.3.1.4."""
    world = plain()
    world.blocked = lambda _: True
    world.run(0.2)
    flow = next(iter(world.a.sockets))
    world.a.agent.receive(
        IcmpError(flow=flow, remote=B, kind=IcmpKind.PROHIBITED, origin="192.168.0.254"), now=world.now
    )  # fmt: skip
    world.drain()
    assert world.a.agent.pairs()[0].state is PairState.FAILED
    world.blocked = lambda _: False
    assert world.connect(10)


def test_refused_connections_count_as_icmp() -> None:
    world = plain()
    world.blocked = lambda _: True
    world.run(0.2)
    flow = next(iter(world.a.sockets))
    world.a.agent.receive(SendFailed(flow=flow, remote=B, errno=errno.ECONNREFUSED), now=world.now)
    assert world.a.agent.pairs()[0].state is PairState.FAILED


def test_sends_that_the_system_refuses_are_lost_packets_and_named_at_the_end() -> None:
    """pjsip/pjproject#5031: sends failed with EPERM and all checks failed at once."""
    world = plain()
    flow = next(iter(world.a.sockets))

    def refuse(packet: object) -> bool:
        if getattr(packet, "sender", "") == "a":
            world.later(
                0, lambda: world.a.agent.receive(SendFailed(flow=flow, remote=B, errno=errno.EPERM), now=world.now)
            )
        return True

    world.blocked = refuse
    world.run(1)
    assert world.a.agent.pairs()[0].state is PairState.IN_PROGRESS
    world.run(100)
    [failed] = world.a.of(Failed)
    assert "the system refused to send, EPERM: 7 times" in failed.attempts[0].reason


def test_a_few_refused_sends_do_no_harm() -> None:
    world = plain()
    flow = next(iter(world.a.sockets))
    refused = []

    def refuse(packet: object) -> bool:
        if getattr(packet, "sender", "") == "a" and len(refused) < 2:
            refused.append(packet)
            world.later(
                0, lambda: world.a.agent.receive(SendFailed(flow=flow, remote=B, errno=errno.EPERM), now=world.now)
            )
            return True
        return False

    world.blocked = refuse
    assert world.connect(5) and len(refused) == 2


def test_soft_icmp_errors_are_noted_only() -> None:
    world = plain()
    flow = next(iter(world.a.sockets))
    world.run(0.012)
    for _ in range(3):
        world.a.agent.receive(
            IcmpError(flow=flow, remote=B, kind=IcmpKind.HOST_UNREACHABLE, origin="10.0.0.1"), now=world.now
        )  # fmt: skip
    assert world.connect(5)
    assert world.a.agent.counters["ICMP host unreachable from 10.0.0.1"] == 3


def test_a_flow_that_is_gone_takes_its_pairs_and_the_next_best_carries_on() -> None:
    world = World()
    first = world.a.host("192.168.0.1")
    world.a.host("192.168.0.11")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert world.connect(5)
    assert "192.168.0.1:" in world.a.path
    world.a.agent.receive(Closed(flow=first, reason="the interface went away"), now=world.now)
    del world.a.sockets[first]
    world.drain()
    assert [event.remote for event in world.a.of(RemoteRevoked)] == [B]
    assert "192.168.0.11:" in world.a.path
    assert all(view.flow != first for view in world.a.agent.pairs())
    assert world.run(10, world.same_path)


def test_an_unknown_flow_that_closes_is_nobodys_business() -> None:
    world = plain()
    world.a.agent.receive(Closed(flow=Flow(99), reason="?"), now=world.now)
    assert world.connect(5)


def test_a_failed_agent_is_revived_by_the_other_sides_checks() -> None:
    world = plain(b=IceConfig(controlling=False, patience=300.0))
    world.blocked = lambda _: True
    world.run(60)
    assert world.a.agent.state is AgentState.FAILED
    world.blocked = lambda _: False
    world.b.host("192.168.0.22")
    assert world.connect(10)
    assert [event.new for event in world.a.of(AgentStateChanged)][-3:] == [
        AgentState.CHECKING,
        AgentState.CONNECTED,
        AgentState.COMPLETED,
    ]


def test_a_nomination_that_gets_no_answer_fails_its_pair_and_the_next_is_nominated() -> None:
    """RFC 8445, section 8.1.1; that the agent goes on with another pair is a deviation."""
    world = World()
    world.a.host("192.168.0.1")
    world.a.host("192.168.0.11")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert world.run(5, lambda: bool(world.a.of(SelectedPairChanged)))
    world.blocked = lambda packet: "192.168.0.1" in (packet.source.host, packet.destination.host)
    assert world.connect(60)
    assert world.run(60, lambda: "192.168.0.11" in world.a.path and world.same_path())
    [lost] = [view for view in world.a.agent.pairs() if not view.valid]
    assert (lost.nominated, lost.reason) == (False, "no answer to a consent check for 30 s")
    assert not world.a.of(Failed) and not world.b.of(Failed)


def test_when_the_selected_path_dies_a_path_that_still_answers_carries_on() -> None:
    world = World()
    world.a.host("192.168.0.1")
    world.a.host("192.168.0.11")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    assert world.connect(5)
    world.run(60)
    world.blocked = lambda packet: "192.168.0.1" in (packet.source.host, packet.destination.host)
    world.run(45)
    assert len(world.a.of(ConsentLost)) == 1
    assert "192.168.0.11" in world.a.path and world.same_path()
    assert world.connect(5)
    assert not world.a.of(Failed) and not world.b.of(Failed)


def test_a_chain_of_mappings_that_lead_nowhere_ends() -> None:
    """RFC 8445, section 7.2.5.2.1: where both NATs map by remote address, answers come from elsewhere.

    Each check comes from a new port: were every one of them to be checked in turn, neither side would
    ever be through.
    """
    world = behind_nats(
        nat_a=Nat("198.51.100.1", symmetric=True, filtering=False),
        nat_b=Nat("198.51.100.2", symmetric=True, filtering=False),
        loss=0.05,
    )
    assert world.run(120, lambda: all(side.agent.state is AgentState.FAILED for side in (world.a, world.b)))
    assert len(world.packets) < 500
    asked = [view for view in world.a.agent.pairs() if "it was answered from" in view.reason]
    assert asked and all(view.state is PairState.FAILED for view in asked)
