"""Networks to meet in: two agents and a STUN server, between them what the scenario or the seed puts there."""

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
    """Two hosts and the STUN server that both know."""

    network: Network
    internet: Node
    one: Host
    other: Host
    stun: str
    """The server's URI."""
    expected: bool | None = None
    """Whether plain ICE must connect, as the rules of `nat.rules` imply; None where they do not decide."""
    description: list[str] = field(default_factory=list)
    """What stands between, for people."""


def stun_server(network: Network, internet: Node, *, delay: int = 5 * MILLISECOND) -> str:
    """A host `stun` with a Binding server on IPv4 and IPv6; its URI."""
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
    """`alice` and `bob`, each behind a NAT of the given kind, or in the open where it is None."""
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
    """Any kind of NAT, each choice as likely as the others."""
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
    """A link with up to 250 ms each way, often with jitter, sometimes duplicating or reordering."""
    return Profile(
        delay=chance.choice((1, 5, 20, 50, 100, 250)) * MILLISECOND,
        jitter=chance.choice((0, 0, 5, 30)) * MILLISECOND,
        loss=chance.choice((0.0, 0.02, 0.1)) if lossy else 0.0,
        duplication=chance.choice((0.0, 0.0, 0.05)),
        reordering=chance.choice((0.0, 0.0, 0.1)),
    )


class _Builder:
    """Hangs one side below a router."""

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
    """What the seed makes: hosts in the open, behind NATs, firewalls, two NATs, one common NAT, dual stack."""
    chance = network.chance_of("topology")
    internet = network.router("internet")
    stun = stun_server(network, internet, delay=random_link(chance).delay)
    build = _Builder(network, internet, chance, lossy=lossy)
    special: list[Callable[[_Builder, str], Topology]] = [_one_home, _carrier_grade, _dual_stack, _blocked, _two_ways]
    if chance.random() < 0.4:
        return chance.choice(special)(build, stun)
    kinds = [build.natted, build.natted, build.natted, build.walled, build.public]
    one, first, what = chance.choice(kinds)("alice", 1)
    other, second, that = chance.choice(kinds)("bob", 2)
    expectation = expect(first, second)
    return Topology(
        network=network, internet=internet, one=one, other=other, stun=stun,
        expected=expectation.always if expectation.sure else None, description=[what, that],
    )  # fmt: skip


def _one_home(build: _Builder, stun: str) -> Topology:
    """Both behind one NAT: their host candidates meet inside."""
    config = random_nat(build.chance)
    network = build.network
    nat = network.nat(
        "home", outside=build.internet, address="198.51.100.1", inside="10.0.0.0/24", config=config, link=build.link()
    )
    one, other = network.host("alice", "10.0.0.2", nat), network.host("bob", "10.0.0.3", nat)
    return _topology(build, one, other, stun, True, f"both behind a NAT {config.label}")


def _carrier_grade(build: _Builder, stun: str) -> Topology:
    """One side behind a NAT behind a NAT."""
    chance, network = build.chance, build.network
    outer, inner = random_nat(chance), random_nat(chance)
    carrier = network.nat(
        "carrier", outside=build.internet, address="198.51.100.1", inside="100.64.0.0/24", config=outer,
        link=build.link(),
    )  # fmt: skip
    home = network.nat("home", outside=carrier, address="100.64.0.2", inside="10.0.1.0/24", config=inner)
    one = network.host("alice", "10.0.1.2", home)
    other, second, what = build.natted("bob", 2) if chance.random() < 0.7 else build.public("bob", 2)
    expected = True if second is None else None
    return _topology(build, one, other, stun, expected, f"a NAT {inner.label} behind {outer.label}", what)


def _dual_stack(build: _Builder, stun: str) -> Topology:
    """Both have IPv6 behind stateful firewalls, and IPv4 behind whatever NAT."""
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
    """One side may send no UDP at all."""
    refusal = build.chance.choice(list(Refusal))
    wall = build.network.firewall(
        "wall", outside=build.internet, rules=(UDP_BLOCKED,), refusal=refusal, link=build.link()
    )
    one = build.network.host("alice", "192.0.2.1", wall)
    other, _, what = build.natted("bob", 2)
    return _topology(build, one, other, stun, False, f"UDP is blocked ({refusal.value})", what)


def _two_ways(build: _Builder, stun: str) -> Topology:
    """One side has two interfaces, each behind a NAT of its own."""
    network = build.network
    one, first, what = build.natted("alice", 1)
    config = random_nat(build.chance)
    cell = network.nat(
        "nat-cell", outside=build.internet, address="198.51.100.9", inside="10.0.9.0/24", config=config,
        link=build.link(),
    )  # fmt: skip
    network.attach(one, "10.0.9.2", cell, name="wwan0")
    other, second, that = build.natted("bob", 2)
    ways = [expect(first, second), expect(config, second)]
    expected = True if any(way.always for way in ways) else None if any(way.ever for way in ways) else False
    return _topology(build, one, other, stun, expected, f"{what} and a NAT {config.label}", that)


def _topology(build: _Builder, one: Host, other: Host, stun: str, expected: bool | None, *description: str) -> Topology:
    return Topology(
        network=build.network, internet=build.internet, one=one, other=other, stun=stun, expected=expected,
        description=list(description),
    )  # fmt: skip
