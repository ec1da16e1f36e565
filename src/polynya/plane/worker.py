"""A worker process: a portable plane, its control channel, and nothing else. `python -m polynya.plane.worker FD`."""

from __future__ import annotations

import importlib
import signal
import socket
import sys
from typing import Any

from polynya.core.flows import Flow

from .messages import AskTraffic, Channel, Counted, ForgetRelay, KnowRelay, Packet, ReleaseRelay, Setup
from .portable import PortablePlane, ReadErrors, now

BUSY_WAIT = 0.01
"""Seconds to wait for packets while reports wait to be sent."""


def main(fd: int) -> None:
    """Work until the control process closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the control process says when it is over
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
        while _obey(plane, channel):
            pass  # first what a worker before this one knew, then packets
        while not channel.closed:
            reports = plane.reports()
            if channel.waiting:
                channel.flush()
            if reports:
                channel.send(reports)
            if fd in plane.run(BUSY_WAIT if channel.waiting else None):
                _obey(plane, channel)
    finally:
        plane.close()


def _plane(setup: Setup) -> PortablePlane:
    listeners: dict[Flow, socket.socket] = {flow: socket.socket(fileno=number) for flow, number in setup.listeners}
    errors: ReadErrors | None = None
    if setup.errors:
        module, _, name = setup.errors.partition(":")
        errors = getattr(importlib.import_module(module), name)
    return PortablePlane(listeners, gather=setup.gather, origins=dict(setup.origins), read_errors=errors)


def _obey(plane: PortablePlane, channel: Channel) -> bool:
    """Take what the control process sent, a bounded number of batches; whether there may be more."""
    for _ in range(16):
        items, fds = channel.receive()
        if not items:
            return False
        sockets = [socket.socket(fileno=number) for number in fds]
        for item in items:
            _take(plane, channel, item, sockets)
        for unused in sockets:
            unused.close()
    return True


def _take(plane: PortablePlane, channel: Channel, item: Any, sockets: list[socket.socket]) -> None:
    match item:
        case Packet():
            plane.take(item.datagram, now())
        case KnowRelay():
            plane.relays.know(item.relay, item.external)
        case ForgetRelay():
            plane.relays.forget(item.relay)
        case ReleaseRelay():
            plane.release(item.relay)
        case AskTraffic():
            counted = Counted({**plane.counters, "packets lost between processes": channel.dropped}, plane.size)
            channel.send([*plane.reports(), *plane.traffic(), counted])
        case _:
            plane.execute(item, now=now(), sock=sockets.pop(0) if sockets else None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
