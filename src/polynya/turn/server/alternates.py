"""Where the clients of a server that drains are sent: to a place that serves them the way they came.

A client follows ALTERNATE-SERVER by the transport that it uses (RFC 8489, section 10), so a place that has no TLS is of
no use to who came by TLS, nor one of IPv6 to who came by IPv4 (section 14.15).
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
    """Another server: its address, and what it is reached by there."""

    address: Address
    transports: tuple[Transport, ...] = PLAIN

    @classmethod
    def parse(cls, text: str) -> Alternate:
        """From `ADDR:PORT`, for UDP and TCP, or one transport: `udp:ADDR:PORT`, `tcp:...`, `tls:...`.

        ConfigurationError for what is none of these.
        """
        before, _, rest = text.partition(":")
        one = {"udp": Transport.UDP, "tcp": Transport.TCP, "tls": Transport.TLS}.get(before.lower())
        try:
            address = Address.parse((text if one is None else rest).replace("localhost:", "127.0.0.1:", 1))
        except DecodeError as error:
            raise ConfigurationError(f"write [udp:|tcp:|tls:]ADDR:PORT, not {text!r}: {error}") from None
        return cls(address, PLAIN if one is None else (one,))


def fitting(alternates: Iterable[Alternate], remote: Address, transport: Transport) -> list[Address]:
    """Those that a client can be sent to that came from `remote` by this transport."""
    return [
        each.address for each in alternates if transport in each.transports and each.address.family == remote.family
    ]
