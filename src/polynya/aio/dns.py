"""Names to hosts: literal addresses at once, host names by the system's resolver, SRV and NAPTR records by dnspython.

The text of an answer, in the resolver's order:

    ADDRESS    the host, in canonical form
    SRV        `priority weight port target`                                 (RFC 2782)
    NAPTR      `order preference "flags" "service" "regexp" replacement`     (RFC 3403)

Which of several records is taken first is for the machine to draw: it has the randomness.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.machine import RecordType, Resolve, Resolved

TIMEOUT: Final = 5.0
"""Seconds for one query; ICE goes on without the server meanwhile."""

LOCALHOST: Final = ("127.0.0.1", "::1")


class _RecordError(Exception):
    """No record was found."""


class Resolver:
    """Answers a `Resolve` with a `Resolved`; a failure is an answer too, never an exception."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout

    async def resolve(self, query: Resolve) -> Resolved:
        """Look the name up. Cancelling it is safe; a thread of the system's resolver may end later."""
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
        except _RecordError as error:
            reason = str(error)
        except (OSError, UnicodeError) as error:
            reason = str(error)
        return Resolved(query=query, error=f"{query.name}: {reason}")

    async def _addresses(self, name: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM, flags=getattr(socket, "AI_ADDRCONFIG", 0))
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def _records(self, name: str, record: RecordType) -> tuple[str, ...]:
        import dns.asyncresolver  # noqa: PLC0415  # a third of a second, and few programs look records up
        import dns.exception  # noqa: PLC0415

        try:
            answer = await dns.asyncresolver.Resolver().resolve(name, record.value, lifetime=self._timeout)
        except dns.exception.DNSException as error:
            raise _RecordError(str(error) or type(error).__name__) from error
        return tuple(data.to_text() for data in answer)


def known(name: str) -> tuple[str, ...]:
    """The hosts of a name that need not be asked for: a literal address, or this host itself (RFC 6761, 6.3)."""
    plain = name.rstrip(".").lower()
    if plain == "localhost" or plain.endswith(".localhost"):
        return LOCALHOST
    try:
        address = Address.of(name.strip("[]"), 0)
    except DecodeError:
        return ()
    return (f"{address.host}%{address.zone}" if address.zone else address.host,)
