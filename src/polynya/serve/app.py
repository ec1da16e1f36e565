"""The HTTP side of the server: the signaling WebSocket and /healthz."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from polynya.core.addresses import Address
from polynya.signaling.messages import PATH, SUBPROTOCOL, IceServer

from .http import ABORT
from .links import Links
from .reach import host_of, stun_uris


def make_app(links: Links, stun: Sequence[Address], origins: Sequence[str]) -> Starlette:
    """The application: `stun` are the listeners whose URIs members are told."""

    async def healthz(_request: Request) -> Response:
        if links.closed:
            return PlainTextResponse("shutting down\n", status_code=503)
        return PlainTextResponse("ok\n")

    async def signaling(websocket: WebSocket) -> None:
        header = websocket.headers.get("host", "")
        if not _may_use(websocket.headers.get("origin"), header, origins):
            await websocket.close()  # before it is accepted: 403
            return
        await websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
        remote = websocket.client.host if websocket.client else ""
        server = websocket.scope.get("server")
        uris = stun_uris(stun, host_of(header), server[0] if server else "", remote)
        servers = (IceServer(uris=uris),) if uris else ()
        abort: Callable[[], None] = websocket.scope["extensions"][ABORT]["call"]
        await links.run(websocket, remote, servers, abort)

    return Starlette(routes=[Route("/healthz", healthz), WebSocketRoute(PATH, signaling)])


def _may_use(origin: str | None, host: str, origins: Sequence[str]) -> bool:
    """Whether a page of this origin may speak for its visitor; programs send none (RFC 6455, section 10.2)."""
    if origin is None or origin in origins:
        return True
    return origin.partition("://")[2] == host
