"""When the drivers of an event loop wake: one timer of the system's for all of them, to the microsecond.

Event loops wait in whole milliseconds, rounded up. Checks are 5 ms apart (RFC 8445, section 14.2), so each would come
most of a millisecond late and push back all those of the process that follow it. Linux' timerfd has no such grain, its
clock is the one that runs on while the machine sleeps, and it is watched like a socket. Elsewhere the loop's own timer
serves.

    driver --set(who, at)--> Timers --the first--> timerfd, or call_later --> timer_due() of each that is due
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
_RINGS: Final = 8
"""Bytes that a timerfd counts its expirations in."""


class TimerOwner(Hashable, Protocol):
    """Who is woken."""

    def timer_due(self) -> None: ...


_alarms: dict[asyncio.AbstractEventLoop, Alarm] = {}


class Alarm:
    """Wakes sleepers, each at one time. It is there as long as anybody has it."""

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
                loop.add_reader(self._file, self._ring)
            except NotImplementedError:
                os.close(self._file)
                self._file = None

    def set(self, who: TimerOwner, at: Instant) -> None:
        """Wake `who` at this time and no other."""
        self._timers.set(who, at)
        if self._armed is None or at < self._armed:
            self._arm(at)

    def at(self, who: TimerOwner) -> Instant | None:
        """When `who` is woken, if at all."""
        return self._timers.at(who)

    def cancel(self, who: TimerOwner) -> None:
        """Let `who` sleep."""
        self._timers.cancel(who)

    def hold(self) -> Alarm:
        """Have it until `leave`."""
        self._holders += 1
        return self

    def leave(self, who: TimerOwner) -> None:
        """Let `who` sleep, and have the alarm no more; to be called once. With the last one it is gone."""
        self._timers.cancel(who)
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
        # Some loops round to the nearest millisecond, and a timer that fires early would only be set again.
        wait = max(0, -(-(at - clock.now()) // MILLISECOND)) * MILLISECOND
        self._handle = self._loop.call_later(wait / SECOND, self._ring)

    def _ring(self) -> None:
        if self._file is not None:
            try:
                os.read(self._file, _RINGS)
            except BlockingIOError:
                return  # it was set anew meanwhile
        self._armed = None
        self._handle = None
        self._wake(self._timers.due(now=clock.now()))

    def _on_jump(self) -> None:
        """The clock ran on while the loop stood still: much may be due, whatever a timer says."""
        if self._handle is not None:
            self._handle.cancel()
        self._armed = self._handle = None
        self._wake(self._timers.due(now=_FOREVER))

    def _wake(self, sleepers: list[TimerOwner]) -> None:
        for who in sleepers:
            try:
                who.timer_due()
            except Exception as error:  # noqa: BLE001  # one's fault is not the others'
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
    """The event loops that have an alarm at present."""
    return tuple(_alarms)


# ---------------------------------------------------------------------------------------------------------- the system

_Times = ctypes.c_long * 4  # struct itimerspec: the interval, then the time, each of seconds and nanoseconds
_library: Final = ctypes.CDLL(None) if TIMERFD else None


def _make_file() -> int | None:
    """A timerfd, or None where there is none to be had."""
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
