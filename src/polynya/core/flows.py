"""Flows: what a packet came in by or leaves by.

A flow is a UDP socket, a TCP or TLS stream, or a TURN allocation. It is an opaque id with a generation: two flows may
share an address, and a socket that is made again (the network changed, a port was rebound) is a new flow. Whoever asks
for a flow to be opened names it first, so that it can speak of it before the answer comes.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from .addresses import Address


class Transport(Enum):
    """What carries a flow."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"
    DTLS = "dtls"

    @property
    def reliable(self) -> bool:
        """Whether bytes arrive in order and without loss, so that requests are not sent again."""
        return self is Transport.TCP or self is Transport.TLS

    @property
    def secure(self) -> bool:
        return self is Transport.TLS or self is Transport.DTLS


class Flow(NamedTuple):
    """A socket, a stream or a relay, by its number. Its address and transport are told when it is opened."""

    id: int
    generation: int = 0

    def __str__(self) -> str:
        return f"flow {self.id}" if not self.generation else f"flow {self.id}.{self.generation}"


FlowPath = tuple[Flow, Address]
"""A flow with the remote address that packets go to or come from."""


class FlowIds:
    """Hands out flows. One for each world (a driver, a simulated network), so that ids never meet."""

    def __init__(self) -> None:
        self._last = 0

    def new(self) -> Flow:
        """A flow that was never used."""
        self._last += 1
        return Flow(self._last)

    @staticmethod
    def again(flow: Flow) -> Flow:
        """The next generation of a flow whose socket is made again."""
        return Flow(flow.id, flow.generation + 1)
