"""Two sessions in a random world, from a seed: what stands between them, what happens to them, and what came of it.

The topology, the links (up to 500 ms one way, jitter, reordering, duplication, in some worlds loss), the signaling
(slow, out of order), the options of both sides (both controlling or both controlled, an old dialect, renomination,
other policies, several streams and components, other paces, a lite side), restarts of either side and changes of role
at random times.

What must hold then is judged from outside: the invariants of `lab.invariants`, and the rules of NATs, which say whether
a path exists. Without loss the outcome must be theirs. With loss a failure is excused only by a transaction of which
every single transmission was lost, the request or its answer, as the packets on the links show.
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
"""Of virtual time, for one run."""


@dataclass(slots=True)
class Transmissions:
    """Which packets carried the requests and answers of each STUN transaction, and which of them were lost."""

    requests: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))

    def write(
        self, at: Instant, interface: str, packet: IpPacket, *, outbound: bool | None = None, comment: str = ""
    ) -> None:
        """As `lab.network.Capture`: packets as their first link sees them."""
        data = packet.payload
        if not is_stun(data):
            return
        transaction = data[8:20]
        kind = self.answers if data[0] & 1 else self.requests
        if packet.id not in kind[transaction]:
            kind[transaction].append(packet.id)

    def silenced(self, lost: dict[int, None]) -> Iterator[bytes]:
        """The transactions that came to nothing for loss alone.

        Each is sent seven times: at least four went out, and of them or their answers none arrived.
        """
        for transaction, sent in self.requests.items():
            answers = self.answers.get(transaction, [])
            arrived = [one for one in sent if one not in lost]
            came_back = [one for one in answers if one not in lost]
            if len(sent) >= 4 and not came_back and len(answers) >= len(arrived):
                yield transaction


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one world."""

    seed: int
    expected: bool | None
    """Whether the rules of the NATs say that both meet; None where they leave it open."""
    connected: bool
    lossless: bool
    """No packet was lost on a link."""
    excused: bool
    """Not connected, and a transaction lost every transmission."""
    faults: list[str]
    story: str
    """What the world was, for people."""


@dataclass(slots=True)
class _World:
    network: Network
    topology: Topology
    peers: tuple[Peer, Peer]
    exchange: Exchange
    quiet_at: Instant
    """Nothing is done to the agents after this."""
    story: list[str]


def build(
    seed: int, *, lossy: bool, trace: Tracer, capture: Transmissions | None = None, rich: bool = True
) -> _World:  # fmt: skip
    """The world of a seed, not yet begun. `rich`: also with what came to this generator later."""
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
        network.clock.at(at, _turn, peer)
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
    """The options with streams and components, paces of their own, and a side in the open that is lite."""
    components = chance.choice(((1,), (1,), (1,), (1,), (1,), (2,), (1, 1), (2, 1)))
    story = [f"components {components}"] if components != (1,) else []
    made = []
    lite = chance.random() < 0.3
    for config, what in zip(configs, topology.description[:2], strict=True) if len(topology.description) == 2 else ():
        ice = replace(config.ice, components=components, pacing=chance.choice((5, 5, 5, 20, 50)) / 1000)
        if lite and what == "no NAT" and not story.count("lite"):
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


def _turn(peer: Peer) -> None:
    remote = peer.session.agent.remote_description
    if peer.closed_at is None and not (peer.session.config.ice.lite or (remote and remote.lite)):
        peer.call(peer.session.set_controlling, not peer.session.agent.controlling)


def explore(seed: int, *, lossy: bool = False, rich: bool = True) -> Outcome:
    """Run the world of a seed to its end, and judge it."""
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
            faults.append("data does not go both ways")
    for peer in peers:
        peer.close()
    network.run_for(2 * SECOND)
    faults += [*violations(peers), *unpaced(_paced(events))]
    lost = {drop.packet: None for drop in network.drops if drop.reason.startswith("lost on the link")}
    lossless = not lost
    excused = not connected and any(True for _ in capture.silenced(lost))
    expected = world.topology.expected
    if expected is False and connected:
        faults.append("connected, and the rules say that nothing can")
    if expected is True and not connected and not excused:
        reasons = [event.reason for peer in peers for event in (*peer.events(Failed), *peer.events(ConsentLost))]
        faults.append(f"not connected, and the rules say that a pair works: {reasons}")
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
    """Without consent checks, which go on in the generation before while the next one is checked."""
    consent = {(event.node, event.at): None for event in events if event.kind == "consent"}
    return (event for event in events if event.kind != "transaction" or (event.node, event.at) not in consent)


def _settled(one: Peer, other: Peer) -> bool:
    """Both are through with it: of one generation, and with nothing left of the one before."""
    if not (one.settled and other.settled):
        return False
    if AgentState.FAILED in (one.state, other.state):
        return one.state is other.state
    agents: list[Any] = [peer.session.agent for peer in (one, other)]
    numbers = [agent.local_description.generation for agent in agents]
    roles = [agent.controlling for agent in agents]
    keys = agents[0]._generation.keys
    return (
        numbers[0] == numbers[1]
        and roles[0] != roles[1]
        and all(agent.selected(*key).nominated for agent in agents for key in keys)
    )


def _talk(network: Network, one: Peer, other: Peer) -> bool:
    """Whether data goes both ways in every component; on a lossy link it is sent again and again."""
    keys = one.session.agent.generation.keys
    expected = {key: b"to component %d of stream %d" % key[::-1] for key in keys}

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
