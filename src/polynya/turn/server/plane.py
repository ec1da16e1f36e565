"""The contract of every data plane of a TURN server.

    execute(command)     carries out a command; each leads to exactly one Done or Refused
    execute(Forward)     handles a frame of a client's stream as a datagram of that client; not acknowledged
    receive(input)       takes an input of the server's driver; planes with sockets of their own take none
    send(answer)         sends an answer of the control plane by one of the plane's own listeners
    reports()            drained: acknowledgements, unknown packets, Traffic, PeerError, PeerForbidden, RelayLost
    outputs()            drained: packets and sockets for the driver, where the plane has no socket for them

`tests/plane` runs the same tests on every data plane:

- A packet is forwarded only while the clock is below the `until` of its allocation, permission and channel.
- A peer is reached and heard only if the last `SetPolicy` permits it, or if it is a live relay of this server.
- A datagram from a peer with a channel becomes ChannelData, which is padded on streams only. Any other becomes a Data
  indication with an unpredictable transaction id.
- A packet of a 5-tuple without an allocation is reported unchanged; a plain Binding request may be answered instead.
- When a plane loses a relay (a socket, a worker), it reports `RelayLost` and keeps no state of the relay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from polynya.core.instants import Instant
from polynya.core.machine import Close, Counters, Open, Send

from .commands import Command, Forward, Report, Traffic


class DataPlane(Protocol):
    """Forwards between clients and peers as the commands of the control plane say."""

    def execute(self, command: Command | Forward, *, now: Instant) -> None:
        """Carry out a command, at once or when the system has answered."""

    def receive(self, input: object, *, now: Instant) -> bool:
        """Take an input of the driver; False if it is not for the data plane."""

    def send(self, answer: Send) -> bool:
        """Send an answer by a listener of the plane; False if the plane has no such flow."""

    def reports(self) -> list[Report]:
        """Return the reports for the control plane, oldest first; drained by the call."""

    def outputs(self) -> Sequence[Send | Open | Close]:
        """Return the outputs for the driver, oldest first; drained by the call."""

    def traffic(self) -> list[Traffic]:
        """Return the traffic of each open relay."""

    @property
    def counters(self) -> Counters:
        """Datagrams that were not forwarded, by reason."""

    @property
    def size(self) -> Mapping[str, int]:
        """Number of entries in each table, to show leaks."""
