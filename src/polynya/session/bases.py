"""Bases: the sockets of a session, one on each chosen address for each component (RFC 8445, section 5.1.1.1).

    chosen --Open--> opening --Opened--> a base --its address, stream or socket is gone--> closed
                        |
                        +--Closed, or not in time--> refused, with the reason

`refused` lists the local addresses without a socket, with the reasons of the filters, the policy and the system.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.machine import Close, Closed, InterfacesChanged, Open, Opened, Output

from .interfaces import Refused, choose_addresses
from .options import Base, HostAddress, SessionConfig

ComponentId = tuple[int, int]
"""Stream and component."""


class _Opening(NamedTuple):
    """A socket that is being opened."""

    flow: Flow
    host: HostAddress
    stream: int
    component: int


class Bases:
    """The bases of a session; `Open` and `Close` are appended to `outbox`."""

    __slots__ = ("_components", "_config", "_flow_ids", "_opening", "_outbox", "open_bases", "refused")

    def __init__(self, config: SessionConfig, flow_ids: FlowIds, outbox: Queue[Output]) -> None:
        self.open_bases: tuple[Base, ...] = ()
        """The bases whose socket is open, oldest first."""
        self.refused: tuple[Refused, ...] = ()
        self._components = config.ice.components
        self._config = config
        self._flow_ids = flow_ids
        self._opening: tuple[_Opening, ...] = ()
        self._outbox = outbox

    # -------------------------------------------------------------------------------------------------------- calls

    def choose(self, interfaces: InterfacesChanged) -> tuple[HostAddress, ...]:
        """Choose the addresses to gather on, and set `refused` to the others."""
        chosen, self.refused = choose_addresses(interfaces.interfaces, self._config)
        return chosen

    def new(self, chosen: Iterable[HostAddress]) -> list[HostAddress]:
        """Return the chosen addresses that have no socket."""
        known = [base.host.address for base in self.open_bases]
        known += [opening.host.address for opening in self._opening]
        return [host for host in chosen if host.address not in known]

    def gone(self, chosen: Iterable[HostAddress]) -> list[Flow]:
        """Return the flows of bases whose address is not among the chosen ones, and may not stay either."""
        addresses = [host.address for host in chosen]
        staying = {(no.interface, no.host) for no in self.refused if no.may_stay}
        return [
            base.flow
            for base in self.open_bases
            if base.host.address not in addresses and (base.host.interface, base.host.address.host) not in staying
        ]

    def open(self, hosts: Iterable[HostAddress], components: Iterable[ComponentId] | None = None) -> None:
        """Open a socket on each address for each of these components, or for all of them."""
        components = self.components() if components is None else list(components)
        for host in hosts:
            for stream, component in components:
                flow = self._flow_ids.new()
                self._opening += (_Opening(flow, host, stream, component),)
                opening = Open(
                    flow=flow,
                    transport=Transport.UDP,
                    local=host.address,
                    ports=self._config.ports,
                    interface=host.interface if host.pinned else None,
                )
                self._outbox.append(opening)

    def set_components(self, components: tuple[int, ...]) -> tuple[list[Flow], list[ComponentId]]:
        """Set the number of components of each stream; return the flows of removed ones, and the added ones.

        Sockets that are being opened for removed components are closed.
        """
        before = self.components()
        self._components = components
        after = self.components()
        for opening in self._opening:
            if (opening.stream, opening.component) not in after:
                self._take(opening.flow)
                self._outbox.append(Close(flow=opening.flow))
        removed = [base.flow for base in self.open_bases if (base.stream, base.component) not in after]
        return removed, [component for component in after if component not in before]

    def close(self, flows: Collection[Flow]) -> None:
        """Close these sockets."""
        self._outbox.extend(Close(flow=flow) for flow in flows)
        self.open_bases = tuple(base for base in self.open_bases if base.flow not in flows)

    def close_all(self) -> None:
        """Close all sockets, also those that are being opened."""
        self.close([*self.opening, *(base.flow for base in self.open_bases)])
        self._opening = ()

    def give_up_opening(self) -> None:
        """Close the sockets that were not opened in time."""
        for opening in self._opening:
            self._outbox.append(Close(flow=opening.flow))
            self._refuse(opening.host, "its socket was not opened in time")
        self._opening = ()

    def of(self, flow: Flow) -> Base | None:
        """Return the base of a flow."""
        return next((base for base in self.open_bases if base.flow == flow), None)

    @property
    def opening(self) -> Collection[Flow]:
        """The flows whose sockets are being opened."""
        return [opening.flow for opening in self._opening]

    @property
    def opening_hosts(self) -> tuple[HostAddress, ...]:
        """The local addresses on which sockets are being opened."""
        return tuple(opening.host for opening in self._opening)

    def components(self) -> list[ComponentId]:
        """Return stream and component of every component."""
        return [(stream, number + 1) for stream, count in enumerate(self._components) for number in range(count)]

    # ------------------------------------------------------------------------------------------------------ results

    def opened(self, opened: Opened) -> Base | None:
        """Add and return the base of a socket that was opened; None if it was not requested."""
        opening = self._take(opened.flow)
        if opening is None:
            return None
        base = Base(
            flow=opened.flow,
            host=opening.host,
            local=opened.local,
            stream=opening.stream,
            component=opening.component,
            note=opened.note,
        )
        self.open_bases += (base,)
        return base

    def failed(self, closed: Closed) -> None:
        """Remove a socket that could not be opened, or that the system closed."""
        opening, base = self._take(closed.flow), self.of(closed.flow)
        self.open_bases = tuple(other for other in self.open_bases if other is not base)
        if opening is not None:
            self._refuse(opening.host, closed.reason)
        elif base is not None:
            self._refuse(base.host, closed.reason)

    def _take(self, flow: Flow) -> _Opening | None:
        """Remove and return the socket that is being opened for a flow."""
        found = next((opening for opening in self._opening if opening.flow == flow), None)
        self._opening = tuple(opening for opening in self._opening if opening is not found)
        return found

    def _refuse(self, host: HostAddress, reason: str) -> None:
        self.refused += (Refused(interface=host.interface, host=host.address.host, reason=reason),)
