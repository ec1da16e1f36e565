"""Contracts between an agent and what it drives: the machine with its ICE agent, and the transport of its packets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description

R = TypeVar("R")


class AgentMachine(Protocol):
    """The machine that an endpoint drives: an ICE agent and what gathers for it."""

    @property
    def agent(self) -> IceAgent: ...

    @property
    def counters(self) -> Mapping[str, int]: ...

    def set_remote(
        self, description: Description, components: tuple[int, ...] | None = None, *, now: Instant
    ) -> None: ...

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None: ...

    def set_controlling(self, controlling: bool, *, now: Instant) -> None: ...

    def restart(self, components: tuple[int, ...] | None = None, *, now: Instant) -> Description: ...

    def peer_left(self, reason: str, *, now: Instant) -> None: ...

    def ask_consent(self, *, now: Instant) -> None: ...

    def stop_asking(self, *, now: Instant) -> None: ...


class AgentTransport(Protocol):
    """Moves the machine's packets, as a `Driver` does."""

    @property
    def counters(self) -> dict[str, int]: ...

    def call(self, method: Callable[..., R], *args: Any) -> R: ...

    def accept_data(self, flow: Flow, remote: Address, deliver: Callable[[bytes], None]) -> None: ...

    def refuse_data(self, flow: Flow, remote: Address) -> None: ...

    def sender(self, flow: Flow, remote: Address) -> Callable[[bytes], bool]: ...

    def writable(self, flow: Flow) -> bool: ...
