"""Redaction of whole runs for bug reports: texts, report data, trace events, and the packets of a capture.

A rewritten packet keeps its length, so that Wireshark decodes it. In a STUN message, addresses and user names are
replaced as in texts, FINGERPRINT is computed again, and what could identify a user otherwise becomes zeros: nonces,
tokens, unknown attributes, and the integrity, which can no longer be verified. Application data becomes zeros.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Final

from polynya.core.addresses import Address
from polynya.core.packets import IpPacket
from polynya.core.redaction import Replacements

from .registry import FINGERPRINT_XOR, HEADER_LENGTH, MAGIC_COOKIE_BYTES, AttributeType

_XORED: Final = frozenset(
    {AttributeType.XOR_MAPPED_ADDRESS, AttributeType.XOR_PEER_ADDRESS, AttributeType.XOR_RELAYED_ADDRESS}
)
_ADDRESSES: Final = _XORED | {
    AttributeType.MAPPED_ADDRESS,
    AttributeType.SOURCE_ADDRESS,
    AttributeType.CHANGED_ADDRESS,
    AttributeType.RESPONSE_ORIGIN,
    AttributeType.OTHER_ADDRESS,
    AttributeType.ALTERNATE_SERVER,
}
_KEPT: Final = frozenset(
    {
        AttributeType.CHANGE_REQUEST,
        AttributeType.ERROR_CODE,
        AttributeType.UNKNOWN_ATTRIBUTES,
        AttributeType.CHANNEL_NUMBER,
        AttributeType.LIFETIME,
        AttributeType.REQUESTED_ADDRESS_FAMILY,
        AttributeType.EVEN_PORT,
        AttributeType.REQUESTED_TRANSPORT,
        AttributeType.DONT_FRAGMENT,
        AttributeType.PASSWORD_ALGORITHM,
        AttributeType.PRIORITY,
        AttributeType.USE_CANDIDATE,
        AttributeType.RESPONSE_PORT,
        AttributeType.ADDITIONAL_ADDRESS_FAMILY,
        AttributeType.ADDRESS_ERROR_CODE,
        AttributeType.PASSWORD_ALGORITHMS,
        AttributeType.ICMP,
        AttributeType.SOFTWARE,
        AttributeType.TRANSACTION_TRANSMIT_COUNTER,
        AttributeType.CACHE_TIMEOUT,
        AttributeType.ICE_CONTROLLED,
        AttributeType.ICE_CONTROLLING,
        AttributeType.SSODA_ADDITIONAL_ADDRESS_FAMILY,
        AttributeType.SSODA_ADDRESS_ERROR_CODE,
        AttributeType.NOMINATION,
    }
)
_FAMILIES: Final = {(1, 8): slice(4, 8), (2, 20): slice(4, 20)}
"""The host in an address attribute, by family and length."""


class Redactor(Replacements):
    """Redacts what a user attaches to a bug report. Use one for all files of a run: equal values stay equal.

        redactor = polynya.Redactor()
        print(redactor.text(str(agent.why())))
        write = polynya.TraceWriter(file)
        tracer = polynya.Tracer(lambda event: write(redactor.event(event)))
        capture = lambda at, packet: pcap.write(at, "polynya", redactor.packet(packet))

    - `text(text)`: a report, an error, a candidate line. Addresses, host names, mDNS names, and every ufrag, user name,
      realm and room that was seen are replaced. Ports, times, states and interface names stay.
    - `data(value)`: data that is fit for JSON, such as that of a report.
    - `event(event)`: a `TraceEvent`.
    - `packet(packet)`: an `IpPacket`, of the same length. The integrity of STUN messages can no longer be verified, and
      application data becomes zeros.
    """

    def packet(self, packet: IpPacket) -> IpPacket:
        """Returns the packet with its addresses replaced and its payload rewritten."""
        icmp = packet.icmp
        if icmp is not None and icmp.about is not None:
            icmp = replace(icmp, about=self.packet(icmp.about))
        source, destination = self.address(packet.source), self.address(packet.destination)
        payload = self.payload(packet.payload)
        return replace(packet, source=source, destination=destination, payload=payload, icmp=icmp)

    def payload(self, data: bytes) -> bytes:
        """Returns a datagram or a piece of a stream, rewritten: STUN messages, ChannelData, and zeros for all else."""
        found = bytearray()
        while data:
            size = _frame_size(data)
            if size == 0:
                return bytes(found) + bytes(len(data))
            frame, data = data[:size], data[size:]
            found += self._message(frame) if frame[0] < 0x40 else frame[:4] + self.payload(frame[4:])
        return bytes(found)

    def _message(self, message: bytes) -> bytes:
        rewritten = bytearray(message)
        at = HEADER_LENGTH
        while at + 4 <= len(message):
            kind, size = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 2 : at + 4], "big")
            start, end = at + 4, at + 4 + size
            if end > len(message):
                rewritten[start:] = bytes(len(message) - start)
                break
            if kind == AttributeType.FINGERPRINT and size == 4:
                checksum = zlib.crc32(rewritten[:at]) ^ FINGERPRINT_XOR
                rewritten[start:end] = checksum.to_bytes(4, "big")
            else:
                rewritten[start:end] = self._attribute(kind, message[start:end], message[4:HEADER_LENGTH])
            at = end + -size % 4
        return bytes(rewritten)

    def _attribute(self, kind: int, value: bytes, mask: bytes) -> bytes:
        if kind in _KEPT:
            return value
        if kind in _ADDRESSES:
            return self._address_value(value, mask if kind in _XORED else bytes(16))
        if kind == AttributeType.USERNAME:
            return b":".join(self._token_value(part) for part in value.split(b":"))
        if kind == AttributeType.REALM:
            return self._token_value(value)
        return self.payload(value) if kind == AttributeType.DATA else bytes(len(value))

    def _token_value(self, value: bytes) -> bytes:
        try:
            return self.token(value.decode()).encode()
        except UnicodeDecodeError:
            return bytes(len(value))

    def _address_value(self, value: bytes, mask: bytes) -> bytes:
        place = _FAMILIES.get((value[1], len(value))) if len(value) > 1 else None
        if place is None:
            return bytes(len(value))
        host = Address.from_packed(_masked(value[place], mask), 0).host
        packed = Address(self.host(host), 0).packed
        return value[:4] + _masked(packed, mask)


def _masked(host: bytes, mask: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(host, mask, strict=False))


def _frame_size(data: bytes) -> int:
    """Returns the length of the STUN message or ChannelData at the start of data, its padding included; 0 if none."""
    if len(data) >= HEADER_LENGTH and data[0] < 0x40 and data[4:8] == MAGIC_COOKIE_BYTES:
        size = HEADER_LENGTH + int.from_bytes(data[2:4], "big")
    elif len(data) >= 4 and 0x40 <= data[0] < 0x50:
        size = 4 + int.from_bytes(data[2:4], "big")
        size = min(size + -size % 4, len(data)) if size <= len(data) else size
    else:
        return 0
    return size if size <= len(data) else 0
