"""The STUN listeners: the Binding server's machine together with the flows that it listens on."""

from __future__ import annotations

from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Closed, Input, Open, Opened, Output

from .server import BindingServer


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOpened:
    """A listener accepts. `local` has the port that it got."""

    asked: Address
    local: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerFailed:
    """A listener could not be opened, or is gone."""

    asked: Address
    reason: str


ListenerEvent = ListenerOpened | ListenerFailed


class StunListeners:
    """Opens one UDP flow for each address and hands what comes in to the Binding server."""

    def __init__(self, addresses: tuple[Address, ...], flow_ids: FlowIds, server: BindingServer) -> None:
        self._asked: dict[Flow, Address] = {flow_ids.new(): address for address in addresses}
        self._server = server
        self._outputs: list[Output] = []
        self._events: list[ListenerEvent] = []

    def start(self, now: Instant) -> None:  # noqa: ARG002 - what a driver calls is given the time
        """Ask for the flows."""
        self._outputs += [
            Open(flow=flow, transport=Transport.UDP, local=address) for flow, address in self._asked.items()
        ]

    def receive(self, input: Input, now: Instant) -> None:
        """Answer a request, or note that a listener came or went."""
        if isinstance(input, Opened) and input.flow in self._asked:
            self._events.append(ListenerOpened(asked=self._asked[input.flow], local=input.local))
        elif isinstance(input, Closed) and input.flow in self._asked:
            self._events.append(ListenerFailed(asked=self._asked.pop(input.flow), reason=input.reason))
        else:
            self._server.receive(input, now)

    def tick(self, now: Instant) -> None:
        self._server.tick(now)

    def next_timer(self) -> Instant | None:
        return self._server.next_timer()

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs, []
        return drained + self._server.outputs()

    def events(self) -> list[ListenerEvent]:
        drained, self._events = self._events, []
        return drained
