"""The server process: opens all listeners, runs them in one event loop, and closes them in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import time
from types import TracebackType
from typing import Any, Final

from starlette.applications import Starlette

from polynya.aio.driver import Driver
from polynya.aio.tcp import STREAM_LIMITS, StreamLimits, TlsContexts, system_tls
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.listeners import ListenerFailed, ListenerOpened, Listeners, Place
from polynya.stun.server import BindingServer

from .app import make_admin_app, make_app
from .certificates import Certificates
from .config import ServeConfig, TurnOptions
from .credentials import Offers
from .descriptors import within_share
from .discovery import Discovery
from .http import EmbeddedUvicorn, embedded
from .links import Links
from .metrics import Metrics
from .reach import http_url, uri
from .relaying import Relaying

logger: Final = logging.getLogger("polynya.serve")


_FIXED: Final = {
    "listen": "listen",
    "tls_listen": "tls_listen",
    "http": "http",
    "admin": "admin",
    "alternates": "stun.alternates",
    "external_ips": "stun.external_ips",
    "limits": "signaling.limits",
    "trusted_proxies": "signaling.trusted_proxies",
}
"""Options that need a restart to change, each with its key in the configuration file."""


class Server:
    """STUN, TURN and signaling in the running event loop: `async with Server(config) as server`.

    Entering raises ConfigurationError and leaves nothing open if it cannot listen on an address. Leaving sends an error
    to the members of rooms and closes everything within a few seconds, whatever clients do. `unix_time` is the time of
    day, for the expiry of the TURN credentials that signaling issues.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        trace: Tracer = NO_TRACE,
        unix_time: Callable[[], float] = time,
        stream_limits: StreamLimits = STREAM_LIMITS,
    ) -> None:
        self.config = config
        self.stun_addresses: tuple[Address, ...] = ()
        """Listeners for STUN over UDP and, with `turn`, for TURN over UDP and TCP; with the actual ports."""
        self.tls_addresses: tuple[Address, ...] = ()
        """Listeners for TURN over TLS."""
        self.http_addresses: tuple[Address, ...] = ()
        """Listeners for signaling and /healthz."""
        self.admin_addresses: tuple[Address, ...] = ()
        """Listeners for /metrics."""
        self.relaying: Relaying | None = None
        """The TURN part, if it is configured."""
        self.stopping = False
        self._trace = trace
        self._stream_limits = stream_limits
        self._links: Links | None = None
        self._unix_time = unix_time
        self._offers = Offers(unix_time=unix_time)
        self._binding = BindingServer(trace=trace.of("stun-server"))
        self._driver: Driver[Listeners] | None = None
        self._certificates: Certificates | None = None
        self._web: list[tuple[EmbeddedUvicorn, asyncio.Task[None]]] = []
        """The HTTP servers: the public one, and that of the operators."""
        self._exposed: Metrics | None = None
        self._opening: list[asyncio.Future[Address]] = []
        self._places: list[Place] = []
        self._udp: dict[Flow, Address] = {}
        """UDP listeners of the driver. The data plane may have its own."""

    # ------------------------------------------------------------------------------------------------------------ state

    @property
    def stun_uris(self) -> tuple[str, ...]:
        """URIs of the STUN listeners; with a wildcard address, for clients on this host only."""
        return tuple(uri("stun", (each.host, each.port)) for each in self.stun_addresses)

    @property
    def turn_uris(self) -> tuple[str, ...]:
        """URIs of the TURN listeners; none without `turn`."""
        if self.relaying is None:
            return ()
        plain = [uri("turn", (each.host, each.port)) for each in self.stun_addresses]
        return (*plain, *(uri("turns", (each.host, each.port)) for each in self.tls_addresses))

    @property
    def url(self) -> str:
        """URL of the signaling server, for clients; that of the first HTTP listener."""
        if not self.http_addresses:
            raise UsageError("this server has no signaling: set an http address")
        return http_url(self.http_addresses[0])

    @property
    def ready_line(self) -> str:
        """`ready stun=ADDR:PORT turn=ADDR:PORT turns=ADDR:PORT http=URL admin=URL`, with each listener."""
        plain = self.stun_addresses
        parts = [f"stun={each}" for each in plain]
        parts += [f"turn={each}" for each in plain if self.relaying is not None]
        parts += [f"turns={each}" for each in self.tls_addresses]
        parts += [f"http=http://{each}" for each in self.http_addresses]
        parts += [f"admin=http://{each}" for each in self.admin_addresses]
        return " ".join(["ready", *parts])

    @property
    def counters(self) -> dict[str, int]:
        """Counters of all parts, with the part as a prefix."""
        counted = {f"stun.{name}": value for name, value in self.socket_counters.items()}
        if self.relaying is not None:
            control, plane = self.relaying.machine.control, self.relaying.machine.plane
            counted |= {f"turn.{name}": value for name, value in control.counters.items()}
            counted |= {f"turn.not-forwarded.{name}": value for name, value in plane.counters.items()}
        return counted | {f"signaling.{name}": value for name, value in self.signaling_counters.items()}

    @property
    def socket_counters(self) -> Mapping[str, int]:
        """Counters of the STUN and TURN sockets. A portable data plane only adds its kernel drops."""
        if self._driver is None:
            return {}
        counted = dict(self._driver.counters)
        if self.relaying is not None:
            counted["kernel_drops"] += self.relaying.data_plane.kernel_drops
        return counted

    async def refresh(self) -> None:
        """Update `counters` and the metrics from the worker processes."""
        if self.relaying is not None:
            await self.relaying.data_plane.refresh()

    @property
    def signaling_counters(self) -> Mapping[str, int]:
        return self._links.rooms.counters if self._links is not None else {}

    @property
    def answered(self) -> Mapping[str, int]:
        """Counters of STUN messages, without TURN."""
        return self._binding.counters

    # -------------------------------------------------------------------------------------------------------- lifecycle

    async def __aenter__(self) -> Server:
        sockets: list[socket.socket] = []
        config = self.config
        try:
            for address in (*config.http, *config.admin):
                sockets.append(_listen(address))  # noqa: PERF401 - after a failure, the earlier sockets must be closed
            bound = tuple(Address.of(*each.getsockname()[:2]) for each in sockets)
            count = len(config.http)
            self.http_addresses, self.admin_addresses = bound[:count], bound[count:]
            await self._open_listeners()
            if config.http:
                await self._serve_http(self._public_app(), sockets[:count])
            if config.admin:
                app = make_admin_app(metrics=self._metrics, token=lambda: self.config.metrics_token)
                await self._serve_http(app, sockets[count:])
        except BaseException:
            await self.aclose()
            for each in sockets:
                each.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises RuntimeError if the HTTP server ends by itself."""
        waiting = asyncio.ensure_future(stop.wait())
        watched: list[asyncio.Future[object]] = [waiting]  # type: ignore[list-item]
        watched += [task for _, task in self._web]  # type: ignore[misc]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not stop.is_set():
            raise RuntimeError("the HTTP server ended by itself")

    async def drain(self, hurry: asyncio.Event, *, unlimited: bool = False) -> None:
        """Refuse new allocations; wait until existing ones end, for at most `drain` seconds or until `hurry` is set.

        `unlimited` waits without a limit of time.
        """
        self.stopping = True
        self._offers.turn_is_offered = False
        self._announce()
        if self.relaying is not None:
            await self.relaying.drain(hurry, unlimited=unlimited)

    def reload_certificate(self) -> None:
        """Read the certificate and its key again, for new connections.

        Raises UsageError without TLS, and ConfigurationError, with the old certificate in use, if the new one cannot
        be used.
        """
        if self._certificates is None or self.config.tls is None:
            raise UsageError("this server has no certificate: set tls_listen, and certificate and key under [tls]")
        self._certificates.reload(self.config.tls)

    def reload(self, config: ServeConfig) -> list[str]:
        """Apply new users, secrets, peer policy, limits and certificates without ending any session.

        Returns the changed keys that need a restart. Raises ConfigurationError and changes nothing if the certificate
        cannot be used.
        """
        old = self.config
        if self._certificates is not None and config.tls is not None:
            self._certificates.reload(config.tls)
        fixed = [name for name in _FIXED if getattr(old, name) != getattr(config, name)]
        turn: list[str] = []
        if (self.relaying is None) != (config.turn is None):
            fixed.append("turn")
        elif self.relaying is not None and config.turn is not None:
            turn = self.relaying.reload(config.turn)
            self._offer(config)
        # keep the options that need a restart, so that the next reload names them again
        self.config = replace(config, **{name: getattr(old, name) for name in fixed})
        self._announce()
        return [_FIXED.get(name, name) for name in fixed] + [f"turn.{name}" for name in turn]

    async def aclose(self) -> None:
        """Send errors to the members of rooms, then close everything. Safe to call twice."""
        self.stopping = True
        links, self._links = self._links, None
        if links is not None:
            await links.aclose(self.config.stop_timeout)
        web, self._web = self._web, []
        for uvicorn, _ in web:
            uvicorn.should_exit = True
        if web:
            await asyncio.wait([serving for _, serving in web], timeout=self.config.stop_timeout)
        for uvicorn, serving in web:
            await uvicorn.stop_listening()
            uvicorn.abort_all()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        driver, self._driver = self._driver, None
        try:
            if self.relaying is not None:
                await self.relaying.aclose()  # needs the driver for the end of each allocation
        finally:
            self.relaying = None
            if driver is not None:
                await driver.aclose()

    # ---------------------------------------------------------------------------------------------------------- opening

    async def _open_listeners(self) -> None:
        config, turn = self.config, self.config.turn
        if not config.listen and not config.tls_listen:
            return
        tls: TlsContexts = system_tls
        if config.tls is not None:
            tls = self._certificates = Certificates(config.tls)
        flow_ids = FlowIds()
        discovery = Discovery(config.listen, config.alternates, config.external_ips)
        machine: Any = self._binding
        self._places = [Place(each, (Transport.UDP,)) for each in config.listen]
        more = [Place(each, (Transport.UDP,)) for each in discovery.more]
        if turn is not None:
            self.relaying = Relaying(turn, config.listen, discovery, flow_ids, trace=self._trace)
            machine = self.relaying.machine
            self._places = list(self.relaying.data_plane.places)
            more = list(self.relaying.data_plane.more)
        self._places += [Place(each, (Transport.TLS,)) for each in config.tls_listen]
        self._places += more
        listeners = Listeners(tuple(self._places), flow_ids, machine)
        loop = asyncio.get_running_loop()
        self._opening = [loop.create_future() for _ in self._places]
        self._driver = Driver(
            listeners,
            on_event=self._on_event,
            flow_ids=flow_ids,
            trace=self._trace,
            tls=tls,
            limits=_within_share(self._stream_limits),
        )
        self._driver.call(listeners.start)
        opened = tuple(await asyncio.gather(*self._opening))
        plain, secure = len(config.listen), len(config.tls_listen)
        self.stun_addresses, self.tls_addresses = opened[:plain], opened[plain : plain + secure]
        if self.relaying is not None and turn is not None:
            listening = (*opened, *discovery.more, *self.http_addresses, *self.admin_addresses)
            self.relaying.attach(self._driver, listening, _other_hosts(config, turn), self._udp)
            plain_addresses, secure_addresses = self.stun_addresses, self.tls_addresses
            self._offers = Offers(plain_addresses, plain_addresses, secure_addresses, unix_time=self._unix_time)
            self._offer(config)
        else:
            self._binding.origins = discovery.origins(self._udp)
            self._offers = Offers(self.stun_addresses, unix_time=self._unix_time)

    def _on_event(self, event: object) -> None:
        if isinstance(event, ListenerOpened):
            opening = self._opening[event.place]
            if self._places[event.place].transports[0] is Transport.UDP:
                self._udp[event.flows[0]] = event.local
            elif self._places[event.place].transports[0] is Transport.TLS and self.relaying is not None:
                self.relaying.secure_listeners += event.flows
            if not opening.done():
                opening.set_result(event.local)
        elif isinstance(event, ListenerFailed):
            opening, place = self._opening[event.place], self._places[event.place]
            listener = f"{event.transport.value} {place.address}"
            if opening.done():
                logger.error("the listener on %s failed: %s", listener, event.reason)
            else:
                opening.set_exception(ConfigurationError(f"cannot listen on {listener}: {event.reason}"))
        elif self.relaying is not None:
            self.relaying.on_event(event)

    def _offer(self, config: ServeConfig) -> None:
        """Make the server lists from this configuration."""
        if config.turn is not None:
            self._offers.take(config.turn, config.tls, room_tokens=config.room_tokens, open_turn=config.open_turn)

    def _announce(self) -> None:
        """Pass the room tokens, and the reason for lists without TURN, to signaling."""
        if self._links is not None:
            self._links.rooms.tokens = self.config.room_tokens
            self._links.rooms.no_relay = self._offers.no_relay

    def _log_access(self) -> None:
        """Log who can use rooms and TURN credentials."""
        config, lacking = self.config, self._offers.no_relay
        if config.room_tokens:
            logger.info("rooms need a room token, and their members get TURN credentials: %s", lacking or "yes")
        elif lacking:
            logger.info("rooms are open, and give no TURN credentials: %s", lacking)
        elif config.open_turn:
            logger.warning("rooms are open, and any visitor gets TURN credentials for an hour (open_turn)")
        else:
            logger.info("rooms are open, and any visitor gets TURN credentials: all TURN listeners are on loopback")

    async def _metrics(self) -> bytes:
        await self.refresh()
        if self._exposed is None:
            self._exposed = Metrics(self)
        return self._exposed.text()

    def _public_app(self) -> Starlette:
        self._links = Links(
            self.config.limits, room_tokens=self.config.room_tokens, trace=self._trace.of("signaling-server")
        )
        self._announce()
        self._log_access()
        return make_app(self._links, self._offers, origins=lambda: self.config.origins, stopping=lambda: self.stopping)

    async def _serve_http(self, app: Starlette, sockets: list[socket.socket]) -> None:
        uvicorn = embedded(app, self.config)
        serving = asyncio.create_task(uvicorn.serve(sockets), name="HTTP server")
        self._web.append((uvicorn, serving))
        accepting = asyncio.ensure_future(uvicorn.accepting.wait())
        await asyncio.wait([accepting, serving], return_when=asyncio.FIRST_COMPLETED)
        if not accepting.done():
            accepting.cancel()
            serving.result()
            raise RuntimeError("the HTTP server ended before it was listening")


def _within_share(limits: StreamLimits) -> StreamLimits:
    handshakes = limits.handshakes
    return replace(limits, handshakes=replace(handshakes, at_once=within_share(handshakes.at_once, parts=16)))


def _other_hosts(config: ServeConfig, turn: TurnOptions) -> tuple[str, ...]:
    """Return the addresses of this server that its interfaces may not have: external ones, and those of relays."""
    relays = [host for relay in turn.config.relays for host in (relay.host, relay.outside)]
    listeners = [
        each.host for each in (*config.listen, *config.tls_listen, *config.alternates, *config.http, *config.admin)
    ]
    return tuple(dict.fromkeys((*relays, *config.external_ips.values(), *listeners)))


def check_listeners(config: ServeConfig) -> None:
    """Raise ConfigurationError for a listener on an address that this host does not have. Ports are not checked."""
    for address in (*config.listen, *config.tls_listen, *config.http, *config.admin, *config.alternates):
        _listen(address, port=0).close()


def _listen(address: Address, *, port: int | None = None) -> socket.socket:
    """Return a listening TCP socket. Raises ConfigurationError with the cause, for a used port for example."""
    family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            zone = socket.if_nametoindex(address.zone) if address.zone else 0
            listener.bind((address.host, address.port if port is None else port, 0, zone))
        else:
            listener.bind((address.host, address.port if port is None else port))
        # this fails here, and not for the first client, if another socket is bound without listening
        listener.listen(512)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        advice = {
            errno.EADDRINUSE: "; another program uses this port: choose another one, or 0 for any",
            errno.EACCES: "; ports below 1024 need privileges",
            errno.EADDRNOTAVAIL: "; this host does not have this address",
        }.get(error.errno or 0, "")
        raise ConfigurationError(f"cannot listen on tcp {address}: {error.strerror or error}{advice}") from error
    return listener
