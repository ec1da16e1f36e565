"""Name resolution: host names by the system's resolver or the user's, SRV and NAPTR records by dnspython.

A literal address is its own answer. The texts of an answer, in the resolver's order:

    ADDRESS    the host, in canonical form
    SRV        `priority weight port target`                                 (RFC 2782)
    NAPTR      `order preference "flags" "service" "regexp" replacement`     (RFC 3403)

The machine selects among several records, because it has the randomness.
"""

from __future__ import annotations

import asyncio
import socket
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
                    return Resolved(query=query, hosts=await self._addresses(query.name))
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

    async def _addresses(self, name: str) -> tuple[str, ...]:
        if self._custom is None:
            return await _system_addresses(name)
        try:
            found = await self._custom(name)
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


async def _system_addresses(name: str) -> tuple[str, ...]:
    """Look up a host name with the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM, flags=getattr(socket, "AI_ADDRCONFIG", 0))
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
