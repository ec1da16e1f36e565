"""Listeners of a server: opens them and passes their inputs to the server's machine.

A place is an address with the transports that listen there on one port:

    new --Open the first--> OPENING --it is open: Open the next, on the same port--> OPENING --all are open--> OPEN
    OPENING --one is refused, and the port is 0--> all closed and opened again, with another port, some times
    OPENING, OPEN --one is refused or lost--> the others are closed, ListenerFailed

Inputs on a listener, on a stream that it accepted, or on a flow that the machine opened itself go to the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Input, Machine, Open, Opened, Output

TRIES: Final = 16
"""Ports to try for port 0, if one of the transports finds the port in use."""


@dataclass(frozen=True, slots=True)
class Place:
    """Address and transports to listen on. Port 0 takes any port that is free for every transport."""

    address: Address
    transports: tuple[Transport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOpened:
    """A place listens with all its transports. `local` has the actual port; `flows` are in the transports' order."""

    place: int
    local: Address
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerFailed:
    """A place could not be opened, or lost a listener."""

    place: int
    transport: Transport
    reason: str


class _Opening:
    """One place with its flows."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.tries = 0
        self.ready = False
        self.flows: dict[Flow, Transport] = {}
        self.local: Address | None = None


class Listeners:
    """Opens the places in order and passes inputs to the machine. Places are identified by their index."""

    def __init__(self, places: tuple[Place, ...], flow_ids: FlowIds, machine: Machine[Any, Any, Any]) -> None:
        self._flow_ids = flow_ids
        self._machine = machine
        self._places = [_Opening(place) for place in places]
        self._by_flow: dict[Flow, int] = {}
        self._outputs: Queue[Output] = Queue()
        self._events: Queue[object] = Queue()

    def start(self, *, now: Instant) -> None:  # noqa: ARG002 - a driver passes the time
        """Open the first flow of each place."""
        for index in range(len(self._places)):
            self._open_next(index)

    def receive(self, input: Input, *, now: Instant) -> None:
        """Handle a listener that was opened or closed; pass any other input to the machine."""
        index = self._by_flow.get(input.flow) if isinstance(input, (Opened, Closed)) else None
        if index is None:
            self._machine.receive(input, now=now)
        elif isinstance(input, Opened):
            self._opened(index, input.local)
        elif isinstance(input, Closed):
            self._failed(index, input)

    def tick(self, *, now: Instant) -> None:
        self._machine.tick(now=now)

    def next_timer(self) -> Instant | None:
        return self._machine.next_timer()

    def outputs(self) -> list[Output]:
        return self._outputs.drain() + self._machine.outputs()

    def events(self) -> list[object]:
        return self._events.drain() + self._machine.events()

    # --------------------------------------------------------------------------------------------------------- opening

    def _open_next(self, index: int) -> None:
        opening = self._places[index]
        transport = opening.place.transports[len(opening.flows)]
        flow = self._flow_ids.new()
        opening.flows[flow] = transport
        self._by_flow[flow] = index
        local = opening.local or opening.place.address
        self._outputs.append(Open(flow=flow, transport=transport, local=local))

    def _opened(self, index: int, local: Address) -> None:
        opening = self._places[index]
        opening.local = local
        if len(opening.flows) < len(opening.place.transports):
            self._open_next(index)
        else:
            opening.ready = True
            self._events.append(ListenerOpened(place=index, local=local, flows=tuple(opening.flows)))

    def _failed(self, index: int, closed: Closed) -> None:
        opening = self._places[index]
        transport = opening.flows.pop(closed.flow)
        del self._by_flow[closed.flow]
        for flow in opening.flows:
            del self._by_flow[flow]
            self._outputs.append(Close(flow=flow))
        retry = bool(opening.flows) and not opening.ready and not opening.place.address.port and opening.tries < TRIES
        opening.flows.clear()
        opening.local, opening.ready = None, False
        if retry:
            opening.tries += 1
            self._open_next(index)
        else:
            self._events.append(ListenerFailed(place=index, transport=transport, reason=closed.reason))
