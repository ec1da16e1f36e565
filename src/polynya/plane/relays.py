"""The relay ports of the portable plane: what the commands made of them, and the ways that packets may take.

    command --> Port, permissions, channels          asked for, with all rules, when a way is not known
    packet  --> Way or Back, kept until its end      thrown away by every command about its port

A peer that is a live relay of this server, in this worker or another, is known by both its names. It is sent to under
the one that it is bound to, and called by the other.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from typing import Final

from polynya.core.addresses import Address
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
from polynya.turn.server.policy import PeerPolicy

from .ports import Back, Port, Way
from .sockets import SockAddr, address_of, bind_relay, name_of

PEERS: Final = 1024
"""Peers and channels of one relay that are remembered; beyond that they are forgotten and found again."""
NEIGHBORS: Final = 8192
"""Endpoints on our relays' own hosts that are remembered."""


class _Known:
    """A live relay of this server, here or in another worker."""

    __slots__ = ("external", "name", "ways")

    def __init__(self, name: Address, external: Address) -> None:
        self.name = name
        self.external = external
        self.ways: list[Way] = []
        """Those that lead to it: they end with it."""

    @property
    def names(self) -> tuple[Address, ...]:
        """Inside and outside, where they differ."""
        return (self.name,) if self.name == self.external else (self.name, self.external)


class Relays:
    """Carries out commands and finds ways. Every relay socket is registered with `epoll`."""

    def __init__(self, listeners: Mapping[Flow, socket.socket], epoll: select.epoll, *, errors: bool) -> None:
        self.ports: dict[Relay, Port] = {}
        self.by_fd: dict[int, Port] = {}
        self.by_client: dict[Client, dict[int, Port]] = {}
        self.ways: dict[tuple[SockAddr, object], Way] = {}
        """From clients to peers, by the client's socket address and a channel, or the XOR-PEER-ADDRESS of a Send."""
        self.reports: list[Report] = []
        self.counters: dict[str, int] = {}
        self._listeners = listeners
        self._epoll = epoll
        self._errors = errors
        self._policy: PeerPolicy | None = None
        self._known: dict[tuple[str, int], _Known] = {}
        self._own_hosts: dict[str, int] = {}
        self._neighbors: dict[tuple[str, int], list[Way | Back]] = {}
        """Ways to and from what shares a host with our relays and is none: they end when one is opened there."""

    # -------------------------------------------------------------------------------------------------------- commands

    def execute(self, command: Command, sock: socket.socket | None = None) -> None:
        """Carry out a command and acknowledge it. `sock` is a relay's socket that somebody else has bound."""
        number = command.number
        if isinstance(command, OpenRelay):
            self._open(command, sock)
            return
        if isinstance(command, SetPolicy):
            self._policy = command.policy
            for each in self.ports.values():
                self._flush(each)
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
        self._flush(port)
        if isinstance(command, AssignRelay):
            port.until = command.until
            port.limit(command.bytes_per_second)
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
                each.unbind(command.channel)  # a number stands for one peer, of whatever family
            port.unbind(port.peers.get(command.peer, 0))
            port.channels[command.channel] = command.peer, command.until
            port.peers[command.peer] = command.channel
        else:
            port.unbind(command.channel)
        self.reports.append(Done(number))

    def know(self, relay: Relay, external: Address) -> None:
        """A relay is live, here or in another worker: clients may reach it by either name."""
        self.forget(relay)  # what another worker had may have moved here
        known = _Known(relay, external)
        for host, port, _ in known.names:
            self._known[host, port] = known
            self._own_hosts[host] = self._own_hosts.get(host, 0) + 1
            for each in self._neighbors.pop((host, port), ()):
                each.until = 0

    def forget(self, relay: Relay) -> None:
        """A relay is live no more, and every way to it ends."""
        known = self._known.get((relay.host, relay.port))
        if known is None:
            return
        for way in known.ways:
            way.until = 0
        for host, port, _ in known.names:
            self._known.pop((host, port), None)
            if self._own_hosts[host] == 1:
                del self._own_hosts[host]
            else:
                self._own_hosts[host] -= 1

    def drop(self, port: Port, *, close: bool = True) -> None:
        """Forget a port, close its socket and report what it carried."""
        self._flush(port)
        self.reports.append(port.count())
        del self.ports[port.relay], self.by_fd[port.sock.fileno()]
        self.forget(port.relay)
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
        """How much of everything is held: nothing may leak."""
        return {
            "relays": len(self.ports) + len(self.by_fd),
            "clients": len(self.by_client),
            "names": len(self._known) + len(self._own_hosts),
            "ways": len(self.ways),
            "neighbors": len(self._neighbors) if self.ports else 0,
            "permissions": sum(len(port.permissions) for port in self.ports.values()),
            "channels": sum(len(port.channels) for port in self.ports.values()),
        }

    def _open(self, command: OpenRelay, sock: socket.socket | None) -> None:
        if command.relay in self.ports:
            self.reports.append(Refused(command.number, "the relay is open"))
            return
        try:
            bound = sock if sock is not None else bind_relay(command.relay, errors=self._errors)
        except OSError as error:
            self.reports.append(Refused(command.number, error.strerror or str(error), error.errno))
            return
        self._epoll.register(bound.fileno(), select.EPOLLIN)
        port = Port(command, bound)
        self.ports[command.relay] = self.by_fd[bound.fileno()] = port
        self.know(command.relay, command.external)
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

    def _flush(self, port: Port) -> None:
        """Forget what was derived for a port; its next packets ask all the rules."""
        port.count()
        for key, way in port.keys.items():
            way.until = 0
            self.ways.pop(key, None)
        for back in port.backs.values():
            back.until = 0
        port.keys.clear()
        port.backs.clear()

    # ------------------------------------------------------------------------------------------------------------ ways

    def way(self, port: Port, peer: Peer, at: int) -> Way | None:
        """A way to a peer with all rules asked; None, and counted, when there is none."""
        permitted = port.permissions.get(peer.host, 0)
        if at >= port.until:
            self.refuse(port, "the allocation has expired")
            return None
        if permitted <= at:
            self.refuse(port, "no permission")
            return None
        known = self._known.get((peer.host, peer.port))
        if known is None:
            if rule := self.forbidden(peer):
                self.forbid(port, peer, rule)
                return None
            way = Way(port, name_of(peer), min(permitted, port.until))
            self._note_neighbor(peer, way, at)
            return way
        way = Way(port, name_of(known.name), min(permitted, port.until))
        known.ways = [each for each in known.ways if each.until > at]
        known.ways.append(way)
        return way

    def keep(self, port: Port, key: tuple[SockAddr, object], way: Way) -> None:
        """Let the next packets take this way."""
        if len(port.keys) >= PEERS:
            self._flush(port)
        old = port.keys.get(key)
        if old is not None:
            port.settle(old)
        self.ways[key] = port.keys[key] = way

    def back(self, port: Port, source: SockAddr, at: int) -> Back | None:
        """The way back from a peer with all rules asked; None, and counted, when there is none."""
        peer, inside = self.called(source)
        permitted = port.permissions.get(peer.host, 0)
        if port.client is None or at >= port.until:
            self.refuse(port, "nobody has this relay now")
            return None
        if permitted <= at:
            self.refuse(port, "no permission for the peer")
            return None
        if not inside and (rule := self.forbidden(peer)):
            self.forbid(port, peer, rule)
            return None
        until, channel = min(port.until, permitted), port.peers.get(peer, 0)
        if channel:
            bound = port.channels[channel][1]
            if at < bound:
                until = min(until, bound)
            else:
                channel = 0
        if len(port.backs) >= PEERS:
            self._flush(port)
        elif (old := port.backs.get(source)) is not None:
            port.settle_back(old)
        back = port.backs[source] = Back(port, peer, channel, until)
        if not inside:
            self._note_neighbor(peer, back, at)
        return back

    def _note_neighbor(self, peer: Peer, way: Way | Back, at: int) -> None:
        if peer.host not in self._own_hosts:
            return
        if len(self._neighbors) >= NEIGHBORS:
            for ways in self._neighbors.values():
                for each in ways:
                    each.until = 0
            self._neighbors.clear()
        ways = self._neighbors.setdefault((peer.host, peer.port), [])
        ways[:] = [each for each in ways if each.until > at]
        ways.append(way)

    def called(self, source: SockAddr) -> tuple[Peer, bool]:
        """What a client calls this source, and whether that is a live relay of this server."""
        address = address_of(source)
        known = self._known.get((address.host, address.port))
        return Peer(known.external if known is not None else address), known is not None

    def forbidden(self, peer: Peer) -> str:
        """Why the rules forbid a peer, or ""."""
        return self._policy.judge(peer) if self._policy is not None else "no rules yet"

    def refuse(self, port: Port, reason: str) -> None:
        """Count a packet that a port does not let through."""
        port.traffic.drop(reason)
        self.count(reason)

    def forbid(self, port: Port, peer: Peer, rule: str) -> None:
        """Count a packet that a rule forbids, and tell the first time."""
        self.refuse(port, "forbidden peer")
        if not port.forbade:
            port.forbade = True
            self.reports.append(PeerForbidden(relay=port.relay, peer=peer, rule=rule))

    def count(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1
