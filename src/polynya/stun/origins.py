"""Origins of a Binding server's responses, for NAT behavior discovery (RFC 5780, section 6).

    two addresses, each with the same two ports         one address with two ports

               P1    P2                                            P1    P2
          A1   o-----o    A1:P1's "other" is A2:P2            A1   o-----o    there is no "other"
               |  x  |
          A2   o-----o

A client tests the filtering of a NAT with CHANGE-REQUEST: it requests a response from another port, another address, or
both. A server with one address can respond from its other port only, and sends no OTHER-ADDRESS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.flows import Flow

from .attributes import OTHER_ADDRESS, RESPONSE_ORIGIN, ChangeRequest

_NO_MASK = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One listener, and the flows that its responses can leave by instead."""

    address: Address
    """The listener's address: RESPONSE-ORIGIN."""
    other: Address | None
    """The listener with another address and port: OTHER-ADDRESS. None for a server with one address."""
    elsewhere: Mapping[ChangeRequest, Flow]

    @property
    def attributes(self) -> bytes:
        """RESPONSE-ORIGIN and OTHER-ADDRESS, encoded, as every response of this listener has them."""
        origin = RESPONSE_ORIGIN.pack(self.address, _NO_MASK)
        return origin + OTHER_ADDRESS.pack(self.other, _NO_MASK) if self.other is not None else origin


def corners(first: Address, other: Address) -> tuple[Address, ...]:
    """Return the listeners that `first` needs so that `other` can be its other address and port.

    Raises ValueError unless they have the same family and different ports.
    """
    if first.family != other.family:
        raise ValueError(f"{first} and {other} are of different IP versions: use two IPv4 or two IPv6 addresses")
    if not first.port or not other.port:
        raise ValueError(f"{first} and {other} need fixed ports, not 0")
    if first.port == other.port:
        raise ValueError(f"{other} needs another port than {first}")
    if first.host == other.host:
        return (other,)
    return (first.with_port(other.port), other.with_port(first.port), other)


def origins(listeners: Mapping[Flow, Address]) -> dict[Flow, Origin]:
    """Return the origin of each listener, of one address with its `corners`."""
    by_address = {address: flow for flow, address in listeners.items()}
    found = {}
    for flow, here in listeners.items():
        elsewhere, other = {}, None
        for address, by in by_address.items():
            change = ChangeRequest(address=address.host != here.host, port=address.port != here.port)
            if change != ChangeRequest():
                elsewhere[change] = by
            if change == ChangeRequest(address=True, port=True):
                other = address
        found[flow] = Origin(address=here, other=other, elsewhere=elsewhere)
    return found
