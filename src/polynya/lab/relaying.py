"""A TURN server in the virtual network, and agents that know it."""

from __future__ import annotations

from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND
from polynya.ice.config import IceConfig
from polynya.session.options import Policy, RelayServer, SessionConfig
from polynya.stun.uris import StunUri, TurnUri
from polynya.turn.server.config import RelayHost, TurnConfig
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.relay_server import RelayServer as TurnMachine
from polynya.turn.server.users import StaticUsers, User

from .network import Network
from .nodes import Node
from .processes import Process
from .programs import Listening
from .topologies import STUN_PORT, Topology

TURN_SERVER: Final = ("203.0.113.9", "2001:db8:100::9")
REALM: Final = "lab.example"
USER: Final = ("lab", "a password of the lab")
PEERS: Final = ("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32")
"""The lab's public addresses are documentation's, which no server relays to unless it is told so by name."""


def turn_server(network: Network, internet: Node, *, delay: int = 5 * MILLISECOND) -> Process:
    """A host `turn` with a TURN server on IPv4 and IPv6, in its default policy but for the lab's own addresses."""
    host = network.host("turn", TURN_SERVER, internet, delay=delay)
    users = StaticUsers(REALM, [User.with_password(USER[0], REALM, USER[1])])
    config = TurnConfig(
        realm=REALM,
        relays=tuple(RelayHost(host=each) for each in TURN_SERVER),
        policy=PeerPolicy(allow=PEERS),
    )
    machine = TurnMachine(
        config,
        users,
        network.flow_ids,
        random=network.chance_of("turn"),
        trace=network.trace.at_node("turn", "turn-server"),
    )
    sockets = {network.flow_ids.new(): Address(each, STUN_PORT) for each in TURN_SERVER}
    return host.run(Listening(machine, sockets))


def relayed_configs(topology: Topology, policy: Policy = Policy.ALL) -> tuple[SessionConfig, SessionConfig]:
    """Two agents that know the topology's STUN server and the TURN server; the first controls."""
    server = RelayServer(TurnUri.parse(f"turn:{TURN_SERVER[0]}"), *USER)
    one, other = (
        SessionConfig(
            ice=IceConfig(controlling=controlling),
            stun_servers=(StunUri.parse(topology.stun),),
            turn_servers=(server,),
            policy=policy,
        )
        for controlling in (True, False)
    )
    return one, other
