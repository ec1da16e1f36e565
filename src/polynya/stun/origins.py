"""From where a Binding server can answer, for NAT behavior discovery (RFC 5780, section 6).

    two addresses, each with the same two ports         one address with two ports

               P1    P2                                            P1    P2
          A1   o-----o    A1:P1's "other" is A2:P2            A1   o-----o    there is no "other"
               |  x  |
          A2   o-----o

A client finds out what a NAT lets in by asking for the answer to come from another port, another address, or both
(CHANGE-REQUEST). With one address an answer from the other port is all that can be had; then OTHER-ADDRESS, which
stands for the whole of it, is not told.
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
    """One listener, and by which flows an answer to its requests can leave instead."""

    address: Address
    """What clients know it by: RESPONSE-ORIGIN."""
    other: Address | None
    """The listener that differs in both: OTHER-ADDRESS. None with one address only."""
    elsewhere: Mapping[ChangeRequest, Flow]

    @property
    def told(self) -> bytes:
        """RESPONSE-ORIGIN and OTHER-ADDRESS as every answer from here has them."""
        told = RESPONSE_ORIGIN.pack(self.address, _NO_MASK)
        return told + OTHER_ADDRESS.pack(self.other, _NO_MASK) if self.other is not None else told


def corners(first: Address, other: Address) -> tuple[Address, ...]:
    """The listeners that `first` needs beside it so that `other` can be its other address and port.

    ValueError where the two cannot serve: another port there must be, and the same family.
    """
    if first.family != other.family:
        raise ValueError(f"{first} and {other} are of two families")
    if not first.port or not other.port:
        raise ValueError(f"{first} and {other} need ports that are known beforehand")
    if first.port == other.port:
        raise ValueError(f"{other} needs another port than {first}")
    if first.host == other.host:
        return (other,)
    return (first.with_port(other.port), other.with_port(first.port), other)


def origins(listeners: Mapping[Flow, Address]) -> dict[Flow, Origin]:
    """What these listeners, one address with its `corners`, are to each other."""
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
