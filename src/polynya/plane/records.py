"""What the control process remembers of each relay that a worker has, so that another worker can be told."""

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

NOBODY: Final = 0
"""The number of commands that nobody waits for."""


@dataclass(slots=True)
class Record:
    """What a relay was told, enough to tell it to another worker."""

    open: OpenRelay
    sock: socket.socket
    worker: int
    permissions: dict[str, Instant] = field(default_factory=dict)
    channels: dict[int, tuple[Peer, Instant]] = field(default_factory=dict)
    before: Traffic | None = None
    """What it carried in workers that it has left."""
    last: Traffic = field(init=False)
    """What it had carried when it was last told."""

    def __post_init__(self) -> None:
        self.last = Traffic(relay=self.open.relay)

    def note(self, command: Command) -> None:
        """Write down what the relay is told."""
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

    def carried(self, traffic: Traffic) -> Traffic:
        """The worker that has it tells what it carried there: what it carried in all."""
        self.last = _sum(self.before, traffic)
        return self.last

    def left(self, traffic: Traffic) -> None:
        """A worker that it has left tells the last of it."""
        self.before = _sum(self.before, traffic)

    def tell(self, channel: Channel, command: OpenRelay) -> None:
        """Let a worker have it, with all that it is: in one go, or packets would come in between and be refused."""
        channel.send([command, *self._replay(now())], (self.sock.fileno(),))

    def _replay(self, at: Instant) -> list[Command]:
        """The commands that make it what it is, after its OpenRelay; what has expired is left out."""
        relay = self.open.relay
        by_time: dict[Instant, list[str]] = {}
        for host, until in self.permissions.items():
            if until <= at:
                continue
            by_time.setdefault(until, []).append(host)
        commands: list[Command] = [
            Permit(number=NOBODY, relay=relay, hosts=tuple(hosts), until=until) for until, hosts in by_time.items()
        ]
        return commands + [
            BindChannel(number=NOBODY, relay=relay, channel=channel, peer=peer, until=until)
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
