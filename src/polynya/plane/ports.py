"""What the portable plane knows of a relay port, and what it derived for its next packets."""

from __future__ import annotations

import socket
from collections.abc import Callable

from polynya.core.instants import SECOND, Instant
from polynya.turn.server.commands import OpenRelay, Peer, Traffic
from polynya.turn.server.frames import HEADERS

from .sockets import SockAddr


class Way:
    """From a client to one peer."""

    __slots__ = ("bytes", "limited", "name", "packets", "port", "sendto", "until")

    def __init__(self, port: Port, name: SockAddr, until: int) -> None:
        self.port = port
        self.sendto = port.sock.sendto
        self.name = name
        self.until = until
        self.limited = port.interval > 0
        self.packets = 0
        self.bytes = 0


class Back:
    """From one peer to the client: by a channel, or with 0 by a Data indication."""

    __slots__ = ("bytes", "channel", "limited", "packets", "peer", "short", "until")

    def __init__(self, port: Port, peer: Peer, channel: int, until: int) -> None:
        self.peer = peer
        self.channel = channel
        self.until = until
        self.limited = port.interval > 0
        self.short = port.sendto if channel and not self.limited else None
        """Sends ChannelData to the client; None where more must be asked or made for each datagram."""
        self.packets = 0
        self.bytes = 0


class Port:
    """A relay port with its socket."""

    __slots__ = (
        "backs", "batch", "channels", "client", "external", "forbade", "full_again", "interval", "keys", "name",
        "peers", "permissions", "receive", "relay", "round", "sendto", "sock", "stream", "traffic", "until",
    )  # fmt: skip

    def __init__(self, command: OpenRelay, sock: socket.socket) -> None:
        self.relay = command.relay
        self.external = command.external
        self.sock = sock
        self.receive = sock.recvfrom_into
        self.client = command.client
        self.stream = command.stream
        self.until = command.until
        self.sendto: Callable[[memoryview | bytes, SockAddr], int] | None = None
        """The listener's, None for a client on a stream."""
        self.name: SockAddr = ()
        self.permissions: dict[str, Instant] = {}
        self.channels: dict[int, tuple[Peer, Instant]] = {}
        self.peers: dict[Peer, int] = {}
        self.keys: dict[tuple[SockAddr, object], Way] = {}
        self.backs: dict[SockAddr, Back] = {}
        self.traffic = Traffic(relay=command.relay)
        self.forbade = False
        """Whether the rules have forbidden a peer of it, and that was told."""
        self.batch = 1
        """How many datagrams are read at once: more only while more are there."""
        self.round = 0
        """The round of the loop in which it was last read."""
        self.full_again = 0
        self.interval = 0
        self.limit(command.bytes_per_second)

    def limit(self, bytes_per_second: int) -> None:
        self.interval = SECOND // bytes_per_second if bytes_per_second else 0

    def within_rate(self, size: int, at: int) -> bool:
        """Whether so many bytes may pass now: a second's worth at once, then at the rate."""
        if not self.interval:
            return True
        full_again = max(self.full_again, at) + (size + HEADERS) * self.interval
        if full_again - at > SECOND:
            return False
        self.full_again = full_again
        return True

    def unbind(self, channel: int) -> None:
        """Forget a channel."""
        bound = self.channels.pop(channel, None)
        if bound is not None and self.peers.get(bound[0]) == channel:  # the peer may have another number by now
            del self.peers[bound[0]]

    def count(self) -> Traffic:
        """The traffic so far."""
        for way in self.keys.values():
            self.settle(way)
        for back in self.backs.values():
            self.settle_back(back)
        return self.traffic

    def settle(self, way: Way) -> None:
        """Count what went by a way that is not kept any more."""
        self.traffic.to_peers += way.packets
        self.traffic.bytes_to_peers += way.bytes
        way.packets = way.bytes = 0

    def settle_back(self, back: Back) -> None:
        """Count what came by a way back that is not kept any more."""
        self.traffic.from_peers += back.packets
        self.traffic.bytes_from_peers += back.bytes
        back.packets = back.bytes = 0
