"""The network as its nodes and links see it: clock, randomness, packet ids, trace and the record of drops.

`Network` provides an `Environment`. Nodes and links depend on this contract alone, so they never import the network.
"""

from __future__ import annotations

import random
from typing import Protocol

from polynya.core.flows import FlowIds
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket
from polynya.core.trace import Tracer

from .clock import Clock


class Capture(Protocol):
    """A file that packets are written to, such as `core.pcapng.PcapngWriter`."""

    def write(
        self, at: Instant, interface: str, packet: IpPacket, *, outbound: bool | None = None, comment: str = ""
    ) -> None: ...


class Environment(Protocol):
    """Services of a network for its nodes and links."""

    clock: Clock
    trace: Tracer
    capture: Capture | None
    flow_ids: FlowIds
    names: dict[str, tuple[str, ...]]
    """DNS: the addresses of each name."""
    resolve_delay: int
    """Nanoseconds that a DNS lookup takes."""
    chance: random.Random
    """Randomness of the links."""

    @property
    def now(self) -> Instant:
        """The virtual time."""

    def chance_of(self, name: str) -> random.Random:
        """Return the randomness of one node."""

    def packet_id(self) -> int:
        """Return the next packet id."""

    def drop(self, node: str, packet: IpPacket, reason: str) -> None:
        """Record a dropped packet."""
