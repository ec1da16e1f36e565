"""The alarm: one timer of the system for all drivers of an event loop, with a resolution of microseconds.

Event loops round timers up to whole milliseconds. Checks are 5 ms apart (RFC 8445, section 14.2): each would be up to
a millisecond late and delay all later ones. Linux' timerfd is not rounded, its clock continues while the system sleeps,
and it is watched like a socket. Other systems use the loop's own timer.

    driver --set(owner, at)--> Timers --the first--> timerfd, or call_later --> timer_due() of each owner that is due
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Hashable
from typing import Final, Protocol

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.timers import Timers

from . import clock
from .features import BOOTTIME, TIMERFD

_CLOCK: Final = BOOTTIME or 0
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_FLAGS: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_FOREVER: Final = Instant(1 << 62)
_COUNTER_SIZE: Final = 8
"""Bytes of a timerfd's counter of expirations."""


class TimerOwner(Hashable, Protocol):
    """An object with a timer, such as a driver."""

    def timer_due(self) -> None:
        """Called when the timer is due."""


_alarms: dict[asyncio.AbstractEventLoop, Alarm] = {}


class Alarm:
    """Calls `timer_due` of each owner at one time. The alarm exists while it has holders."""

    __slots__ = ("_armed", "_file", "_handle", "_holders", "_loop", "_timers", "_watch")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, timerfd: bool = TIMERFD) -> None:
        self._loop = loop
        self._holders = 0
        self._timers: Timers[TimerOwner] = Timers()
        self._armed: Instant | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._watch = clock.watch(loop)
        self._watch.subscribe(self, Alarm._on_jump)
        self._file = _make_file() if timerfd else None
        if self._file is not None:
            try:
                loop.add_reader(self._file, self._expire)
            except NotImplementedError:
                os.close(self._file)
                self._file = None

    def set(self, owner: TimerOwner, at: Instant) -> None:
        """Set the owner's timer to `at`; an earlier setting is replaced."""
        self._timers.set(owner, at)
        if self._armed is None or at < self._armed:
            self._arm(at)

    def at(self, owner: TimerOwner) -> Instant | None:
        """Return the time of the owner's timer, or None if it is not set."""
        return self._timers.at(owner)

    def cancel(self, owner: TimerOwner) -> None:
        """Cancel the owner's timer."""
        self._timers.cancel(owner)

    def hold(self) -> Alarm:
        """Add a holder, which calls `leave` at its end."""
        self._holders += 1
        return self

    def leave(self, owner: TimerOwner) -> None:
        """Cancel the owner's timer and remove one holder. The last one to leave removes the alarm."""
        self._timers.cancel(owner)
        self._holders -= 1
        if self._holders:
            return
        del _alarms[self._loop]
        self._watch.unsubscribe(self)
        if self._handle is not None:
            self._handle.cancel()
        if self._file is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = None

    def _arm(self, at: Instant) -> None:
        self._armed = at
        if self._file is not None:
            _set_file(self._file, at)
            return
        if self._handle is not None:
            self._handle.cancel()
        # Some loops round to the nearest millisecond; a timer that fires early would have to be set again.
        wait = max(0, -(-(at - clock.now()) // MILLISECOND)) * MILLISECOND
        self._handle = self._loop.call_later(wait / SECOND, self._expire)

    def _expire(self) -> None:
        if self._file is not None:
            try:
                os.read(self._file, _COUNTER_SIZE)
            except BlockingIOError:
                return  # it was set again since
        self._armed = None
        self._handle = None
        self._wake(self._timers.due(now=clock.now()))

    def _on_jump(self) -> None:
        """Call all owners: after a jump of the clock each of their timers may be due."""
        if self._handle is not None:
            self._handle.cancel()
        self._armed = self._handle = None
        self._wake(self._timers.due(now=_FOREVER))

    def _wake(self, owners: list[TimerOwner]) -> None:
        for owner in owners:
            try:
                owner.timer_due()
            except Exception as error:  # noqa: BLE001  # an error of one owner must not stop the others
                self._loop.call_exception_handler({"message": "a timer failed", "exception": error})
        following = self._timers.next()
        if following is not None and self._holders and (self._armed is None or following < self._armed):
            self._arm(following)


def alarm(loop: asyncio.AbstractEventLoop, *, timerfd: bool = TIMERFD) -> Alarm:
    """Return the alarm of this loop, held until `leave`; `timerfd` applies if the call creates it."""
    found = _alarms.get(loop)
    if found is None:
        found = _alarms[loop] = Alarm(loop, timerfd=timerfd)
    return found.hold()


def loops() -> tuple[asyncio.AbstractEventLoop, ...]:
    """Return the event loops that have an alarm at present."""
    return tuple(_alarms)


# ---------------------------------------------------------------------------------------------------------- the system

_Times = ctypes.c_long * 4  # struct itimerspec: the interval, then the time, each of seconds and nanoseconds
_library: Final = ctypes.CDLL(None) if TIMERFD else None


def _make_file() -> int | None:
    """Create a timerfd; None if the system has none."""
    if sys.version_info >= (3, 13):
        try:
            return os.timerfd_create(_CLOCK, flags=_FLAGS)
        except (AttributeError, OSError):
            return None
    create = getattr(_library, "timerfd_create", None)
    made = -1 if create is None else int(create(_CLOCK, _FLAGS))
    return made if made >= 0 else None


def _set_file(file: int, at: Instant) -> None:
    if sys.version_info >= (3, 13):
        os.timerfd_settime_ns(file, flags=_ABSOLUTE, initial=at)
    elif _library is not None:
        _library.timerfd_settime(file, _ABSOLUTE, ctypes.byref(_Times(0, 0, *divmod(at, SECOND))), None)
