"""Mutated requests and ChannelData cause no crash and no leak of ports, permissions or memory."""

from __future__ import annotations

import pytest

from polynya.turn.server.ports import RelayPorts
from tests.turn.server.mutations import WARM, Assault

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_survives_mutated_packets_and_keeps_no_state_of_them(seed: int) -> None:
    assault = Assault(seed)
    assault.run(40_000)
    counters = assault.table.server.control.counters
    assert counters["success responses ALLOCATE"] > 10, "some cases succeed"
    assert counters["success responses CREATE_PERMISSION"] > 10
    assert {f"error responses {number}" for number in (400, 401, 403, 420, 437, 441, 442, 443)} <= set(counters)


def test_the_same_seed_gives_the_same_cases() -> None:
    one, other = Assault(7), Assault(7)
    one.run(300), other.run(300)
    assert one.table.server.control.counters == other.table.server.control.counters


def test_a_leak_is_detected() -> None:
    assault = Assault(1)
    assault.arrive()
    assault.table.server.control.allocations.claimed += 1
    with pytest.raises(AssertionError, match="claims"):
        assault.leave()


def test_a_memory_leak_is_detected() -> None:
    assault = Assault(1)
    assault.objects = [10_000] * (WARM + 1)
    with pytest.raises(AssertionError, match="more objects"):
        assault.run(100)


def test_a_fault_in_the_server_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: a port is not released when its Allocate fails late."""
    monkeypatch.setattr(RelayPorts, "release", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="port has leaked"):
        Assault(1).run(100)
