"""Alternate servers for the clients of a draining server (ALTERNATE-SERVER).

A client connects to the alternate server by the transport that it uses now (RFC 8489, section 10) and by the same IP
version (section 14.15). So only alternates of the client's transport and address family are sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Transport

PLAIN: Final = (Transport.UDP, Transport.TCP)


@dataclass(frozen=True, slots=True)
class Alternate:
    """Address of another server with the transports that it serves there."""

    address: Address
    transports: tuple[Transport, ...] = PLAIN

    @classmethod
    def parse(cls, text: str) -> Alternate:
        """Parse `ADDR:PORT` (UDP and TCP), `udp:ADDR:PORT`, `tcp:ADDR:PORT` or `tls:ADDR:PORT`.

        Raises ConfigurationError for any other text.
        """
        before, _, rest = text.partition(":")
        one = {"udp": Transport.UDP, "tcp": Transport.TCP, "tls": Transport.TLS}.get(before.lower())
        try:
            address = Address.parse((text if one is None else rest).replace("localhost:", "127.0.0.1:", 1))
        except DecodeError as error:
            raise ConfigurationError(f"write [udp:|tcp:|tls:]ADDR:PORT, not {text!r}: {error}") from None
        return cls(address, PLAIN if one is None else (one,))


def fitting(alternates: Iterable[Alternate], remote: Address, transport: Transport) -> list[Address]:
    """Return the alternates that a client at `remote` can reach by this transport."""
    return [
        each.address for each in alternates if transport in each.transports and each.address.family == remote.family
    ]
