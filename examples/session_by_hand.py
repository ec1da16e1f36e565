"""Three machines in one loop by hand: a STUN server, and two sessions that ask it where they are seen.

A session gathers by itself, so it asks for more than to send: to open sockets and to look names up. `Shell` does that
for any machine, with blocking sockets and `select`. docs/howto/sans-io.md walks through this file. Run it without
arguments.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    Input,
    Interface,
    InterfaceAddress,
    InterfacesChanged,
    Machine,
    Open,
    Opened,
    Output,
    Resolve,
    Resolved,
    Send,
    SendFailed,
)
from polynya.core.pacer import Pacer
from polynya.ice.config import IceConfig
from polynya.ice.events import AgentState, LocalCandidateAdded, LocalCandidatesEnded
from polynya.session.options import SessionConfig
from polynya.session.session import DataReceived, Session
from polynya.stun.server import BindingServer
from polynya.stun.uris import StunUri

PACER = Pacer()
LOOPBACK = Interface(
    name="lo", index=1, addresses=(InterfaceAddress(host="127.0.0.1", prefix_length=8),), loopback=True
)  # fmt: skip


def now() -> Instant:
    return Instant(time.monotonic_ns())


class Shell:
    """Does for one machine what only a program can do. Events go to `on_event`."""

    def __init__(self, machine: Machine[Input, Any, Any], on_event: Callable[[Any], None]) -> None:
        self.machine = machine
        self.on_event = on_event
        self.sockets: dict[Flow, socket.socket] = {}

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of the machine, then drain it."""
        result = method(*arguments, now=now())
        self.drain()
        return result

    def drain(self) -> None:
        """Outputs first, then events; what an output leads to is the machine's next input."""
        inputs = [answer for output in self.machine.outputs() if (answer := self.perform(output)) is not None]
        for event in self.machine.events():
            self.on_event(event)
        for answer in inputs:
            self.call(self.machine.receive, answer)

    def perform(self, output: Output) -> Input | None:
        """Carry an output out. Returns the answer for the machine, if there is one."""
        match output:
            case Send():
                try:
                    self.sockets[output.flow].sendto(output.data, output.remote[:2])
                except OSError as error:
                    return SendFailed(flow=output.flow, remote=output.remote, errno=error.errno or 0)
            case Open(transport=Transport.UDP, local=Address() as local):
                return self.open(output.flow, local)
            case Open():
                return Closed(flow=output.flow, reason="this shell has only UDP")
            case Close():
                self.sockets.pop(output.flow).close()
            case Resolve():
                return self.resolve(output)
        return None

    def open(self, flow: Flow, local: Address) -> Input:
        opened = socket.socket(socket.AF_INET6 if local.family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            opened.bind(local[:2])
        except OSError as error:
            opened.close()
            return Closed(flow=flow, reason=str(error), errno=error.errno)
        self.sockets[flow] = opened
        return Opened(flow=flow, local=local.with_port(opened.getsockname()[1]))

    def resolve(self, query: Resolve) -> Input:
        try:
            found = socket.getaddrinfo(query.name, None, type=socket.SOCK_DGRAM)
        except OSError as error:
            return Resolved(query=query, error=str(error))
        return Resolved(query=query, hosts=tuple(str(entry[4][0]) for entry in found))

    def read(self, flow: Flow) -> None:
        data, source = self.sockets[flow].recvfrom(65536)
        self.call(self.machine.receive, Datagram(flow, Address(*source[:2]), data))


def step(shells: list[Shell]) -> None:
    """Sleep until a datagram comes or a timer is due, then do what there is to do."""
    due = [at for shell in shells if (at := shell.machine.next_timer()) is not None]
    timeout = max(0, min(due) - now()) / SECOND if due else None
    waiting = {opened: (shell, flow) for shell in shells for flow, opened in shell.sockets.items()}
    readable, _, _ = select.select(list(waiting), [], [], timeout)
    for ready in readable:
        shell, flow = waiting[ready]
        if flow in shell.sockets:
            shell.read(flow)
    for shell in shells:
        shell.call(shell.machine.tick)


class Side:
    """A session, what it wants signaled, and what it received."""

    def __init__(self, name: str, *, controlling: bool, stun_server: Address) -> None:
        config = SessionConfig(
            ice=IceConfig(controlling=controlling),
            stun_servers=(StunUri.parse(f"stun:{stun_server}"),),
            loopback=True,  # it connects programs on this host only
        )
        self.name = name
        self.session = Session(config, random=random.SystemRandom(), pacer=PACER, flow_ids=FlowIds())
        self.shell = Shell(self.session, self.on_event)
        self.to_signal: list[Any] = []
        self.received: list[bytes] = []

    def on_event(self, event: Any) -> None:
        match event:
            case LocalCandidateAdded():
                self.to_signal.append(event.candidate)
            case LocalCandidatesEnded():
                self.to_signal.append(None)
            case DataReceived():
                self.received.append(event.data)

    @property
    def state(self) -> AgentState:
        return self.session.agent.state


def trickle(source: Side, target: Side) -> None:
    """Signal what was found since the last time."""
    while source.to_signal:
        target.shell.call(target.session.add_remote, source.to_signal.pop(0))


def main() -> None:
    server = Shell(BindingServer(), print)
    opened = server.open(FlowIds().new(), Address("127.0.0.1", 0))
    assert isinstance(opened, Opened)
    alice = Side("alice", controlling=True, stun_server=opened.local)
    bob = Side("bob", controlling=False, stun_server=opened.local)
    shells = [server, alice.shell, bob.shell]

    for one, other in ((alice, bob), (bob, alice)):
        one.shell.call(one.session.start, InterfacesChanged(interfaces=(LOOPBACK,)))
        one.shell.call(one.session.set_remote, other.session.agent.local_description)
    while not alice.state is bob.state is AgentState.COMPLETED:
        step(shells)
        trickle(alice, bob)
        trickle(bob, alice)

    for one, other in ((alice, bob), (bob, alice)):
        one.shell.call(one.session.send, f"{one.name} greets {other.name}".encode())
    while not (alice.received and bob.received):
        step(shells)
    print(alice.session.why())
    for side in (alice, bob):
        print(f"{side.name} received {side.received[0].decode()!r}")
        side.shell.call(side.session.close)
        assert not side.shell.sockets  # closing a session closes all that it opened
    for each in server.sockets.values():
        each.close()


if __name__ == "__main__":
    main()
