"""The virtual network: built in a few lines, run by a virtual clock, decided by one seed.

    net = Network(seed=1)
    internet = net.router("internet")
    server = net.host("stun", "203.0.113.1", internet)
    home = net.nat("home", outside=internet, address="198.51.100.1", inside="10.0.0.0/24", config=symmetric())
    alice = net.host("alice", "10.0.0.2", home, delay=5 * MILLISECOND)
    process = alice.run(machine)
    net.run(Instant(10 * SECOND))

Links lead from node to node; each node is hung below one that exists and sends by default to that one. What is hung
below a NAT is known only there. Whole IP packets move, so NATs, firewalls and ICMP are what they are outside.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from polynya.core.addresses import Address
from polynya.core.flows import FlowIds
from polynya.core.instants import MILLISECOND, Instant
from polynya.core.packets import IpPacket
from polynya.core.trace import NO_TRACE, Tracer
from polynya.nat import NatConfig

from .clock import Clock
from .firewall import Firewall, Refusal, Rule
from .gateways import FirewallRouter, NatRouter
from .hosts import Host
from .links import NetworkInterface, Profile, connect
from .nodes import Node
from .routes import Prefix

_DEFAULTS = ("0.0.0.0/0", "::/0")


class Capture(Protocol):
    """What packets are written to: `core.pcapng.PcapngWriter`."""

    def write(
        self, at: Instant, interface: str, packet: IpPacket, *, outbound: bool | None = None, comment: str = ""
    ) -> None: ...


@dataclass(slots=True)
class Drop:
    """A packet that did not arrive: where it ended and why, with its endpoints as they were there."""

    at: Instant
    node: str
    packet: int
    source: Address
    destination: Address
    reason: str


class Network:
    """Nodes, links, a clock and a seed."""

    def __init__(self, seed: int = 0, *, trace: Tracer = NO_TRACE, capture: Capture | None = None) -> None:
        self.seed = seed
        self.clock = Clock()
        self.trace = trace
        self.capture = capture
        self.flow_ids = FlowIds()
        self.names: dict[str, tuple[str, ...]] = {}
        """What names resolve to."""
        self.resolve_delay = 20 * MILLISECOND
        self.drops: list[Drop] = []
        self.nodes: dict[str, Node] = {}
        self.chance = self.chance_of("links")
        """Decides what happens on links."""
        self._packets = 0
        self._routers = 0

    @property
    def now(self) -> Instant:
        return self.clock.now

    def chance_of(self, name: str) -> random.Random:
        """The randomness of one node: it depends on the seed and the name, not on what else is in the network."""
        return random.Random(f"{self.seed}/{name}")

    # -------------------------------------------------------------------------------------------------------- build

    def router(self, name: str, outside: Node | None = None, *, link: Profile | None = None, delay: int = 0) -> Node:
        """A router, hung below `outside`, or the middle of the network when there is none."""
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
        """A NAT with its external addresses and inside prefixes. Its own address is the first of each prefix.

        A family without an external address is routed and not translated; `firewall` guards it.
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
        """A stateful firewall that routes: what is inside keeps its addresses."""
        guard = Firewall(rules, refusal=refusal, trace=self.trace.at_node(name, "firewall"))
        node = FirewallRouter(self, name, self._router_addresses(), guard)
        self._add(node, outside, link, delay)
        return node

    def host(
        self, name: str, address: str | Sequence[str], router: Node, *, link: Profile | None = None, delay: int = 0
    ) -> Host:
        """A host with one interface, `eth0`; `attach` gives it more."""
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
        """One more interface for a host. The first one stays the default way out."""
        return self._hang(host, router, _profile(link, delay), _texts(address), name)

    def address(self, interface: NetworkInterface, *addresses: str) -> None:
        """Give an interface new addresses in place of its old ones, and tell the host's processes."""
        node = interface.node
        for host in interface.addresses:
            del node.addresses[host]
            if interface.peer is not None:
                interface.peer.node.unlearn(host)
        interface.give(addresses)
        for host in interface.addresses:
            node.addresses[host] = interface
            if interface.peer is not None:
                interface.peer.node.learn(host, interface.peer)
        self._interfaces_changed(node)

    def set_up(self, interface: NetworkInterface, up: bool) -> None:
        """Take an interface down or bring it back up, and tell the host's processes."""
        interface.up = up
        self._interfaces_changed(interface.node)

    # ---------------------------------------------------------------------------------------------------------- run

    def run(self, until: Instant) -> None:
        """Let everything up to `until` happen."""
        self.clock.run(until)

    def run_for(self, duration: int) -> None:
        """Let the next `duration` nanoseconds happen."""
        self.clock.run(Instant(self.clock.now + duration))

    def run_until(self, done: Callable[[], bool], limit: Instant) -> bool:
        """Run until `done()` holds, asked after every event; False when it does not by `limit`."""
        return self.clock.run_until(done, limit)

    # ------------------------------------------------------------------------------------------------------ packets

    def packet_id(self) -> int:
        self._packets += 1
        return self._packets

    def drop(self, node: str, packet: IpPacket, reason: str) -> None:
        """Note that a packet goes no further."""
        now = self.clock.now
        self.drops.append(Drop(now, node, packet.id, packet.source, packet.destination, reason))
        if self.trace.enabled:
            self.trace.at_node(node, "ip").packet_dropped(
                reason, now=now, packet=packet.id, source=packet.source, destination=packet.destination
            )
        if self.capture is not None:
            self.capture.write(now, f"{node} dropped", packet, comment=f"packet {packet.id} dropped: {reason}")

    def drop_reasons(self) -> Counter[str]:
        """How many packets were dropped for what reason."""
        return Counter(drop.reason for drop in self.drops)

    # ------------------------------------------------------------------------------------------------------- wiring

    def _add(
        self, node: Node, above: Node | None, link: Profile | None, delay: int, addresses: tuple[str, ...] = ()
    ) -> Node:
        if node.name in self.nodes:
            raise ValueError(f"the network has a node {node.name} already")
        self.nodes[node.name] = node
        if above is not None:
            self._hang(node, above, _profile(link, delay), addresses, None)
        if self.trace.enabled:
            shown = [host for host in node.addresses if not isinstance(node, Host) or host not in ("127.0.0.1", "::1")]
            self.trace.at_node(node.name, "ip").node(now=self.clock.now, role=node.role, addresses=shown)
        return node

    def _hang(
        self, node: Node, above: Node, profile: Profile, addresses: tuple[str, ...], name: str | None
    ) -> NetworkInterface:
        first = not node.interfaces
        interface = node.add_interface(name or f"eth{len(node.interfaces)}", addresses)
        inner = above.add_interface(f"to-{node.name}-{interface.name}")
        connect(interface, inner, profile)
        if first:
            for default in _DEFAULTS:
                node.routes.add(default, interface)
            node.uplinks.append(interface)
        for host in (*interface.addresses, *(node.own if first else ())):
            above.learn(host, inner)
        if self.trace.enabled:
            self.trace.at_node(above.name, "link").link(
                now=self.clock.now, ends=[interface.label, inner.label], delay=profile.delay, mtu=profile.mtu
            )
        return interface

    def _router_addresses(self) -> tuple[str, str]:
        # 198.18.0.0/15 is for measurements (RFC 2544): no scenario has hosts there
        self._routers += 1
        number = self._routers
        return f"198.18.{number >> 8}.{number & 255}", Prefix("2001:db8:ffff::/48").host(number)

    def _interfaces_changed(self, node: Node) -> None:
        if isinstance(node, Host):
            if self.trace.enabled:
                shown = [host for i in node.interfaces if i.up for host in i.addresses]
                self.trace.at_node(node.name, "ip").interfaces(now=self.clock.now, addresses=shown)
            for process in node.processes:
                self.clock.at(self.clock.now, process.receive, node.interfaces_now())


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _profile(link: Profile | None, delay: int) -> Profile:
    profile = link or Profile()
    return replace(profile, delay=delay) if delay else profile
