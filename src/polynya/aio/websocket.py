"""One WebSocket of the signaling client: opened, read, written and closed by one task."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from socket import gaierror
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.signaling.links import LinkClosed, LinkInput, LinkOpened, LinkText
from polynya.signaling.messages import MESSAGE_BYTES, PATH, SUBPROTOCOL

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def websocket_url(url: str) -> str:
    """The WebSocket's URL of a signaling server's; ConfigurationError says what is wrong with it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in _SCHEMES or not host or port == 0:
        raise ConfigurationError(f"{url!r} is not a signaling server's URL: write http://HOST:PORT or https://HOST")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r} has a query or fragment, which a signaling server's URL has not")
    path = parts.path.rstrip("/")
    if not path.endswith(PATH):
        path += PATH
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, "", ""))


class Link:
    """A WebSocket that is opened at once; `take` gets what happens on it, `LinkClosed` last."""

    def __init__(self, id: int, url: str, timeout: float, take: Callable[[LinkInput], None]) -> None:
        self.remote = ""
        """The address of the other side, once it is open."""
        self.websocket: ClientConnection | None = None
        self._id = id
        self._url = url
        self._timeout = timeout
        self._take = take
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._code = 1000
        self._task = asyncio.create_task(self._run(), name=f"signaling link {id}")

    def send(self, text: str) -> None:
        """Send a text after all others."""
        self._queue.put_nowait(text)

    def close(self, code: int) -> None:
        """Close after what waits to be sent; at once when it is not open yet."""
        self._code = code
        if self.remote:
            self._queue.put_nowait(None)
        else:
            self._task.cancel()

    def cancel(self) -> None:
        self._task.cancel()

    async def finished(self, timeout: float) -> None:
        """Wait until it is closed, for so many seconds; then it is dropped."""
        await asyncio.wait([self._task], timeout=timeout)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        code, reason = 1006, ""
        try:
            code, reason = await self._serve()
        except asyncio.CancelledError:
            reason = "cancelled"
            raise
        except (OSError, WebSocketException, ValueError) as error:
            reason = _explain(error, self._url)
        finally:
            self._take(LinkClosed(link=self._id, code=code, reason=reason))

    async def _serve(self) -> tuple[int, str]:
        self.websocket = websocket = await connect(
            self._url,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=2 * MESSAGE_BYTES,
            open_timeout=self._timeout,
            close_timeout=0.5,
            # what the environment says of proxies is right for other hosts, and never for this one
            **({"proxy": None} if _on_this_host(self._url) else {}),  # type: ignore[arg-type]
        )
        writing: asyncio.Task[None] | None = None
        try:
            address = websocket.remote_address
            self.remote = str(address[0]) if address else "?"
            self._take(LinkOpened(link=self._id, remote=self.remote))
            writing = asyncio.create_task(self._write(websocket))
            with suppress(ConnectionClosed):
                async for text in websocket:
                    self._take(LinkText(self._id, text))
            return websocket.close_code or 1006, websocket.close_reason or "the connection was lost"
        finally:
            if writing is not None:
                writing.cancel()
            await websocket.close(self._code)

    async def _write(self, websocket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while (text := await self._queue.get()) is not None:
                await websocket.send(text)
            await websocket.close(self._code)


def _on_this_host(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return scope(Address.of(host, 0).host) == "loopback"
    except DecodeError:
        return host == "localhost"


def _explain(error: Exception, url: str) -> str:
    """What went wrong and what can be done, for people."""
    host = urlsplit(url).netloc
    match error:
        case InvalidStatus():
            status = error.response.status_code
            if status == 403:
                return f"{host} refused the connection (HTTP 403)"
            return f"{host} answers, but is no Polynya signaling server (HTTP {status}); check the URL"
        case InvalidHandshake():
            return f"{host} answers, but does not speak WebSocket ({error}); check the URL"
        case TimeoutError():
            return f"{host} did not answer in time"
        case ConnectionRefusedError():
            return f"nothing listens at {host}; is `polynya serve --http` running there?"
        case gaierror():
            return f"the name of {host} cannot be resolved: {error.strerror or error}"
        case ssl.SSLCertVerificationError():
            return f"the certificate of {host} is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"no TLS connection with {host}: {error.reason or error}; is it http rather than https?"
        case OSError():
            return f"{host} cannot be reached: {error.strerror or error}"
        case _:
            return f"the connection to {host} failed: {error}"
