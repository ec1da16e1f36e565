"""Watches the interfaces and routes of this host: one watch for all followers of an event loop.

On Linux, rtnetlink reports a change at once. Elsewhere, and where the kernel's reports do not arrive, the interfaces
are listed at an interval.

    reports of the kernel --+
                            +--> list the interfaces --differs, or new routes--> _host_changed() of each follower
    a timer ----------------+

A change often comes as a burst of reports: the list is read a moment after the first of them. New routes are passed on
at most once in `ROUTE_PAUSE`, because a router that speaks BGP may have thousands in a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final, NamedTuple, Protocol

from polynya.core.machine import Interface

from .features import LINUX
from .interfaces import list_interfaces
from .netlink import Reports

POLL: Final = 0.5
"""Seconds between two listings without reports of the kernel."""
CHECK: Final = 5.0
"""Seconds between two listings with them: some sandboxes accept the subscription and report nothing."""
SETTLE: Final = 0.02
"""Seconds from the first report of a burst to the listing."""
ROUTE_PAUSE: Final = 1.0
"""Seconds from one report of routes alone to the next."""


class HostChange(NamedTuple):
    """A change of this host's interfaces, or new routes."""

    interfaces: tuple[Interface, ...]
    """All present interfaces."""
    routes: bool
    """Whether there may be new routes, so that a destination that could not be reached may be tried again."""


class HostFollower(Hashable, Protocol):
    """An object that follows changes of this host."""

    def _host_changed(self, change: HostChange) -> None:
        """Called after each change."""


_watches: dict[asyncio.AbstractEventLoop, InterfaceWatch] = {}


class InterfaceWatch:
    """The watch of one event loop. It exists while it has followers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, reports: bool = LINUX) -> None:
        self._loop = loop
        self._followers: dict[HostFollower, None] = {}
        self._interfaces = list_interfaces()
        self._routes = False
        self._routes_at = float("-inf")
        self._pending: asyncio.TimerHandle | None = None
        self._reports = self._subscribe() if reports else None
        self._interval = POLL if self._reports is None else CHECK
        self._timer = loop.call_later(self._interval, self._due)

    def add(self, follower: HostFollower) -> None:
        """Inform a follower of all later changes."""
        self._followers[follower] = None

    def remove(self, follower: HostFollower) -> None:
        """Remove a follower; the last one ends the watch. Safe to call twice."""
        self._followers.pop(follower, None)
        if self._followers or _watches.get(self._loop) is not self:
            return
        del _watches[self._loop]
        self.close()

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._pending is not None:
            self._pending.cancel()
        if self._reports is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._reports.fileno())
            self._reports.close()

    def check(self) -> None:
        """List the interfaces, and inform all followers if they differ from before or there are new routes."""
        try:
            interfaces = list_interfaces()
        except OSError:
            return  # the next report or the timer brings the next attempt
        routes = self._take_routes()
        if interfaces == self._interfaces and not routes:
            return
        self._interfaces = interfaces
        for follower in list(self._followers):
            try:
                follower._host_changed(HostChange(interfaces, routes))
            except Exception as error:  # noqa: BLE001  # an error of one follower must not stop the others
                context = {"message": "a change of the interfaces could not be followed", "exception": error}
                self._loop.call_exception_handler(context)

    def _subscribe(self) -> Reports | None:
        try:
            reports = Reports()
        except OSError:
            return None
        try:
            self._loop.add_reader(reports.fileno(), self._reported)
        except NotImplementedError:
            reports.close()
            return None
        return reports

    def _reported(self) -> None:
        if self._reports is not None and self._reports.read():
            self.routes_reported()
        elif self._pending is None:
            self._pending = self._loop.call_later(SETTLE, self._settled)

    def routes_reported(self) -> None:
        """Inform the followers soon that there may be new routes."""
        self._routes = True
        if self._pending is None:
            self._pending = self._loop.call_later(SETTLE, self._settled)

    def _settled(self) -> None:
        self._pending = None
        self.check()

    def _take_routes(self) -> bool:
        if not self._routes:
            return False
        pause = self._routes_at + ROUTE_PAUSE - self._loop.time()
        if pause > 0:  # keep the report, and come back for it
            if self._pending is None:
                self._pending = self._loop.call_later(pause, self._settled)
            return False
        self._routes, self._routes_at = False, self._loop.time()
        return True

    def _due(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._due)
        self.check()


def follow_host(follower: HostFollower) -> InterfaceWatch:
    """Inform a follower of the changes of this host, in the running event loop, until `remove` of the watch."""
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = InterfaceWatch(loop)
    watch.add(follower)
    return watch
