"""What passes between the control process and its workers: batches of pickled items, at times with a socket.

    down   Setup first, then commands, KnowRelay, ForgetRelay, ReleaseRelay, Packet, AskTraffic
    up     the plane's reports, Counted

Both ends are our own processes on a socket pair that nobody else has. Nothing on it ever blocks: what does not fit
waits in its sender, and only packets are dropped when too many wait.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.machine import Datagram
from polynya.turn.server.commands import Relay

LARGEST: Final = 1 << 17
_BATCH: Final = 32
_WAITING: Final = 1000
"""Items that may wait before packets among them are dropped."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a worker works. `listeners` are file descriptors that it inherited."""

    listeners: tuple[tuple[Flow, int], ...]
    gather: float = 0.0
    errors: str = ""
    """`module:function` that empties error queues, empty for none."""
    origins: tuple[tuple[Flow, bytes], ...] = ()
    """What answers to Binding requests have besides, for listeners that serve behavior discovery."""


@dataclass(frozen=True, slots=True)
class KnowRelay:
    """A relay of another worker is live."""

    relay: Relay
    external: Address


@dataclass(frozen=True, slots=True)
class ForgetRelay:
    """A relay of another worker is live no more."""

    relay: Relay


@dataclass(frozen=True, slots=True)
class ReleaseRelay:
    """Another worker has this relay now."""

    relay: Relay


@dataclass(slots=True)
class Packet:
    """A client's packet that came to another worker, which did not know it."""

    datagram: Datagram


@dataclass(frozen=True, slots=True)
class AskTraffic:
    """Say what each relay has carried, and then `Counted`."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a worker did not forward, by why, and how much it holds."""

    counters: dict[str, int]
    size: dict[str, int]


class Channel:
    """One end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False
        """The other end is gone."""
        self.dropped = 0
        self._waiting: deque[tuple[bytes, tuple[int, ...], bool]] = deque()
        sock.setblocking(False)

    @property
    def waiting(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._waiting)

    def send(self, items: Sequence[Any], fds: tuple[int, ...] = ()) -> None:
        """Send items in their order; `fds` go with the first batch, and are the caller's to close."""
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
        """Send now, or let it wait, then with descriptors of its own."""
        if (self._waiting or not self._send(data, fds)) and not self.closed:
            self._waiting.append((data, tuple(map(os.dup, fds)), packets))

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
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
        """The items of one batch with its descriptors; empty when there is none, or the other end is gone."""
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
