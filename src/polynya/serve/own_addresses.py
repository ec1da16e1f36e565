"""The addresses of this host, watched while the server runs: the peer policy denies each of them on every port."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from polynya.aio.interface_watch import HostChange, InterfaceWatch, follow_host
from polynya.aio.interfaces import list_interfaces

logger: Final = logging.getLogger("polynya.serve.turn")


class OwnAddresses:
    """Watches the addresses of this host in the running event loop; calls `changed` with all of them after a change."""

    def __init__(self, changed: Callable[[tuple[str, ...]], None]) -> None:
        self._changed = changed
        self._hosts: tuple[str, ...] = ()
        self._watch: InterfaceWatch | None = None

    def start(self) -> tuple[str, ...]:
        """Start to watch, and return the present addresses."""
        self._watch = follow_host(self)
        self._hosts = _list()
        return self._hosts

    def close(self) -> None:
        """Stop watching. Safe to call twice."""
        if self._watch is not None:
            self._watch.remove(self)
            self._watch = None

    def _host_changed(self, _change: HostChange) -> None:
        """Called by the watch."""
        self.check()

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


def _list() -> tuple[str, ...]:
    found = [address.host for interface in list_interfaces() for address in interface.addresses]
    return tuple(dict.fromkeys(found))
