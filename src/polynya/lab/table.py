"""The NAT table: two sessions behind each combination of NAT classes, compared with the prediction of `nat.rules`.

Each cell is a separate network: two sessions behind one NAT each, a STUN server, no relay, random ports. The agents
connect or fail in virtual time, exchange data if connected, and close. The invariants of every run are checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from polynya.core.instants import SECOND, Instant, in_seconds
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.config import IceConfig
from polynya.ice.events import AgentState
from polynya.nat import NatConfig, PortAssignment, every_class
from polynya.nat.rules import expect
from polynya.session.options import SessionConfig
from polynya.stun.uris import StunUri

from .environment import Capture
from .exchange import Exchange, Peer
from .invariants import disagreement, violations
from .network import Network
from .topologies import Topology, between_nats

_TRIES = 12
LIMIT = 120 * SECOND
"""Virtual time after which a cell counts as not connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The result of one cell. Pairs are candidate types of the selected pair on each side; times are seconds."""

    first: str
    second: str
    connected: bool
    expected: bool | None
    """The prediction; None if it depends on which side sends first."""
    first_pair: str | None
    second_pair: str | None
    seconds: float | None
    """Virtual time from the start until both sides had a valid pair."""
    nominated_seconds: float | None
    """Virtual time from the start until both sides had a nominated pair."""
    data: bool
    """Whether application data arrived in both directions."""
    faults: tuple[str, ...] = ()
    """Violated invariants."""

    @property
    def agrees(self) -> bool:
        """Whether the run matches the prediction and violates no invariant."""
        return self.connected == (self.connected if self.expected is None else self.expected) and not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self) | {"faults": list(self.faults), "agrees": self.agrees}


def table(
    base: NatConfig | None = None, *, seed: int = 0, trace: Tracer = NO_TRACE, capture: Capture | None = None
) -> Iterator[Row]:
    """Yield all 81 cells, row by row. `base` has the other NAT options; the default has random ports."""
    base = base or NatConfig(ports=PortAssignment.RANDOM)
    for first in every_class(base):
        for second in every_class(base):
            yield cell(first, second, seed=seed, trace=trace, capture=capture)


def cell(
    first: NatConfig, second: NatConfig, *, seed: int = 0, trace: Tracer = NO_TRACE, capture: Capture | None = None
) -> Row:
    """Run two agents behind these NATs."""
    trace.note(f"new network: {first.label} against {second.label}", now=Instant(0), seed=seed)
    network = Network(seed, trace=trace, capture=capture)
    meeting = meet(between_nats(first, second, network=network))
    one, other = meeting.peers
    expectation = expect(first, second)
    return Row(
        first=first.label,
        second=second.label,
        connected=meeting.connected,
        expected=expectation.always if expectation.sure else None,
        first_pair=_types(meeting, 0),
        second_pair=_types(meeting, 1),
        seconds=_latest(_usable(one), _usable(other)),
        nominated_seconds=_latest(one.first(AgentState.COMPLETED), other.first(AgentState.COMPLETED)),
        data=meeting.data,
        faults=meeting.faults,
    )


@dataclass(slots=True, kw_only=True)
class Meeting:
    """The result of two agents that tried to connect."""

    peers: tuple[Peer, Peer]
    connected: bool
    """Both sides have a nominated pair."""
    pairs: tuple[str | None, str | None]
    """Candidate types of the selected pair on each side, such as `srflx -> prflx`."""
    data: bool
    faults: tuple[str, ...]


def meet(
    topology: Topology,
    *,
    configs: tuple[SessionConfig, SessionConfig] | None = None,
    signaling_delay: int = SECOND // 50,
    signaling_jitter: int = 0,
    later: int = 0,
    limit: int = LIMIT,
) -> Meeting:
    """Run two agents in a topology until both have settled, exchange data and close.

    The first agent is controlling, unless `configs` set the roles. The second starts `later` nanoseconds later.
    """
    network = topology.network
    if configs is None:
        configs = (session_config(topology, controlling=True), session_config(topology, controlling=False))
    peers = one, other = (
        Peer(network, topology.one, configs[0]),
        Peer(network, topology.other, configs[1]),
    )
    Exchange(network, one, other, delay=signaling_delay, jitter=signaling_jitter).start(later)
    end = Instant(network.now + limit)
    network.run_until(lambda: one.settled and other.settled, end)
    connected = one.state is AgentState.COMPLETED and other.state is AgentState.COMPLETED
    faults = []
    if connected:  # a better pair may be nominated just now
        network.run_until(lambda: not disagreement(one, other), Instant(network.now + 5 * SECOND))
    if connected and (why := disagreement(one, other)):
        faults.append(why)
    pairs = (_pair_types(one), _pair_types(other))
    data = connected and _talk(network, one, other)
    one.close()
    other.close()
    network.run_for(2 * SECOND)
    faults += violations(peers)
    return Meeting(peers=(one, other), connected=connected, pairs=pairs, data=data, faults=tuple(faults))


def session_config(topology: Topology, *, controlling: bool) -> SessionConfig:
    """Return the options of an agent that uses the topology's STUN server."""
    return SessionConfig(ice=IceConfig(controlling=controlling), stun_servers=(StunUri.parse(topology.stun),))


def _talk(network: Network, one: Peer, other: Peer) -> bool:
    """Whether data arrives in both directions. It is sent several times, because links may be lossy."""
    for _ in range(_TRIES):
        one.send(b"from " + one.name.encode())
        other.send(b"from " + other.name.encode())
        network.run_for(2 * SECOND)
        if one.received and other.received:
            return True
    return False


def _pair_types(peer: Peer) -> str | None:
    pair = peer.selected
    return None if pair is None else f"{pair.local.type.value} -> {pair.remote.type.value}"


def _types(meeting: Meeting, side: int) -> str | None:
    return meeting.pairs[side] if meeting.connected else None


def _usable(peer: Peer) -> Instant | None:
    """Return when the peer had a valid pair at first. A pair that is nominated already completes the agent at once."""
    times = (peer.first(AgentState.CONNECTED), peer.first(AgentState.COMPLETED))
    return min((at for at in times if at is not None), default=None)


def _latest(one: Instant | None, other: Instant | None) -> float | None:
    return None if one is None or other is None else in_seconds(max(one, other))
