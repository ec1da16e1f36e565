"""Relay ports of the portable plane, and the routes that the next packets of a port take.

A route caches all that a packet needs: the socket, the destination, and the time until which the result of the checks
holds. The rules that make routes are in `relays`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from polynya.core.instants import SECOND, Instant
from polynya.turn.server.commands import OpenRelay, Peer, Traffic
from polynya.turn.server.frames import HEADERS
from polynya.turn.server.meters import Meter

from .sockets import SockAddr


class PeerRoute:
    """The route from a client to one peer."""

    __slots__ = ("bytes", "limited", "name", "packets", "port", "sendto", "until")

    def __init__(self, port: Port, name: SockAddr, until: int) -> None:
        self.port = port
        self.sendto = port.sock.sendto
        self.name = name
        self.until = until
        self.limited = port.limited
        self.packets = 0
        self.bytes = 0


class ClientRoute:
    """The route from one peer to the client: by a channel, or by Data indications if `channel` is 0."""

    __slots__ = ("bytes", "channel", "limited", "packets", "peer", "sendto", "until")

    def __init__(self, port: Port, peer: Peer, channel: int, until: int) -> None:
        self.peer = peer
        self.channel = channel
        self.until = until
        self.limited = port.limited
        self.sendto = port.sendto if channel and not self.limited else None
        """Sends ChannelData to the client; None if a datagram needs a rate check, a Data indication or a stream."""
        self.packets = 0
        self.bytes = 0


class Port:
    """A relay port with its socket."""

    __slots__ = (
        "batch", "channels", "client", "client_routes", "external", "forbidden_reported", "full_again", "interval",
        "meter", "name", "peer_routes", "peers", "permissions", "receive", "relay", "round", "sendto", "sock", "stream",
        "traffic", "until",
    )  # fmt: skip

    def __init__(self, command: OpenRelay, sock: socket.socket, meter: Meter | None) -> None:
        self.relay = command.relay
        self.external = command.external
        self.sock = sock
        self.receive = sock.recvfrom_into
        self.client = command.client
        self.stream = command.stream
        self.until = command.until
        self.sendto: Callable[[memoryview | bytes, SockAddr], int] | None = None
        """Sends to the client by its listener; None for a client on a stream."""
        self.name: SockAddr = ()
        """Socket address of the client."""
        self.permissions: dict[str, Instant] = {}
        self.channels: dict[int, tuple[Peer, Instant]] = {}
        self.peers: dict[Peer, int] = {}
        """Channel numbers by peer."""
        self.peer_routes: dict[tuple[SockAddr, object], PeerRoute] = {}
        self.client_routes: dict[SockAddr, ClientRoute] = {}
        self.traffic = Traffic(relay=command.relay)
        self.forbidden_reported = False
        """Whether a peer that the policy denies was reported."""
        self.batch = 1
        """Datagrams that are read at once; grows while more are waiting."""
        self.round = 0
        """The round of the loop in which it was read last."""
        self.full_again = 0
        self.interval = 0
        self.meter: Meter | None = None
        """Counts for all relays of the account; None without such limits."""
        self.limit(command.bytes_per_second, meter)

    def limit(self, bytes_per_second: int, meter: Meter | None) -> None:
        """Set the rate limit, 0 for none, and the meter of the account."""
        self.interval = SECOND // bytes_per_second if bytes_per_second else 0
        self.meter = meter

    @property
    def limited(self) -> bool:
        """Whether `within_rate` must be asked for each datagram."""
        return self.interval > 0 or self.meter is not None

    def within_rate(self, size: int, at: int) -> bool:
        """Whether `size` bytes are within the rate limit, which allows bursts of one second, and within the meter."""
        if self.interval:
            full_again = max(self.full_again, at) + (size + HEADERS) * self.interval
            if full_again - at > SECOND:
                return False
            self.full_again = full_again
        return self.meter is None or self.meter.take(size + HEADERS, at)

    def unbind(self, channel: int) -> None:
        """Remove a channel."""
        bound = self.channels.pop(channel, None)
        if bound is not None and self.peers.get(bound[0]) == channel:  # the peer may be bound to another number since
            del self.peers[bound[0]]

    def count(self) -> Traffic:
        """Return the traffic so far, that of the routes included."""
        for route in self.peer_routes.values():
            self.count_peer_route(route)
        for back in self.client_routes.values():
            self.count_client_route(back)
        return self.traffic

    def count_peer_route(self, route: PeerRoute) -> None:
        """Move the counts of a route to the traffic."""
        self.traffic.to_peers += route.packets
        self.traffic.bytes_to_peers += route.bytes
        route.packets = route.bytes = 0

    def count_client_route(self, route: ClientRoute) -> None:
        """Move the counts of a route to the traffic."""
        self.traffic.from_peers += route.packets
        self.traffic.bytes_from_peers += route.bytes
        route.packets = route.bytes = 0
