"""Links between two nodes: delay, jitter, loss, duplication, reordering and MTU, separately for each direction."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

from polynya.core.instants import MILLISECOND, Instant
from polynya.core.packets import IpPacket

from .environment import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Properties of one direction of a link. Durations are nanoseconds, probabilities are within 0..1."""

    delay: int = MILLISECOND
    jitter: int = 0
    """The largest random addition to the delay of a packet. Packets stay in order."""
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    """The probability that a packet is delayed by `reordering_delay`, so that later packets overtake it."""
    reordering_delay: int = 5 * MILLISECOND
    mtu: int = 1500

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability within 0..1, not {getattr(self, name)}")
        for name in ("delay", "jitter", "reordering_delay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} of a link is zero or more nanoseconds, not {getattr(self, name)}")
        if self.mtu < 68:
            raise ValueError(f"an MTU is at least 68 bytes (RFC 791), not {self.mtu}")


class Attached(Protocol):
    """A node as its interfaces and links see it."""

    name: str

    def arrive(self, packet: IpPacket, interface: NetworkInterface) -> None:
        """Receive a packet from the link of `interface`."""

    def learn(self, prefix: str, via: NetworkInterface) -> None:
        """Add a route to `prefix` through `via`."""

    def unlearn(self, prefix: str) -> None:
        """Remove the route to `prefix`."""


class NetworkInterface:
    """One end of a link: the interface by which a node sends and receives."""

    __slots__ = ("_last", "addresses", "index", "label", "name", "node", "outward", "peer", "prefix_lengths", "up")

    def __init__(self, node: Attached, name: str, addresses: tuple[str, ...] = ()) -> None:
        self.node = node
        self.name = name
        self.label = f"{node.name}/{name}"
        self.index = 0
        self.up = True
        self.addresses: tuple[str, ...] = ()
        self.prefix_lengths: dict[str, int] = {}
        self.outward = Profile()
        self.peer: NetworkInterface | None = None
        """The other end of the link."""
        self._last = Instant(0)
        self.set_addresses(addresses)

    def __repr__(self) -> str:
        state = "" if self.up else ", down"
        return f"<NetworkInterface {self.label}: {', '.join(self.addresses) or 'no address'}{state}>"

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """Replace the addresses. `10.0.0.2/24` includes the prefix length; the defaults are /24 and /64."""
        hosts = []
        for text in addresses:
            host, _, length = text.partition("/")
            hosts.append(host)
            self.prefix_lengths[host] = int(length) if length else (64 if ":" in host else 24)
        self.addresses = tuple(hosts)

    def address_of_family(self, six: bool) -> str | None:
        """Return the first IPv6 address if `six`, else the first IPv4 address."""
        return next((a for a in self.addresses if (":" in a) == six), None)

    def transmit(self, packet: IpPacket, network: Environment) -> None:
        """Send a packet over the link. The caller has checked that the packet fits the MTU."""
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
    """Link two interfaces. `forth` applies from `one` to `other`; `back` applies in return and defaults to `forth`."""
    one.peer, other.peer = other, one
    one.outward, other.outward = forth, back or forth


def copied(packet: IpPacket) -> IpPacket:
    """Return a copy of a packet that can be rewritten without changing the original."""
    twin = replace(packet)
    if packet.icmp is not None and packet.icmp.about is not None:
        twin.icmp = replace(packet.icmp, about=replace(packet.icmp.about))
    return twin
