"""Flows are told apart by number and generation, never by address."""

from __future__ import annotations

import pytest

from polynya.core.flows import Flow, FlowIds, Transport


def test_no_flow_is_handed_out_twice() -> None:
    ids = FlowIds()
    flows = [ids.new() for _ in range(1000)]
    assert len(set(flows)) == 1000
    assert flows == sorted(flows)


def test_a_socket_made_again_is_a_new_flow() -> None:
    ids = FlowIds()
    flow = ids.new()
    again = ids.again(flow)
    assert again != flow and again.id == flow.id and again.generation == flow.generation + 1
    assert ids.new() not in {flow, again}


def test_two_worlds_count_for_themselves() -> None:
    assert FlowIds().new() == FlowIds().new() == Flow(1)


def test_a_flow_says_which_it_is() -> None:
    assert str(Flow(7)) == "flow 7"
    assert str(Flow(7, 2)) == "flow 7.2"


@pytest.mark.parametrize(
    ("transport", "reliable", "secure"),
    [
        (Transport.UDP, False, False),
        (Transport.TCP, True, False),
        (Transport.TLS, True, True),
        (Transport.DTLS, False, True),
    ],
)
def test_what_a_transport_promises(transport: Transport, reliable: bool, secure: bool) -> None:
    assert (transport.reliable, transport.secure) == (reliable, secure)
