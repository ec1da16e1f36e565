"""What every data plane is to its control plane: numbered commands down, acknowledgements and reports up.

The vocabulary lives with the control plane (`turn.server.commands`), which speaks it; here is who must understand it.

    execute(command)     carried out in the order given; each leads to exactly one Done or Refused
    execute(Forward)     a frame of a client's stream, treated as that client's datagram; not acknowledged
    reports()            drained: acknowledgements, packets that the plane does not know, Traffic, PeerError,
                         PeerForbidden, RelayLost, and as `Send` the frames for streams that the plane itself has
                         not

Whatever the plane is made of, these hold, and `tests/plane` asks each plane for all of them:

- A packet is forwarded only while allocation, permission and (for ChannelData) channel are below their `until`.
- A peer is reached and heard only if the rules of the last `SetPolicy` permit it, or it is a live relay of this server.
- A datagram of a peer for which a channel is bound becomes ChannelData, padded on streams only; of any other a Data
  indication whose transaction id nobody can guess.
- A packet of a 5-tuple without an allocation is handed up whole; a plain Binding request may be answered instead.
- What a plane loses by itself (a socket, a worker) it reports as `RelayLost`, and everything about it is gone.
"""

from __future__ import annotations

from typing import Protocol

from polynya.core.instants import Instant
from polynya.turn.server.commands import (
    AssignRelay,
    BindChannel,
    Client,
    Command,
    Done,
    Forward,
    FreeRelay,
    OpenRelay,
    Peer,
    PeerError,
    PeerForbidden,
    Permit,
    Refused,
    Relay,
    RelayLost,
    Report,
    SetExpiry,
    SetPolicy,
    Traffic,
    UnbindChannel,
    Unpermit,
)

__all__ = [
    "AssignRelay", "BindChannel", "Client", "Command", "Done", "Forward", "FreeRelay", "OpenRelay", "Peer", "PeerError",
    "PeerForbidden",
    "Permit", "Plane", "Refused", "Relay", "RelayLost", "Report", "SetExpiry", "SetPolicy", "Traffic", "UnbindChannel",
    "Unpermit",
]  # fmt: skip


class Plane(Protocol):
    """A data plane."""

    def execute(self, command: Command | Forward, *, now: Instant) -> None:
        """Carry out a command, now or when the system allows it."""

    def reports(self) -> list[Report]:
        """What the control plane should know, oldest first; drained by the call."""
