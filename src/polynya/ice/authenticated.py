"""Where data may come from: the paths on which the other side has proven itself, in one generation.

A generation that ends leaves its paths to the next one for a while. The other side moves its data to the new pair when
it learns that its nomination was taken, a round trip or, if the answer is lost, several retransmissions after this
side: what it sends over the old pair until then is as good as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant

from .candidates import LocalCandidate
from .consent import LIFETIME
from .events import RemoteAuthenticated, RemoteRevoked
from .journal import Journal

LINGER: Final = LIFETIME
"""As long as a consent lasts (RFC 7675, section 5.1): after that the other side has ceased to send, too."""


class Authenticated:
    """The paths, and the events that tell of them."""

    __slots__ = ("_inherited", "_journal", "_paths")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._paths: tuple[FlowPath, ...] = ()
        self._inherited: tuple[tuple[Instant, FlowPath], ...] = ()
        """Paths of generations that have ended, and until when: the first to end first."""

    def __contains__(self, path: FlowPath) -> bool:
        return path in self._paths or any(path == known for _, known in self._inherited)

    def add(self, path: FlowPath, base: LocalCandidate) -> None:
        """An authenticated message came by a path."""
        if path not in self._paths:
            self._paths += (path,)
            self._inherited = tuple(entry for entry in self._inherited if entry[1] != path)
            flow, remote = path
            self._journal.event(
                RemoteAuthenticated(flow=flow, remote=remote, stream=base.stream, component=base.component)
            )

    def remove(self, flow: Flow) -> None:
        """A flow is gone."""
        gone = [path for path in self._all() if path[0] == flow]
        self._paths = tuple(path for path in self._paths if path[0] != flow)
        self._inherited = tuple(entry for entry in self._inherited if entry[1][0] != flow)
        self._revoke(gone)

    def bequeath(self, heir: Authenticated, stays: Callable[[Flow], bool], *, now: Instant) -> None:
        """The generation is over: data is taken from its paths for a while yet, if their flow stays."""
        until = Instant(now + LINGER)
        inherited = [*self._inherited, *((until, path) for path in self._paths)]
        heir._inherited += tuple(entry for entry in inherited if entry[1] not in heir and stays(entry[1][0]))
        self._revoke([path for path in self._all() if path not in heir])
        self._paths = self._inherited = ()

    def revoke(self) -> None:
        """Everything is over."""
        self._revoke(self._all())
        self._paths = self._inherited = ()

    def tick(self, *, now: Instant) -> None:
        """Paths whose time is over are revoked."""
        if self._inherited and self._inherited[0][0] <= now:
            ended = [path for until, path in self._inherited if until <= now]
            self._inherited = tuple(entry for entry in self._inherited if entry[0] > now)
            self._revoke([path for path in ended if path not in self])

    def next_timer(self) -> Instant | None:
        return self._inherited[0][0] if self._inherited else None

    def _all(self) -> list[FlowPath]:
        return [*self._paths, *(path for _, path in self._inherited)]

    def _revoke(self, paths: list[FlowPath]) -> None:
        for flow, remote in paths:
            self._journal.event(RemoteRevoked(flow=flow, remote=remote))
