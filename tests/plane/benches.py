"""Test benches that put a data plane between clients and peers, with the same calls for every plane.

`say(client, data)` and `reply(relay, peer, data)` send a datagram and return all results as (receiver, data).
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from polynya.aio.icmp import read_errors
from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Closed, Datagram, IcmpError, IcmpKind, Open, Opened, Send
from polynya.plane.portable import PortablePlane, now
from polynya.plane.workers import WorkerPlane
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
    Permit,
    Refused,
    Relay,
    Report,
    SetExpiry,
    SetPolicy,
    Traffic,
    UnbindChannel,
    Unpermit,
)
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.policy import PeerPolicy
from tests.free_ports import free_port

LISTENER = Flow(901)
STREAM = Flow(902)
LOOPBACK = "127.0.0.1"
POLICY = PeerPolicy(allow=("127.0.0.0/8",))
Seen = list[tuple[Address, bytes]]


class Bench:
    """Base class of the benches: numbered commands and their acknowledgements."""

    def __init__(self) -> None:
        self.number = 0
        self.pending: list[Report] = []
        self.do(SetPolicy, policy=POLICY)

    now: Instant
    plane: Any

    def execute(self, command: Command | Forward) -> None:
        raise NotImplementedError

    def collect(self) -> list[Report]:
        raise NotImplementedError

    def reports(self) -> list[Report]:
        """Return the reports since the last call."""
        found, self.pending = self.pending + self.collect(), []
        return found

    def do(self, kind: Callable[..., Command], **fields: Any) -> Report:
        """Execute a command and return its acknowledgement."""
        self.number += 1
        self.execute(partial(kind, **fields)(number=self.number))
        for _ in range(200):
            self.pending += self.collect()
            for report in self.pending:
                if isinstance(report, (Done, Refused)) and report.number == self.number:
                    self.pending.remove(report)
                    return report
        raise AssertionError(f"{kind} was not acknowledged")

    def in_seconds(self, seconds: float) -> Instant:
        return Instant(self.now + round(seconds * SECOND))

    def open(self, relay: Address, client: Address | None, until: float = 600, **more: Any) -> Relay:
        fields = {"external": relay, "stream": False} | more
        who = None if client is None else Client(STREAM if fields["stream"] else LISTENER, client)
        report = self.do(OpenRelay, relay=Relay(relay), client=who, until=self.in_seconds(until), **fields)
        assert isinstance(report, Done), report
        return Relay(relay)

    def assign(self, relay: Relay, client: Address) -> Report:
        return self.do(AssignRelay, relay=relay, client=Client(LISTENER, client), until=self.in_seconds(600))

    def permit(self, relay: Relay, *hosts: str, until: float = 300) -> Report:
        return self.do(Permit, relay=relay, hosts=hosts, until=self.in_seconds(until))

    def unpermit(self, relay: Relay, *hosts: str) -> Report:
        return self.do(Unpermit, relay=relay, hosts=hosts)

    def bind(self, relay: Relay, channel: int, peer: Address, until: float = 600) -> Report:
        return self.do(BindChannel, relay=relay, channel=channel, peer=Peer(peer), until=self.in_seconds(until))

    def unbind(self, relay: Relay, channel: int) -> Report:
        return self.do(UnbindChannel, relay=relay, channel=channel)

    def expire(self, relay: Relay, until: float) -> Report:
        return self.do(SetExpiry, relay=relay, until=self.in_seconds(until))

    def free(self, relay: Relay) -> Report:
        return self.do(FreeRelay, relay=relay)

    def traffic(self) -> list[Traffic]:
        """Return the traffic of each open relay."""
        return list(self.plane.traffic())

    def size(self) -> dict[str, int]:
        """Return the size of each table of the plane."""
        return dict(self.plane.size)


class ReferenceBench(Bench):
    """The reference forwarder, with addresses that have no sockets."""

    def __init__(self) -> None:
        self.now = Instant(1000 * SECOND)
        self.plane = Forwarder(FlowIds(), random=random.Random(1))
        self.flows: dict[Flow, Address] = {}
        self._ports = iter(range(20_000, 30_000))
        super().__init__()

    def address(self) -> Address:
        """Return the address of a new client, peer or relay."""
        return Address(LOOPBACK, next(self._ports))

    free_port = address

    def execute(self, command: Command | Forward) -> None:
        self.plane.execute(command, now=self.now)

    def collect(self) -> list[Report]:
        self._drain()
        return self.plane.reports()

    def wait(self, seconds: float) -> None:
        self.now = self.in_seconds(seconds)

    def say(self, client: Address, data: bytes) -> Seen:
        self.plane.receive(Datagram(LISTENER, client, data), now=self.now)
        return self._drain()

    def reply(self, relay: Address, peer: Address, data: bytes) -> Seen:
        flow = next((flow for flow, local in self.flows.items() if local == relay), None)
        if flow is None:
            return []
        self.plane.receive(Datagram(flow, peer, data), now=self.now)
        return self._drain()

    def forward(self, client: Address, frame: bytes) -> Seen:
        self.execute(Forward(Client(STREAM, client), frame))
        return self._drain()

    def close_peer(self, relay: Address, client: Address, peer: Address, frame: bytes) -> None:
        """Close a peer's socket, then send a frame to it, which causes an ICMP error."""
        self.say(client, frame)
        flow = next(flow for flow, local in self.flows.items() if local == relay)
        self.plane.receive(IcmpError(flow=flow, remote=peer, kind=IcmpKind.PORT_UNREACHABLE), now=self.now)

    def close(self) -> None:
        pass

    def _drain(self) -> Seen:
        seen: Seen = []
        while outputs := self.plane.outputs():
            for output in outputs:
                if isinstance(output, Send):
                    seen.append((output.remote, output.data))
                elif isinstance(output, Open):
                    assert output.local is not None
                    if output.local in self.flows.values() or output.local.port == 1:
                        self.plane.receive(Closed(flow=output.flow, reason="in use", errno=98), now=self.now)
                    else:
                        self.flows[output.flow] = output.local
                        self.plane.receive(Opened(flow=output.flow, local=output.local), now=self.now)
                elif isinstance(output, Close):
                    self.flows.pop(output.flow)
        return seen


class PortableBench(Bench):
    """The portable plane on sockets of the loopback interface."""

    def __init__(self) -> None:
        self.skew = 0
        self.sockets: dict[Address, socket.socket] = {}
        self.listener = self._socket()
        self.listener_address = Address(*self.listener.getsockname())
        self.plane = PortablePlane({LISTENER: self.listener}, read_errors=read_errors, clock=lambda: self.now)
        super().__init__()

    @property
    def now(self) -> Instant:  # type: ignore[override]
        return Instant(now() + self.skew)

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOOPBACK, 0))
        sock.setblocking(False)
        return sock

    def address(self) -> Address:
        sock = self._socket()
        address = Address(*sock.getsockname())
        self.sockets[address] = sock
        return address

    def free_port(self) -> Address:
        return Address(LOOPBACK, free_port())

    def execute(self, command: Command | Forward) -> None:
        self.plane.execute(command, now=self.now)

    def collect(self) -> list[Report]:
        return self.plane.reports()

    def wait(self, seconds: float) -> None:
        self.skew += round(seconds * SECOND)

    def say(self, client: Address, data: bytes) -> Seen:
        self.sockets[client].sendto(data, tuple(self.listener_address[:2]))
        return self._settle()

    def reply(self, relay: Address, peer: Address, data: bytes) -> Seen:
        self.sockets[peer].sendto(data, tuple(relay[:2]))
        return self._settle()

    def forward(self, client: Address, frame: bytes) -> Seen:
        self.execute(Forward(Client(STREAM, client), frame))
        return self._settle()

    def close_peer(self, relay: Address, client: Address, peer: Address, frame: bytes) -> None:
        self.sockets.pop(peer).close()
        self.say(client, frame)

    def close(self) -> None:
        self.plane.close()
        for sock in (*self.sockets.values(), self.listener):
            sock.close()

    def _settle(self) -> Seen:
        """Run the plane until it is idle; on loopback a datagram has arrived when `sendto` returns."""
        self._run()
        seen: Seen = [(each.remote, each.data) for each in self.plane.outputs()]
        for address, sock in self.sockets.items():
            while True:
                try:
                    data, source = sock.recvfrom(65535)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    continue
                assert source, "every datagram has a source"
                seen.append((address, data))
        self.pending += self.plane.reports()
        return seen

    def _run(self) -> None:
        """Run the plane while it has something to do."""
        while select.select([self.plane.fileno()], [], [], 0)[0]:
            self.plane.run(0)


class WorkersBench(PortableBench):
    """A portable plane in a worker process. It has the system's clock, so tests in which time passes skip it.

    All tests share one process and leave no state in it.
    """

    ROUNDS = 8
    """Rounds of the worker's loop until it is idle: a path through two relays takes three."""
    _shared: tuple[socket.socket, WorkerPlane] | None = None

    def __init__(self) -> None:
        self.skew = 0
        self.sockets = {}
        self.opened: list[Relay] = []
        if WorkersBench._shared is None:
            listener = self._socket()
            plane = WorkerPlane(
                {LISTENER: [listener]}, 1, errors="polynya.aio.icmp:read_errors", read_errors=read_errors
            )
            WorkersBench._shared = listener, plane
        self.listener, self.plane = WorkersBench._shared
        self.listener_address = Address(*self.listener.getsockname())
        Bench.__init__(self)

    def collect(self) -> list[Report]:
        self.plane.run(0.05)
        return list(self.plane.reports())

    def reports(self) -> list[Report]:
        found, self.pending = self.pending, []  # `_counts` has already collected all of them
        return found

    def open(self, relay: Address, client: Address | None, until: float = 600, **more: Any) -> Relay:
        self.opened.append(super().open(relay, client, until, **more))
        return self.opened[-1]

    def wait(self, seconds: float) -> None:
        raise AssertionError("time passes in this test: mark it with `time_passes`")

    def traffic(self) -> list[Traffic]:
        self._counts()
        return super().traffic()

    def size(self) -> dict[str, int]:
        self._counts()
        return super().size()

    def close(self) -> None:
        for relay in self.opened:
            self.free(relay)
        for sock in self.sockets.values():
            sock.close()

    @classmethod
    def end(cls) -> None:
        """Stop the shared process."""
        if cls._shared is not None:
            listener, plane = cls._shared
            cls._shared = None
            plane.close()
            listener.close()

    def _run(self) -> None:
        """Let the worker's loop run: it answers each Binding request in a round of its own, nearly always."""
        with self._socket() as probe:
            for number in range(self.ROUNDS):
                probe.sendto(b"\0\1\0\0\x21\x12\xa4\x42" + bytes(11) + bytes((number,)), self.listener_address[:2])
                assert select.select([probe], [], [], 60)[0], "the worker does not respond"
                probe.recv(100)
        self._counts()

    def _counts(self) -> None:
        """Collect the reports and counts of the worker."""
        before = self.plane.counts_received
        self.plane.request_counts()
        poll_until(lambda: self.plane.run(0.05) or self.plane.counts_received > before, 60)
        self.pending += [report for report in self.plane.reports() if not isinstance(report, Traffic)]


def time_passes(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test in which time passes: it runs only on planes whose clock the test sets."""
    test.time_passes = True  # type: ignore[attr-defined]
    return test


def poll_until(done: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until a condition about another process holds."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.005)
