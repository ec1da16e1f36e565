"""A TURN server that answers after gathering has ended: the relay is there all the same (RFC 8445, section 14)."""

from __future__ import annotations

import pytest

from polynya.core.instants import SECOND, Instant
from polynya.ice.events import AgentState, LocalCandidateAdded, LocalCandidatesEnded
from polynya.lab.exchange import Peer
from polynya.session.events import GatheringState
from polynya.session.options import Policy
from polynya.stun.message import Message
from polynya.stun.registry import Method
from tests.scenarios.relays import CLOSED, Scene, nats
from tests.scenarios.test_relay_timers import Losing


def mute(scene: Scene, peer: Peer, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop the requests of this side to the TURN server for some seconds."""

    def lost(message: Message) -> bool:
        return message.method == Method.ALLOCATE and scene.net.now < seconds * SECOND

    Losing(peer.host.interfaces[0], monkeypatch).lose = lost


@pytest.mark.parametrize("policy", [Policy.ALL, Policy.RELAY])
@pytest.mark.parametrize("both", [False, True], ids=["one side", "both sides"])
def test_an_allocation_that_comes_late_connects(both: bool, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(nats(CLOSED, CLOSED), policy=policy)
    for peer in scene.peers[: 1 + both]:
        mute(scene, peer, 10, monkeypatch)
    scene.exchange.start()
    scene.net.run_for(8 * SECOND)
    assert all(peer.session.gathering.state is GatheringState.COMPLETE for peer in scene.peers)
    assert scene.turn.allocations == (0 if both else 1)
    end = Instant(scene.net.now + 30 * SECOND)
    scene.net.run_until(lambda: scene.turn.allocations == 2 and scene.one.settled and scene.other.settled, end)
    assert scene.one.state is scene.other.state is AgentState.COMPLETED
    assert scene.relayed
    assert scene.talk(10) == (10, 10)
    assert scene.one.process is not None
    kinds = [
        "end" if isinstance(event, LocalCandidatesEnded) else event.candidate.type.value
        for _, event in scene.one.process.log
        if isinstance(event, LocalCandidateAdded | LocalCandidatesEnded)
    ]
    late = [kind for kind in kinds[kinds.index("end") :] if kind != "srflx"]
    assert late == ["end", "relay", "relay"], "of both families; the end is emitted in time, and once"
    assert scene.end() == []
    assert scene.turn.allocations == 0


def test_closing_while_an_allocation_is_late_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a relay at the server, if only the answer is on its way when this side closes."""
    for closes_at in (8 * SECOND, 15_520_000_000, 15_540_000_000):
        scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY)
        mute(scene, scene.one, 10, monkeypatch)
        scene.exchange.start()
        scene.net.run(Instant(closes_at))
        assert scene.one.session.gathering.state is GatheringState.COMPLETE
        assert scene.end() == []
        scene.net.run_for(60 * SECOND)
        assert scene.turn.allocations == 0


def test_a_late_allocation_is_no_worse_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY)
    mute(scene, scene.one, 10, monkeypatch)
    scene.exchange.start()
    scene.net.run_for(8 * SECOND)
    scene.one.call(scene.one.session.restart)
    scene.net.run_for(20 * SECOND)
    assert scene.one.state is scene.other.state is AgentState.COMPLETED
    assert scene.talk(10) == (10, 10)
    assert scene.end() == []
