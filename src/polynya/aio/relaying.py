"""The short way of application data through a relay: ChannelData headers are added and removed beside the socket.

Everything else goes to the machine: checks through the relay, indications, data of peers that are not selected. So does
all data until a channel is bound, and over streams.
"""

from __future__ import annotations

from collections.abc import Callable

from polynya.core.addresses import Address
from polynya.core.flows import Flow, Transport
from polynya.core.machine import Datagram
from polynya.session.session import Session
from polynya.stun.message import is_stun

from .driver import Driver

_BEYOND_STUN = b"\x04"


class RelayedPath:
    """The selected path of one component, through a TURN server to one peer."""

    def __init__(
        self,
        driver: Driver[Session],
        flow: Flow,
        peer: Address,
        deliver: Callable[[bytes], None],
        *,
        stream: int,
        component: int,
    ) -> None:
        self._driver = driver
        self._component = (stream, component)
        self._peer = peer
        self._deliver = deliver
        self._short: tuple[Flow, Address] | None = None
        self._send_frame: Callable[[bytes], bool] | None = None
        client = driver.machine.relay_client(flow)
        if client is None or client.flow is None or client.server.transport is not Transport.UDP:
            return
        self._wrap, self._unwrap = client.wrap, client.unwrap
        self._short = (client.flow, client.server.address)
        self._send_frame = driver.sender(*self._short)
        driver.accept_data(*self._short, self._receive)

    def send(self, data: bytes) -> bool:
        """Sends a datagram to the peer. Returns False if the system refused it or the relay is gone."""
        if self._send_frame is not None:
            frame = self._wrap(self._peer, data)
            if frame is not None:
                return self._send_frame(frame)
        driver = self._driver
        refused = driver.refused
        return (
            driver.call(lambda now: driver.machine.send(data, *self._component, now=now)) and driver.refused == refused
        )

    def close(self) -> None:
        """From now on all packets of the server go to the machine."""
        if self._short is not None:
            self._driver.refuse_data(*self._short)
            self._short = None

    def _receive(self, frame: bytes) -> None:
        if self._short is None:
            return
        unwrapped = self._unwrap(frame)
        if unwrapped is not None:
            peer, data = unwrapped
            if peer == self._peer and (data[:1] >= _BEYOND_STUN or not is_stun(data)):
                self._deliver(data)
                return
        self._driver.take(Datagram(*self._short, frame))
