"""The run of a random network with TURN servers, by seed: its result, and everything that breaks a rule."""

from __future__ import annotations

from polynya.core.instants import SECOND, Instant
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice.events import AgentState
from polynya.lab import Network
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.exploring import Relayed, random_relayed
from polynya.lab.invariants import disagreement, unpaced, violations

TRACED = 4
"""Pacing is checked in the trace of one of this many seeds, since a trace costs time."""


class Run:
    """The run of one seed: its network, its result and every fault."""

    def __init__(self, seed: int, *, lossy: bool = False, trace: Tracer | None = None) -> None:
        self.seed = seed
        self.events: list[TraceEvent] = []
        self.lossy = lossy
        self.net = Network(seed, trace=trace or Tracer(None if seed % TRACED else self.events.append))
        self.made: Relayed = random_relayed(self.net, lossy=lossy)
        topology, configs = self.made.topology, self.made.configs
        self.one, self.other = self.peers = (
            Peer(self.net, topology.one, configs[0]),
            Peer(self.net, topology.other, configs[1]),
        )
        self.faults: list[str] = []
        self.connected = False
        self.relayed = False

    def play(self, *, minutes: int = 0) -> Run:
        net, made = self.net, self.made
        exchange = Exchange(net, *self.peers, delay=made.signaling_delay, jitter=made.signaling_jitter)
        exchange.start(made.later)
        net.run_until(lambda: self.one.settled and self.other.settled, Instant(120 * SECOND))
        self.connected = all(peer.state is AgentState.COMPLETED for peer in self.peers)
        if not self.connected:
            self.fault(f"not connected: {[peer.state.value for peer in self.peers]}")
        else:
            if made.renomination:
                net.run_for(5 * SECOND)  # for better pairs after the first nomination
                if self.lossy:  # seed 10042: a nomination through two relays over TCP takes 8 s
                    net.run_until(lambda: not disagreement(*self.peers), Instant(net.now + 60 * SECOND))
            if why := disagreement(*self.peers):
                self.fault(why)
            self.relayed = any(pair.relayed for peer in self.peers if (pair := peer.selected) is not None)
            self._talk(2)
            if minutes:
                self._go_on(minutes)
        self._end()
        return self

    def fault(self, what: str) -> None:
        self.faults.append(f"seed {self.seed}: {what} {self.made.description}")

    def _talk(self, count: int) -> None:
        """On a network without loss every datagram arrives, twice if the links duplicate packets, in any order."""
        before = [len(peer.received) for peer in self.peers]
        sent = [b"%d of %d" % (number, self.net.now) for number in range(count)]
        for data in sent:
            for peer in self.peers:
                peer.send(data)
        self.net.run_for(2 * SECOND)
        for peer, known in zip(self.peers, before, strict=True):
            if {*peer.received[known:]} != {*sent}:
                self.fault(f"{peer.name} got {len(peer.received) - known} of {count} datagrams at {self.net.now}")

    def _go_on(self, minutes: int) -> None:
        since = self.net.now
        while self.net.now < since + minutes * 60 * SECOND:
            self._talk(2)
            self.net.run_for(28 * SECOND)
        for peer in self.peers:
            if peer.state is not AgentState.COMPLETED:
                self.fault(f"{peer.name} is {peer.state.value} after {minutes} minutes")

    def _end(self) -> None:
        for peer in self.peers:
            peer.close()
        self.net.run_for(5 * SECOND)
        for fault in (*violations(self.peers), *unpaced(self.events)):
            self.fault(fault)


def explore(seed: int, *, lossy: bool = False, minutes: int = 0) -> Run:
    """Play one seed. Its path must be direct if the rules of its NATs allow it, else relayed.

    With packet loss, a run may stay without a connection, data may be lost, and a relayed path may be the one that
    worked first; a direct path against the rules is a fault also then.
    """
    run = Run(seed, lossy=lossy).play(minutes=minutes)
    expected = run.made.topology.expected
    if lossy:
        run.faults = [each for each in run.faults if "not connected" not in each and " datagrams at " not in each]
    if run.connected and expected is not None and run.relayed is expected and not (lossy and run.relayed):
        run.fault(f"{'relayed' if run.relayed else 'direct'}, against the rules")
    return run
