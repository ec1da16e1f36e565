"""Two sessions in the virtual network: signaling with delay, late starts, closing."""

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.ice.events import AgentState
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.table import session_config
from polynya.lab.topologies import Topology, between_nats
from polynya.nat import port_restricted_cone


def peers(topology: Topology) -> tuple[Peer, Peer]:
    network = topology.network
    one = Peer(network, topology.one, session_config(topology, controlling=True))
    return one, Peer(network, topology.other, session_config(topology, controlling=False))


def test_no_check_is_sent_before_the_signaling_has_arrived() -> None:
    network = Network(seed=1)
    one, other = peers(between_nats(port_restricted_cone(), port_restricted_cone(), network=network))
    Exchange(network, one, other, delay=SECOND).start()
    network.run(Instant(SECOND - 1))
    assert one.session.agent.remote_description is None
    assert network.run_until(lambda: one.settled and other.settled, Instant(10 * SECOND))
    assert one.state is other.state is AgentState.COMPLETED


def test_a_peer_waits_for_one_that_starts_later() -> None:
    network = Network(seed=1)
    one, other = peers(between_nats(port_restricted_cone(), port_restricted_cone(), network=network))
    Exchange(network, one, other).start(later=30 * SECOND)
    network.run(Instant(29 * SECOND))
    assert other.process is None
    assert network.run_until(lambda: one.settled and other.settled, Instant(60 * SECOND))
    assert one.state is other.state is AgentState.COMPLETED


def test_data_arrives_once_and_in_order_on_a_clean_path() -> None:
    network = Network(seed=1)
    one, other = peers(between_nats(port_restricted_cone(), None, network=network))
    assert one.process is None
    Exchange(network, one, other).start()
    network.run_until(lambda: one.settled and other.settled, Instant(10 * SECOND))
    for i in range(20):
        assert one.send(bytes([i]))
    network.run_for(SECOND)
    assert other.received == [bytes([i]) for i in range(20)]


def test_signaling_to_a_closed_peer_is_ignored() -> None:
    network = Network(seed=1)
    one, other = peers(between_nats(None, None, network=network))
    Exchange(network, one, other, delay=500 * MILLISECOND).start()
    network.run(Instant(100 * MILLISECOND))
    other.close()
    network.run(Instant(2 * SECOND))
    assert other.state is AgentState.CLOSED
    assert one.state is AgentState.CHECKING


def test_consent_checks_keep_a_connection_and_its_nat_mappings_for_hours() -> None:
    network = Network(seed=1)
    one, other = peers(between_nats(port_restricted_cone(), port_restricted_cone(), network=network))
    Exchange(network, one, other).start()
    network.run(Instant(2 * 3600 * SECOND))
    assert one.send(b"still here")
    network.run_for(SECOND)
    assert other.received == [b"still here"]
    assert one.state is other.state is AgentState.COMPLETED
