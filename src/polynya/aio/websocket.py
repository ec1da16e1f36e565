"""WebSockets of a signaling client: `WebSockets` runs a machine on them, and a task serves each `Link`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from socket import gaierror
from typing import Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.instants import SECOND, Instant
from polynya.signaling.links import (
    ClientInput,
    ClientOutput,
    CloseLink,
    LinkClosed,
    LinkOpened,
    LinkText,
    OpenLink,
    SendText,
)
from polynya.signaling.messages import MESSAGE_BYTES, PATH, SUBPROTOCOL

from . import clock

MAX_URL: Final = 2048
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def websocket_url(url: str) -> str:
    """Return the WebSocket URL for the URL of a signaling server. Raises ConfigurationError for any other URL."""
    if len(url) > MAX_URL:
        raise ConfigurationError(f"the URL of a signaling server has at most {MAX_URL} characters, not {len(url)}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in _SCHEMES or not host or port == 0:
        raise ConfigurationError(
            f"{url!r} is not the URL of a signaling server: write http://HOST:PORT or https://HOST"
        )
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r} has a query or fragment: remove it, the URL of a signaling server has none")
    path = parts.path.rstrip("/")
    if not path.endswith(PATH):
        path += PATH
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, "", ""))


class ClientMachine(Protocol):
    """A machine of a signaling client."""

    def receive(self, input: ClientInput, *, now: Instant) -> None: ...

    def network_changed(self, *, now: Instant) -> None: ...

    def tick(self, *, now: Instant) -> None: ...

    def next_timer(self) -> Instant | None: ...

    def outputs(self) -> list[ClientOutput]: ...

    def events(self) -> list[Any]: ...


class WebSockets:
    """Runs the machine of a signaling client on WebSockets.

    `on_step` gets the machine's new events after every call, also when there are none. `timeout` is the limit for
    opening a WebSocket, in seconds.
    """

    def __init__(
        self, machine: ClientMachine, url: str, *, timeout: float, on_step: Callable[[list[Any]], None]
    ) -> None:
        self.loopback = False
        """Whether the server was reached by its loopback address."""
        self._machine = machine
        self._url = url
        self._timeout = timeout
        self._on_step = on_step
        self._links: dict[int, Link] = {}
        self._timer: asyncio.TimerHandle | None = None

    def call(self, method: Callable[..., None], *args: object) -> None:
        """Call a method of the machine, execute its outputs, pass on its events, and set its timer."""
        method(*args, now=clock.now())
        for output in self._machine.outputs():
            self._execute(output)
        self._set_timer()
        self._on_step(self._machine.events())

    def network_changed(self, hosts: Collection[str]) -> None:
        """Drop WebSockets from addresses that are not among `hosts`, those of this host; then call the machine."""
        for number, link in list(self._links.items()):
            if link.local and link.local not in hosts:
                link.abort()
                reason = f"the address {link.local} is gone from this host"
                self.call(self._machine.receive, LinkClosed(link=number, reason=reason))
        self.call(self._machine.network_changed)

    async def aclose(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until every WebSocket is closed; then abort. The machine must have ended."""
        if self._timer is not None:
            self._timer.cancel()
        links = list(self._links.values())
        try:
            for link in links:
                await link.finished(timeout)
        finally:
            for link in links:
                link.cancel()

    def _execute(self, output: ClientOutput) -> None:
        if isinstance(output, OpenLink):
            self._links[output.link] = Link(output.link, self._url, self._timeout, self._take)
        elif (link := self._links.get(output.link)) is None:
            return
        elif isinstance(output, SendText):
            link.send(output.text)
        elif isinstance(output, CloseLink):
            link.close(output.code)

    def _take(self, input: ClientInput) -> None:
        if isinstance(input, LinkClosed):
            self._links.pop(input.link, None)
        elif isinstance(input, LinkOpened):
            self.loopback = is_loopback(input.remote)
        self.call(self._machine.receive, input)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._machine.next_timer()
        if due is not None:
            delay = max(0, due - clock.now()) / SECOND
            self._timer = asyncio.get_running_loop().call_later(delay, self.call, self._machine.tick)


class Link:
    """One WebSocket, opened at once. `take` gets its events; the last one is `LinkClosed`."""

    def __init__(self, id: int, url: str, timeout: float, take: Callable[[ClientInput], None]) -> None:
        self._id = id
        self._url = url
        self._timeout = timeout
        self._take = take
        self.local = ""
        """The local address of the open WebSocket."""
        self._websocket: ClientConnection | None = None
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._code = 1000
        self._task = asyncio.create_task(self._run(), name=f"signaling link {id}")

    def send(self, text: str) -> None:
        """Send a text after all earlier ones."""
        self._queue.put_nowait(text)

    def close(self, code: int) -> None:
        """Close the WebSocket after all texts are sent. If it is not open yet, stop opening it."""
        self._code = code
        if self._websocket is not None:
            self._queue.put_nowait(None)
        else:
            self._task.cancel()

    def abort(self) -> None:
        """End the WebSocket without a closing handshake, which a lost address cannot complete."""
        self.local = ""
        if self._websocket is not None:
            self._websocket.transport.abort()

    def cancel(self) -> None:
        self._task.cancel()

    async def finished(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until the WebSocket is closed; then abort it."""
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
        websocket = await connect(
            self._url,
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=2 * MESSAGE_BYTES,
            open_timeout=self._timeout,
            close_timeout=0.5,
            # the proxies of the environment are meant for other hosts, never for this one
            **({"proxy": None} if _on_this_host(self._url) else {}),  # type: ignore[arg-type]
        )
        writing: asyncio.Task[None] | None = None
        try:
            address, local = websocket.remote_address, websocket.local_address
            self._websocket = websocket
            self.local = str(local[0]).partition("%")[0] if local else ""
            self._take(LinkOpened(link=self._id, remote=str(address[0]) if address else ""))
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


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address."""
    try:
        return scope(Address.of(host, 0).host) == "loopback"
    except DecodeError:
        return False


def _on_this_host(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or is_loopback(host)


def _explain(error: Exception, url: str) -> str:
    """Return an error in words, with what the user can do about it."""
    host = urlsplit(url).netloc
    match error:
        case InvalidStatus():
            status = error.response.status_code
            if status == 403:
                return f"{host} refused the connection (HTTP 403)"
            return f"{host} answers, but is not a Polynya signaling server (HTTP {status}); check the URL"
        case InvalidHandshake():
            return f"{host} answers, but does not speak WebSocket ({error}); check the URL"
        case TimeoutError():
            return f"{host} did not answer in time"
        case ConnectionRefusedError():
            return f"no server listens at {host}; is `polynya serve --http` running there?"
        case gaierror():
            return f"the host name of {host} cannot be resolved: {error.strerror or error}"
        case ssl.SSLCertVerificationError():
            return f"the certificate of {host} is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"no TLS connection to {host}: {error.reason or error}; is the URL http rather than https?"
        case OSError():
            return f"{host} cannot be reached: {error.strerror or error}"
        case _:
            return f"the connection to {host} failed: {error}"
