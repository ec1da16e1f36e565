"""The checks of the invariants report each violation."""

from dataclasses import replace

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.trace import TraceEvent
from polynya.ice.events import AgentState, PairChanged
from polynya.ice.pairs import PairState
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.invariants import disagreement, unpaced, violations
from polynya.lab.table import session_config
from polynya.lab.topologies import between_nats
from polynya.nat import full_cone


@pytest.fixture
def peers() -> tuple[Peer, Peer]:
    """Return two connected peers."""
    network = Network(seed=3)
    topology = between_nats(full_cone(), full_cone(), network=network)
    one = Peer(network, topology.one, session_config(topology, controlling=True))
    other = Peer(network, topology.other, session_config(topology, controlling=False))
    Exchange(network, one, other).start()
    assert network.run_until(lambda: one.settled and other.settled, Instant(60 * SECOND))
    assert one.state is other.state is AgentState.COMPLETED
    return one, other


def close(peers: tuple[Peer, Peer]) -> None:
    for peer in peers:
        peer.close()
    peers[0].host.network.run_for(60 * SECOND)


def test_a_correct_run_violates_no_invariant(peers: tuple[Peer, Peer]) -> None:
    assert disagreement(*peers) == ""
    close(peers)
    assert violations(peers) == []


def test_a_nominated_pair_that_is_not_valid_is_reported(peers: tuple[Peer, Peer]) -> None:
    one = peers[0]
    assert one.process is not None
    assert one.selected is not None
    lie = replace(one.selected, nominated=True, valid=False)
    event = PairChanged(pair=lie, old=PairState.SUCCEEDED, new=PairState.SUCCEEDED, reason="made up")
    one.process.log.append((Instant(0), event))
    close(peers)
    assert [line for line in violations(peers) if "is not valid" in line]


def test_sides_that_select_different_pairs_are_reported(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    mine, other = peers[0].selected, peers[1].selected
    assert other is not None
    moved = replace(other, remote_address=other.remote_address.with_port(1))
    shown = {"alice": mine, "bob": moved}
    monkeypatch.setattr(Peer, "selected_at", lambda peer, *_, **__: shown[peer.name])
    assert disagreement(*peers).startswith("alice selected")
    shown["bob"] = None
    assert disagreement(*peers) == "bob has no selected pair, the other side has one"


def test_a_datagram_after_close_is_reported(peers: tuple[Peer, Peer]) -> None:
    close(peers)
    assert peers[0].process is not None
    peers[0].process.sent += 1
    assert violations(peers) == ["alice: 1 datagrams were sent after close"]


def test_a_timer_a_socket_and_a_state_after_close_are_reported(peers: tuple[Peer, Peer]) -> None:
    one = peers[0]
    one.closed_at = Instant(0)
    assert one.process is not None
    one.sent_before_close = one.process.sent
    found = violations([one])
    assert any("a closed session has a timer at" in line for line in found)
    assert any("a closed session still has 1 sockets" in line for line in found)
    assert any("the agent of a closed session is completed" in line for line in found)


def test_a_misuse_is_reported(peers: tuple[Peer, Peer]) -> None:
    assert peers[1].process is not None
    peers[1].process.misuses.append("something odd")
    assert violations(peers) == ["bob: something odd"]


def test_transactions_that_start_too_soon_are_reported_until_the_agent_has_completed() -> None:
    def begin(at: int, node: str = "alice", sends: int = 1) -> TraceEvent:
        fields = {"transaction": "00", "state": "sent", "sends": sends}
        return TraceEvent(Instant(at), node, "ice", "transaction", "", dict(fields))

    done = TraceEvent(Instant(20 * MILLISECOND), "alice", "ice", "agent", "", {"old": "connected", "new": "completed"})
    assert unpaced([begin(0), begin(5 * MILLISECOND), begin(6 * MILLISECOND, "bob")]) == []
    assert unpaced([begin(0), begin(4 * MILLISECOND, sends=2), begin(5 * MILLISECOND)]) == []
    assert unpaced([begin(0), begin(4 * MILLISECOND)]) == ["alice: two transactions within 4 ms at 0.004 s"]
    assert unpaced([begin(0), done, begin(30 * MILLISECOND), begin(31 * MILLISECOND)]) == []
