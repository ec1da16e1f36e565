"""Scenes of two agents with TURN servers, for the scenarios with relays."""

from __future__ import annotations

from collections.abc import Sequence

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.ice.events import AgentState
from polynya.lab import Firewall, Host, Network, Node, Rule
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.invariants import disagreement, violations
from polynya.lab.relaying import TurnService, relay, relayed_configs, turn_server
from polynya.lab.topologies import Topology, between_nats, stun_server
from polynya.nat import NatConfig, PortAssignment, every_class
from polynya.session.options import Policy, SessionConfig, TurnCredentials

CLASSES = list(every_class(NatConfig(ports=PortAssignment.RANDOM)))
OPEN, CLOSED = CLASSES[0], CLASSES[-1]
"""NATs that connect with all others, and NATs that connect only with open ones."""

UDP = "turn:203.0.113.9"
TCP = "turn:203.0.113.9?transport=tcp"
TLS = "turns:203.0.113.9"
TLS_443 = "turns:203.0.113.9:443"
ALL = (UDP, TCP, TLS, TLS_443)
SECOND_SERVER = ("203.0.113.10", "2001:db8:100::10")


class Scene:
    """A topology with TURN servers and two agents."""

    def __init__(
        self,
        topology: Topology,
        *,
        policy: Policy = Policy.ALL,
        servers: Sequence[TurnCredentials | str] = (UDP,),
        configs: tuple[SessionConfig, SessionConfig] | None = None,
        turn: TurnService | None = None,
    ) -> None:
        self.topology = topology
        self.net = topology.network
        self.turn = turn if turn is not None else turn_server(self.net, topology.internet)
        known = [relay(server) if isinstance(server, str) else server for server in servers]
        configs = configs or relayed_configs(topology, policy, known)
        self.one, self.other = self.peers = (
            Peer(self.net, topology.one, configs[0]),
            Peer(self.net, topology.other, configs[1]),
        )
        self.exchange = Exchange(self.net, self.one, self.other)
        self.sent = 0

    def start(self, limit: int = 60 * SECOND) -> bool:
        """Run until both agents have completed, at most for a time; returns whether they have."""
        self.exchange.start()
        end = Instant(self.net.now + limit)
        self.net.run_until(lambda: self.one.settled and self.other.settled, end)
        return self.one.state is self.other.state is AgentState.COMPLETED

    def types(self) -> tuple[str, str]:
        """Return the candidate types of each agent's selected pair."""
        one, other = (
            f"{pair.local.type.value} -> {pair.remote.type.value}" if pair is not None else ""
            for pair in (self.one.selected, self.other.selected)
        )
        return one, other

    @property
    def relayed(self) -> bool:
        return any("relay" in types for types in self.types())

    def talk(self, seconds: int, every: int = SECOND) -> tuple[int, int]:
        """Send in both directions for some seconds; returns the number of messages that arrived at each agent."""
        before = len(self.one.received), len(self.other.received)
        end = self.net.now + seconds * SECOND
        while self.net.now < end:
            self.sent += 1
            for peer in self.peers:
                peer.send(b"%s %d" % (peer.name.encode(), self.sent))
            self.net.run_for(every)
        return len(self.one.received) - before[0], len(self.other.received) - before[1]

    def end(self, *, settled: bool = True) -> list[str]:
        """Close both agents; returns the violated invariants. `settled`: no better pair is nominated just now."""
        both = settled and self.one.state is self.other.state is AgentState.COMPLETED
        agreed = [why] if both and (why := disagreement(*self.peers)) else []
        for peer in self.peers:
            peer.close()
        self.net.run_for(5 * SECOND)
        return agreed + violations(self.peers)


def nats(first: NatConfig | None, second: NatConfig | None, seed: int = 1) -> Topology:
    return between_nats(first, second, network=Network(seed))


def walled(*rules: Sequence[Rule], seed: int = 1) -> Topology:
    """Make two hosts without NAT, each behind a firewall with these rules, or without one if there are none."""
    net = Network(seed)
    internet = net.router("internet")
    stun = stun_server(net, internet)
    hosts: list[Host] = []
    for number, (name, own) in enumerate(zip(("alice", "bob"), rules, strict=True), start=1):
        above: Node = internet if not own else net.firewall(f"wall-{name}", outside=internet, rules=own)
        addresses = (f"192.0.2.{number}", f"2001:db8:{number}::2")
        hosts.append(net.host(name, addresses, above, delay=10 * MILLISECOND))
    return Topology(network=net, internet=internet, one=hosts[0], other=hosts[1], stun=stun)


def dual_stack(config: NatConfig, seed: int = 1) -> Topology:
    """Make two hosts with IPv4 behind a NAT and IPv6 behind a firewall."""
    net = Network(seed)
    internet = net.router("internet")
    stun = stun_server(net, internet)
    hosts = []
    for number, name in enumerate(("alice", "bob"), start=1):
        nat = net.nat(
            f"nat-{name}", outside=internet, address=f"198.51.100.{number}", config=config, firewall=Firewall(),
            inside=(f"10.0.{number}.0/24", f"2001:db8:{number}::/64"), delay=10 * MILLISECOND,
        )  # fmt: skip
        hosts.append(net.host(name, (f"10.0.{number}.2", f"2001:db8:{number}::2"), nat))
    return Topology(network=net, internet=internet, one=hosts[0], other=hosts[1], stun=stun)
