"""Mapping discovery for TCP and TLS: several servers are asked from one port (RFC 5780, section 4.3).

    state   | start         | stream opened | answered, more to ask | the last one answered | a stream or answer fails
    --------+---------------+---------------+-----------------------+-----------------------+-------------------------
    NEW     | ASKING, opens |               |                       |                       |
    ASKING  |               | asks on it    | opens the next        | ENDED                 | ENDED
    ENDED   |               |               |                       |                       |

A server cannot answer on another connection, so CHANGE-REQUEST is not used: any two servers will do, or two addresses
of one. The streams stay open until the end, since a NAT may remove a mapping with its last stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Datagram, Input, Open, Opened, Output, StreamData
from polynya.core.trace import NO_TRACE, Tracer

from .framing import StreamFramer
from .probe import BindingProbe
from .transactions import RELIABLE


class State(Enum):
    NEW = "new"
    ASKING = "asking"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMappingReport:
    """Result of mapping discovery for streams. `str()` gives a summary for people."""

    servers: tuple[Address, ...]
    local: Address
    """The local address and port of all streams."""
    mapped: tuple[Address, ...] = ()
    """The mapped address as seen by each server that answered, in their order."""
    translated: bool | None = None
    """Whether a NAT translates the address; None if no server answered."""
    mapping: Behavior | None = None
    """The mapping behavior; None if it is unknown."""
    reason: str = ""

    def __str__(self) -> str:
        nat = {True: "behind a NAT", False: "no NAT", None: "NAT unknown"}[self.translated]
        mapping = "unknown" if self.mapping is None else self.mapping.value
        lines = [f"{self.local}: {nat}", f"  mapping: {mapping} ({self.reason})"]
        seen = zip(self.servers, self.mapped, strict=False)
        return "\n".join([*lines, *(f"  {server} sees {mapped}" for server, mapped in seen)])


class StreamMapping:
    """Machine of one discovery: opens a stream to each server in turn, asks, and emits one `StreamMappingReport`.

    `local` is an address of this host with a free port, which all streams use. `names` are the servers' names in their
    certificates, for TLS.
    """

    def __init__(
        self,
        *,
        servers: Sequence[Address],
        local: Address,
        flow_ids: FlowIds,
        random: Random,
        transport: Transport = Transport.TCP,
        names: Sequence[str] = (),
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = State.NEW
        self.report = StreamMappingReport(servers=tuple(servers), local=local)
        """The result so far."""
        self._servers = tuple(servers)
        self._names = tuple(names)
        self._transport = transport
        self._flow_ids = flow_ids
        self._random = random
        self._trace = trace
        self._flows: list[Flow] = []
        self._framer = StreamFramer(channels=False)
        self._probe: BindingProbe | None = None
        self._mapped: list[Address] = []
        self._outputs: Queue[Output] = Queue()
        self._events: Queue[StreamMappingReport] = Queue()

    def start(self, *, now: Instant) -> None:
        """Begin. A second call changes nothing."""
        if self.state is State.NEW:
            self.state = State.ASKING
            self._open_next(now=now)

    def receive(self, input: Input, *, now: Instant) -> None:
        if self.state is not State.ASKING or not isinstance(input, (Opened, Closed, StreamData)):
            return
        current = input.flow == self._flows[-1]
        if isinstance(input, Closed) and input.flow in self._flows:
            server = str(self._servers[self._flows.index(input.flow)])
            self._flows.remove(input.flow)
            self._end(None, input.reason if server in input.reason else f"{server}: {input.reason}", now=now)
        elif current and isinstance(input, Opened):
            self._ask(input.flow, now=now)
        elif current and isinstance(input, StreamData) and self._probe is not None:
            for frame in self._framer.feed(input.data):
                self._probe.receive(Datagram(input.flow, self._probe.server, frame), now=now)
            self._collect(now=now)
            if self._framer.error is not None and self.state is State.ASKING:
                self._end(
                    None,
                    f"{self._servers[len(self._mapped)]} sent bytes that are no STUN message: {self._framer.error}",
                    now=now,
                )

    def tick(self, *, now: Instant) -> None:
        if self._probe is not None:
            self._probe.tick(now=now)
            self._collect(now=now)

    def next_timer(self) -> Instant | None:
        return None if self._probe is None else self._probe.next_timer()

    def outputs(self) -> list[Output]:
        return self._outputs.drain()

    def events(self) -> list[StreamMappingReport]:
        return self._events.drain()

    # ------------------------------------------------------------------------------------------------------- asking

    def _open_next(self, *, now: Instant) -> None:  # noqa: ARG002 - the system has a timeout for it
        number, flow = len(self._mapped), self._flow_ids.new()
        self._flows.append(flow)
        self._framer = StreamFramer(channels=False)
        opening = Open(
            flow=flow,
            transport=self._transport,
            local=self.report.local,
            remote=self._servers[number],
            server_name=self._names[number] if self._names else None,
        )
        self._outputs.append(opening)

    def _ask(self, flow: Flow, *, now: Instant) -> None:
        server = self._servers[len(self._mapped)]
        self._probe = BindingProbe(
            flow=flow,
            server=server,
            random=self._random,
            schedule=RELIABLE,
            trace=self._trace.of("stun"),
            outbox=self._outputs,
        )
        self._probe.start(now=now)
        self._collect(now=now)

    def _collect(self, *, now: Instant) -> None:
        probe = self._probe
        if probe is None:
            return
        for ended in probe.events():
            self._probe = None
            if ended.mapped is None:
                self._end(None, ended.reason, now=now)
                return
            self._mapped.append(ended.mapped)
            if len(self._mapped) < len(self._servers):
                self._open_next(now=now)
            else:
                self._end(*judge(self._servers, self._mapped), now=now)

    def _end(self, mapping: Behavior | None, reason: str, *, now: Instant) -> None:
        self.state, self._probe = State.ENDED, None
        self._outputs.extend(Close(flow=flow) for flow in self._flows)
        self._flows.clear()
        mapped = tuple(self._mapped)
        translated = mapped[0] != self.report.local if mapped else None
        self.report = replace(self.report, mapped=mapped, translated=translated, mapping=mapping, reason=reason)
        self._trace.note(reason, now=now, mapping=mapping)
        self._events.append(self.report)


def judge(servers: Sequence[Address], mapped: Sequence[Address]) -> tuple[Behavior | None, str]:
    """Return the mapping behavior that follows from the mapped address at each server, and the reason."""
    seen = list(zip(servers, mapped, strict=True))
    pairs = [(one, other) for number, one in enumerate(seen) for other in seen[number + 1 :]]
    by_port = [one[1] == other[1] for one, other in pairs if one[0].host == other[0].host]
    by_host = [one[1] == other[1] for one, other in pairs if one[0].host != other[0].host]
    if by_port and not all(by_port):
        return Behavior.APD, "two ports of one server see different addresses"
    if by_host and all(by_host):
        return Behavior.EI, "servers at different addresses see the same mapped address"
    if by_host and by_port:
        return (
            Behavior.AD,
            "servers at different addresses see different mapped addresses, two ports of one server see the same",
        )
    if by_host:
        return None, "the mapping depends on the remote address; to test the port as well, name two ports of one server"
    return None, "the mapping does not depend on the remote port; to test the address, name another server"
