"""Flows: the sockets, streams and TURN allocations that packets arrive on and leave by.

A flow is an opaque id. Two flows may share an address, and a socket that is reopened (the network changed, a port was
bound again) is a new flow. The machine that requests an `Open` chooses the flow, so it can refer to the flow at once.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from .addresses import Address


class Transport(Enum):
    """The transport protocol of a flow."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"

    @property
    def reliable(self) -> bool:
        """Whether bytes arrive in order and without loss; requests are then not retransmitted."""
        return self is not Transport.UDP

    @property
    def secure(self) -> bool:
        return self is Transport.TLS


class Flow(NamedTuple):
    """The id of a socket, a stream or a TURN allocation. `Opened` carries its addresses."""

    id: int

    def __str__(self) -> str:
        return f"flow {self.id}"


FlowPath = tuple[Flow, Address]
"""A flow and a remote address: the path of packets to and from that address."""


class FlowIds:
    """Allocates flows: one allocator for each driver or simulated network, so that no id is used twice."""

    def __init__(self) -> None:
        self._last = 0

    def new(self) -> Flow:
        """Return a flow that was never used."""
        self._last += 1
        return Flow(self._last)
