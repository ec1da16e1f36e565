"""Worker processes as the control process sees them, and the messages between the two.

    to a worker     Setup first, then commands, AddLiveRelay, RemoveLiveRelay, ReleaseRelay, Packet, RequestCounts
    from a worker   the plane's reports, Counts

Messages are batches of pickled items, some with a file descriptor, on a socket pair between the two processes. Sending
never blocks: the sender queues what the socket pair doesn't take. It drops packets, and nothing else, when the queue is
full.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.machine import Datagram
from polynya.turn.server.commands import Command, Relay

from .portable import now

LARGEST: Final = 1 << 17
_BATCH: Final = 32
_WAITING: Final = 1000
"""Batches that may be queued before packets are dropped."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Options of a worker. `listeners` are file descriptors that it inherits."""

    listeners: tuple[tuple[Flow, int], ...]
    gather: float = 0.0
    errors: str = ""
    """`module:function` that reads error queues; empty for none."""
    origins: tuple[tuple[Flow, bytes], ...] = ()
    """Encoded attributes of Binding responses, by listener, for behavior discovery (RFC 5780)."""


@dataclass(frozen=True, slots=True)
class AddLiveRelay:
    """Adds a live relay of another worker."""

    relay: Relay
    external: Address


@dataclass(frozen=True, slots=True)
class RemoveLiveRelay:
    """Removes a live relay of another worker."""

    relay: Relay


@dataclass(frozen=True, slots=True)
class ReleaseRelay:
    """Drops a relay that was moved to another worker."""

    relay: Relay


@dataclass(slots=True)
class Packet:
    """A client's packet that another worker has received."""

    datagram: Datagram


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests the traffic of each relay, then `Counts`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters and table sizes of a worker."""

    counters: dict[str, int]
    size: dict[str, int]


class Channel:
    """One end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False
        """Whether the other end is closed."""
        self.dropped = 0
        """Packets that were dropped because the queue was full."""
        self._waiting: deque[tuple[bytes, tuple[int, ...], bool]] = deque()
        sock.setblocking(False)

    @property
    def waiting(self) -> bool:
        """Whether batches are queued."""
        return bool(self._waiting)

    def send(self, items: Sequence[Any], fds: tuple[int, ...] = ()) -> None:
        """Send items in order. `fds` go with the first batch; the caller closes them."""
        if self.closed:
            return
        for start in range(0, len(items), _BATCH):
            batch = list(items[start : start + _BATCH])
            data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
            if len(data) > LARGEST and len(batch) > 1:
                for item in batch:
                    self.send([item], fds)
                    fds = ()
                continue
            packets = all(isinstance(item, (Datagram, Packet)) for item in batch)
            if packets and len(self._waiting) >= _WAITING:
                self.dropped += len(batch)
            else:
                self._put(data, fds, packets=packets)
            fds = ()

    def _put(self, data: bytes, fds: tuple[int, ...], *, packets: bool) -> None:
        """Send a batch, or queue it with duplicates of its descriptors."""
        if (self._waiting or not self._send(data, fds)) and not self.closed:
            self._waiting.append((data, tuple(map(os.dup, fds)), packets))

    def flush(self) -> None:
        """Send queued batches until the socket is full."""
        waiting = self._waiting
        while waiting and not self.closed:
            data, fds, _ = waiting[0]
            if not self._send(data, fds):
                return
            waiting.popleft()
            for fd in fds:
                os.close(fd)

    def _send(self, data: bytes, fds: tuple[int, ...]) -> bool:
        try:
            if fds:
                socket.send_fds(self.sock, [data], list(fds))
            else:
                self.sock.send(data)
        except BlockingIOError:
            return False
        except OSError:
            self.closed = True
            return False
        return True

    def receive(self) -> tuple[list[Any], list[int]]:
        """Return the items and descriptors of one batch; empty if there is none or the other end is closed."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 4)
        except BlockingIOError:
            return [], []
        except OSError:
            data, fds = b"", []
        if not data:
            self.closed = True
            return [], []
        return pickle.loads(data), fds  # noqa: S301 - from our own other process

    def close(self) -> None:
        self.closed = True
        for _, fds, _ in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        self.sock.close()


class WorkerProcess:
    """A worker process, with its channel and the commands that it has not acknowledged."""

    def __init__(self, index: int, listeners: Sequence[tuple[Flow, socket.socket]], setup: Setup) -> None:
        self.index = index
        self.unacknowledged: dict[int, Command] = {}
        self.started = now()
        self.watched = False
        """Whether the event loop waits until more can be sent."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = [sock.fileno() for _, sock in listeners]
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-m", "polynya.plane.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *inherited),
            )
        self.channel = Channel(ours)
        self.channel.send([setup])

    def stop(self) -> None:
        """Close the channel, which ends the process."""
        self.channel.close()

    def wait(self) -> None:
        """Wait for the end of the process for two seconds, then kill it."""
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
