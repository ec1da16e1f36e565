"""Name resolution: host names by the system's resolver or the user's, SRV and NAPTR records by dnspython.

A literal address is its own answer. The texts of an answer, in the resolver's order:

    ADDRESS    the host, in canonical form
    SRV        `priority weight port target`                                 (RFC 2782)
    NAPTR      `order preference "flags" "service" "regexp" replacement`     (RFC 3403)

The machine selects among several records, because it has the randomness.

The system's resolver blocks its thread, for half a minute if a name server is silent. Each look-up has a daemon thread
of its own, which neither `asyncio.run` nor the end of the program waits for; the loop's executor stays free. The names
that peers choose have their own, small number of threads.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.machine import RecordType, Resolve, Resolved

TIMEOUT: Final = 5.0
"""Seconds for one query; ICE continues without the server in the meantime."""

LOCALHOST: Final = ("127.0.0.1", "::1")


ResolveName = Callable[[str], Awaitable[Sequence[str]]]
"""Looks up the IP addresses of a host name, in the order of preference; an exception is a failed look-up."""


class _LookupError(Exception):
    """A look-up failed; the message is the reason."""


class Threads:
    """Runs calls of the system's resolver, at most `limit` at a time in this process, each in a daemon thread."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting: deque[tuple[str, asyncio.Future[tuple[str, ...]]]] = deque()

    async def look_up(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a name; a call that is canceled leaves its thread to the system."""
        future: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((name, future))
            free = self._busy < self._limit
            self._busy += free
        if free:
            try:
                threading.Thread(target=self._work, name=f"polynya: {self._name}", daemon=True).start()
            except RuntimeError:  # the system has no more threads
                with self._lock:
                    self._busy -= 1
                raise _LookupError("no thread could be started for the system's resolver") from None
        return await future

    def _work(self) -> None:
        """Look names up until none is waiting."""
        while True:
            with self._lock:
                while self._waiting and self._waiting[0][1].done():
                    self._waiting.popleft()
                if not self._waiting:
                    self._busy -= 1
                    return
                name, future = self._waiting.popleft()
            try:
                found: tuple[str, ...] | Exception = _system_addresses(name)
            except Exception as error:  # noqa: BLE001  # it is raised where the name was asked for
                found = error
            try:
                future.get_loop().call_soon_threadsafe(_set, future, found)
            except RuntimeError:
                continue  # the loop is closed


def _set(future: asyncio.Future[tuple[str, ...]], found: tuple[str, ...] | Exception) -> None:
    if future.done():
        return
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)


SERVER_NAMES: Final = Threads(64, "names of servers")
PEER_NAMES: Final = Threads(16, "names of peers")


class Resolver:
    """Answers `Resolve` requests with `Resolved`; a failed look-up is an answer with `error`, never an exception.

    `resolve` replaces the system's resolver for host names. `timeout` is in seconds for each query.
    """

    def __init__(self, *, resolve: ResolveName | None = None, timeout: float = TIMEOUT) -> None:
        self._custom = resolve
        self._timeout = timeout

    async def resolve(self, query: Resolve) -> Resolved:
        """Look up the name. The call may be canceled; a thread of the system's resolver may end later."""
        if query.record is RecordType.ADDRESS and (hosts := known(query.name)):
            return Resolved(query=query, hosts=hosts)
        try:
            async with asyncio.timeout(self._timeout):
                if query.record is RecordType.ADDRESS:
                    return Resolved(query=query, hosts=await self._addresses(query))
                return Resolved(query=query, hosts=await self._records(query.name, query.record))
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} s"
        except socket.gaierror as error:
            reason = error.strerror or "unknown name"
        except _LookupError as error:
            reason = str(error)
        except (OSError, UnicodeError) as error:
            reason = str(error) or type(error).__name__
        return Resolved(query=query, error=f"{query.name}: {reason}")

    async def _addresses(self, query: Resolve) -> tuple[str, ...]:
        if self._custom is None:
            return await (PEER_NAMES if query.by_peer else SERVER_NAMES).look_up(query.name)
        try:
            found = await self._custom(query.name)
        except OSError:
            raise
        except Exception as error:  # the function is the user's and may raise anything
            raise _LookupError(f"resolve() raised {type(error).__name__}: {error}") from error
        return _checked(found)

    async def _records(self, name: str, record: RecordType) -> tuple[str, ...]:
        import dns.asyncresolver  # noqa: PLC0415  # takes 300 ms, and few programs use it
        import dns.exception  # noqa: PLC0415

        try:
            answer = await dns.asyncresolver.Resolver().resolve(name, record.value, lifetime=self._timeout)
        except dns.exception.DNSException as error:
            raise _LookupError(str(error) or type(error).__name__) from error
        return tuple(data.to_text() for data in answer)


def _system_addresses(name: str) -> tuple[str, ...]:
    """Look up a host name with the system's resolver, which blocks."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM, flags=getattr(socket, "AI_ADDRCONFIG", 0))
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def _checked(found: object) -> tuple[str, ...]:
    """Canonical, distinct addresses from the result of a custom `resolve`."""
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise _LookupError(f"resolve() returned {found!r}: return a list of IP addresses")
    hosts: dict[str, None] = {}
    for text in found:
        literal = _literal(text)
        if literal is None:
            raise _LookupError(f"resolve() returned {text!r}, which is not an IP address")
        hosts[literal] = None
    if not hosts:
        raise _LookupError("resolve() returned no addresses")
    return tuple(hosts)


def known(name: str) -> tuple[str, ...]:
    """Return the addresses of a name that needs no query: a literal address, or localhost (RFC 6761, 6.3)."""
    plain = name.rstrip(".").lower()
    if plain == "localhost" or plain.endswith(".localhost"):
        return LOCALHOST
    literal = _literal(name.strip("[]"))
    return () if literal is None else (literal,)


def _literal(text: object) -> str | None:
    try:
        address = Address.of(str(text), 0)
    except DecodeError:
        return None
    return f"{address.host}%{address.zone}" if address.zone else address.host
