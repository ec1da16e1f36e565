"""Where data may come from: the paths on which the other side has proven itself, in one generation."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.flows import Flow

from .candidates import LocalCandidate
from .events import RemoteAuthenticated, RemoteRevoked
from .journal import Journal

Path = tuple[Flow, Address]


class Authenticated:
    """The paths, and the events that tell of them."""

    __slots__ = ("_journal", "_paths")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._paths: tuple[Path, ...] = ()

    def __contains__(self, path: Path) -> bool:
        return path in self._paths

    def add(self, path: Path, base: LocalCandidate) -> None:
        """An authenticated message came by a path."""
        if path not in self._paths:
            self._paths += (path,)
            flow, remote = path
            self._journal.event(
                RemoteAuthenticated(flow=flow, remote=remote, stream=base.stream, component=base.component)
            )

    def remove(self, flow: Flow) -> None:
        """A flow is gone."""
        gone = [path for path in self._paths if path[0] == flow]
        self._paths = tuple(path for path in self._paths if path[0] != flow)
        for _, remote in gone:
            self._journal.event(RemoteRevoked(flow=flow, remote=remote))

    def revoke(self, keep: Authenticated | None) -> None:
        """The generation is over; what `keep` has stays."""
        for flow, remote in self._paths:
            if keep is None or (flow, remote) not in keep:
                self._journal.event(RemoteRevoked(flow=flow, remote=remote))
        self._paths = ()
