"""HTTP by uvicorn, with limits that it lacks: for the time of requests, for connections, unread output and floods.

transport <-> Inflow, GuardedTransport <-> GuardedHttp --upgrade--> SignalingWebSocket
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Any, Final, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from polynya.aio import clock
from polynya.aio.accepting import PlainConnections
from polynya.signaling.limits import Bucket
from polynya.signaling.messages import MESSAGE_BYTES

from .census import SPARE, SPARE_IN_ALL, Census
from .config import ServeConfig
from .descriptors import within_share
from .inflow import Inflow
from .transport import CLOSE_TIME, GuardedTransport

PING_INTERVAL = 20.0
"""Seconds between WebSocket pings, and until a connection without a pong is closed."""

REQUEST_BYTES: Final = 16_384
"""Bytes of a request line with its headers."""
OFFENSES: Final = 32
"""Control frames and small fragments that a WebSocket may send at once; one more is granted every second."""
SMALL_FRAGMENT: Final = 256
"""Bytes below which a fragment of a message that is not its last one counts as an offense."""
POLICY_VIOLATION: Final = 1008
"""Close code of a WebSocket that sends too many of them (RFC 6455, section 7.4.1)."""

ABORT = "polynya.abort"
"""ASGI extension with a function that aborts the connection."""

GONE = "polynya.gone"
"""ASGI extension with a coroutine function that waits until the connection is gone."""

PING = "polynya.ping"
"""ASGI extension with a function that sends a ping and calls its argument when the pong arrives."""


class SignalingWebSocket(WebSocketsSansIOProtocol):
    """The sans-I/O WebSocket backend, with limits, and an extension by which the application aborts a connection."""

    transport: GuardedTransport
    _answered: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.close_timeout = CLOSE_TIME
        self._gone = asyncio.Event()
        self._offenses = Bucket(1, OFFENSES, now=clock.now())
        self._ejected = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.hold("output")  # each ping that is read adds a pong

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.release("output")

    # a piece of input can hold more frames after the one that closes the connection
    def handle_ping(self) -> None:
        if not self._offend():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        solicited = self.pending_ping_payload is not None and bytes(event.data) == self.pending_ping_payload
        if solicited or not self._offend():
            super().handle_pong(event)

    def handle_text(self, event: Frame) -> None:
        if not self._is_refused(event):
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if not self._is_refused(event):
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if not self._is_refused(event):
            super().handle_cont(event)

    def _is_refused(self, event: Frame) -> bool:
        small = not event.fin and len(event.data) < SMALL_FRAGMENT
        return self._ejected or (small and self._offend())

    def _offend(self) -> bool:
        """Count an offense. Returns True if there are too many and the connection is closed."""
        if not self._ejected and not self._offenses.take(1, now=clock.now()):
            self._ejected = True
            self._eject()
        return self._ejected

    def _eject(self) -> None:
        if self.close_sent:
            self.transport.abort()
            return
        reason = "too many control frames or small fragments"
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": reason})
        self.conn.fail(POLICY_VIOLATION, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    def ping(self, answered: Callable[[], None]) -> None:
        """Send a ping now, unless one is under way; call `answered` when its pong arrives."""
        self._answered = answered
        if self.pong_timer is None:
            if self.ping_timer is not None:
                self.ping_timer.cancel()
            self.send_keepalive_ping()

    def schedule_ping(self) -> None:
        """Called when the pong of a ping has arrived, and at the start."""
        super().schedule_ping()
        answered, self._answered = self._answered, None
        if answered is not None:
            answered()

    async def run_asgi(self) -> None:
        self.scope["extensions"] |= {
            ABORT: {"call": self.transport.abort},
            GONE: {"call": self._gone.wait},
            PING: {"call": self.ping},
        }
        await super().run_asgi()


class StrictHttp(h11.Connection):
    """Refuses requests whose body another program could read differently (RFC 9112, sections 6.1 and 11.2)."""

    def next_event(self) -> Any:
        """Return the next event. Raises RemoteProtocolError for an ambiguous request."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("Transfer-Encoding with Content-Length, or before HTTP/1.1")
        return event


def guarded(config: ServeConfig, census: Census) -> Callable[..., Inflow]:
    """Return a maker of HTTP protocols that limit the connections, their input and the time of each request."""

    class GuardedHttp(H11Protocol):
        transport: GuardedTransport
        _deadline: asyncio.TimerHandle | None = None

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.conn = StrictHttp(h11.SERVER, REQUEST_BYTES)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def on_response_complete(self) -> None:
            # before the next request is handled, which may have arrived already
            self._expect()
            super().on_response_complete()

        def _expect(self) -> None:
            """Start the time for the next request and its response. Only a WebSocket may take longer."""
            self._done()
            self._deadline = self.loop.call_later(config.request_timeout, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._done()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._done()
            super().handle_websocket_upgrade(event)
            # the request is parsed again, by websockets, which refuses requests that h11 takes, and does not say so
            upgraded = self.transport.get_protocol()
            if not getattr(upgraded, "handshake_initiated", False):
                self.send_400_response("Invalid WebSocket upgrade.")

        def _done(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    def make(**options: Any) -> Inflow:
        return Inflow(GuardedHttp(**options), census)

    return make


class EmbeddedUvicorn(uvicorn.Server):
    """uvicorn in a running loop: it installs no signal handlers and sets `accepting` when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()
        self._listening: list[PlainConnections] = []

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup([])
        self._listening = [PlainConnections(each, self._make) for each in sockets or ()]
        self.accepting.set()

    def _make(self) -> Inflow:
        make = cast("Callable[..., Inflow]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:  # noqa: ARG002 - they are closed here
        await self.stop_listening()
        await super().shutdown([])

    async def stop_listening(self) -> None:
        """Close the listening sockets. Safe to call twice."""
        listening, self._listening = self._listening, []
        for each in listening:
            each.close()
            await each.wait_closed()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def abort_all(self) -> None:
        """Abort all remaining connections."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def embedded(app: Callable[..., Any], config: ServeConfig) -> EmbeddedUvicorn:
    """Return a uvicorn server for `app` with all limits set."""
    limits = config.limits
    in_all = within_share(limits.links + SPARE_IN_ALL)
    census = Census(in_all, limits.links_per_host + SPARE, config.trusted_proxies)
    return EmbeddedUvicorn(
        uvicorn.Config(
            app,
            http=guarded(config, census),  # type: ignore[arg-type] # uvicorn calls it to make a protocol
            ws=SignalingWebSocket,
            ws_max_size=4 * MESSAGE_BYTES,  # slightly too large messages reach the machine, which answers with an error
            ws_per_message_deflate=False,
            ws_ping_interval=PING_INTERVAL,
            ws_ping_timeout=PING_INTERVAL,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(config.trusted_proxies),
            forwarded_allow_ips=list(config.trusted_proxies),
            h11_max_incomplete_event_size=REQUEST_BYTES,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
    )
