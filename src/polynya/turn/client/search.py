"""A relay by URI: the servers that it stands for, tried one after the other without waiting long for any.

    start --> DISCOVERING --servers--> TRYING --first to allocate--> FOUND
                    |  none              |  all failed
                    +------> ENDED <-----+   also by `close`

The next server is tried when one has failed, or some time after the last was: soon where it is of the other address
family, for a host may have one that leads nowhere (RFC 8656, section 3.7). Those that are late are freed again. After
`found` all calls and events are those of that one client.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable
from enum import Enum
from typing import Final

from polynya.core.addresses import IPV4, IPV6
from polynya.core.errors import Attempt
from polynya.core.flows import FlowIds, Transport
from polynya.core.instants import MILLISECOND, SECOND, Instant, earliest
from polynya.core.machine import Input, Output
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.uris import TurnUri
from polynya.turn.discovery import Discovery

from .allocation import ENDED
from .client import TurnClient
from .config import ClientConfig
from .credentials import Credentials
from .events import Allocated, AllocationFailed, CredentialsNeeded, ServerAddress, ServerChosen, TurnEvent

PATIENCE: Final = SECOND
"""After this the next server is tried beside the last one,"""
PATIENCE_WITH_A_FAMILY: Final = 250 * MILLISECOND
"""or after this, when it is of the other address family (RFC 8305, section 5)."""


class State(Enum):
    NEW = "new"
    DISCOVERING = "discovering"
    TRYING = "trying"
    FOUND = "found"
    ENDED = "ended"


class RelaySearch:
    """A machine: core inputs in, core outputs out, `TurnEvent`s of the client that was found, or why there is none."""

    def __init__(
        self,
        uri: TurnUri,
        config: ClientConfig | None = None,
        *,
        random: random_module.Random,
        flow_ids: FlowIds,
        credentials: Credentials | None = None,
        families: tuple[int, ...] = (IPV4, IPV6),
        transports: tuple[Transport, ...] = (Transport.UDP, Transport.TCP, Transport.TLS),
        pacer: Pacer | None = None,
        trace: Tracer = NO_TRACE,
    ) -> None:
        """`families` are those of the server's address; those of the relayed ones are in `config`."""
        self.state = State.NEW
        self.uri = uri
        self.found: TurnClient | None = None
        self.attempts: list[Attempt] = []
        """What did not work, oldest first."""
        self._config = config or ClientConfig()
        self._random = random
        self._flow_ids = flow_ids
        self._credentials = credentials
        self._pacer = pacer
        self._trace = trace
        self._discovery = Discovery(uri, random=random, families=families, transports=transports)
        self._left: list[ServerAddress] = []
        self._clients: list[TurnClient] = []
        self._next: Instant | None = None
        self._last = AllocationFailed(code=None, reason="", server=None)
        self._asked_for_credentials = False
        self._outputs: list[Output] = []
        self._events: list[TurnEvent] = []

    # ---------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        """Find a relay. A second call changes nothing."""
        if self.state is State.NEW:
            self.state = State.DISCOVERING
            self._discovery.start(now=now)
            self._collect(now=now)

    def set_credentials(self, credentials: Credentials, *, now: Instant) -> None:
        """Sign with these from now on: the answer to `CredentialsNeeded`."""
        self._credentials = credentials
        self._asked_for_credentials = False
        for client in self._clients:
            client.set_credentials(credentials, now=now)
        self._collect(now=now)

    def close(self, *, now: Instant) -> None:
        """Free whatever was allocated. `Released` follows when there was a relay."""
        self._left.clear()
        self._next = None
        for client in self._clients:
            client.close(now=now)
        if self.found is None:
            self.state = State.ENDED
        self._collect(now=now)

    # -------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: Input, *, now: Instant) -> None:
        if self.found is None:
            self._discovery.receive(input, now=now)
        for client in self._clients:
            client.receive(input, now=now)
        self._collect(now=now)

    def tick(self, *, now: Instant) -> None:
        if self._next is not None and now >= self._next:
            self._try_next(now=now)
        for client in self._clients:
            client.tick(now=now)
        self._collect(now=now)

    def next_timer(self) -> Instant | None:
        return earliest(self._next, *[client.next_timer() for client in self._clients])

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs, []
        return drained + self.found.outputs() if self.found is not None else drained

    def events(self) -> list[TurnEvent]:
        """Also those of calls that were made on `found` itself."""
        drained, self._events = self._events, []
        return drained + self.found.events() if self.found is not None else drained

    # --------------------------------------------------------------------------------------------------------- inside

    def _try_next(self, *, now: Instant) -> None:
        """Start with the next server; nothing happens when there is none left."""
        self._next = None
        if not self._left:
            return
        server = self._left.pop(0)
        client = TurnClient(
            server,
            self._config,
            random=self._random,
            flow_ids=self._flow_ids,
            credentials=self._credentials,
            pacer=self._pacer,
            trace=self._trace,
        )
        self._clients.append(client)
        client.start(now=now)
        if self._left:
            same = self._left[0].address.family == server.address.family
            self._next = Instant(now + (PATIENCE if same else PATIENCE_WITH_A_FAMILY))

    def _collect(self, *, now: Instant) -> None:
        self._outputs += self._discovery.outputs()
        for told in self._discovery.events():
            if self.state is State.DISCOVERING:
                self.state = State.TRYING
                self._left = list(told.servers)
                if not told.servers:
                    self.attempts.append(Attempt(str(self.uri), told.reason))
                self._try_next(now=now)
        position = 0
        while position < len(self._clients):  # an event may add one at the end
            client = self._clients[position]
            position += 1
            for event in client.events():
                self._take(client, event, now=now)
        for client in self._clients:
            self._outputs += client.outputs()
        self._clients = [client for client in self._clients if client is self.found or client.state not in ENDED]
        if self.state is State.TRYING and not self._clients and not self._left:
            self._fail()

    def _take(self, client: TurnClient, event: TurnEvent, *, now: Instant) -> None:
        if client is self.found:
            self._events.append(event)
        elif isinstance(event, AllocationFailed):
            self.attempts.append(Attempt(str(event.server), event.reason))
            self._last = event
            self._left = others(self._left, event)
            self._try_next(now=now)
        elif isinstance(event, CredentialsNeeded):
            if not self._asked_for_credentials:
                self._asked_for_credentials = True
                self._events.append(event)
        elif isinstance(event, Allocated) and self.found is None and self.state is State.TRYING:
            self.found, self.state, self._next = client, State.FOUND, None
            self._left.clear()
            reason = "it was the first to allocate"
            self._events += [ServerChosen(flow=event.flow, server=event.server, reason=reason), event]
            for other in self._clients:
                if other is not client:
                    other.close(now=now)

    def _fail(self) -> None:
        self.state = State.ENDED
        reason = "; ".join(attempt.reason for attempt in self.attempts)
        self._events.append(AllocationFailed(code=self._last.code, reason=reason, server=self._last.server))


def others(servers: Iterable[ServerAddress], failed: AllocationFailed) -> list[ServerAddress]:
    """Those of `servers` that are worth asking: who has refused is not asked the same by another transport.

    RFC 8656, section 7.4: not for a minute after 486 or 508, for two after 437, and never again after most.
    """
    if failed.code is None or failed.server is None:
        return list(servers)
    return [each for each in servers if each.address != failed.server.address]
