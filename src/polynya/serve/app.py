"""The HTTP applications of the server: the signaling WebSocket with /healthz, and /metrics on a listener of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hmac import compare_digest
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from polynya.signaling.messages import PATH, SUBPROTOCOL

from .credentials import Offers
from .http import ABORT, GONE, PING
from .links import Connection, Links, Ping
from .reach import host_of, is_loopback

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_PROXIED: Final = ("x-forwarded-for", "forwarded", "via", "x-real-ip")


def make_app(
    links: Links,
    offers: Offers,
    *,
    origins: Callable[[], Sequence[str]],
    stopping: Callable[[], bool],
) -> Starlette:
    """Build the public application. `stopping` returns whether the server is draining or shutting down."""

    async def healthz(_request: Request) -> Response:
        if links.closed or stopping():
            return PlainTextResponse("shutting down\n", status_code=503)
        return PlainTextResponse("ok\n")

    async def signaling(websocket: WebSocket) -> None:
        header = websocket.headers.get("host", "")
        if not _may_use(websocket.headers.get("origin"), websocket.scope["scheme"], header, origins()):
            await websocket.close()  # before accepting: HTTP 403
            return
        await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
        remote = websocket.client.host if websocket.client else ""
        server = websocket.scope.get("server")
        servers = partial(offers.servers, host_of(header), server[0] if server else "", remote)
        abort: Callable[[], None] = websocket.scope["extensions"][ABORT]["call"]
        gone: Callable[[], Awaitable[object]] = websocket.scope["extensions"][GONE]["call"]
        ping: Ping = websocket.scope["extensions"][PING]["call"]
        await links.run(websocket, remote, servers, Connection(abort, gone, ping))

    return Starlette(routes=[Route("/healthz", healthz), WebSocketRoute(PATH, signaling)])


def make_admin_app(*, metrics: Callable[[], Awaitable[bytes]], token: Callable[[], str]) -> Starlette:
    """Build the application of the operators' listener."""

    async def show_metrics(request: Request) -> Response:
        if not _may_read(request, token()):
            return PlainTextResponse("not found\n", status_code=404)
        return Response(await metrics(), headers={"content-type": METRICS_TYPE, "cache-control": "no-store"})

    return Starlette(routes=[Route("/metrics", show_metrics)])


def _may_use(origin: str | None, scheme: str, host: str, origins: Sequence[str]) -> bool:
    """Whether pages of this origin may use the signaling (RFC 6455, section 10.2). Programs send no origin.

    The server's own origin has the scheme of the client's request (RFC 6454, section 5).
    """
    if origin is None or origin in origins:
        return True
    own = "https" if scheme in {"https", "wss"} else "http"
    return _normal(origin) == _normal(f"{own}://{host}")


def _normal(origin: str) -> str:
    """Return an origin in lower case, without the default port of its scheme."""
    scheme, _, host = origin.lower().partition("://")
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, '/'))}"


def _may_read(request: Request, token: str) -> bool:
    """Whether a client may read the metrics: with the token or, if none is set, from this host without a proxy."""
    if token:
        shown = request.headers.get("authorization", "").encode()
        return compare_digest(shown, f"Bearer {token}".encode())
    if any(name in request.headers for name in _PROXIED):
        return False
    host = host_of(request.headers.get("host", "")) or ""  # refuses web pages that use DNS rebinding
    return request.client is not None and is_loopback(request.client.host) and _is_here(host)


def _is_here(host: str) -> bool:
    return host == "localhost" or is_loopback(host)
