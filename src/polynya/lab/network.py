"""The virtual network: built in a few lines, run by a virtual clock, determined by one seed.

    net = Network(seed=1)
    internet = net.router("internet")
    server = net.host("stun", "203.0.113.1", internet)
    home = net.nat("home", outside=internet, address="198.51.100.1", inside="10.0.0.0/24", config=symmetric())
    alice = net.host("alice", "10.0.0.2", home, delay=5 * MILLISECOND)
    process = alice.run(machine)
    net.run(Instant(10 * SECOND))

The nodes form a tree. A new node is linked to an existing one, its parent, which is its default route. Addresses behind
a NAT are routed only behind that NAT. The network carries whole IP packets, so NATs, firewalls and ICMP work as they do
in a real network.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from polynya.core.addresses import Address
from polynya.core.flows import FlowIds
from polynya.core.instants import MILLISECOND, Instant, in_seconds
from polynya.core.packets import IpPacket
from polynya.core.trace import NO_TRACE, Tracer
from polynya.nat import NatConfig

from .clock import Clock
from .environment import Capture
from .firewall import Firewall, Refusal, Rule
from .gateways import FirewallRouter, NatRouter
from .hosts import Host
from .links import NetworkInterface, Profile, connect
from .nodes import Node
from .routes import Prefix

_DEFAULTS = ("0.0.0.0/0", "::/0")


@dataclass(slots=True)
class Drop:
    """A dropped packet: node, reason, and the packet's endpoints at that node."""

    at: Instant
    node: str
    packet: int
    source: Address
    destination: Address
    reason: str

    def __str__(self) -> str:
        where = f"{in_seconds(self.at):.3f} s: {self.node} dropped packet {self.packet}"
        return f"{where} from {self.source} to {self.destination}: {self.reason}"


class Network:
    """Nodes, links, a clock and a seed. It is the `Environment` of its nodes and links.

    `print(network)` shows the tree of nodes.
    """

    def __init__(self, seed: int = 0, *, trace: Tracer = NO_TRACE, capture: Capture | None = None) -> None:
        self.seed = seed
        self.clock = Clock()
        self.trace = trace
        self.capture = capture
        self.flow_ids = FlowIds()
        self.names: dict[str, tuple[str, ...]] = {}
        """DNS: the addresses of each name."""
        self.resolve_delay = 20 * MILLISECOND
        self.drops: list[Drop] = []
        self.nodes: dict[str, Node] = {}
        self.chance = self.chance_of("links")
        """Randomness of the links."""
        self._children: dict[str, list[tuple[Node, NetworkInterface]]] = {}
        """The nodes below each node, with the interface that leads to it."""
        self._packets = 0
        self._routers = 0

    def __repr__(self) -> str:
        counts = f"{len(self.nodes)} nodes, {len(self.drops)} packets dropped"
        return f"<Network seed {self.seed} at {in_seconds(self.now):g} s: {counts}>"

    def __str__(self) -> str:
        """Draw the tree of nodes, a line for each; the indentation shows which node is linked to which."""
        return "\n".join(line for node in self.nodes.values() if not node.uplinks for line in self._drawing(node, 0))

    @property
    def now(self) -> Instant:
        return self.clock.now

    def chance_of(self, name: str) -> random.Random:
        """Return the randomness of one node. It depends on the seed and the name alone, not on other nodes."""
        return random.Random(f"{self.seed}/{name}")

    # -------------------------------------------------------------------------------------------------------- build

    def router(self, name: str, outside: Node | None = None, *, link: Profile | None = None, delay: int = 0) -> Node:
        """Add a router below `outside`; without it the router is the root of the network."""
        node = Node(self, name, self._router_addresses())
        return self._add(node, outside, link, delay)

    def nat(
        self,
        name: str,
        *,
        outside: Node,
        address: str | Sequence[str],
        inside: str | Sequence[str],
        config: NatConfig | None = None,
        firewall: Firewall | None = None,
        link: Profile | None = None,
        delay: int = 0,
    ) -> NatRouter:
        """Add a NAT with its external addresses and inside prefixes. Its inside address is the first of each prefix.

        A family without an external address is routed, not translated; `firewall` filters it.
        """
        external, prefixes = _texts(address), _texts(inside)
        gateways = tuple(Prefix(p).host(1) for p in prefixes)
        node = NatRouter(self, name, gateways, config=config or NatConfig(), external=external, firewall=firewall)
        self._add(node, outside, link, delay, external)
        return node

    def firewall(
        self,
        name: str,
        *,
        outside: Node,
        rules: Sequence[Rule] = (),
        refusal: Refusal = Refusal.SILENT,
        link: Profile | None = None,
        delay: int = 0,
    ) -> FirewallRouter:
        """Add a router with a stateful firewall. It translates no addresses."""
        machine = Firewall(rules, refusal=refusal, trace=self.trace.at_node(name, "firewall"))
        node = FirewallRouter(self, name, self._router_addresses(), machine)
        self._add(node, outside, link, delay)
        return node

    def host(
        self, name: str, address: str | Sequence[str], router: Node, *, link: Profile | None = None, delay: int = 0
    ) -> Host:
        """Add a host with one interface, `eth0`; `attach` adds more."""
        node = Host(self, name)
        self._add(node, router, link, delay, _texts(address))
        return node

    def attach(
        self,
        host: Host,
        address: str | Sequence[str],
        router: Node,
        *,
        name: str | None = None,
        link: Profile | None = None,
        delay: int = 0,
    ) -> NetworkInterface:
        """Add an interface to a host. The default route stays on its first interface."""
        return self._attach(host, router, _profile(link, delay), _texts(address), name)

    def address(self, interface: NetworkInterface, *addresses: str) -> None:
        """Replace the addresses of an interface, and inform the processes of its host."""
        node = self.nodes[interface.node.name]
        node.readdress(interface, addresses)
        node.interfaces_changed()

    def set_up(self, interface: NetworkInterface, up: bool) -> None:
        """Take an interface up or down, and inform the processes of its host."""
        interface.up = up
        self.nodes[interface.node.name].interfaces_changed()

    # ---------------------------------------------------------------------------------------------------------- run

    def run(self, until: Instant) -> None:
        """Advance the virtual time to `until`."""
        self.clock.run(until)

    def run_for(self, duration: int) -> None:
        """Advance the virtual time by `duration` nanoseconds."""
        self.clock.run(Instant(self.clock.now + duration))

    def run_until(self, done: Callable[[], bool], limit: Instant) -> bool:
        """Run until `done()`, which is evaluated after every event; False if `limit` is reached first."""
        return self.clock.run_until(done, limit)

    # ------------------------------------------------------------------------------------------------------ packets

    def packet_id(self) -> int:
        self._packets += 1
        return self._packets

    def drop(self, node: str, packet: IpPacket, reason: str) -> None:
        """Record a dropped packet, in `drops`, in the trace and in the capture."""
        now = self.clock.now
        self.drops.append(Drop(now, node, packet.id, packet.source, packet.destination, reason))
        self.trace.at_node(node, "ip").packet_dropped(
            reason, now=now, packet=packet.id, source=packet.source, destination=packet.destination
        )
        if self.capture is not None:
            self.capture.write(now, f"{node} dropped", packet, comment=f"packet {packet.id} dropped: {reason}")

    def drop_reasons(self) -> Counter[str]:
        """Count the dropped packets by reason."""
        return Counter(drop.reason for drop in self.drops)

    # ------------------------------------------------------------------------------------------------------- wiring

    def _add(
        self, node: Node, parent: Node | None, link: Profile | None, delay: int, addresses: tuple[str, ...] = ()
    ) -> Node:
        if node.name in self.nodes:
            raise ValueError(f"the network already has a node named {node.name}; choose another name")
        self.nodes[node.name] = node
        if parent is not None:
            self._attach(node, parent, _profile(link, delay), addresses, None)
        node.trace.node(now=self.clock.now, role=node.role, addresses=node.shown_addresses)
        return node

    def _attach(
        self, node: Node, parent: Node, profile: Profile, addresses: tuple[str, ...], name: str | None
    ) -> NetworkInterface:
        first = not node.interfaces
        interface = node.add_interface(name or f"eth{len(node.interfaces)}", addresses)
        inner = parent.add_interface(f"to-{node.name}-{interface.name}")
        connect(interface, inner, profile)
        self._children.setdefault(parent.name, []).append((node, interface))
        if first:
            for default in _DEFAULTS:
                node.routes.add(default, interface)
            node.uplinks.append(interface)
        for host in (*interface.addresses, *(node.own if first else ())):
            parent.learn(host, inner)
        parent.trace.of("link").link(
            now=self.clock.now, ends=[interface.label, inner.label], delay=profile.delay, mtu=profile.mtu
        )
        return interface

    def _router_addresses(self) -> tuple[str, str]:
        # 198.18.0.0/15 is reserved for benchmarks (RFC 2544), so no scenario has hosts there
        self._routers += 1
        number = self._routers
        return f"198.18.{number >> 8}.{number & 255}", Prefix("2001:db8:ffff::/48").host(number)

    def _drawing(self, node: Node, depth: int) -> list[str]:
        lines = ["  " * depth + node.summary()]
        for child, interface in self._children.get(node.name, ()):
            if interface is child.interfaces[0]:
                lines += self._drawing(child, depth + 1)
            else:
                addresses = ", ".join(interface.addresses)
                lines.append("  " * (depth + 1) + f"{child.name} ({interface.name}) {addresses}")
        return lines


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _profile(link: Profile | None, delay: int) -> Profile:
    profile = link or Profile()
    return replace(profile, delay=delay) if delay else profile
