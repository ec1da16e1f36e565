"""TURN servers in the virtual network, and session options that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Transport
from polynya.core.instants import MILLISECOND, SECOND
from polynya.core.machine import Open
from polynya.ice.config import IceConfig
from polynya.session.options import Policy, SessionConfig, TurnCredentials
from polynya.stun.uris import StunUri, TurnUri
from polynya.turn.client.allocation import ALPN
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.server import TurnServer
from polynya.turn.server.users import (
    Directories,
    Directory,
    SharedSecrets,
    StaticUsers,
    User,
    time_limited_password,
)

from .hosts import Host
from .network import Network
from .nodes import Node
from .processes import Process
from .programs import Listening
from .topologies import Topology

TURN_SERVER: Final = ("203.0.113.9", "2001:db8:100::9")
REALM: Final = "lab.example"
USER: Final = ("lab", "a password of the lab")
SECRET: Final = "a secret of the lab"  # noqa: S105
PEERS: Final = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
"""The lab's public addresses. They are documentation ranges, which the peer policy denies without a rule."""
UNIX_TIME: Final = 1_800_000_000
"""The time of day at the virtual clock's zero, for time-limited credentials."""
LISTENERS: Final = (
    (Transport.UDP, 3478),
    (Transport.TCP, 3478),
    (Transport.TLS, 5349),
    (Transport.TLS, 443),
)


class TurnService:
    """A TURN server on a host. Its default peer policy also permits the lab's addresses.

    A second `start` loses all allocations, nonces and streams, as a restart of a real server does.
    """

    def __init__(
        self, host: Host, *, config: ServerConfig, directory: Directory, listeners: Sequence[tuple[Transport, int]]
    ) -> None:
        self.host = host
        self.config = config
        self.process: Process | None = None
        self.machine: TurnServer | None = None
        self._directory = directory
        self._listeners = tuple(listeners)
        self._starts = 0

    def start(self) -> TurnServer:
        """Start the server; a second time it is a new process without the state of the first."""
        host, network = self.host, self.host.network
        self._starts += 1
        random = network.chance_of(f"{host.name}/{self._starts}")
        self.machine = TurnServer(
            self.config,
            self._directory,
            Forwarder(network.flow_ids, random=random),
            random=random,
            trace=network.trace.at_node(host.name, "turn-server"),
        )
        self.machine.control.set_unix_time(UNIX_TIME + network.now // SECOND, now=network.now)
        opens = [
            Open(
                flow=network.flow_ids.new(),
                transport=transport,
                local=Address(relay.host, port),
                alpn=ALPN if transport.secure else (),
            )
            for relay in self.config.relays
            for transport, port in self._listeners
        ]
        self.process = host.run(Listening(self.machine, opens=opens))
        return self.machine

    def stop(self, *, silently: bool = False) -> None:
        """End the server as a crash does; with `silently` as a power failure does, without closing streams."""
        if self.process is not None:
            self.process.stop(silently=silently)

    @property
    def allocations(self) -> int:
        """Number of allocations."""
        return 0 if self.machine is None else len(self.machine.control.allocations.by_client)


def turn_server(
    network: Network,
    internet: Node,
    *,
    name: str = "turn",
    addresses: Sequence[str] = TURN_SERVER,
    delay: int = 5 * MILLISECOND,
    listeners: Sequence[tuple[Transport, int]] = LISTENERS,
    directory: Directory | None = None,
    config: ServerConfig | None = None,
) -> TurnService:
    """Make a host with a running TURN server: UDP, TCP and TLS on each of its addresses."""
    host = network.host(name, addresses, internet, delay=delay)
    relays = tuple(RelayHost(host=each) for each in addresses)
    if config is None:
        config = ServerConfig(realm=REALM, relays=relays, policy=PeerPolicy(allow=PEERS))
    else:
        config = replace(config, relays=relays)
    users = StaticUsers(REALM, [User.with_password(*_named(USER))])
    service = TurnService(host, config=config, directory=directory or users, listeners=listeners)
    service.start()
    return service


def expiring_users() -> Directory:
    """Return a directory with the lab's user and with time-limited credentials of the lab's secret."""
    users = StaticUsers(REALM, [User.with_password(*_named(USER))])
    return Directories([SharedSecrets(REALM, [SECRET]), users])


def time_limited(network: Network, seconds: int, name: str = "guest") -> tuple[str, str]:
    """Return a user name and password that expire in this many seconds."""
    username = f"{UNIX_TIME + network.now // SECOND + seconds}:{name}"
    return username, time_limited_password(username, SECRET.encode())


def relay(uri: str = f"turn:{TURN_SERVER[0]}", user: tuple[str, str] = USER) -> TurnCredentials:
    """Return a TURN server with credentials, as an option of a session."""
    return TurnCredentials(TurnUri.parse(uri), *user)


def relayed_configs(
    topology: Topology, policy: Policy = Policy.ALL, servers: Sequence[TurnCredentials] | None = None
) -> tuple[SessionConfig, SessionConfig]:
    """Return the options of two agents with the topology's STUN server and TURN servers; the first is controlling."""
    one, other = (
        SessionConfig(
            ice=IceConfig(controlling=controlling),
            stun_servers=(StunUri.parse(topology.stun),),
            turn_servers=(relay(),) if servers is None else tuple(servers),
            policy=policy,
        )
        for controlling in (True, False)
    )
    return one, other


def _named(user: tuple[str, str]) -> tuple[str, str, str]:
    return user[0], REALM, user[1]
