"""Data moves to a better pair as soon as it is valid, and no datagram is lost by the move.

Both sides send a datagram every 4 ms from their first valid pair on. The relay works before the direct path does.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.ice import AgentState
from polynya.ice.events import SelectedPairChanged
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.relaying import relayed_configs
from polynya.nat import Behavior, NatConfig, PortAssignment
from tests.scenarios.relays import Scene, nats

EVERY = 4 * MILLISECOND
SYMMETRIC = NatConfig(mapping=Behavior.APD, filtering=Behavior.APD, ports=PortAssignment.RANDOM)
RESTRICTED = NatConfig(mapping=Behavior.EI, filtering=Behavior.AD, ports=PortAssignment.RANDOM)


class Stream:
    """Numbered datagrams of one peer to the other, with the time of each."""

    def __init__(self, scene: Scene, sender: Peer, receiver: Peer) -> None:
        self.net = scene.net
        self.sender, self.receiver = sender, receiver
        self.sent: list[Instant] = []
        self.relayed: list[bool] = []

    def send(self) -> None:
        pair = self.sender.selected
        if pair is not None:
            assert self.sender.send(b"%d" % len(self.sent))
            self.sent.append(self.net.now)
            self.relayed.append(pair.relayed)

    @property
    def numbers(self) -> list[int]:
        return [int(data) for data in self.receiver.received]

    @property
    def reordering(self) -> int:
        """The longest time between two datagrams that overtook each other, nanoseconds."""
        longest, highest = 0, 0
        for number in self.numbers:
            highest = max(highest, number)
            longest = max(longest, self.sent[highest] - self.sent[number])
        return longest


def converse(scene: Scene, later: int) -> tuple[Stream, Stream]:
    """Connect, and let both sides send from their first valid pair on."""
    one, other = scene.peers
    streams = Stream(scene, one, other), Stream(scene, other, one)
    scene.exchange.start(later)
    end = Instant(scene.net.now + later + 3 * SECOND)
    while scene.net.now < end:
        for stream in streams:
            if stream.sender.process is not None:
                stream.send()
        scene.net.run_for(EVERY)
    scene.net.run_for(SECOND)
    return streams


def direct_at(peer: Peer) -> tuple[Instant, Instant]:
    """When a direct pair was valid at first, and when one was selected at first."""
    assert peer.process is not None
    pairs = peer.session.agent.generation.checklists
    valid = [pair.valid_at for pair in pairs if pair.valid_at is not None and not pair.relayed]
    selected = [
        at
        for at, event in peer.process.log
        if isinstance(event, SelectedPairChanged) and event.pair is not None and not event.pair.relayed
    ]
    return min(valid), min(selected)


def scene_of(first: NatConfig, second: NatConfig, seed: int, *, renomination: bool = True) -> Scene:
    topology = nats(first, second, seed)
    one, other = relayed_configs(topology)
    if not renomination:
        one, other = (replace(config, ice=replace(config.ice, renomination=None)) for config in (one, other))
    scene = Scene(topology, configs=(one, other))
    scene.exchange = Exchange(scene.net, *scene.peers, delay=200 * MILLISECOND)
    return scene


@pytest.mark.parametrize("renomination", [True, False], ids=["renomination", "one nomination"])
@pytest.mark.parametrize("later", [100, 600])
def test_data_leaves_a_relay_when_a_direct_pair_is_valid_and_nothing_is_lost(renomination: bool, later: int) -> None:
    """Behind a symmetric NAT that starts later, the first direct check is filtered, and the relay works first."""
    scene = scene_of(RESTRICTED, SYMMETRIC, 1, renomination=renomination)
    streams = converse(scene, later * MILLISECOND)
    for stream in streams:
        assert any(stream.relayed) and not stream.relayed[-1]
        assert sorted(stream.numbers) == list(range(len(stream.sent))), "each datagram arrives, once"
        assert stream.reordering <= 2 * 5 * MILLISECOND, "the way to the relay and back, which the direct path saves"
    for peer in scene.peers:
        valid, selected = direct_at(peer)
        assert selected == valid, "before the nomination data moves at once"
        completed = peer.first(AgentState.COMPLETED)
        assert completed is not None and completed - valid <= 100 * MILLISECOND
    assert scene.turn.allocations > 0, "the relay stays open"
    assert scene.end() == []
