"""Where data may come from: the paths on which the other side has proven itself, in one generation."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.flows import Flow

from .candidates import LocalCandidate
from .events import RemoteAuthenticated, RemoteRevoked
from .journal import Journal


class Authenticated:
    """The paths, and the events that tell of them."""

    __slots__ = ("_journal", "_paths")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._paths: dict[tuple[Flow, Address], tuple[int, int]] = {}

    def __contains__(self, path: tuple[Flow, Address]) -> bool:
        return path in self._paths

    def place(self, path: tuple[Flow, Address]) -> tuple[int, int] | None:
        """The stream and component that data on a path is for; None where it is to be refused."""
        return self._paths.get(path)

    def add(self, flow: Flow, remote: Address, base: LocalCandidate) -> None:
        """An authenticated message came by `flow` from `remote`."""
        if (flow, remote) not in self._paths:
            self._paths[flow, remote] = base.place
            self._journal.event(
                RemoteAuthenticated(flow=flow, remote=remote, stream=base.stream, component=base.component)
            )

    def remove(self, flow: Flow) -> None:
        """A flow is gone."""
        for path in [path for path in self._paths if path[0] == flow]:
            del self._paths[path]
            self._journal.event(RemoteRevoked(flow=flow, remote=path[1]))

    def revoke(self, keep: Authenticated | None) -> None:
        """The generation is over; what `keep` has stays."""
        for flow, remote in self._paths:
            if keep is None or (flow, remote) not in keep:
                self._journal.event(RemoteRevoked(flow=flow, remote=remote))
        self._paths.clear()
