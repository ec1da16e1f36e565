"""The relays of the portable plane: carries out commands, and makes the routes of packets by all the rules.

    command --> Port, permissions, channels          every command about a port removes its routes
    packet  --> PeerRoute or ClientRoute, cached     checked by all rules when it is made, then used until it expires

A peer may be a live relay of this server, in this worker or another one. Clients may use its bound or its external
address. Datagrams are sent to the bound address; the client sees the external address as the peer.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow
from polynya.turn.server.commands import (
    AssignRelay,
    BindChannel,
    Client,
    Command,
    Done,
    FreeRelay,
    OpenRelay,
    Peer,
    PeerForbidden,
    Permit,
    Refused,
    Relay,
    Report,
    SetExpiry,
    SetPolicy,
    Unpermit,
)
from polynya.turn.server.meters import Meters
from polynya.turn.server.policy import PeerPolicy

from .ports import ClientRoute, PeerRoute, Port
from .sockets import SockAddr, address_of, bind_relay, name_of

PEERS: Final = 1024
"""Routes that a relay caches in each direction; beyond that all are removed and made again."""
NEIGHBORS: Final = 8192
"""Endpoints on the relays' own hosts whose routes are remembered."""


class _LiveRelay:
    """A live relay of this server, in this worker or another one."""

    __slots__ = ("bound", "external", "routes")

    def __init__(self, bound: Address, external: Address) -> None:
        self.bound = bound
        self.external = external
        self.routes: list[PeerRoute] = []
        """Routes to it; they end with it."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Its bound address, and its external one if that differs."""
        return (self.bound,) if self.bound == self.external else (self.bound, self.external)


class Relays:
    """Carries out commands and makes routes. Every relay socket is registered with `epoll`."""

    def __init__(self, listeners: Mapping[Flow, socket.socket], epoll: select.epoll, *, errors: bool) -> None:
        self.ports: dict[Relay, Port] = {}
        self.by_fd: dict[int, Port] = {}
        self.by_client: dict[Client, dict[int, Port]] = {}
        self.peer_routes: dict[tuple[SockAddr, object], PeerRoute] = {}
        """Routes by the client's socket address and the channel number, or the XOR-PEER-ADDRESS of a Send."""
        self.reports: Queue[Report] = Queue()
        self.counters: dict[str, int] = {}
        self._listeners = listeners
        self._epoll = epoll
        self._errors = errors
        self._policy: PeerPolicy | None = None
        self._meters = Meters()
        self._live: dict[tuple[str, int], _LiveRelay] = {}
        self._own_hosts: dict[str, int] = {}
        self._neighbors: dict[tuple[str, int], list[PeerRoute | ClientRoute]] = {}
        """Routes of peers that share a host with the relays; they end when a relay is opened at that address."""

    # -------------------------------------------------------------------------------------------------------- commands

    def execute(self, command: Command, sock: socket.socket | None = None) -> None:
        """Carry out a command and acknowledge it. `sock` is the socket of a relay that another process has bound."""
        number = command.number
        if isinstance(command, OpenRelay):
            self._open(command, sock)
            return
        if isinstance(command, SetPolicy):
            self._policy = command.policy
            for each in self.ports.values():
                self._remove_routes(each)
            self.reports.append(Done(number))
            return
        port = self.ports.get(command.relay)
        if isinstance(command, FreeRelay):
            if port is not None:
                self.drop(port)
            self.reports.append(Done(number))
            return
        if port is None:
            self.reports.append(Refused(number, "there is no such relay"))
            return
        self._remove_routes(port)
        if isinstance(command, AssignRelay):
            port.until = command.until
            port.limit(command.bytes_per_second, self._meters.of(command.shared))
            self._assign(port, command.client, stream=command.stream)
        elif isinstance(command, SetExpiry):
            port.until = command.until
        elif isinstance(command, Permit):
            port.permissions.update(dict.fromkeys(command.hosts, command.until))
        elif isinstance(command, Unpermit):
            for host in command.hosts:
                port.permissions.pop(host, None)
        elif isinstance(command, BindChannel):
            for each in self.by_client.get(port.client, {}).values() if port.client is not None else ():
                each.unbind(command.channel)  # a number is bound to one peer, of either family
            port.unbind(port.peers.get(command.peer, 0))
            port.channels[command.channel] = command.peer, command.until
            port.peers[command.peer] = command.channel
        else:
            port.unbind(command.channel)
        self.reports.append(Done(number))

    def add_live(self, relay: Relay, external: Address) -> None:
        """Add a live relay of this server, here or in another worker."""
        self.remove_live(relay)  # it may have moved here from another worker
        live = _LiveRelay(relay, external)
        for host, port, _ in live.addresses:
            self._live[host, port] = live
            self._own_hosts[host] = self._own_hosts.get(host, 0) + 1
            for each in self._neighbors.pop((host, port), ()):
                each.until = 0

    def remove_live(self, relay: Relay) -> None:
        """Remove a live relay with every route to it."""
        live = self._live.get((relay.host, relay.port))
        if live is None:
            return
        for route in live.routes:
            route.until = 0
        for host, port, _ in live.addresses:
            self._live.pop((host, port), None)
            if self._own_hosts[host] == 1:
                del self._own_hosts[host]
            else:
                self._own_hosts[host] -= 1

    def drop(self, port: Port, *, close: bool = True) -> None:
        """Remove a port, close its socket and report its traffic."""
        self._remove_routes(port)
        self.reports.append(port.count())
        del self.ports[port.relay], self.by_fd[port.sock.fileno()]
        self.remove_live(port.relay)
        ports = self.by_client.get(port.client) if port.client is not None else None
        if ports is not None and port.client is not None and ports.get(port.relay.family) is port:
            del ports[port.relay.family]
            if not ports:
                del self.by_client[port.client]
        self._epoll.unregister(port.sock.fileno())
        if close:
            port.sock.close()

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table, to show leaks."""
        return {
            "relays": len(self.ports) + len(self.by_fd),
            "clients": len(self.by_client),
            "names": len(self._live) + len(self._own_hosts),
            "routes": len(self.peer_routes),
            "neighbors": len(self._neighbors) if self.ports else 0,
            "watched routes": self._watched() if self.ports else 0,
            "permissions": sum(len(port.permissions) for port in self.ports.values()),
            "channels": sum(len(port.channels) for port in self.ports.values()),
        }

    def _watched(self) -> int:
        """Return the number of cached routes that a relay at their peer's address changes."""
        live = {id(each): each for each in self._live.values()}
        return sum(len(each.routes) for each in live.values()) + sum(map(len, self._neighbors.values()))

    def _open(self, command: OpenRelay, sock: socket.socket | None) -> None:
        if command.relay in self.ports:
            self.reports.append(Refused(command.number, "the relay is open already"))
            return
        try:
            bound = sock if sock is not None else bind_relay(command.relay, errors=self._errors)
        except OSError as error:
            self.reports.append(Refused(command.number, error.strerror or str(error), error.errno))
            return
        self._epoll.register(bound.fileno(), select.EPOLLIN)
        port = Port(command, bound, self._meters.of(command.shared))
        self.ports[command.relay] = self.by_fd[bound.fileno()] = port
        self.add_live(command.relay, command.external)
        if command.client is not None:
            self._assign(port, command.client, stream=command.stream)
        self.reports.append(Done(command.number))

    def _assign(self, port: Port, client: Client, *, stream: bool) -> None:
        port.client, port.stream = client, stream
        listener = self._listeners.get(client.flow)
        if listener is not None:
            port.sendto = listener.sendto
            port.name = name_of(client.remote)
        self.by_client.setdefault(client, {})[port.relay.family] = port

    def _remove_routes(self, port: Port) -> None:
        """Remove the routes of a port; its next packets are checked by all rules."""
        port.count()
        for key, route in port.peer_routes.items():
            route.until = 0
            self.peer_routes.pop(key, None)
        for back in port.client_routes.values():
            back.until = 0
        port.peer_routes.clear()
        port.client_routes.clear()

    # ---------------------------------------------------------------------------------------------------------- routes

    def peer_route(self, port: Port, peer: Peer, at: int) -> PeerRoute | None:
        """Make the route to a peer by all rules; None, counted as a drop, if a rule refuses it."""
        permitted = port.permissions.get(peer.host, 0)
        if at >= port.until:
            self.refuse(port, "allocation expired")
            return None
        if permitted <= at:
            self.refuse(port, "no permission to peer")
            return None
        live = self._live.get((peer.host, peer.port))
        if live is None:
            if rule := self.forbidden(peer):
                self.forbid(port, peer, rule)
                return None
            return PeerRoute(port, name_of(peer), min(permitted, port.until))
        return PeerRoute(port, name_of(live.bound), min(permitted, port.until))

    def cache(self, port: Port, key: tuple[SockAddr, object], peer: Peer, route: PeerRoute, at: int) -> None:
        """Cache a route for the next packets with this key, until a relay at the peer's address opens or ends."""
        live = self._live.get((peer.host, peer.port))
        if live is None:
            self._note_neighbor(peer, route, at)
        else:
            live.routes = [each for each in live.routes if each.until > at]
            live.routes.append(route)
        if len(port.peer_routes) >= PEERS:
            self._remove_routes(port)
        old = port.peer_routes.get(key)
        if old is not None:
            port.count_peer_route(old)
        self.peer_routes[key] = port.peer_routes[key] = route

    def client_route(self, port: Port, source: SockAddr, at: int) -> ClientRoute | None:
        """Make and cache the route from a peer by all rules; None, counted as a drop, if a rule refuses it."""
        peer, live = self.peer_at(source)
        permitted = port.permissions.get(peer.host, 0)
        if port.client is None or at >= port.until:
            self.refuse(port, "no allocation")
            return None
        if permitted <= at:
            self.refuse(port, "no permission from peer")
            return None
        if not live and (rule := self.forbidden(peer)):
            self.forbid(port, peer, rule)
            return None
        until, channel = min(port.until, permitted), port.peers.get(peer, 0)
        if channel:
            bound = port.channels[channel][1]
            if at < bound:
                until = min(until, bound)
            else:
                channel = 0
        if len(port.client_routes) >= PEERS:
            self._remove_routes(port)
        elif (old := port.client_routes.get(source)) is not None:
            port.count_client_route(old)
        route = port.client_routes[source] = ClientRoute(port, peer, channel, until)
        if not live:
            self._note_neighbor(peer, route, at)
        return route

    def _note_neighbor(self, peer: Peer, route: PeerRoute | ClientRoute, at: int) -> None:
        if peer.host not in self._own_hosts:
            return
        if len(self._neighbors) >= NEIGHBORS:
            for routes in self._neighbors.values():
                for each in routes:
                    each.until = 0
            self._neighbors.clear()
        routes = self._neighbors.setdefault((peer.host, peer.port), [])
        routes[:] = [each for each in routes if each.until > at]
        routes.append(route)

    def peer_at(self, source: SockAddr) -> tuple[Peer, bool]:
        """Return the address of a peer as clients see it, and whether it is a live relay of this server."""
        address = address_of(source)
        live = self._live.get((address.host, address.port))
        return Peer(live.external if live is not None else address), live is not None

    def forbidden(self, peer: Peer) -> str:
        """Return why the peer policy denies a peer, or ""."""
        return self._policy.judge(peer) if self._policy is not None else "no peer policy is set"

    def refuse(self, port: Port, reason: str) -> None:
        """Count a datagram that a port drops."""
        port.traffic.drop(reason)
        self.count(reason)

    def forbid(self, port: Port, peer: Peer, rule: str) -> None:
        """Drop a datagram that the peer policy denies, and report the first of each relay."""
        self.refuse(port, "peer denied by policy")
        if not port.forbidden_reported:
            port.forbidden_reported = True
            self.reports.append(PeerForbidden(relay=port.relay, peer=peer, rule=rule))

    def count(self, name: str) -> None:
        """Count an event by its name."""
        self.counters[name] = self.counters.get(name, 0) + 1
