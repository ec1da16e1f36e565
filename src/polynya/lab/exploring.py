"""Random networks with TURN servers. Two agents must connect in each one, directly exactly where `nat.rules` allow it.

net = Network(seed)
made = random_relayed(net)
made.topology.expected     True: directly; False: through a relay; None: depends on the order of events
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from polynya.core.flows import Transport
from polynya.core.instants import MILLISECOND
from polynya.core.packets import Protocol
from polynya.session.options import SessionConfig, TurnCredentials

from .firewall import UDP_BLOCKED, Refusal, Rule
from .network import Network
from .relaying import TURN_SERVER, TurnService, relay, relayed_configs, turn_server
from .topologies import Topology, random_link, random_topology, stun_server

ONLY_443 = (
    UDP_BLOCKED,
    Rule(allow=True, outward=True, protocol=Protocol.TCP, remote_ports=(443, 443)),
    Rule(allow=False, outward=True, protocol=Protocol.TCP, name="only TCP port 443 is open"),
)
_SECOND = ("203.0.113.10", "2001:db8:100::10")
_DEAD = "203.0.113.77"
_TURN_URIS = (
    (Transport.UDP, "turn:{}"),
    (Transport.TCP, "turn:{}?transport=tcp"),
    (Transport.TLS, "turns:{}"),
    (Transport.TLS, "turns:{}:443"),
)


@dataclass(slots=True, kw_only=True)
class Relayed:
    """A network with TURN servers, and the options of two agents that use them."""

    topology: Topology
    services: list[TurnService]
    servers: list[TurnCredentials]
    configs: tuple[SessionConfig, SessionConfig]
    signaling_delay: int
    signaling_jitter: int = 0
    later: int = 0
    renomination: bool = False
    """Whether both agents may renominate."""
    description: list[str] = field(default_factory=list)

    @property
    def allocations(self) -> int:
        return sum(service.allocations for service in self.services)


def random_relayed(network: Network, *, lossy: bool = False) -> Relayed:
    """Build a random topology with one or two reachable TURN servers, and sometimes one that is down."""
    chance = network.chance_of("relays")
    blocked, closed = "", 0  # the firewall blocks the first `closed` URIs
    if chance.random() < 0.15:
        topology, blocked, closed = _walled(network, chance, lossy=lossy)
    else:
        topology = random_topology(network, lossy=lossy)
        closed = 1 if any("UDP is blocked" in each for each in topology.description) else 0
    patterns = [pattern for _, pattern in _TURN_URIS]
    known = chance.sample(patterns, chance.choice((1, 1, 1, 2, 2, 4)))
    if all(pattern in patterns[:closed] for pattern in known):
        known.append(chance.choice(patterns[closed:]))
    hosts = [TURN_SERVER] + ([_SECOND] if chance.random() < 0.25 else [])
    services, uris = [], []
    for number, addresses in enumerate(hosts, start=1):
        delay = random_link(chance).delay
        services.append(turn_server(network, topology.internet, name=f"turn{number}", addresses=addresses, delay=delay))
        uris += [pattern.format(addresses[0]) for pattern in known]
    if chance.random() < 0.15:
        network.host("dead", _DEAD, topology.internet).silent = True
        uris.append(chance.choice(patterns).format(_DEAD))
    chance.shuffle(uris)
    servers = [relay(uri) for uri in uris]
    slow = chance.choice((1, 20, 200, 1000)) * MILLISECOND
    renomination = slow > 500 * MILLISECOND or chance.random() < 0.25
    configs = relayed_configs(topology, servers=servers)
    if not renomination:
        configs = _nominating_once(configs[0]), _nominating_once(configs[1])
    return Relayed(
        topology=topology,
        services=services,
        servers=servers,
        configs=configs,
        signaling_delay=slow,
        signaling_jitter=chance.choice((0, 0, 100)) * MILLISECOND,
        later=chance.choice((0, 0, 500, 5000)) * MILLISECOND,
        renomination=renomination,
        description=[*topology.description, *([blocked] if blocked else []), *uris],
    )


def _walled(network: Network, chance: random.Random, *, lossy: bool) -> tuple[Topology, str, int]:
    """Put one or both hosts behind a strict firewall. The last value is how many TURN URIs the firewall blocks."""
    internet = network.router("internet")
    stun = stun_server(network, internet, delay=random_link(chance).delay)
    rules, closed = chance.choice((((UDP_BLOCKED,), 1), (ONLY_443, 3)))
    refusal = chance.choice(list(Refusal))
    both = chance.random() < 0.5
    hosts = []
    for number, name in enumerate(("alice", "bob"), start=1):
        own: Sequence[Rule] = rules if both or number == 1 else ()
        link = random_link(chance, lossy=lossy)
        wall = network.firewall(f"wall-{name}", outside=internet, rules=own, refusal=refusal, link=link)
        hosts.append(network.host(name, f"192.0.2.{number}", wall))
    described = f"{'both' if both else 'one'}: {rules[-1]} ({refusal.value})"
    made = Topology(
        network=network,
        internet=internet,
        one=hosts[0],
        other=hosts[1],
        stun=stun,
        expected=False,
        description=[described],
    )
    return made, described, closed


def _nominating_once(config: SessionConfig) -> SessionConfig:
    return replace(config, ice=replace(config.ice, renomination=None))
