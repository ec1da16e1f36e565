"""How many bytes of application data one datagram carries over a pair.

Two bounds: what the transports can carry at all, and what fits the least MTU of each path without fragmentation
(RFC 8085, section 3.2). Through a TURN server there are two paths, from here to the server and from the server to the
other side.
"""

from __future__ import annotations

from typing import Final

from polynya.core.addresses import IPV4, IPV6
from polynya.ice.candidates import CandidateType
from polynya.ice.pairs import PairView
from polynya.turn.client.indications import MAX_DATA, SEND_HEADER
from polynya.turn.client.report import RelayOverhead

MINIMUM_PATH_MTU: Final = {IPV4: 576, IPV6: 1280}
HEADERS: Final = {IPV4: 20 + 8, IPV6: 40 + 8}
"""IP and UDP headers."""
MAX_PAYLOAD: Final = {IPV4: 65535 - 20 - 8, IPV6: 65535 - 8}
"""The 16-bit lengths of the IPv4 header and of the UDP header bound a datagram."""
PADDING: Final = 3


def max_length(pair: PairView, overhead: RelayOverhead | None) -> int:
    """Returns the bytes that a datagram over `pair` can have, by a channel as well as in a Send indication."""
    limit = MAX_PAYLOAD[pair.remote_address.family]
    if overhead is None:
        return limit
    if not overhead.transport.reliable:
        indication = SEND_HEADER[pair.remote_address.family] + PADDING
        limit = min(limit, MAX_PAYLOAD[overhead.family] - indication)
    return min(limit, MAX_DATA)


def max_datagram_size(pair: PairView, overhead: RelayOverhead | None) -> int:
    """Returns the bytes that a datagram over `pair` can have without being fragmented."""
    family = pair.remote_address.family
    size = MINIMUM_PATH_MTU[family] - HEADERS[family]
    if pair.remote.type is CandidateType.RELAYED:  # its TURN server may forward each datagram in a Data indication
        size = _within(size, SEND_HEADER[family], padded=True)
    if overhead is not None and not overhead.transport.reliable:
        leg = MINIMUM_PATH_MTU[overhead.family] - HEADERS[overhead.family]
        size = min(size, _within(leg, overhead.header, padded=overhead.padded))
    return size


def _within(size: int, header: int, *, padded: bool) -> int:
    """Returns the data that fits `size` bytes beside a header and, if it is padded, up to three more bytes."""
    room = size - header
    return room - room % 4 if padded else room
