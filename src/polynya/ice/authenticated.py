"""Paths that data is accepted from: those on which a message of the other side was authenticated, by generation.

A generation that ends passes its paths to its successor for a while. The other side moves its data to the new pair when
the response to its nomination arrives: a round trip later than this side or, if the response is lost, several
retransmissions later. Data that it sends over the old pair until then is still accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant

from .candidates import LocalCandidate
from .consent import LIFETIME
from .events import RemoteAuthenticated, RemoteRevoked
from .outbox import Outbox

LINGER: Final = LIFETIME
"""Nanoseconds that an inherited path lasts: by then the consent of the other side has expired (RFC 7675, 5.1)."""


class Authenticated:
    """Authenticated paths of one generation, and those that it inherited."""

    __slots__ = ("_inherited", "_outbox", "_paths")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._paths: list[FlowPath] = []
        self._inherited: tuple[tuple[Instant, FlowPath], ...] = ()
        """Paths of earlier generations with the end of their time, the earliest first."""

    def __contains__(self, path: FlowPath) -> bool:
        return path in self._paths or any(path == known for _, known in self._inherited)

    def add(self, path: FlowPath, base: LocalCandidate) -> None:
        """Accept data from a path: an authenticated message arrived on it."""
        if path not in self._paths:
            self._paths.append(path)
            self._inherited = tuple(entry for entry in self._inherited if entry[1] != path)
            flow, remote = path
            self._outbox.events.append(
                RemoteAuthenticated(flow=flow, remote=remote, stream=base.stream, component=base.component)
            )

    def remove(self, flow: Flow) -> None:
        """Revoke the paths of a closed flow."""
        gone = [path for path in self._all() if path[0] == flow]
        self._paths = [path for path in self._paths if path[0] != flow]
        self._inherited = tuple(entry for entry in self._inherited if entry[1][0] != flow)
        self._revoke(gone)

    def pass_to(self, successor: Authenticated, stays: Callable[[Flow], bool], *, now: Instant) -> None:
        """End this generation: pass the paths whose flow stays to its successor, and revoke the others."""
        until = Instant(now + LINGER)
        successor.inherit([*self._inherited, *((until, path) for path in self._paths)], stays)
        self._revoke([path for path in self._all() if path not in successor])
        self._paths, self._inherited = [], ()

    def inherit(self, paths: list[tuple[Instant, FlowPath]], stays: Callable[[Flow], bool]) -> None:
        """Accept data from the paths of an earlier generation until their time is over."""
        self._inherited += tuple(entry for entry in paths if entry[1] not in self and stays(entry[1][0]))

    def revoke(self) -> None:
        """Revoke every path."""
        self._revoke(self._all())
        self._paths, self._inherited = [], ()

    def tick(self, *, now: Instant) -> None:
        """Revoke the inherited paths whose time is over."""
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
            self._outbox.events.append(RemoteRevoked(flow=flow, remote=remote))
