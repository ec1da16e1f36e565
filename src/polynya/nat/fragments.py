"""Fragmentation and reassembly (RFC 791, section 3.2; RFC 8200, section 4.5), in any order of arrival.

A NAT needs the ports, which only the first fragment has (RFC 4787, REQ-14), and a host needs the datagram. Overlapping
fragments are dropped with their whole datagram (RFC 5722). An incomplete datagram expires after `TIMEOUT`.
"""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.core.instants import SECOND, Instant
from polynya.core.packets import Fragment, IpPacket, Protocol, decode_transport, encode_transport, length

TIMEOUT = 30 * SECOND
LIMIT = 64
"""The largest number of incomplete datagrams."""

Key = tuple[str, str, Protocol, int]


class Reassembler:
    """Reassembles packets from fragments."""

    def __init__(self) -> None:
        self._parts: dict[Key, tuple[Instant, dict[int, IpPacket]]] = {}

    def add(self, packet: IpPacket, *, now: Instant) -> IpPacket | str:
        """Add a fragment. Return the whole packet if it is complete, else why it is not."""
        piece = packet.fragment
        if piece is None:
            return packet
        self._forget_old(now=now)
        key = (packet.source.host, packet.destination.host, packet.protocol, piece.identification)
        if key not in self._parts:
            if len(self._parts) >= LIMIT:
                return f"{LIMIT} other packets are incomplete, which is the limit"
            self._parts[key] = (now, {})
        parts = self._parts[key][1]
        parts[piece.offset] = packet
        body, complete, reason = _join(parts)
        if reason:
            del self._parts[key]
            return reason
        if not complete:
            return f"the other fragments of packet {piece.identification} have not arrived yet"
        del self._parts[key]
        whole = parts[0]
        whole.fragment = None
        try:
            return decode_transport(whole, body, verify=False)
        except DecodeError as error:
            return f"its fragments do not form a packet: {error}"

    def _forget_old(self, *, now: Instant) -> None:
        while self._parts:
            key = next(iter(self._parts))
            if self._parts[key][0] + TIMEOUT > now:
                return
            del self._parts[key]


def _join(parts: dict[int, IpPacket]) -> tuple[bytes, bool, str]:
    body = b""
    more = True
    for offset in sorted(parts):
        if offset < len(body):
            return b"", False, "its fragments overlap"
        if offset > len(body):
            return b"", False, ""
        part = parts[offset]
        body += part.payload
        more = part.fragment is not None and part.fragment.more
    return body, not more, ""


def fragment(packet: IpPacket, mtu: int) -> list[IpPacket]:
    """Return the fragments of a packet that fit `mtu`, or the packet itself if it fits. All have the packet's id."""
    if length(packet) <= mtu:
        return [packet]
    old = packet.fragment
    body = packet.payload if old else encode_transport(packet)
    start, last_has_more = (old.offset, old.more) if old else (0, False)
    identification = old.identification if old else packet.id & 0xFFFF
    room = (mtu - (48 if ":" in packet.source.host else 20)) & ~7
    if room < 8:
        raise ValueError(f"an MTU of {mtu} bytes is too small for a fragment")
    pieces = []
    for offset in range(0, len(body), room):
        more = offset + room < len(body) or last_has_more
        source, destination = packet.source, packet.destination
        if start + offset:
            source, destination = Address(source.host, 0), Address(destination.host, 0)
        piece = Fragment(identification=identification, offset=start + offset, more=more)
        pieces.append(
            IpPacket(
                packet.id,
                source,
                destination,
                packet.protocol,
                body[offset : offset + room],
                ttl=packet.ttl,
                ecn=packet.ecn,
                dscp=packet.dscp,
                fragment=piece,
                tls=packet.tls,
            )
        )
    return pieces
