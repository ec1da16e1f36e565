"""A NAT with short calls for inbound and outbound packets."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import IcmpKind
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, TcpFields, TcpFlags
from polynya.core.trace import TraceEvent, Tracer
from polynya.nat import Action, Nat, NatConfig

EXTERNAL = "198.51.100.1"
INSIDE = Address("10.0.0.2", 5000)
OTHER_INSIDE = Address("10.0.0.3", 5000)
SERVER = Address("203.0.113.1", 3478)
SERVER_OTHER_PORT = Address("203.0.113.1", 3479)
STRANGER = Address("203.0.113.9", 4000)


class Bench:
    """A NAT and a clock."""

    def __init__(self, config: NatConfig, external: tuple[str, ...] = (EXTERNAL,), seed: int = 1) -> None:
        self.now = Instant(0)
        self.events: list[TraceEvent] = []
        self.nat = Nat(config, external, random=random.Random(seed), trace=Tracer(self.events.append, "nat", "nat"))
        self.reason = ""

    def after(self, seconds: float) -> None:
        """Advance the clock, with a tick at every timer."""
        end = Instant(self.now + round(seconds * SECOND))
        while (due := self.nat.next_timer()) is not None and due <= end:
            self.now = Instant(max(self.now, due))
            self.nat.tick(now=self.now)
        self.now = end

    def out(self, source: Address, destination: Address, **fields: Any) -> Address | None:
        """Send from inside. Return the translated source, or None if the packet is dropped."""
        packet = self.packet(source, destination, **fields)
        verdict = self.nat.outbound(packet, now=self.now)
        self.reason = verdict.reason
        return verdict.packet.source if verdict.packet is not None else None

    def come(self, source: Address, destination: Address, **fields: Any) -> Address | None:
        """Send from outside. Return the inside endpoint that receives the packet, or None if it is dropped."""
        verdict = self.nat.inbound(self.packet(source, destination, **fields), now=self.now)
        self.reason = verdict.reason
        return verdict.packet.destination if verdict.packet is not None else None

    def hairpin(self, source: Address, destination: Address, **fields: Any) -> tuple[Address, Address] | None:
        """Send from inside to an external endpoint. Return source and destination at the receiver."""
        verdict = self.nat.outbound(self.packet(source, destination, **fields), now=self.now)
        self.reason = verdict.reason
        if verdict.packet is None:
            return None
        assert verdict.action is Action.HAIRPIN
        return verdict.packet.source, verdict.packet.destination

    @staticmethod
    def packet(source: Address, destination: Address, flags: TcpFlags | None = None, **fields: Any) -> IpPacket:
        if flags is not None:
            return IpPacket(1, source, destination, Protocol.TCP, tcp=TcpFields(flags=flags), **fields)
        return IpPacket(1, source, destination, Protocol.UDP, b"x", **fields)

    def error_in(self, about: IpPacket, kind: IcmpKind = IcmpKind.PORT_UNREACHABLE) -> IpPacket | None:
        """Send an ICMP error from an outside router about an outbound packet."""
        origin = Address("192.0.2.254", 0)
        error = IpPacket(2, origin, about.source.with_port(0), Protocol.ICMP, icmp=IcmpMessage(kind=kind, about=about))
        verdict = self.nat.inbound(error, now=self.now)
        self.reason = verdict.reason
        return verdict.packet

    def diffs(self) -> list[tuple[list[Any], list[Any]]]:
        return [(e.fields["added"], e.fields["removed"]) for e in self.events]  # type: ignore[misc]


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return lambda **options: Bench(NatConfig(**options))
