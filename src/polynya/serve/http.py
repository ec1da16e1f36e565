"""HTTP by uvicorn, with limits that it lacks: for connections without a request and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from polynya.signaling.messages import MESSAGE_BYTES

from .config import ServeConfig
from .transport import CLOSE_TIME, GuardedTransport

PING_INTERVAL = 20.0
"""Seconds between WebSocket pings, and until a connection without a pong is closed."""

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

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.transport.lost()
        self._gone.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.hold("output")  # each ping that is read adds a pong

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.release("output")

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


def guarded(config: ServeConfig) -> type[asyncio.Protocol]:
    """Return an HTTP protocol class that limits the connections and the time to the first request."""
    most = (
        config.limits.links + 1000
    )  # reserve for health checks and for clients that the signaling server is going to refuse

    class GuardedHttp(H11Protocol):
        transport: GuardedTransport
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(GuardedTransport(transport))
            if len(self.connections) > most:
                transport.abort()
                return
            # the timer of uvicorn only starts with the first response
            self._deadline = self.loop.call_later(config.request_timeout, self._check)

        def _check(self) -> None:
            if not self._requested and not self.transport.is_closing():
                self.transport.abort()

        @property
        def _requested(self) -> bool:
            return self.headers is not None

        def connection_lost(self, exc: Exception | None) -> None:
            self._done()
            super().connection_lost(exc)
            self.transport.lost()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._done()
            super().handle_websocket_upgrade(event)

        def _done(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return GuardedHttp


class EmbeddedUvicorn(uvicorn.Server):
    """uvicorn in a running loop: it installs no signal handlers and sets `accepting` when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def abort_all(self) -> None:
        """Abort all remaining connections."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def embedded(app: Callable[..., Any], config: ServeConfig) -> EmbeddedUvicorn:
    """Return a uvicorn server for `app` with all limits set."""
    return EmbeddedUvicorn(
        uvicorn.Config(
            app,
            http=guarded(config),
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
            h11_max_incomplete_event_size=16_384,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
    )
