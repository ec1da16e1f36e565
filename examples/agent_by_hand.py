"""Two ICE agents driven by hand: two UDP sockets, a clock and a loop. No asyncio, no threads, no callbacks.

docs/howto/sans-io.md walks through this file. Run it without arguments.
"""

from __future__ import annotations

import random
import select
import socket
import time

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, Send, SendFailed
from polynya.core.pacer import Pacer
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate, CandidateType, Gathered
from polynya.ice.config import IceConfig
from polynya.ice.description import Description
from polynya.ice.events import (
    AgentState,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    RemoteAuthenticated,
    RemoteRevoked,
    SelectedPairChanged,
)
from polynya.stun.message import is_stun

PACER = Pacer()  # one for the process, however many agents it has


def now() -> Instant:
    """Return the time of a monotonic clock in nanoseconds."""
    return Instant(time.monotonic_ns())


class Side:
    """One agent with one socket."""

    def __init__(self, name: str, *, controlling: bool) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.flow = Flow(1)  # names this socket in all calls of the agent
        self.agent = IceAgent(IceConfig(controlling=controlling), random=random.SystemRandom(), pacer=PACER)
        self.to_signal: list[str] = []
        self.trusted: set[Address] = set()
        self.target: Address | None = None
        self.received: list[bytes] = []

    def gather(self) -> None:
        """Add the address of the socket, the only one there is."""
        address = Address(*self.socket.getsockname())
        self.to_signal.append(self.agent.local_description.to_sdp())
        self.agent.add_local(Gathered(type=CandidateType.HOST, address=address, flow=self.flow), now=now())
        self.agent.end_of_local_candidates(now=now())
        self.drain()

    def signaled(self, text: str) -> None:
        """Handle a text that the other side signaled."""
        if text.startswith("candidate:"):
            self.agent.add_remote(Candidate.parse(text), now=now())
        elif text == "end-of-candidates":
            self.agent.end_of_remote_candidates(now=now())
        else:
            self.agent.set_remote(Description.parse(text), now=now())
        self.drain()

    def drain(self) -> None:
        """Carry out the outputs of the agent, then handle its events. Do this after every call."""
        for output in self.agent.outputs():
            assert isinstance(output, Send)  # the only output without named candidates
            try:
                self.socket.sendto(output.data, output.remote[:2])
            except OSError as error:
                failed = SendFailed(flow=output.flow, remote=output.remote, errno=error.errno or 0)
                self.agent.receive(failed, now=now())
        for event in self.agent.events():
            match event:
                case LocalCandidateAdded():
                    self.to_signal.append(str(event.candidate))
                case LocalCandidatesEnded():
                    self.to_signal.append("end-of-candidates")
                case RemoteAuthenticated():
                    self.trusted.add(event.remote)
                case RemoteRevoked():
                    self.trusted.discard(event.remote)
                case SelectedPairChanged():
                    self.target = event.pair.remote_address if event.pair else None
                    print(f"{self.name}: {event.pair}: {event.reason}")

    def read(self) -> None:
        """Read a datagram: STUN is for the agent, anything else is data if its source is authenticated."""
        data, source = self.socket.recvfrom(65536)
        remote = Address(*source)
        if is_stun(data):
            self.agent.receive(Datagram(self.flow, remote, data), now=now())
            self.drain()
        elif remote in self.trusted:
            self.received.append(data)

    def tick(self) -> None:
        """Handle the timers that are due."""
        self.agent.tick(now=now())
        self.drain()

    def send(self, data: bytes) -> None:
        assert self.target is not None, "not connected yet"
        self.socket.sendto(data, self.target[:2])

    def close(self) -> None:
        self.agent.close(now=now())
        self.drain()
        self.socket.close()


def step(sides: list[Side]) -> None:
    """Sleep until a datagram arrives or a timer is due, then handle it."""
    due = [at for side in sides if (at := side.agent.next_timer()) is not None]
    timeout = max(0, min(due) - now()) / SECOND if due else None
    readable, _, _ = select.select([side.socket for side in sides], [], [], timeout)
    for side in sides:
        if side.socket in readable:
            side.read()
        side.tick()  # safe to call early


def signal(source: Side, target: Side) -> None:
    """Deliver the signals. Any channel works: a web server, a chat, a piece of paper."""
    for text in source.to_signal:
        target.signaled(text)
    source.to_signal.clear()


def main() -> None:
    alice, bob = sides = [Side("alice", controlling=True), Side("bob", controlling=False)]
    for side in sides:
        side.gather()
    signal(alice, bob)
    signal(bob, alice)
    while not all(side.agent.state is AgentState.COMPLETED for side in sides):
        step(sides)
        assert not any(side.agent.state is AgentState.FAILED for side in sides), str(alice.agent.why())

    alice.send(b"hello, bob")
    bob.send(b"hello, alice")
    while not all(side.received for side in sides):
        step(sides)
    for side in sides:
        print(f"{side.name} received {side.received[0].decode()!r}")
        side.close()


if __name__ == "__main__":
    main()
