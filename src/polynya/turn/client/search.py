"""Race of the TURN servers that one URI names: each is started without waiting long for the previous one.

    NEW --start--> DISCOVERING --servers--> TRYING --first to allocate--> FOUND
                       |  none                |  all failed
                       +-------> ENDED <------+   also by `close`

The next server is started when one has failed, or some time after the previous start. That time is short if the next
server is of the other address family, since a host may have one that does not work (RFC 8656, section 3.7). With
`only_after_silence`, time starts the next server only if the last one has sent no response at all. Allocations that
complete after the first one are freed. After FOUND, all calls and events are those of that one client.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from polynya.core.addresses import IPV4, IPV6
from polynya.core.compact import Queue
from polynya.core.errors import Attempt
from polynya.core.flows import Flow, FlowIds, FlowPath, Transport
from polynya.core.instants import MILLISECOND, SECOND, Instant, earliest
from polynya.core.machine import Closed, Datagram, Input, Output, Resolved
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Received
from polynya.stun.uris import TurnUri
from polynya.turn.discovery import Discovery

from .allocation import ENDED
from .client import TurnClient
from .config import ClientConfig
from .credentials import Credentials
from .events import Allocated, AllocationFailed, CredentialsNeeded, ServerAddress, ServerChosen, ServerFailed, TurnEvent

PATIENCE: Final = SECOND
"""Time between the starts of two servers of one address family."""
PATIENCE_WITH_A_FAMILY: Final = 250 * MILLISECOND
"""Time until the start of a server of the other address family (RFC 8305, section 5)."""


class State(Enum):
    NEW = "new"
    DISCOVERING = "discovering"
    TRYING = "trying"
    FOUND = "found"
    ENDED = "ended"


class RelaySearch:
    """Machine that finds a relay for one URI: core inputs in, core outputs and `TurnEvent`s out.

    Its outputs are appended to `outbox`; without one they wait in `outputs`.
    """

    def __init__(
        self,
        uri: TurnUri,
        config: ClientConfig | None = None,
        *,
        random: random_module.Random,
        flow_ids: FlowIds,
        servers: Sequence[ServerAddress] | None = None,
        flow: Flow | None = None,
        only_after_silence: bool = False,
        credentials: Credentials | None = None,
        families: tuple[int, ...] = (IPV4, IPV6),
        transports: tuple[Transport, ...] = (Transport.UDP, Transport.TCP, Transport.TLS),
        pacer: Pacer | None = None,
        trace: Tracer = NO_TRACE,
        outbox: Queue[Output] | None = None,
    ) -> None:
        """`families` are those of the server's address; those of the relayed addresses are in `config`.

        `servers` are the addresses of the URI, best first; if they are omitted the URI is resolved. `flow` is a UDP
        flow of the owner's that all UDP servers share; if it is omitted each client opens its own.
        """
        self.state = State.NEW
        self.uri = uri
        self.found: TurnClient | None = None
        self.attempts: list[Attempt] = []
        """The servers that failed, oldest first."""
        self.paths: tuple[FlowPath, ...] = ()
        """Flow and server address of every client. A new tuple replaces it when they change."""
        self._config = config or ClientConfig()
        self._random = random
        self._flow_ids = flow_ids
        self._flow = flow
        self._only_after_silence = only_after_silence
        self._credentials = credentials
        self._pacer = pacer
        self._trace = trace
        self._discovery: Discovery | None = None
        self._left = list(servers or ())
        if servers is None:
            self._discovery = Discovery(uri, random=random, families=families, transports=transports)
        self._clients: list[TurnClient] = []
        self._next: Instant | None = None
        self._last = AllocationFailed(code=None, reason="", server=None)
        self._asked_for_credentials = False
        self.heard_by_udp = False
        """Whether a server has answered over UDP."""
        self._outbox: Queue[Output] = Queue() if outbox is None else outbox
        self._events: Queue[TurnEvent] = Queue()

    # ---------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        """Begin to search. A second call changes nothing."""
        if self.state is State.NEW:
            self.state = State.DISCOVERING
            if self._discovery is not None:
                self._discovery.start(now=now)
            else:
                self.state = State.TRYING
                self._try_next(now=now)
            self._collect(now=now)

    def set_credentials(self, credentials: Credentials, *, now: Instant) -> None:
        """Sign requests with these credentials from now on; this answers `CredentialsNeeded`."""
        self._credentials = credentials
        self._asked_for_credentials = False
        for client in self._clients:
            client.set_credentials(credentials, now=now)
        self._collect(now=now)

    def ask_again(self, *, now: Instant) -> None:
        """Start one more transaction for each request to a server that is silent over UDP."""
        for client in self._clients:
            client.ask_again(now=now)
        self._collect(now=now)

    def close(self, *, now: Instant, wait: bool = True, broken: Flow | None = None) -> None:
        """Free all allocations. `Released` follows if a relay was found.

        Without `wait` no response is awaited and all own flows are closed at once. `broken` names a flow that the
        system has closed: nothing is sent on it.
        """
        self._left.clear()
        self._next = None
        for client in self._clients:
            if broken is not None and client.flow == broken:
                client.receive(Closed(flow=broken, reason="its socket is closed"), now=now)
            client.close(now=now, wait=wait)
        if self.found is None:
            self.state = State.ENDED
        self._collect(now=now)

    @property
    def asked(self) -> tuple[ServerAddress, ...]:
        """The servers that a client is trying or using now."""
        return tuple(client.server for client in self._clients)

    @property
    def heard(self) -> bool:
        """Whether a server has answered, by any transport."""
        return any(client.heard for client in self._clients)

    @property
    def waits_for_credentials(self) -> bool:
        """Whether a request waits for `set_credentials`."""
        return any(client.waits_for_credentials for client in self._clients)

    @property
    def silent(self) -> bool:
        """Whether no server has answered, and all are reached by UDP. A stream may still be connecting."""
        return not any(client.heard or client.server.transport.reliable for client in self._clients)

    # -------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: Input | Received, *, now: Instant) -> None:
        if isinstance(input, Resolved):
            if self._discovery is not None and self.found is None:
                self._discovery.receive(input, now=now)
        elif isinstance(input, (Datagram, Received)) and len(self._clients) > 1:
            clients = [client for client in self._clients if client.expects(input.flow, input.remote)]
            for client in clients[:1] or self._clients:
                client.receive(input, now=now)
        else:
            for client in self._clients:
                client.receive(input, now=now)
        if any(client.heard and not client.server.transport.reliable for client in self._clients):
            self.heard_by_udp = True
        self._collect(now=now)

    def tick(self, *, now: Instant) -> None:
        if self._next is not None and now >= self._next:
            self._next = None
            if not (self._only_after_silence and self._clients and self._clients[-1].heard):
                self._try_next(now=now)
        for client in self._clients:
            client.tick(now=now)
        self._collect(now=now)

    def next_timer(self) -> Instant | None:
        return earliest(self._next, *[client.next_timer() for client in self._clients])

    def outputs(self) -> list[Output]:
        """Return and remove the outputs; empty with an outbox that the owner drains."""
        return self._outbox.drain()

    def events(self) -> list[TurnEvent]:
        """Return and remove the events, also those of calls that were made on `found` itself."""
        drained = self._events.drain()
        return drained + self.found.events() if self.found is not None else drained

    # --------------------------------------------------------------------------------------------------------- inside

    def _try_next(self, *, now: Instant) -> None:
        """Start the next server, if there is one."""
        self._next = None
        if not self._left:
            return
        server = self._left.pop(0)
        client = TurnClient(
            server,
            self._config,
            random=self._random,
            flow_ids=self._flow_ids,
            flow=self._flow if server.transport is Transport.UDP else None,
            credentials=self._credentials,
            pacer=self._pacer,
            trace=self._trace,
            outbox=self._outbox,
        )
        self._clients.append(client)
        client.start(now=now)
        if self._left:
            same = self._left[0].address.family == server.address.family
            self._next = Instant(now + (PATIENCE if same else PATIENCE_WITH_A_FAMILY))

    def _collect(self, *, now: Instant) -> None:
        if self._discovery is not None:
            self._outbox.extend(self._discovery.outputs())
            for discovered in self._discovery.events():
                if self.state is State.DISCOVERING:
                    self.state = State.TRYING
                    self._left = list(discovered.servers)
                    if not discovered.servers:
                        self.attempts.append(Attempt(str(self.uri), discovered.reason))
                    self._try_next(now=now)
        position = 0
        while position < len(self._clients):  # an event may append a client
            client = self._clients[position]
            position += 1
            if client is not self.found:
                for event in client.events():
                    self._take(client, event, now=now)
        if any(client.state in ENDED and client is not self.found for client in self._clients):
            self._clients = [client for client in self._clients if client is self.found or client.state not in ENDED]
            self._note_paths()
        if self.state is State.TRYING and not self._clients and not self._left:
            self._fail()

    def _take(self, client: TurnClient, event: TurnEvent, *, now: Instant) -> None:
        match event:
            case _ if client is self.found:
                self._events.append(event)
            case ServerChosen():
                self._note_paths()
            case AllocationFailed():
                self.attempts.append(Attempt(str(event.server), event.reason))
                self._last = event
                self._events.append(ServerFailed(server=client.server, code=event.code, reason=event.reason))
                self._left = others(self._left, event)
                self._try_next(now=now)
            case CredentialsNeeded() if not self._asked_for_credentials:
                self._asked_for_credentials = True
                self._events.append(event)
            case Allocated() if self.found is None and self.state is State.TRYING:
                self.found, self.state, self._next = client, State.FOUND, None
                self._left.clear()
                reason = "it was the first to allocate"
                self._events.extend([ServerChosen(flow=event.flow, server=event.server, reason=reason), event])
                for other in self._clients:
                    if other is not client:
                        other.close(now=now)
            case _:
                pass

    def _note_paths(self) -> None:
        self.paths = tuple(
            (client.flow, client.server.address) for client in self._clients if client.flow is not None
        )  # fmt: skip

    def _fail(self) -> None:
        self.state = State.ENDED
        reason = "; ".join(attempt.reason for attempt in self.attempts)
        self._events.append(AllocationFailed(code=self._last.code, reason=reason, server=self._last.server))


def others(servers: Iterable[ServerAddress], failed: AllocationFailed) -> list[ServerAddress]:
    """Return those of `servers` that may still allocate: a server that refused is not tried by another transport.

    RFC 8656, section 7.4, forbids to ask it for a minute after 486 or 508, for two after 437, and forever after most.
    """
    if failed.code is None or failed.server is None:
        return list(servers)
    return [each for each in servers if each.address != failed.server.address]
