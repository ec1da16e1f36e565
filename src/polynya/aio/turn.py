"""A TURN client for use by hand: one allocation on a TURN server, and datagrams to and from peers through it."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache, partial
from typing import Final

from polynya.core import arguments
from polynya.core.addresses import Address
from polynya.core.arguments import secret, text
from polynya.core.errors import ConfigurationError, ConnectionClosed, DecodeError, TransactionError, UsageError
from polynya.core.flows import FlowIds, Transport
from polynya.core.instants import duration
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.uris import TurnUri
from polynya.turn.client import (
    Allocated,
    AllocationFailed,
    ChannelBound,
    ChannelFailed,
    ClientConfig,
    Credentials,
    CredentialsNeeded,
    Lost,
    PermissionFailed,
    Permitted,
    RelayedData,
    Released,
    TurnEvent,
    TurnReport,
)
from polynya.turn.client import TurnClient as Machine
from polynya.turn.client.indications import MAX_DATA
from polynya.turn.client.search import RelaySearch

from .connection import as_bytes
from .dns import ResolveName
from .driver import Driver
from .options import FAMILIES, check_callables
from .packet_trace import Capture
from .servers import AskCredentials, ask_for

QUEUE_LENGTH: Final = 1024
"""Datagrams that wait for `recv` before more are dropped."""
EVENTS_KEPT: Final = 256
CLOSE_TIMEOUT: Final = 2.0
"""Seconds for the server to confirm that it has freed the allocation."""


class TurnClient:
    """An allocation on a TURN server.

        async with polynya.TurnClient("turn:turn.example.org", username="u", password="p") as relay:
            print(relay.relayed)                            # send it to the peer
            await relay.permit("192.0.2.1:4000")
            relay.send("192.0.2.1:4000", b"hello")
            data, peer = await relay.recv()

    - `uri`: a `turn:` or `turns:` URI (RFC 7065).
    - `credentials`: in place of `username` and `password`, an async callable, `(uri, realm)` to
      `(username, password)`, for time-limited credentials. It is called at first, and whenever the server refuses the
      last ones.
    - `families`: of the relayed addresses, 4, 6 or both. One that the server does not have is in
      `allocation.refused`, with the reason.
    - `lifetime`: in seconds, until the allocation is refreshed.
    - `even_port`, `reservation_token`, `dont_fragment`: as in RFC 8656.
    - `local`: the address to send from.
    - `tls`: the `ssl.SSLContext` for `turns:`; the default trusts the certificate authorities of the system.
    - `resolve`: an async callable, host name to IP addresses, in place of the resolver of the system.
    - `trace`, `capture`: a `Tracer` for everything that happens, and a callable that gets every packet.

    Raises ConfigurationError, before any socket is opened, if an option is wrong.
    """

    def __init__(
        self,
        uri: str,
        *,
        username: str = "",
        password: str = "",
        credentials: AskCredentials | None = None,
        families: Sequence[int] = FAMILIES,
        lifetime: float = 600,
        even_port: bool | None = None,
        reservation_token: bytes | None = None,
        dont_fragment: bool = False,
        local: Address | str | None = None,
        tls: ssl.SSLContext | None = None,
        resolve: ResolveName | None = None,
        trace: Tracer = NO_TRACE,
        capture: Capture | None = None,
    ) -> None:
        check_callables(credentials=credentials, resolve=resolve, tls=tls, trace=trace, capture=capture)
        text("the URI", uri)
        text("username", username)
        secret("password", password)
        if password and not username:
            raise ConfigurationError("a password needs a username: set both, or neither of them")
        config = ClientConfig(
            families=families,  # type: ignore[arg-type]  # it makes a tuple of any list
            lifetime=duration("lifetime", lifetime),
            even_port=even_port,
            reservation_token=reservation_token,
            dont_fragment=dont_fragment,
            local=None if local is None else _own_address(local),
        )
        flow_ids = FlowIds()
        self._uri = TurnUri.parse(uri)
        self._search = RelaySearch(
            self._uri,
            config,
            random=random.SystemRandom(),
            flow_ids=flow_ids,
            credentials=Credentials(username, password) if username else None,
            trace=trace.of("turn"),
        )
        self._make_driver = partial(
            Driver,
            self._search,
            on_event=self._on_event,
            flow_ids=flow_ids,
            trace=trace,
            tls=tls,
            resolve=resolve,
            capture=capture,
        )
        self._ask_credentials = credentials
        self._driver: Driver[RelaySearch] | None = None
        self._allocated: Allocated | None = None
        self._machine: Machine | None = None
        self._send: Callable[[bytes], bool] | None = None
        """Sends to the server, over UDP; None without an allocation, and over streams."""
        self._wrap: Callable[[Address, bytes], bytes | None]
        self._unwrap: Callable[[bytes], tuple[Address, bytes] | None]
        self._ended: str | None = None
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._start: asyncio.Future[Allocated] | None = None
        self._released: asyncio.Future[None] | None = None
        self._permits: dict[Address, list[asyncio.Future[None]]] = {}
        self._binds: dict[Address, list[asyncio.Future[None]]] = {}
        self._refused: Credentials | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -math.inf
        """When the callable was called last, by the clock of the loop."""
        self._asked = 0
        """Calls in a row."""
        self.datagrams_dropped = 0
        """Arrived while the receive queue was full, or from a peer without permission."""
        self._latest: deque[TurnEvent] = deque(maxlen=EVENTS_KEPT)
        """The last events of the client, without data, oldest first."""

    def __repr__(self) -> str:
        if self._ended is not None:
            state = f"closed: {self._ended}"
        elif self._allocated is None:
            state = "no allocation yet"
        else:
            state = ", ".join(map(str, self._allocated.relayed))
        return f"<TurnClient {self._uri}: {state}>"

    # ----------------------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> TurnClient:
        await self.allocate()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def allocate(self, timeout: float = 45) -> Allocated:
        """Makes the allocation; entering the context does this. `timeout` is in seconds.

        Raises TransactionError with every server that was tried and why it failed.
        """
        arguments.seconds("timeout", timeout, error=UsageError)
        if self._driver is not None or self._ended is not None:
            raise UsageError("this client was started before: make a new one for each allocation")
        self._driver = self._make_driver()
        self._start = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                self._driver.call(self._search.start)
                return await self._start
        except TimeoutError:
            await self.close()
            tried = "; ".join(attempt.reason for attempt in self._search.attempts) or "no server answered"
            raise TransactionError(None, f"no allocation within {timeout:g} s: {tried}") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Frees the allocation and closes the socket. Safe to call twice and to cancel: the socket closes anyway."""
        driver = self._driver
        if driver is None or driver.closed:
            self._end("closed here")
            return
        try:
            if self._machine is not None and self._ended is None:
                self._released = asyncio.get_running_loop().create_future()
                driver.call(self._search.close)
                await asyncio.wait([self._released], timeout=CLOSE_TIMEOUT)
            else:
                driver.call(self._search.close)
        finally:
            self._end("closed here")
            if self._asking is not None:
                self._asking.cancel()
            driver.close_now()
            await driver.aclose()

    # ----------------------------------------------------------------------------------------------------------- peers

    async def permit(self, *peers: Address | str) -> None:
        """Creates permissions: these peers may send to the relayed address, and receive from it, by any port.

        Many go into one request. Raises TransactionError if the server forbids one of them; the others are permitted.
        """
        driver, machine = self._running()
        addresses = [_address(peer) for peer in peers]
        waits = [_wait(self._permits, address) for address in addresses]
        driver.call(lambda now: machine.permit(addresses, now=now))
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def bind(self, peer: Address | str) -> None:
        """Binds a channel to a peer, which takes less overhead on every datagram, and permits the peer.

        Raises TransactionError if the server refuses; data is then sent as before.
        """
        driver, machine = self._running()
        address = _address(peer)
        if machine.wrap(address, b"") is not None:
            return
        waiting = _wait(self._binds, address)
        driver.call(lambda now: machine.bind(address, now=now))
        await waiting

    def set_credentials(self, username: str, password: str) -> None:
        """Signs with these credentials from now on; for before the old ones expire."""
        text("username", username, error=UsageError)
        secret("password", password, error=UsageError)
        driver, _ = self._running()
        driver.call(self._search.set_credentials, Credentials(username, password))

    # ------------------------------------------------------------------------------------------------------------ data

    def send(
        self, peer: Address | str, data: bytes | bytearray | memoryview, *, dont_fragment: bool = False
    ) -> bool:  # fmt: skip
        """Sends a datagram to a permitted peer. Returns False if there is no permission or the system refused it.

        Raises ConnectionClosed once the allocation is gone, UsageError for data of another type and for
        more bytes than a Send indication carries.
        """
        if type(data) is not bytes:
            data = as_bytes(data)
        if len(data) > MAX_DATA:
            raise UsageError(f"a datagram of {len(data)} bytes is too long: a relay carries {MAX_DATA}")
        address = peer if isinstance(peer, Address) else _parse(_peer_text(peer))
        send = self._send
        if send is not None and not dont_fragment:  # there is an allocation, and it has not ended
            frame = self._wrap(address, data)
            if frame is not None:
                return send(frame)
        driver, machine = self._running()
        refused = driver.refused
        permitted = driver.call(partial(machine.send, address, data, dont_fragment=dont_fragment))
        return permitted and driver.refused == refused

    async def recv(self) -> tuple[bytes, Address]:
        """Returns the next datagram and the peer that sent it. Raises ConnectionClosed once the allocation is gone."""
        queue = self._queue
        while not queue:
            if self._ended is not None:
                raise ConnectionClosed(self._ended)
            if self._receiver is not None and not self._receiver.done():
                raise UsageError("recv() is waiting in another task already")
            self._receiver = asyncio.get_running_loop().create_future()
            await self._receiver
        return queue.popleft()

    async def __aiter__(self) -> AsyncIterator[tuple[bytes, Address]]:
        while True:
            try:
                received = await self.recv()
            except ConnectionClosed:
                return
            yield received

    # ---------------------------------------------------------------------------------------------------------- seeing

    @property
    def allocation(self) -> Allocated:
        """The allocation: relayed addresses, lifetime, reservation token, and the families that the server refused."""
        if self._allocated is None:
            raise UsageError("there is no allocation yet: use it as `async with polynya.TurnClient(...) as relay`")
        return self._allocated

    @property
    def relayed(self) -> tuple[Address, ...]:
        """The relayed addresses: peers send to these."""
        return self.allocation.relayed

    @property
    def mapped(self) -> Address | None:
        """The address of this client as the server sees it."""
        return self.allocation.mapped

    @property
    def closed(self) -> bool:
        return self._ended is not None

    def why(self) -> TurnReport | None:
        """Returns a report of the requests, their answers, and the present state; None before a server was found."""
        return self._machine.why() if self._machine is not None else None

    # ---------------------------------------------------------------------------------------------------------- events

    def _on_event(self, event: TurnEvent) -> None:
        match event:
            case RelayedData():
                self._deliver(event.data, event.peer)
                return
            case Allocated():
                self._found(event)
            case AllocationFailed():
                self._fail(TransactionError(event.code, event.reason))
            case CredentialsNeeded():
                self._need_credentials(event)
            case Permitted():
                for peer in event.peers:
                    _settle(self._permits, peer, None)
            case PermissionFailed():
                for peer in event.peers:
                    _settle(self._permits, peer, TransactionError(event.code, event.reason))
            case ChannelBound():
                _settle(self._binds, event.peer, None)
            case ChannelFailed():
                _settle(self._binds, event.peer, TransactionError(event.code, event.reason))
            case Lost():
                self._end(event.reason)
            case Released() if self._released is not None and not self._released.done():
                self._released.set_result(None)
            case _:
                pass
        self._latest.append(event)

    def _found(self, event: Allocated) -> None:
        driver, self._allocated, self._machine = self._driver, event, self._search.found
        assert driver is not None
        assert self._machine is not None
        self._wrap, self._unwrap = self._machine.wrap, self._machine.unwrap
        if event.server.transport is Transport.UDP:
            self._send = driver.sender(event.flow, event.server.address)
            driver.accept_data(event.flow, event.server.address, self._channel_data)
        if self._start is not None and not self._start.done():
            self._start.set_result(event)

    def _channel_data(self, data: bytes) -> None:
        """Takes a datagram of the server that is not STUN."""
        unwrapped = self._unwrap(data)
        if unwrapped is None:
            self.datagrams_dropped += 1
        else:
            self._deliver(unwrapped[1], unwrapped[0])

    def _deliver(self, data: bytes, peer: Address) -> None:
        queue = self._queue
        if len(queue) >= QUEUE_LENGTH:
            self.datagrams_dropped += 1
            return
        queue.append((data, peer))
        receiver = self._receiver
        if receiver is not None and not receiver.done():
            receiver.set_result(None)

    def _need_credentials(self, event: CredentialsNeeded) -> None:
        if self._ask_credentials is not None:
            self._asking = asyncio.get_running_loop().create_task(self._renew(self._ask_credentials, event.realm))
        elif self._allocated is None:
            self._fail(TransactionError(401, event.reason))

    async def _renew(self, ask: AskCredentials, realm: str) -> None:
        """Asks for credentials. With an allocation, it asks again after each failure, at the latest after 64 s."""
        loop = asyncio.get_running_loop()
        if loop.time() > self._asked_at + 128:
            self._asked = 0
        while True:
            if self._asked > 1:  # the first credentials may have been refused because they had expired
                await asyncio.sleep(max(self._asked_at + min(2.0 ** (self._asked - 2), 64.0) - loop.time(), 0))
            if self._ended is not None:
                return
            self._asked_at, self._asked = loop.time(), min(self._asked + 1, 16)
            try:
                credentials = await ask_for(ask, str(self._uri), realm)
            except Exception as error:  # noqa: BLE001  # any exception of the user's function is a failure
                problem = f"no credentials for {realm!r}: {error}"
            else:
                if credentials != self._refused or self._allocated is not None:
                    break
                problem = f"the server refused the credentials of {credentials.username!r} for {realm!r}"
            if self._allocated is None:
                self._fail(TransactionError(401, problem))
                return
        if self._driver is not None and not self._driver.closed:
            self._refused = credentials
            self._driver.call(self._search.set_credentials, credentials)

    def _fail(self, error: TransactionError) -> None:
        if self._start is not None and not self._start.done():
            self._start.set_exception(error)

    def _end(self, reason: str) -> None:
        if self._ended is not None:
            return
        self._ended = reason
        self._send = None
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        for waits in (self._permits, self._binds):
            for peer in list(waits):
                _settle(waits, peer, ConnectionClosed(reason))

    def _running(self) -> tuple[Driver[RelaySearch], Machine]:
        if self._ended is not None:
            raise ConnectionClosed(self._ended)
        if self._driver is None or self._machine is None:
            raise UsageError("there is no allocation yet: use it as `async with polynya.TurnClient(...) as relay`")
        return self._driver, self._machine


@lru_cache(maxsize=1024)
def _parse(peer: str) -> Address:
    """Parses the address of a peer; cached, since most are sent to again."""
    try:
        return Address.parse(peer)
    except DecodeError as error:
        raise UsageError(f"a peer is an Address or a text: {error}") from None


def _peer_text(peer: object) -> str:
    if isinstance(peer, str):
        return peer
    raise UsageError(f"a peer is an Address or a text, HOST:PORT, not {arguments.shown(peer)}")


def _own_address(local: Address | str) -> Address:
    if isinstance(local, Address):
        return local
    try:
        return Address.parse(text("local", local), 0)
    except DecodeError as error:
        raise ConfigurationError(f"local: {error}") from None


def _address(peer: Address | str) -> Address:
    if isinstance(peer, Address):
        return peer
    try:
        return Address.parse(_peer_text(peer), 0)
    except DecodeError as error:
        raise UsageError(f"a peer is an Address or a text: {error}") from None


def _wait(waits: dict[Address, list[asyncio.Future[None]]], peer: Address) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waits.setdefault(peer, []).append(future)
    return future


def _settle(waits: dict[Address, list[asyncio.Future[None]]], peer: Address, error: Exception | None) -> None:
    for future in waits.pop(peer, []):
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
