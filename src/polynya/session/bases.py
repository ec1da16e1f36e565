"""The sockets that a session gathers on: one on each chosen address for each component (RFC 8445, section 5.1.1.1).

    chosen --Open--> opening --Opened--> a base --its address, its stream or the socket itself is gone--> closed
                        |
                        +--Closed, or not in time--> refused, with the reason

What an address gives nobody is told once more by `refused`: the filters' and the policy's reasons, and the system's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from polynya.core.empty import NOTHING
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.machine import Close, Closed, InterfacesChanged, Open, Opened

from .interfaces import Refused, choose_addresses
from .options import Base, HostAddress, SessionConfig

Place = tuple[int, int]
"""A stream and a component of it."""


class Bases:
    """`Opened` and `Closed` in, `Open` and `Close` out. `standing`: the bases there are, oldest first."""

    __slots__ = ("_components", "_config", "_flow_ids", "_opening", "_outputs", "refused", "standing")

    def __init__(self, config: SessionConfig, flow_ids: FlowIds) -> None:
        self.standing: tuple[Base, ...] = ()
        self.refused: tuple[Refused, ...] = ()
        self._components = config.ice.components
        self._config = config
        self._flow_ids = flow_ids
        self._opening: Mapping[Flow, tuple[HostAddress, int, int]] = NOTHING
        self._outputs: tuple[Open | Close, ...] = ()

    # -------------------------------------------------------------------------------------------------------- calls

    def choose(self, interfaces: InterfacesChanged) -> tuple[HostAddress, ...]:
        """The addresses to gather on."""
        chosen, self.refused = choose_addresses(interfaces.interfaces, self._config)
        return chosen

    def new(self, chosen: Iterable[HostAddress]) -> list[HostAddress]:
        """Those of the chosen addresses that no socket is on."""
        known = [base.host.address for base in self.standing] + [host.address for host, _, _ in self._opening.values()]
        return [host for host in chosen if host.address not in known]

    def gone(self, chosen: Iterable[HostAddress]) -> list[Flow]:
        """The flows whose address is not among the chosen ones."""
        addresses = [host.address for host in chosen]
        return [base.flow for base in self.standing if base.host.address not in addresses]

    def open(self, hosts: Iterable[HostAddress], places: Iterable[Place] | None = None) -> None:
        """Ask for a socket on each address, for each of these components or for all."""
        places = self.places() if places is None else list(places)
        for host in hosts:
            for stream, component in places:
                flow = self._flow_ids.new()
                self._opening = {**self._opening, flow: (host, stream, component)}
                opening = Open(
                    flow=flow,
                    transport=Transport.UDP,
                    local=host.address,
                    ports=self._config.ports,
                    interface=host.interface if host.pinned else None,
                )
                self._outputs += (opening,)

    def set_components(self, components: tuple[int, ...]) -> tuple[list[Flow], list[Place]]:
        """The streams have these numbers of components from now on: the flows that are left over, the places to fill.

        What is being opened for a place that is gone is closed here.
        """
        before = self.places()
        self._components = components
        after = self.places()
        for flow, (_, *place) in list(self._opening.items()):
            if tuple(place) not in after:
                self._take(flow)
                self._outputs += (Close(flow=flow),)
        left = [base.flow for base in self.standing if (base.stream, base.component) not in after]
        return left, [place for place in after if place not in before]

    def close(self, flows: Collection[Flow]) -> None:
        """These are not wanted any more."""
        self._outputs += tuple(Close(flow=flow) for flow in flows)
        self.standing = tuple(base for base in self.standing if base.flow not in flows)

    def close_all(self) -> None:
        """Close whatever is open or being opened."""
        self.close([*self._opening, *(base.flow for base in self.standing)])
        self._opening = NOTHING

    def give_up_opening(self) -> None:
        """Wait for no socket any more."""
        for flow, (host, _, _) in self._opening.items():
            self._outputs += (Close(flow=flow),)
            self._refuse(host, "its socket was not opened in time")
        self._opening = NOTHING

    def of(self, flow: Flow) -> Base | None:
        """The base that a flow is, if it is one."""
        return next((base for base in self.standing if base.flow == flow), None)

    @property
    def opening(self) -> Collection[Flow]:
        """The flows that are asked for and not there yet."""
        return self._opening.keys()

    def places(self) -> list[Place]:
        """Stream and component of all that there are."""
        return [(stream, number + 1) for stream, count in enumerate(self._components) for number in range(count)]

    # ------------------------------------------------------------------------------------------------------ machine

    def opened(self, opened: Opened) -> Base | None:
        """A socket stands: a base, unless it was not asked for."""
        opening = self._take(opened.flow)
        if opening is None:
            return None
        host, stream, component = opening
        base = Base(
            flow=opened.flow, host=host, local=opened.local, stream=stream, component=component, note=opened.note
        )
        self.standing += (base,)
        return base

    def failed(self, closed: Closed) -> None:
        """A socket could not be opened, or is gone."""
        opening, base = self._take(closed.flow), self.of(closed.flow)
        self.standing = tuple(other for other in self.standing if other is not base)
        if opening is not None:
            self._refuse(opening[0], closed.reason)
        elif base is not None:
            self._refuse(base.host, closed.reason)

    def outputs(self) -> tuple[Open | Close, ...]:
        drained, self._outputs = self._outputs, ()
        return drained

    def _take(self, flow: Flow) -> tuple[HostAddress, int, int] | None:
        opening = self._opening.get(flow)
        if opening is not None:
            self._opening = {other: waiting for other, waiting in self._opening.items() if other != flow} or NOTHING
        return opening

    def _refuse(self, host: HostAddress, reason: str) -> None:
        self.refused += (Refused(interface=host.interface, host=host.address.host, reason=reason),)
