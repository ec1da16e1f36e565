"""Flows are compared by their id, never by their address."""

from __future__ import annotations

import pytest

from polynya.core.flows import Flow, FlowIds, Transport


def test_no_flow_is_allocated_twice() -> None:
    ids = FlowIds()
    flows = [ids.new() for _ in range(1000)]
    assert len(set(flows)) == 1000
    assert flows == sorted(flows)


def test_each_allocator_counts_from_one() -> None:
    assert FlowIds().new() == FlowIds().new() == Flow(1)


def test_a_flow_prints_its_id() -> None:
    assert str(Flow(7)) == "flow 7"


@pytest.mark.parametrize(
    ("transport", "reliable", "secure"),
    [
        (Transport.UDP, False, False),
        (Transport.TCP, True, False),
        (Transport.TLS, True, True),
    ],
)
def test_transports_are_reliable_and_secure_as_specified(transport: Transport, reliable: bool, secure: bool) -> None:
    assert (transport.reliable, transport.secure) == (reliable, secure)
