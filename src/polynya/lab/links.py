"""Links between two nodes: delay, jitter, loss, duplication, reordering, MTU; each direction has its own profile."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polynya.core.instants import MILLISECOND, Instant
from polynya.core.packets import IpPacket

if TYPE_CHECKING:
    from .network import Network
    from .nodes import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a link does to packets in one direction. Durations are nanoseconds, chances are within 0..1."""

    delay: int = MILLISECOND
    jitter: int = 0
    """Up to so much is added to the delay of each packet; packets stay in order."""
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    """The chance that a packet is held back by `reordering_delay`, so that later ones overtake it."""
    reordering_delay: int = 5 * MILLISECOND
    mtu: int = 1500

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance within 0..1, not {getattr(self, name)}")
        if self.delay < 0 or self.jitter < 0 or self.reordering_delay < 0:
            raise ValueError("a link's durations are zero or more nanoseconds")
        if self.mtu < 68:
            raise ValueError(f"an MTU is at least 68 bytes (RFC 791), not {self.mtu}")


class NetworkInterface:
    """One end of a link: what a node sends by and receives on."""

    __slots__ = ("_last", "addresses", "index", "label", "name", "node", "outward", "peer", "prefix_lengths", "up")

    def __init__(self, node: Node, name: str, addresses: tuple[str, ...] = ()) -> None:
        self.node = node
        self.name = name
        self.label = f"{node.name}/{name}"
        self.index = 0
        self.up = True
        self.addresses: tuple[str, ...] = ()
        self.prefix_lengths: dict[str, int] = {}
        self.outward = Profile()
        self.peer: NetworkInterface | None = None
        self._last = Instant(0)
        self.give(addresses)

    def give(self, addresses: tuple[str, ...]) -> None:
        """Set the addresses: `10.0.0.2/24`, or without a length for /24 and /64."""
        hosts = []
        for text in addresses:
            host, _, length = text.partition("/")
            hosts.append(host)
            self.prefix_lengths[host] = int(length) if length else (64 if ":" in host else 24)
        self.addresses = tuple(hosts)

    def address_of_family(self, six: bool) -> str | None:
        """Its first address of IPv6 or IPv4."""
        return next((a for a in self.addresses if (":" in a) == six), None)

    def transmit(self, packet: IpPacket, network: Network) -> None:
        """Put a packet on the link. Whoever calls has seen to it that it fits the MTU."""
        clock, profile, peer = network.clock, self.outward, self.peer
        if network.capture is not None:
            network.capture.write(clock.now, self.label, packet, outbound=True, comment=f"packet {packet.id}")
        if peer is None or not self.up or not peer.up:
            network.drop(self.node.name, packet, f"the link at {self.label} is down")
            return
        chance = network.chance
        if profile.loss and chance.random() < profile.loss:
            network.drop(self.node.name, packet, f"lost on the link at {self.label}")
            return
        if profile.duplication and chance.random() < profile.duplication:
            clock.at(self._arrival(profile, now=clock.now, chance=chance), peer.node.arrive, copied(packet), peer)
        clock.at(self._arrival(profile, now=clock.now, chance=chance), peer.node.arrive, packet, peer)

    def _arrival(self, profile: Profile, *, now: Instant, chance: random.Random) -> Instant:
        at = now + profile.delay
        if profile.jitter:
            at += chance.randrange(profile.jitter + 1)
        if profile.reordering and chance.random() < profile.reordering:
            return Instant(at + profile.reordering_delay)
        at = max(at, self._last)
        self._last = Instant(at)
        return Instant(at)


def connect(one: NetworkInterface, other: NetworkInterface, forth: Profile, back: Profile | None = None) -> None:
    """Make a link: `forth` is what packets from `one` to `other` meet, `back` the other way (the same by default)."""
    one.peer, other.peer = other, one
    one.outward, other.outward = forth, back or forth


def copied(packet: IpPacket) -> IpPacket:
    """A second packet with the same content, which can be rewritten on its own."""
    twin = replace(packet)
    if packet.icmp is not None and packet.icmp.about is not None:
        twin.icmp = replace(packet.icmp, about=replace(packet.icmp.about))
    return twin
