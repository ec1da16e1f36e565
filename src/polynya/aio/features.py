"""The features of the operating system that the shell uses, found once at import.

Linux has them all. Elsewhere the portable path runs: asyncio's own timers and selectors, interfaces from ifaddr, no
ICMP errors, no choice of interface. `POLYNYA_PORTABLE=1` in the environment selects the portable path on Linux, too.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from typing import Final

PORTABLE: Final = os.environ.get("POLYNYA_PORTABLE", "") not in {"", "0"}
"""Whether the environment selects the portable path."""

LINUX: Final = sys.platform.startswith("linux") and not PORTABLE
"""Linux' socket options, error queue and netlink."""

EPOLL: Final = LINUX and hasattr(select, "epoll")

TIMERFD: Final = LINUX

CONTROL_MESSAGES: Final = hasattr(socket.socket, "sendmsg") and not PORTABLE
"""Whether each datagram can have its own ECN, DSCP, TTL or segment size (`sendmsg`, `recvmsg`)."""

BOOTTIME: Final[int | None] = None if PORTABLE else getattr(time, "CLOCK_BOOTTIME", None)
"""The clock that continues while the system sleeps, or None."""
