"""Two agents find each other."""

from __future__ import annotations

from polynya.ice import AgentState
from tests.ice.harness import behind_nats, plain


def test_two_hosts_on_a_lan_connect() -> None:
    world = plain()
    assert world.connect(5), world.a.agent.why()
    assert world.a.path == "host 192.168.0.1:5000 -> host 192.168.0.2:5000"
    assert world.b.path == "host 192.168.0.2:5000 -> host 192.168.0.1:5000"


def test_two_hosts_behind_port_restricted_nats_connect() -> None:
    world = behind_nats()
    assert world.connect(10), world.a.agent.why()
    assert world.a.agent.state is AgentState.COMPLETED
