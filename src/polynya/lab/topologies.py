"""Topologies for two agents and a STUN server: fixed ones, and random ones from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND
from polynya.nat import Behavior, FilterScope, Hairpinning, NatConfig, PortAssignment
from polynya.nat.rules import expect
from polynya.stun.server import BindingServer

from .firewall import UDP_BLOCKED, Firewall, Refusal
from .hosts import Host
from .links import Profile
from .network import Network
from .nodes import Node
from .programs import Listening

STUN_PORT: Final = 3478
SERVER: Final = ("203.0.113.1", "2001:db8:100::1")


@dataclass(slots=True, kw_only=True)
class Topology:
    """A network with two hosts and a STUN server that both use."""

    network: Network
    internet: Node
    one: Host
    other: Host
    stun: str
    """The server's URI."""
    expected: bool | None = None
    """Whether plain ICE connects, as `nat.rules` predict; None if they do not decide."""
    description: list[str] = field(default_factory=list)
    """The NATs and firewalls between the hosts, for people."""


def stun_server(network: Network, internet: Node, *, delay: int = 5 * MILLISECOND) -> str:
    """Add a host `stun` with a Binding server on IPv4 and IPv6. Return its URI."""
    host = network.host("stun", SERVER, internet, delay=delay)
    sockets = {network.flow_ids.new(): Address(address, STUN_PORT) for address in SERVER}
    host.run(Listening(BindingServer(trace=network.trace.at_node("stun", "stun")), sockets))
    return f"stun:{SERVER[0]}:{STUN_PORT}"


def between_nats(
    first: NatConfig | None,
    second: NatConfig | None,
    *,
    network: Network,
    delays: tuple[int, int] = (10 * MILLISECOND, 15 * MILLISECOND),
) -> Topology:
    """Build `alice` and `bob`, each behind a NAT with these options; None is a public address."""
    internet = network.router("internet")
    stun = stun_server(network, internet)
    hosts = []
    for number, (name, config) in enumerate((("alice", first), ("bob", second)), start=1):
        link = Profile(delay=delays[number - 1])
        if config is None:
            hosts.append(network.host(name, f"192.0.2.{number}", internet, link=link))
            continue
        prefix = f"10.0.{number}"
        nat = network.nat(
            f"nat-{name}", outside=internet, address=f"198.51.100.{number}", inside=f"{prefix}.0/24", config=config,
            link=link,
        )  # fmt: skip
        hosts.append(network.host(name, f"{prefix}.2", nat))
    return Topology(
        network=network,
        internet=internet,
        one=hosts[0],
        other=hosts[1],
        stun=stun,
        expected=expect(first, second).always if expect(first, second).sure else None,
        description=[config.label if config else "no NAT" for config in (first, second)],
    )


def random_nat(chance: random.Random) -> NatConfig:
    """Return random NAT options."""
    return NatConfig(
        mapping=chance.choice(list(Behavior)),
        filtering=chance.choice(list(Behavior)),
        filter_scope=chance.choice(list(FilterScope)),
        inbound_sessions=chance.random() < 0.25,
        ports=chance.choice(list(PortAssignment)),
        hairpinning=chance.choice(list(Hairpinning)),
        inbound_refresh=chance.random() < 0.5,
    )


def random_link(chance: random.Random, *, lossy: bool = False) -> Profile:
    """Return a random link: up to 250 ms each way, often with jitter, sometimes with duplication or reordering."""
    return Profile(
        delay=chance.choice((1, 5, 20, 50, 100, 250)) * MILLISECOND,
        jitter=chance.choice((0, 0, 5, 30)) * MILLISECOND,
        loss=chance.choice((0.0, 0.02, 0.1)) if lossy else 0.0,
        duplication=chance.choice((0.0, 0.0, 0.05)),
        reordering=chance.choice((0.0, 0.0, 0.1)),
    )


class _Builder:
    """Builds one side of a random topology below a router."""

    def __init__(self, network: Network, internet: Node, chance: random.Random, *, lossy: bool) -> None:
        self.network = network
        self.internet = internet
        self.chance = chance
        self.lossy = lossy

    def link(self) -> Profile:
        return random_link(self.chance, lossy=self.lossy)

    def public(self, name: str, number: int) -> tuple[Host, NatConfig | None, str]:
        return self.network.host(name, f"192.0.2.{number}", self.internet, link=self.link()), None, "no NAT"

    def walled(self, name: str, number: int) -> tuple[Host, NatConfig | None, str]:
        wall = self.network.firewall(f"wall-{name}", outside=self.internet, link=self.link())
        host = self.network.host(name, f"192.0.2.{number}", wall)
        return host, NatConfig(mapping=Behavior.EI, filtering=Behavior.APD), "a stateful firewall"

    def natted(self, name: str, number: int) -> tuple[Host, NatConfig | None, str]:
        config = random_nat(self.chance)
        nat = self.network.nat(
            f"nat-{name}", outside=self.internet, address=f"198.51.100.{number}", inside=f"10.0.{number}.0/24",
            config=config, link=self.link(),
        )  # fmt: skip
        return self.network.host(name, f"10.0.{number}.2", nat), config, f"a NAT {config.label}"


def random_topology(network: Network, *, lossy: bool = False) -> Topology:
    """Build a random topology: public hosts, NATs, firewalls, double NAT, one shared NAT, dual stack."""
    chance = network.chance_of("topology")
    internet = network.router("internet")
    stun = stun_server(network, internet, delay=random_link(chance).delay)
    build = _Builder(network, internet, chance, lossy=lossy)
    special: list[Callable[[_Builder, str], Topology]] = [
        _one_home,
        _carrier_grade,
        _dual_stack,
        _blocked,
        _two_interfaces,
    ]
    if chance.random() < 0.4:
        return chance.choice(special)(build, stun)
    kinds = [build.natted, build.natted, build.natted, build.walled, build.public]
    one, first, one_text = chance.choice(kinds)("alice", 1)
    other, second, other_text = chance.choice(kinds)("bob", 2)
    expectation = expect(first, second)
    return Topology(
        network=network, internet=internet, one=one, other=other, stun=stun,
        expected=expectation.always if expectation.sure else None, description=[one_text, other_text],
    )  # fmt: skip


def _one_home(build: _Builder, stun: str) -> Topology:
    """Put both hosts behind one NAT: their host candidates connect inside."""
    config = random_nat(build.chance)
    network = build.network
    nat = network.nat(
        "home", outside=build.internet, address="198.51.100.1", inside="10.0.0.0/24", config=config, link=build.link()
    )
    one, other = network.host("alice", "10.0.0.2", nat), network.host("bob", "10.0.0.3", nat)
    return _topology(build, one, other, stun, True, f"both behind a NAT {config.label}")


def _carrier_grade(build: _Builder, stun: str) -> Topology:
    """Put one host behind two NATs."""
    chance, network = build.chance, build.network
    outer, inner = random_nat(chance), random_nat(chance)
    carrier = network.nat(
        "carrier", outside=build.internet, address="198.51.100.1", inside="100.64.0.0/24", config=outer,
        link=build.link(),
    )  # fmt: skip
    home = network.nat("home", outside=carrier, address="100.64.0.2", inside="10.0.1.0/24", config=inner)
    one = network.host("alice", "10.0.1.2", home)
    other, second, text = build.natted("bob", 2) if chance.random() < 0.7 else build.public("bob", 2)
    expected = True if second is None else None
    return _topology(build, one, other, stun, expected, f"a NAT {inner.label} behind {outer.label}", text)


def _dual_stack(build: _Builder, stun: str) -> Topology:
    """Give both hosts IPv6 behind stateful firewalls and IPv4 behind random NATs."""
    hosts = []
    for number, name in enumerate(("alice", "bob"), start=1):
        nat = build.network.nat(
            f"nat-{name}", outside=build.internet, address=f"198.51.100.{number}",
            inside=(f"10.0.{number}.0/24", f"2001:db8:{number}::/64"), config=random_nat(build.chance),
            firewall=Firewall(), link=build.link(),
        )  # fmt: skip
        hosts.append(build.network.host(name, (f"10.0.{number}.2", f"2001:db8:{number}::2"), nat))
    return _topology(build, hosts[0], hosts[1], stun, True, "dual stack, both sides with a firewall for IPv6")


def _blocked(build: _Builder, stun: str) -> Topology:
    """Put one host behind a firewall that blocks UDP."""
    refusal = build.chance.choice(list(Refusal))
    wall = build.network.firewall(
        "wall", outside=build.internet, rules=(UDP_BLOCKED,), refusal=refusal, link=build.link()
    )
    one = build.network.host("alice", "192.0.2.1", wall)
    other, _, text = build.natted("bob", 2)
    return _topology(build, one, other, stun, False, f"UDP is blocked ({refusal.value})", text)


def _two_interfaces(build: _Builder, stun: str) -> Topology:
    """Give one host two interfaces, each behind a separate NAT."""
    network = build.network
    one, first, one_text = build.natted("alice", 1)
    config = random_nat(build.chance)
    cell = network.nat(
        "nat-cell", outside=build.internet, address="198.51.100.9", inside="10.0.9.0/24", config=config,
        link=build.link(),
    )  # fmt: skip
    network.attach(one, "10.0.9.2", cell, name="wwan0")
    other, second, other_text = build.natted("bob", 2)
    paths = [expect(first, second), expect(config, second)]
    expected = True if any(path.always for path in paths) else None if any(path.ever for path in paths) else False
    return _topology(build, one, other, stun, expected, f"{one_text} and a NAT {config.label}", other_text)


def _topology(build: _Builder, one: Host, other: Host, stun: str, expected: bool | None, *description: str) -> Topology:
    return Topology(
        network=build.network, internet=build.internet, one=one, other=other, stun=stun, expected=expected,
        description=list(description),
    )  # fmt: skip
