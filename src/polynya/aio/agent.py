"""The public agent: a session on the real sockets of this host, driven by the running event loop."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from polynya.core.arguments import flag
from polynya.core.errors import PolynyaError
from polynya.core.flows import Flow, FlowIds
from polynya.core.machine import InterfacesChanged
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.config import IceConfig
from polynya.ice.events import AgentState
from polynya.ice.pairs import PairView
from polynya.session.events import CredentialsWanted, GatheringState
from polynya.session.options import AddressFilter, InterfaceFilter, TurnCredentials
from polynya.session.report import SessionReport
from polynya.session.session import Session, SessionEvent
from polynya.turn.client.report import RelayOverhead

from .connection import RECEIVE_BUFFER, Connection, check_receive_buffer
from .dns import ResolveName
from .driver import Driver
from .endpoint import CLOSED_REASON, Endpoint
from .interface_watch import HostChange, InterfaceWatch, follow_host
from .interfaces import list_interfaces
from .options import FAMILIES, check_callables, session_config
from .packet_trace import Capture
from .relaying import RelayedPath
from .servers import AskCredentials, IceServer, ask_for

RANDOM: Final = random.SystemRandom()
"""The system's source of randomness; one for all agents, since each instance takes 2.5 KB."""

PACER: Final = Pacer()
"""The pacer of this process (RFC 8445, section 14.2): all agents share it."""

_NO_PATHS: Final[Mapping[tuple[int, int], RelayedPath]] = {}
_NO_TASKS: Final[Mapping[str, asyncio.Task[None]]] = {}


class Agent(Endpoint):
    """An ICE agent: gathers candidates, checks pairs, and hands out the connections of its components.

    Use it as an async context manager: entering starts to gather, leaving closes every socket. Send everything that
    `local_signals()` yields to the other side, by any means, and pass what it sends to `add_remote_signal`:

        async with polynya.Agent(servers=["stun:stun.example.org"], controlling=True) as agent:
            asyncio.create_task(send_all(agent.local_signals(), channel))
            asyncio.create_task(receive_all(channel, agent.add_remote_signal))
            connection = await agent.connect(timeout=30)

    With signaling of your own, exchange `description` and `candidates()`, and pass them to `set_remote` and
    `add_candidate` of the other side. All of these may be called before `start`.

    - `servers`: STUN and TURN servers, as URIs (RFC 7064, 7065), as `IceServer(uri, username, password)`, or as
      dictionaries like WebRTC's `iceServers`: `{"urls": ..., "username": ..., "credential": ...}`.
    - `controlling`: set it on one side and not on the other; if both say the same, one more round trip decides.
    - `components`: the number of components of each stream: `(1,)` is one stream with one, `(2, 1)` are two streams.
    - `policy`: `all`; `no-host` signals no host addresses; `relay` uses TURN servers only.
    - `interfaces`, `addresses`: those to use, as names or as a callable that decides on each.
    - `families`: 4 and 6, the preferred one first.
    - `ports`: the lowest and the highest local port; the same twice is a fixed one.
    - `loopback`: also gathers loopback addresses, which only reach this host.
    - `nat_1to1`: local address to external address, for a NAT that maps one to one: a candidate without a STUN server.
    - `tls`: the `ssl.SSLContext` for TURN over TLS; the default trusts the certificate authorities of the system.
    - `resolve`: an async callable, host name to IP addresses, in place of the resolver of the system.
    - `ice`: all other options of ICE, timers of consent and keepalives among them; the options above override it.
    - `credentials`: an async callable, `(uri, realm)` to `(username, password)`, called when a TURN server has no
      credentials yet or refuses those that it has. If it raises, or if its credentials are refused, it is called again
      after a second, then after up to 64 seconds.
    - `receive_buffer`: bytes of datagrams that wait for `recv` in each connection, each with 64 bytes for its object.
    - `follow_host`: whether the agent follows changes of this host's addresses by itself: a new address becomes a
      candidate, and ICE restarts if the connection has lost its address. `interfaces_changed` does this by hand.
    - `trace`, `capture`: a `Tracer` for everything that happens, and a callable that gets every packet.

    Raises ConfigurationError, before any socket is opened, if an option is wrong or options conflict.
    """

    __slots__ = (
        "__weakref__",
        "_ask_credentials",
        "_asking",
        "_credentials_failed",
        "_driver",
        "_flow_ids",
        "_follows_host",
        "_relayed",
        "_session",
        "_shell_options",
        "_watch",
    )

    def __init__(
        self,
        *,
        servers: Iterable[str | IceServer | Mapping[str, Any]] = (),
        controlling: bool | None = None,
        components: Sequence[int] | None = None,
        policy: Literal["all", "no-host", "relay"] = "all",
        interfaces: Sequence[str] | InterfaceFilter | None = None,
        addresses: Sequence[str] | AddressFilter | None = None,
        families: Sequence[int] = FAMILIES,
        ports: tuple[int, int] | None = None,
        loopback: bool = False,
        nat_1to1: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        resolve: ResolveName | None = None,
        ice: IceConfig | None = None,
        credentials: AskCredentials | None = None,
        receive_buffer: int = RECEIVE_BUFFER,
        follow_host: bool = True,
        trace: Tracer = NO_TRACE,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(check_receive_buffer(receive_buffer))
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
            nat_1to1=nat_1to1,
            ice=ice,
            ask=credentials is not None,
        )
        check_callables(credentials=credentials, resolve=resolve, tls=tls, trace=trace, capture=capture)
        flow_ids = FlowIds()
        self._session = Session(config, random=RANDOM, pacer=PACER, flow_ids=flow_ids, trace=trace)
        self._flow_ids = flow_ids
        self._shell_options = _shell_options(trace=trace, capture=capture, tls=tls, resolve=resolve)
        self._driver: Driver[Session] | None = None
        self._follows_host = flag("follow_host", follow_host)
        self._watch: InterfaceWatch | None = None
        # Most agents have none of either: they share empty mappings, which are replaced when they change.
        self._relayed = _NO_PATHS
        self._ask_credentials = credentials
        self._asking = _NO_TASKS
        self._credentials_failed = False

    @property
    def _machine(self) -> Session:
        return self._session

    @property
    def _transport(self) -> Driver[Session] | None:
        return self._driver

    # --------------------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        if self._over:
            self._running()  # raises
        if self._driver is None:
            self._driver = Driver(
                self._session, on_event=self._on_event, flow_ids=self._flow_ids, **self._shell_options
            )  # fmt: skip
            try:
                if self._follows_host:
                    self._watch = follow_host(self)
                interfaces = InterfacesChanged(interfaces=list_interfaces())
                self._driver.call(self._session.start, interfaces)
            except BaseException:  # a filter of the user may raise anything; nothing is left open then
                self._closed = True
                self._unfollow()
                self._driver.close_now()
                raise

    async def close(self) -> None:
        if self._closed:
            return
        self._stop()
        self._closed = self._closing = True
        self._end_connections(CLOSED_REASON)
        self._wake()
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        try:
            if self._driver is not None:
                await self._driver.aclose()
            await asyncio.gather(*asking, return_exceptions=True)
        finally:
            self._closing = False

    def _unfollow(self) -> None:
        if self._watch is not None:
            self._watch.remove(self)
            self._watch = None

    def _stop(self) -> None:
        self._unfollow()
        driver = self._driver
        if driver is not None and not driver.closed and self.state is not AgentState.CLOSED:
            driver.call(self._session.close)

    # ----------------------------------------------------------------------------------------------------- gathering

    @property
    def gathering_state(self) -> GatheringState:
        return self._session.gathering.state

    def interfaces_changed(self) -> bool:
        return self._running().call(self._session.interfaces_changed, InterfacesChanged(interfaces=list_interfaces()))

    def _host_changed(self, change: HostChange) -> None:
        """Called by the watch of this host's interfaces."""
        if self._over or self._driver is None:
            return
        changed = InterfacesChanged(interfaces=change.interfaces)
        if not self._driver.call(self._session.follow, changed) and change.routes:
            self._driver.call(self._session.routes_changed)

    def why(self) -> SessionReport:
        return self._session.why()

    # ----------------------------------------------------------------------------------------------------- credentials

    def _on_event(self, event: SessionEvent) -> None:
        if isinstance(event, CredentialsWanted):
            self._renew(event)
        super()._on_event(event)

    def _renew(self, wanted: CredentialsWanted) -> None:
        """Calls `credentials` for a server, once at a time for each."""
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
        task = asyncio.current_task()
        assert task is not None
        try:
            credentials = await ask_for(ask, str(wanted.server.uri), wanted.realm)
        except (Exception, asyncio.CancelledError) as error:
            if task.cancelling():
                raise
            if self._over:
                return
            reason = f"credentials() raised {type(error).__name__}: {error}; it is called again"
            self._running().call(self._session.no_credentials, wanted, reason)
            first, self._credentials_failed = not self._credentials_failed, True
            if first and not isinstance(error, PolynyaError):
                context = {"message": f"{task.get_name()}: the callable raised", "exception": error}
                task.get_loop().call_exception_handler(context)
            return
        self._credentials_failed = False
        if not self._over:
            server = TurnCredentials(wanted.server.uri, credentials.username, credentials.password)
            self._running().call(self._session.set_credentials, server)

    # ---------------------------------------------------------------------------------------------------------- relays

    def _overhead(self, pair: PairView) -> RelayOverhead | None:
        return self._session.relay_overhead(pair.flow, pair.remote_address)

    def _socket_flow(self, pair: PairView) -> Flow:
        client = self._session.relay_client(pair.flow)
        return pair.flow if client is None or client.flow is None else client.flow

    def _sender(self, connection: Connection, pair: PairView | None) -> Callable[[bytes], bool] | None:
        component = (connection.stream, connection.component)
        if (left := self._relayed.get(component)) is not None:
            self._relayed = {key: path for key, path in self._relayed.items() if key != component}
            left.close()
        if pair is None or self._driver is None or self._session.relay_client(pair.flow) is None:
            return super()._sender(connection, pair)
        path = RelayedPath(
            self._driver,
            pair.flow,
            pair.remote_address,
            connection._deliver,
            stream=connection.stream,
            component=connection.component,
        )
        self._relayed = {**self._relayed, component: path}
        return path.send


def _shell_options(**options: Any) -> Mapping[str, Any]:
    """The options of the driver; equal defaults are one object for all agents."""
    return _DEFAULTS if options == _DEFAULTS else options


_DEFAULTS: Final[Mapping[str, Any]] = {"trace": NO_TRACE, "capture": None, "tls": None, "resolve": None}
