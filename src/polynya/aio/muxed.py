"""An agent on sockets that it shares: a member of a `Mux`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from polynya.core.addresses import Address
from polynya.core.empty import NOTHING
from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.session.events import GatheringState
from polynya.session.mux import Mux as MuxMachine
from polynya.session.report import SessionReport
from polynya.session.session import SessionEvent

from .driver import Driver
from .endpoint import Endpoint

if TYPE_CHECKING:
    from .mux import Mux

R = TypeVar("R")


class MuxedAgent(Endpoint):
    """An agent on the sockets of a `Mux`: signaling, connecting and seeing are those of `Agent`.

    Made by `Mux.agent`. Leaving its context ends its connection and nothing else.
    """

    __slots__ = ("__weakref__", "_carried", "_mux", "_spoken", "ice")

    def __init__(self, mux: Mux, ice: IceAgent) -> None:
        super().__init__()
        self.ice = ice
        """The machine; what changes it goes through this object."""
        self._mux = mux
        self._spoken = _MuxedMachine(ice)
        self._carried: _MuxedTransport | None = None

    def start(self) -> None:
        """Take part from now on. ConfigurationError where another agent of the mux has its ufrag."""
        if self._carried is not None or self._closed:
            raise UsageError("this agent was started before: make a new one for each connection")
        try:
            self._carried = _MuxedTransport(self._mux.join(self), self)
        except ValueError:
            raise ConfigurationError("another agent of the mux has this ufrag: each needs its own") from None

    async def close(self) -> None:
        """End its connection. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._carried is not None:
            self._mux.leave(self)
        self._end_connections("the agent was closed")
        self._wake()

    @property
    def gathering_state(self) -> GatheringState:
        if self._carried is None:
            return GatheringState.NEW
        return GatheringState.GATHERING if self._mux.machine.gathers(self) else GatheringState.COMPLETE

    def interfaces_changed(self) -> bool:
        """False: the sockets are the mux's, which has a call of this name for all of its agents."""
        return False

    def why(self) -> SessionReport:
        return self._mux.machine.bases.why(self.ice)

    def take(self, event: SessionEvent) -> None:
        """What the mux has for it."""
        self._on_event(event)

    # ------------------------------------------------------------------------------------------ as a session and driver

    @property
    def _machine(self) -> _MuxedMachine:
        return self._spoken

    @property
    def _transport(self) -> _MuxedTransport | None:
        return self._carried


class _MuxedMachine:
    """One agent in the place of a session."""

    __slots__ = ("agent",)

    counters: Mapping[str, int] = NOTHING

    def __init__(self, agent: IceAgent) -> None:
        self.agent = agent

    def set_remote(
        self, description: Description, components: tuple[int, ...] | None = None, *, now: Instant
    ) -> None:  # fmt: skip
        _refuse_others(components)
        self.agent.set_remote(description, now=now)

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None:
        if candidate is None:
            self.agent.end_of_remote_candidates(now=now)
        else:
            self.agent.add_remote(candidate, now=now, stream=stream)

    def set_controlling(self, controlling: bool, *, now: Instant) -> None:
        self.agent.set_controlling(controlling, now=now)

    def restart(self, components: tuple[int, ...] | None = None, *, now: Instant) -> Description:
        _refuse_others(components)
        return self.agent.restart(now=now)


def _refuse_others(components: tuple[int, ...] | None) -> None:
    if components not in {None, (1,)}:
        raise UsageError("an agent of a mux has one component: packets for others could not be told apart")


class _MuxedTransport:
    """The mux's driver, as far as it is one agent's: after a call that agent is drained."""

    __slots__ = ("_driver", "_member")

    counters: dict[str, int] = {}  # noqa: RUF012 - nothing is counted for one alone

    def __init__(self, driver: Driver[MuxMachine[MuxedAgent]], member: MuxedAgent) -> None:
        self._driver = driver
        self._member = member

    def call(self, method: Callable[..., R], *args: Any) -> R:
        return self._driver.call(
            lambda now: self._driver.machine.call(self._member, lambda _: method(*args, now=now))
        )  # fmt: skip

    def accept_data(self, flow: Flow, remote: Address, deliver: Callable[[bytes], None]) -> None:
        self._driver.accept_data(flow, remote, deliver)

    def refuse_data(self, flow: Flow, remote: Address) -> None:
        """Unless another agent has come to have its peer there."""
        if self._driver.machine.reader(flow, remote) is None:
            self._driver.refuse_data(flow, remote)

    def sender(self, flow: Flow, remote: Address) -> Callable[[bytes], bool]:
        return self._driver.sender(flow, remote)
