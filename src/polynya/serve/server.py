"""The server: its listeners opened together, run in one loop, and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from types import TracebackType
from typing import Final

from polynya.aio.driver import Driver
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import FlowIds
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.listeners import ListenerEvent, ListenerFailed, ListenerOpened, StunListeners
from polynya.stun.server import BindingServer

from .app import make_app
from .config import ServerConfig
from .http import EmbeddedUvicorn, embedded
from .links import Links
from .reach import http_url, stun_uri

logger: Final = logging.getLogger("polynya.serve")


class Server:
    """STUN and signaling in the running event loop: `async with Server(config) as server`.

    Entering raises ConfigurationError, with nothing left open, when an address cannot be listened on. On leaving,
    members are told, and everything is closed within a few seconds whatever clients do.
    """

    def __init__(self, config: ServerConfig, *, trace: Tracer = NO_TRACE) -> None:
        self.config = config
        self.stun_addresses: tuple[Address, ...] = ()
        """Where STUN is answered, with the ports that the system gave."""
        self.http_addresses: tuple[Address, ...] = ()
        self._trace = trace
        self._links: Links | None = None
        self._driver: Driver[StunListeners] | None = None
        self._uvicorn: EmbeddedUvicorn | None = None
        self._serving: asyncio.Task[None] | None = None
        self._opening: dict[Address, asyncio.Future[Address]] = {}

    @property
    def stun_uris(self) -> tuple[str, ...]:
        """The STUN listeners as URIs, for clients on this host when they listen on all addresses."""
        return tuple(stun_uri(each.host, each.port) for each in self.stun_addresses)

    @property
    def url(self) -> str:
        """The URL that signaling clients are given; the first of several."""
        if not self.http_addresses:
            raise UsageError("this server has no signaling: give it an http address")
        return http_url(self.http_addresses[0])

    @property
    def ready_line(self) -> str:
        """`ready stun=ADDR:PORT http=URL`, each as often as there are listeners, with their actual ports."""
        stun = [f"stun={address}" for address in self.stun_addresses]
        return " ".join(["ready", *stun, *(f"http=http://{address}" for address in self.http_addresses)])

    @property
    def counters(self) -> dict[str, int]:
        """What was counted, by part."""
        counted: dict[str, int] = {}
        if self._driver is not None:
            counted |= {f"stun.{name}": value for name, value in self._driver.counters.items()}
        if self._links is not None:
            counted |= {f"signaling.{name}": value for name, value in self._links.rooms.counters.items()}
        return counted

    async def __aenter__(self) -> Server:
        sockets: list[socket.socket] = []
        try:
            for address in self.config.http:
                sockets.append(_listen(address))  # noqa: PERF401 - what was opened before a failure must be known
            await self._open_stun()
            self.http_addresses = tuple(Address.of(*each.getsockname()[:2]) for each in sockets)
            if sockets:
                await self._open_http(sockets)
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

    async def aclose(self) -> None:
        """Tell the members, then close everything. Safe to call twice."""
        links, self._links = self._links, None
        if links is not None:
            await links.aclose(self.config.stop_timeout)
        uvicorn, self._uvicorn = self._uvicorn, None
        serving, self._serving = self._serving, None
        if uvicorn is not None and serving is not None:
            uvicorn.should_exit = True
            await asyncio.wait([serving], timeout=self.config.stop_timeout)
            uvicorn.abort_all()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.aclose()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises RuntimeError when the HTTP part ended on its own."""
        waiting = asyncio.ensure_future(stop.wait())
        watched: list[asyncio.Future[object]] = [waiting]  # type: ignore[list-item]
        if self._serving is not None:
            watched.append(self._serving)  # type: ignore[arg-type]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not stop.is_set():
            raise RuntimeError("the HTTP server ended on its own")

    # ------------------------------------------------------------------------------------------------------ opening

    async def _open_stun(self) -> None:
        if not self.config.listen:
            return
        loop = asyncio.get_running_loop()
        self._opening = {address: loop.create_future() for address in self.config.listen}
        flow_ids = FlowIds()
        listeners = StunListeners(tuple(self._opening), flow_ids, BindingServer(trace=self._trace.of("stun-server")))
        self._driver = Driver(listeners, on_event=self._on_listener, flow_ids=flow_ids, trace=self._trace)
        self._driver.call(listeners.start)
        self.stun_addresses = tuple(await asyncio.gather(*self._opening.values()))

    def _on_listener(self, event: ListenerEvent) -> None:
        opening = self._opening.get(event.asked)
        if isinstance(event, ListenerOpened):
            if opening is not None and not opening.done():
                opening.set_result(event.local)
        elif opening is not None and not opening.done():
            opening.set_exception(ConfigurationError(f"cannot listen on udp {event.asked}: {event.reason}"))
        elif isinstance(event, ListenerFailed):
            logger.error("the listener on udp %s is gone: %s", event.asked, event.reason)

    async def _open_http(self, sockets: list[socket.socket]) -> None:
        self._links = Links(self.config.limits, trace=self._trace.of("signaling-server"))
        uvicorn = self._uvicorn = embedded(make_app(self._links, self.stun_addresses, self.config.origins), self.config)
        self._serving = asyncio.create_task(uvicorn.serve(sockets), name="signaling over HTTP")
        accepting = asyncio.ensure_future(uvicorn.accepting.wait())
        await asyncio.wait([accepting, self._serving], return_when=asyncio.FIRST_COMPLETED)
        if not accepting.done():
            accepting.cancel()
            self._serving.result()
            raise RuntimeError("the HTTP server ended before it accepted")


def _listen(address: Address) -> socket.socket:
    """A TCP socket that is bound, so that a port that is taken is told at once and as what it is."""
    family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            zone = socket.if_nametoindex(address.zone) if address.zone else 0
            listener.bind((address.host, address.port, 0, zone))
        else:
            listener.bind((address.host, address.port))
        # taken also by one who bound without listening: found out here and not by the first client
        listener.listen(512)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        advice = {
            errno.EADDRINUSE: "; another program has this port, choose another or 0 for any",
            errno.EACCES: "; ports below 1024 need privileges",
            errno.EADDRNOTAVAIL: "; this host does not have the address",
        }.get(error.errno or 0, "")
        raise ConfigurationError(f"cannot listen on tcp {address}: {error.strerror or error}{advice}") from error
    return listener
