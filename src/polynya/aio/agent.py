"""The public agent: a session on the real sockets of this host, driven by the running event loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

from polynya.core.empty import NOTHING
from polynya.core.errors import PolynyaError, UsageError
from polynya.core.flows import FlowIds
from polynya.core.machine import InterfacesChanged
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.config import IceConfig
from polynya.ice.pairs import PairView
from polynya.session.events import CredentialsWanted, GatheringState
from polynya.session.options import AddressFilter, InterfaceFilter, TurnCredentials
from polynya.session.report import SessionReport
from polynya.session.session import Session, SessionEvent

from .connection import Connection
from .driver import Driver
from .endpoint import Endpoint
from .interfaces import list_interfaces
from .options import session_config
from .packet_trace import Capture
from .relaying import RelayedPath
from .servers import IceServer

RANDOM: Final = random.SystemRandom()
"""The randomness of this process, the system's; one for all agents, for each would keep 2.5 KB it does not use."""

PACER: Final = Pacer()
"""The pacer of this process (RFC 8445, section 14.2): all agents share it."""


AskCredentials = Callable[[str, str], Awaitable[tuple[str, str]]]
"""Given a TURN server's URI and its realm, answers with a user name and password."""


class Agent(Endpoint):
    """One end of a connection that is to be: gathers, checks, and hands out connections.

    Use it as an async context manager: entering starts to gather, leaving closes every socket. Tell the other side all
    that `signals()` gives, by any means, and give `signaled` what it tells:

        async with polynya.Agent(servers=["stun:stun.example.org"], controlling=True) as agent:
            asyncio.create_task(send_all(agent.signals(), channel))
            asyncio.create_task(receive_all(channel, agent.signaled))
            connection = await agent.connect(timeout=30)

    Who has signaling of its own takes `description` and `candidates()`, `set_remote` and `add_candidate` instead.

    - `servers`: URIs (RFC 7064, 7065); a TURN server as `IceServer(uri, username, password)`.
    - `controlling`: one side should be, the other not; if both say the same, one more round trip decides.
    - `components`: how many each stream has: `(1,)` is one stream of one, `(2, 1)` are two streams.
    - `policy`: `all`, `no-host` (host addresses are told to nobody) or `relay` (no address of this host is).
    - `interfaces`, `addresses`: which to use: names, or a callable that is asked for each.
    - `families`: 4 and 6, best first.
    - `ports`: the lowest and the highest local port; the same twice is a fixed one.
    - `loopback`: also gather loopback addresses, which only reach this host.
    - `external`: local address to external one, of a NAT that maps 1:1: a candidate without a STUN server.
    - `ice`: everything else about ICE, as an `IceConfig`; what is given above goes first.
    - `credentials`: asked for others, with URI and realm, when a TURN server takes those that it had no longer.
    - `trace`, `capture`: what is told of everything that happens, and what gets the packets.

    Raises ConfigurationError, before anything is opened, for what cannot be.
    """

    __slots__ = (
        "__weakref__",
        "_ask_credentials",
        "_asking",
        "_capture",
        "_driver",
        "_flow_ids",
        "_relayed",
        "_session",
        "_trace",
    )

    def __init__(
        self,
        *,
        servers: Iterable[str | IceServer] = (),
        controlling: bool | None = None,
        components: Sequence[int] | None = None,
        policy: Literal["all", "no-host", "relay"] = "all",
        interfaces: Sequence[str] | InterfaceFilter | None = None,
        addresses: Sequence[str] | AddressFilter | None = None,
        families: Sequence[int] = (6, 4),
        ports: tuple[int, int] | None = None,
        loopback: bool = False,
        external: Mapping[str, str] | None = None,
        ice: IceConfig | None = None,
        credentials: AskCredentials | None = None,
        trace: Tracer = NO_TRACE,
        capture: Capture | None = None,
    ) -> None:
        super().__init__()
        config = session_config(
            servers=servers,
            controlling=controlling,
            components=components,
            policy=policy,
            interfaces=interfaces,
            addresses=addresses,
            families=families,
            ports=ports,
            loopback=loopback,
            external=external,
            ice=ice,
        )
        flow_ids = FlowIds()
        self._session = Session(config, random=RANDOM, pacer=PACER, flow_ids=flow_ids, trace=trace)
        self._flow_ids = flow_ids
        self._trace = trace
        self._capture = capture
        self._driver: Driver[Session] | None = None
        # Few entries or none at all for most agents: shared empty mappings, replaced when they change.
        self._relayed: Mapping[tuple[int, int], RelayedPath] = NOTHING
        self._ask_credentials = credentials
        self._asking: Mapping[str, asyncio.Task[None]] = NOTHING

    @property
    def _machine(self) -> Session:
        return self._session

    @property
    def _transport(self) -> Driver[Session] | None:
        return self._driver

    # --------------------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Begin to gather; entering the context does this. Must be called inside a running event loop."""
        if self._driver is not None or self._closed:
            raise UsageError("this agent was started before: make a new one for each connection")
        self._driver = Driver(
            self._session,
            on_event=self._on_event,
            flow_ids=self._flow_ids,
            trace=self._trace,
            capture=self._capture,
        )
        self._driver.call(self._session.start, InterfacesChanged(interfaces=list_interfaces()))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        driver = self._driver
        if driver is not None and not driver.closed:
            driver.call(self._session.close)
        self._end_connections("the agent was closed")
        self._wake()
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        if driver is not None:
            await driver.aclose()
        await asyncio.gather(*asking, return_exceptions=True)

    # ----------------------------------------------------------------------------------------------------- gathering

    @property
    def gathering_state(self) -> GatheringState:
        return self._session.gathering.state

    def interfaces_changed(self) -> bool:
        return self._running().call(self._session.interfaces_changed, InterfacesChanged(interfaces=list_interfaces()))

    def why(self) -> SessionReport:
        return self._session.why()

    # ----------------------------------------------------------------------------------------------------- credentials

    def _on_event(self, event: SessionEvent) -> None:
        if isinstance(event, CredentialsWanted):
            self._renew(event)
        super()._on_event(event)

    def _renew(self, wanted: CredentialsWanted) -> None:
        """Ask the user for credentials, one question for each server at a time."""
        uri = str(wanted.server.uri)
        if self._ask_credentials is None:
            self._running().call(self._session.no_credentials, wanted)
        elif uri not in self._asking:
            task = asyncio.create_task(self._ask(wanted, self._ask_credentials), name=f"credentials for {uri}")
            self._asking = {**self._asking, uri: task}
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = {uri: other for uri, other in self._asking.items() if other is not task}

    async def _ask(self, wanted: CredentialsWanted, ask: AskCredentials) -> None:
        try:
            username, password = await ask(str(wanted.server.uri), wanted.realm)
        except PolynyaError:  # there are none to be had: a relay that stands ends at its time, and `why` tells
            if not self._closed:
                self._running().call(self._session.no_credentials, wanted)
            return
        if not self._closed:
            server = TurnCredentials(wanted.server.uri, username, password)
            self._running().call(self._session.set_credentials, server)

    # ---------------------------------------------------------------------------------------------------------- relays

    def _sender(self, connection: Connection, pair: PairView | None) -> Callable[[bytes], bool] | None:
        place = (connection.stream, connection.component)
        if (left := self._relayed.get(place)) is not None:
            self._relayed = {key: path for key, path in self._relayed.items() if key != place}
            left.close()
        if pair is None or self._driver is None or self._session.relay_client(pair.flow) is None:
            return super()._sender(connection, pair)
        path = RelayedPath(
            self._driver,
            pair.flow,
            pair.remote_address,
            connection.deliver,
            stream=connection.stream,
            component=connection.component,
        )
        self._relayed = {**self._relayed, place: path}
        return path.send
