"""The control process's record of each relay, from which another worker can continue the relay.

A worker may die, and a client's packets may arrive at another worker. In both cases the relay is opened again from its
record: its socket, expiry, permissions and channels.
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from polynya.core.instants import Instant
from polynya.turn.server.commands import (
    BindChannel,
    Command,
    OpenRelay,
    Peer,
    Permit,
    SetExpiry,
    Traffic,
    UnbindChannel,
    Unpermit,
)

from .messages import Channel
from .portable import now

UNACKNOWLEDGED: Final = 0
"""Number of commands whose acknowledgement is ignored."""


@dataclass(slots=True)
class Record:
    """The state of a relay, and the worker that serves it."""

    open: OpenRelay
    sock: socket.socket
    worker: int
    permissions: dict[str, Instant] = field(default_factory=dict)
    channels: dict[int, tuple[Peer, Instant]] = field(default_factory=dict)
    before: Traffic | None = None
    """Traffic in its former workers."""
    last: Traffic = field(init=False)
    """Traffic in all workers, as of the last report."""

    def __post_init__(self) -> None:
        self.last = Traffic(relay=self.open.relay)

    def update(self, command: Command) -> None:
        """Apply a command to the record."""
        if isinstance(command, SetExpiry):
            self.open = replace(self.open, until=command.until)
        elif isinstance(command, Permit):
            self.permissions.update(dict.fromkeys(command.hosts, command.until))
        elif isinstance(command, Unpermit):
            for host in command.hosts:
                self.permissions.pop(host, None)
        elif isinstance(command, BindChannel):
            for number in [number for number, bound in self.channels.items() if bound[0] == command.peer]:
                del self.channels[number]
            self.channels[command.channel] = command.peer, command.until
        elif isinstance(command, UnbindChannel):
            self.channels.pop(command.channel, None)

    def add_traffic(self, traffic: Traffic) -> Traffic:
        """Record the traffic in the current worker; returns the traffic in all workers."""
        self.last = _sum(self.before, traffic)
        return self.last

    def add_former_traffic(self, traffic: Traffic) -> None:
        """Record the final traffic in a former worker."""
        self.before = _sum(self.before, traffic)

    def send_to(self, channel: Channel, command: OpenRelay) -> None:
        """Open the relay in a worker with all its state. One batch, so that no packet comes in between."""
        channel.send([command, *self._commands(now())], (self.sock.fileno(),))

    def _commands(self, at: Instant) -> list[Command]:
        """Return the commands that follow OpenRelay; expired permissions and channels are left out."""
        relay = self.open.relay
        by_time: dict[Instant, list[str]] = {}
        for host, until in self.permissions.items():
            if until <= at:
                continue
            by_time.setdefault(until, []).append(host)
        commands: list[Command] = [
            Permit(number=UNACKNOWLEDGED, relay=relay, hosts=tuple(hosts), until=until)
            for until, hosts in by_time.items()
        ]
        return commands + [
            BindChannel(number=UNACKNOWLEDGED, relay=relay, channel=channel, peer=peer, until=until)
            for channel, (peer, until) in self.channels.items()
            if until > at
        ]


def _sum(before: Traffic | None, traffic: Traffic) -> Traffic:
    if before is None:
        return traffic
    return Traffic(
        relay=traffic.relay,
        to_peers=before.to_peers + traffic.to_peers,
        bytes_to_peers=before.bytes_to_peers + traffic.bytes_to_peers,
        from_peers=before.from_peers + traffic.from_peers,
        bytes_from_peers=before.bytes_from_peers + traffic.bytes_from_peers,
        dropped=before.dropped + traffic.dropped,
        reasons=dict(Counter(before.reasons) + Counter(traffic.reasons)),
    )
