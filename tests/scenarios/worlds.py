"""Two sessions in a random world from a seed: topology, options, events and the outcome.

Random are the topology, the links (up to 500 ms one way, jitter, reordering, duplication, sometimes loss), the
signaling (slow, out of order), the options of both sides, restarts and changes of role. The options include role
conflicts, ICE without `ice2`, renomination, other policies, several components, other pacing, and a lite side.

The outcome is checked from outside: by the invariants of `lab.invariants`, and by `nat.rules`, which predict whether a
path exists. Without loss the outcome must be as predicted. With loss, only a transaction of which every transmission
was lost excuses a failure: each request, or its answer. The packets on the links show that.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.packets import IpPacket
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice import IceConfig, NominationPolicy, Renomination
from polynya.ice.events import AgentState, ConsentLost, Failed
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.invariants import disagreement, unpaced, violations
from polynya.lab.topologies import Topology, random_topology
from polynya.session.options import SessionConfig
from polynya.stun.message import is_stun
from polynya.stun.uris import StunUri

LIMIT = 300 * SECOND
"""Virtual time of one run."""


@dataclass(slots=True)
class Transmissions:
    """Records which packets carried the requests and answers of each STUN transaction."""

    requests: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))

    def write(
        self, at: Instant, interface: str, packet: IpPacket, *, outbound: bool | None = None, comment: str = ""
    ) -> None:
        """Record a packet, as `lab.environment.Capture` requires."""
        data = packet.payload
        if not is_stun(data):
            return
        transaction = data[8:20]
        kind = self.answers if data[0] & 1 else self.requests
        if packet.id not in kind[transaction]:
            kind[transaction].append(packet.id)

    def silenced(self, lost: dict[int, None]) -> Iterator[bytes]:
        """Yield the transactions that failed because of loss alone.

        A transaction is sent seven times. At least four requests were sent, and none of them was answered.
        """
        for transaction, sent in self.requests.items():
            answers = self.answers.get(transaction, [])
            arrived = [one for one in sent if one not in lost]
            came_back = [one for one in answers if one not in lost]
            if len(sent) >= 4 and not came_back and len(answers) >= len(arrived):
                yield transaction


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of one world."""

    seed: int
    expected: bool | None
    """Whether the prediction is a connection; None if it depends on the order of events."""
    connected: bool
    lossless: bool
    """Whether no packet was lost on a link."""
    excused: bool
    """Whether there is no connection, and a transaction lost every transmission."""
    faults: list[str]
    story: str
    """A description of the world, for people."""


@dataclass(slots=True)
class _World:
    network: Network
    topology: Topology
    peers: tuple[Peer, Peer]
    exchange: Exchange
    quiet_at: Instant
    """The time of the last restart or change of role."""
    story: list[str]


def build(
    seed: int, *, lossy: bool, trace: Tracer, capture: Transmissions | None = None, rich: bool = True
) -> _World:  # fmt: skip
    """Build the world of a seed. `rich` adds the features that were added to the generator later."""
    network = Network(seed, trace=trace, capture=capture)
    topology = random_topology(network, lossy=lossy)
    chance = network.chance_of("what happens")
    controlling = chance.random() < 0.5
    conflict = chance.random() < 0.25
    configs = [
        _options(topology, chance, controlling=controls)
        for controls in (controlling, controlling if conflict else not controlling)
    ]
    story = [*topology.description, "both controlling" if conflict and controlling else ""]
    if rich:
        configs, more = _enriched(topology, configs, network.chance_of("what else"))
        story += more
    one, other = (
        Peer(network, host, config) for host, config in zip((topology.one, topology.other), configs, strict=True)
    )
    exchange = Exchange(
        network,
        one,
        other,
        delay=chance.choice((1, 20, 200, 1000)) * MILLISECOND,
        jitter=chance.choice((0, 0, 100, 400)) * MILLISECOND,
    )
    later = chance.choice((0, 0, 0, 500, 5000)) * MILLISECOND
    exchange.start(later)
    quiet_at = Instant(later)
    for peer in (one, other):
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2))):
            at = Instant(later + chance.randrange(round(8 * SECOND)))
            network.clock.at(at, _restart, peer)
            quiet_at = max(quiet_at, at)
            story.append(f"{peer.name} restarts at {at / SECOND:.3f} s")
    if chance.random() < 0.25:
        peer, at = chance.choice((one, other)), Instant(later + chance.randrange(round(6 * SECOND)))
        network.clock.at(at, _change_role, peer)
        quiet_at = max(quiet_at, at)
        story.append(f"{peer.name} changes its role at {at / SECOND:.3f} s")
    return _World(network, topology, (one, other), exchange, quiet_at, [part for part in story if part])


def _options(topology: Topology, chance: random.Random, *, controlling: bool) -> SessionConfig:
    policy = NominationPolicy.immediate() if chance.random() < 0.2 else NominationPolicy()
    return SessionConfig(
        ice=IceConfig(
            controlling=controlling,
            options=("ice2", "trickle") if chance.random() < 0.8 else ("trickle",),
            nomination=policy,
            renomination=Renomination() if chance.random() < 0.4 else None,
        ),
        stun_servers=(StunUri.parse(topology.stun),),
    )


def _enriched(
    topology: Topology, configs: list[SessionConfig], chance: random.Random
) -> tuple[list[SessionConfig], list[str]]:  # fmt: skip
    """Return the options with streams and components, other pacing, and sometimes a lite side."""
    components = chance.choice(((1,), (1,), (1,), (1,), (1,), (2,), (1, 1), (2, 1)))
    story = [f"components {components}"] if components != (1,) else []
    made = []
    lite = chance.random() < 0.3
    for config, side in zip(configs, topology.description[:2], strict=True) if len(topology.description) == 2 else ():
        ice = replace(config.ice, components=components, pacing=chance.choice((5, 5, 5, 20, 50)) / 1000)
        if lite and side == "no NAT" and not story.count("lite"):
            story.append("lite")
            made.append(replace(config, ice=replace(ice, lite=True), stun_servers=()))
        else:
            made.append(replace(config, ice=ice))
    if not made:
        made = [replace(config, ice=replace(config.ice, components=components)) for config in configs]
    return made, story


def _restart(peer: Peer) -> None:
    if peer.closed_at is None:
        peer.call(peer.session.restart)


def _change_role(peer: Peer) -> None:
    remote = peer.session.agent.remote_description
    if peer.closed_at is None and not (peer.session.config.ice.lite or (remote and remote.lite)):
        peer.call(peer.session.set_controlling, not peer.session.agent.controlling)


def explore(seed: int, *, lossy: bool = False, rich: bool = True) -> Outcome:
    """Run the world of a seed and check its outcome."""
    events: list[TraceEvent] = []
    capture = Transmissions()
    world = build(seed, lossy=lossy, trace=Tracer(events.append), capture=capture, rich=rich)
    network, peers = world.network, world.peers
    one, other = peers
    limit = Instant(world.quiet_at + LIMIT)
    network.run_until(lambda: network.now > world.quiet_at and _settled(one, other), limit)
    connected = one.state is other.state is AgentState.COMPLETED
    faults = []
    if not _settled(one, other):
        faults.append(f"unsettled after {LIMIT / SECOND:g} s: {one.state.value} and {other.state.value}")
    if connected:
        network.run_until(lambda: not disagreement(one, other), Instant(network.now + 20 * SECOND))
        if why := disagreement(one, other):
            faults.append(why)
        if not _talk(network, one, other):
            faults.append("data does not arrive in both directions")
    for peer in peers:
        peer.close()
    network.run_for(2 * SECOND)
    faults += [*violations(peers), *unpaced(_paced(events))]
    lost = {drop.packet: None for drop in network.drops if drop.reason.startswith("lost on the link")}
    lossless = not lost
    excused = not connected and any(True for _ in capture.silenced(lost))
    expected = world.topology.expected
    if expected is False and connected:
        faults.append("connected, but the prediction excludes it")
    if expected is True and not connected and not excused:
        reasons = [event.reason for peer in peers for event in (*peer.events(Failed), *peer.events(ConsentLost))]
        faults.append(f"not connected, but the prediction is that a pair succeeds: {reasons}")
    return Outcome(
        seed=seed,
        expected=expected,
        connected=connected,
        lossless=lossless,
        excused=excused,
        faults=[f"seed {seed}{' lossy' if lossy else ''}: {fault} ({'; '.join(world.story)})" for fault in faults],
        story="; ".join(world.story),
    )


def _paced(events: list[TraceEvent]) -> Iterator[TraceEvent]:
    """Yield the events without consent checks, which continue in the old generation during a restart."""
    consent = {(event.node, event.at): None for event in events if event.kind == "consent"}
    return (event for event in events if event.kind != "transaction" or (event.node, event.at) not in consent)


def _settled(one: Peer, other: Peer) -> bool:
    """Whether both peers have failed, or completed the same generation in every component."""
    if not (one.settled and other.settled):
        return False
    if AgentState.FAILED in (one.state, other.state):
        return one.state is other.state
    agents: list[Any] = [peer.session.agent for peer in (one, other)]
    numbers = [agent.local_description.generation for agent in agents]
    roles = [agent.controlling for agent in agents]
    return (
        numbers[0] == numbers[1]
        and roles[0] != roles[1]
        and all(agent.selected(*key).nominated for agent in agents for key in one.component_keys)
    )


def _talk(network: Network, one: Peer, other: Peer) -> bool:
    """Whether data arrives in both directions of every component, sent several times because of loss."""
    expected = {key: b"to component %d of stream %d" % key[::-1] for key in one.component_keys}

    def all_there() -> bool:
        return all(data in peer.received for data in expected.values() for peer in (one, other))

    for _ in range(20):
        for key, data in expected.items():
            one.send(data, *key)
            other.send(data, *key)
        network.run_until(all_there, Instant(network.now + 2 * SECOND))
        if all_there():
            return True
    return False
