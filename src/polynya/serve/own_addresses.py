"""The addresses of this host, watched while the server runs: the peer policy denies each of them on every port.

On Linux, rtnetlink reports a new or removed address at once. Elsewhere, and for a lost report, the interfaces are
listed every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from polynya.aio.features import LINUX
from polynya.aio.interfaces import list_interfaces

logger: Final = logging.getLogger("polynya.serve.turn")

INTERVAL: Final = 5.0
"""Seconds between two listings."""
_ADDRESS_GROUPS: Final = 0x10 | 0x100
"""RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)."""
_BUFFER: Final = 1 << 16


class OwnAddresses:
    """Watches the addresses of this host in the running event loop; calls `changed` with all of them after a change."""

    def __init__(self, changed: Callable[[tuple[str, ...]], None]) -> None:
        self._changed = changed
        self._hosts: tuple[str, ...] = ()
        self._netlink: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> tuple[str, ...]:
        """Start to watch, and return the present addresses."""
        self._netlink = _subscribe()
        if self._netlink is not None:
            asyncio.get_running_loop().add_reader(self._netlink.fileno(), self._reported)
        self._hosts = _list()
        self._arm()
        return self._hosts

    def close(self) -> None:
        """Stop watching. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._netlink is not None:
            asyncio.get_running_loop().remove_reader(self._netlink.fileno())
            self._netlink.close()
            self._netlink = None

    def check(self) -> None:
        """List the addresses; calls `changed` if they differ from those before."""
        try:
            hosts = _list()
        except OSError as error:
            logger.warning("the addresses of this host cannot be listed, the peer policy keeps the old ones: %s", error)
            return
        if hosts != self._hosts:
            self._hosts = hosts
            self._changed(hosts)

    def _reported(self) -> None:
        try:
            while self._netlink is not None and self._netlink.recv(_BUFFER):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # reports were lost (ENOBUFS): the listing has the result of them all
        self.check()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._due)

    def _due(self) -> None:
        self.check()
        self._arm()


def _list() -> tuple[str, ...]:
    found = [address.host for interface in list_interfaces() for address in interface.addresses]
    return tuple(dict.fromkeys(found))


def _subscribe() -> socket.socket | None:
    """Return a socket that is readable after a change of an address; None without rtnetlink."""
    if not LINUX:
        return None
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except OSError:
        return None
    try:
        netlink.bind((0, _ADDRESS_GROUPS))
    except OSError:
        netlink.close()
        return None
    return netlink
