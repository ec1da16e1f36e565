"""A worker process: a portable plane with its control channel. `python -m polynya.plane.worker FD`."""

from __future__ import annotations

import importlib
import signal
import socket
import sys
from typing import Any

from polynya.core.flows import Flow

from .messages import AddLiveRelay, Channel, Counts, Packet, ReleaseRelay, RemoveLiveRelay, RequestCounts, Setup
from .portable import PortablePlane, ReadErrors, now

BUSY_WAIT = 0.01
"""Seconds to wait for packets while reports are queued."""


def main(fd: int) -> None:
    """Run the plane until the control process closes its end of the channel."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to all processes; the control process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=fd))
    channel.sock.setblocking(True)
    items, _ = channel.receive()
    if not items or not isinstance(items[0], Setup):
        return
    channel.sock.setblocking(False)
    plane = _plane(items[0])
    plane.watch(fd)
    try:
        while _read_channel(plane, channel):
            pass  # the relays of a worker that this one replaces, before any packet
        while not channel.closed:
            reports = plane.reports()
            if channel.waiting:
                channel.flush()
            if reports:
                channel.send(reports)
            if fd in plane.run(BUSY_WAIT if channel.waiting else None):
                _read_channel(plane, channel)
    finally:
        plane.close()


def _plane(setup: Setup) -> PortablePlane:
    listeners: dict[Flow, socket.socket] = {flow: socket.socket(fileno=number) for flow, number in setup.listeners}
    errors: ReadErrors | None = None
    if setup.errors:
        module, _, name = setup.errors.partition(":")
        errors = getattr(importlib.import_module(module), name)
    return PortablePlane(listeners, gather=setup.gather, origins=dict(setup.origins), read_errors=errors)


def _read_channel(plane: PortablePlane, channel: Channel) -> bool:
    """Handle at most 16 batches of the control process; True if there may be more."""
    for _ in range(16):
        items, fds = channel.receive()
        if not items:
            return False
        sockets = [socket.socket(fileno=number) for number in fds]
        for item in items:
            _handle(plane, channel, item, sockets)
        for unused in sockets:
            unused.close()
    return True


def _handle(plane: PortablePlane, channel: Channel, item: Any, sockets: list[socket.socket]) -> None:
    match item:
        case Packet():
            plane.relay_packet(item.datagram, now())
        case AddLiveRelay():
            plane.relays.add_live(item.relay, item.external)
        case RemoveLiveRelay():
            plane.relays.remove_live(item.relay)
        case ReleaseRelay():
            plane.release(item.relay)
        case RequestCounts():
            counts = Counts({**plane.counters, "packets lost between processes": channel.dropped}, plane.size)
            channel.send([*plane.reports(), *plane.traffic(), counts])
        case _:
            plane.execute(item, now=now(), sock=sockets.pop(0) if sockets else None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
