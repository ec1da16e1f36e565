"""IP packets of the virtual network, of NATs and of captures.

A packet keeps its `id` across hops, so that a trace can follow it. `encode` returns the bytes of the packet on the wire
(RFC 791, 8200, 768, 9293, 792, 4443); `decode` parses them.

A packet has one owner at a time. The owner may change it in place, and must not use it after passing it on. The payload
of a fragment is a part of the IP payload, transport header included. `decode` skips the options of IPv4 and TCP and the
extension headers of IPv6. The flag `tls` exists in the virtual network only and is not encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct

from .addresses import Address, pack_host
from .errors import DecodeError
from .machine import IcmpKind


class Protocol(IntEnum):
    """IP protocol numbers. ICMP between IPv6 addresses is ICMPv6."""

    ICMP = 1
    TCP = 6
    UDP = 17


class TcpFlags(IntFlag):
    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpFields:
    """The TCP header beyond its ports."""

    flags: TcpFlags
    sequence: int = 0
    acknowledgment: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IcmpMessage:
    """An ICMP error with the start of the packet that caused it (RFC 792), or an echo if `about` is None."""

    kind: IcmpKind | None = None
    """None for an echo request or reply."""
    about: IpPacket | None = None
    mtu: int | None = None
    identifier: int = 0
    sequence: int = 0
    reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """The fields of a fragment; `offset` is in bytes, a multiple of 8."""

    identification: int
    offset: int
    more: bool


@dataclass(slots=True)
class IpPacket:
    """An IPv4 or IPv6 packet. The ports of ICMP packets are 0; only the first fragment has valid ports."""

    id: int
    source: Address
    destination: Address
    protocol: Protocol
    payload: bytes = b""
    ttl: int = 64
    ecn: int = 0
    dscp: int = 0
    dont_fragment: bool = False
    tcp: TcpFields | None = None
    icmp: IcmpMessage | None = None
    fragment: Fragment | None = None
    tls: bool = False
    """Whether the payload counts as TLS; the virtual network does not encrypt it."""


_VERSION_IHL = 0x45
_IPV6_FRAGMENT = 44
_IPV6_SKIPPED = frozenset({0, 43, 60})  # hop-by-hop, routing and destination options
_ICMPV6 = 58
_IPV4_HEADER = Struct("!BBHHHBBH4s4s")
_IPV6_HEADER = Struct("!IHBB16s16s")
_UDP_HEADER = Struct("!HHHH")
_TCP_HEADER = Struct("!HHIIHHHH")
_ICMP_HEADER = Struct("!BBHI")
_PROTOCOLS = {int(p): p for p in Protocol}

_ICMP4: dict[IcmpKind, tuple[int, int]] = {
    IcmpKind.NET_UNREACHABLE: (3, 0),
    IcmpKind.HOST_UNREACHABLE: (3, 1),
    IcmpKind.PORT_UNREACHABLE: (3, 3),
    IcmpKind.TOO_BIG: (3, 4),
    IcmpKind.PROHIBITED: (3, 13),
    IcmpKind.TTL_EXCEEDED: (11, 0),
    IcmpKind.OTHER: (12, 0),
}
_ICMP6: dict[IcmpKind, tuple[int, int]] = {
    IcmpKind.NET_UNREACHABLE: (1, 0),
    IcmpKind.PROHIBITED: (1, 1),
    IcmpKind.HOST_UNREACHABLE: (1, 3),
    IcmpKind.PORT_UNREACHABLE: (1, 4),
    IcmpKind.TOO_BIG: (2, 0),
    IcmpKind.TTL_EXCEEDED: (3, 0),
    IcmpKind.OTHER: (4, 0),
}
# RFC 792, RFC 1122 3.2.2.1, RFC 1812 5.2.7.1 and RFC 4443 3.1: codes with the same meaning for a transport
_KINDS4 = {v: k for k, v in _ICMP4.items()} | {
    (3, 6): IcmpKind.NET_UNREACHABLE,
    (3, 7): IcmpKind.HOST_UNREACHABLE,
    (3, 9): IcmpKind.PROHIBITED,
    (3, 10): IcmpKind.PROHIBITED,
    (3, 11): IcmpKind.NET_UNREACHABLE,
    (3, 12): IcmpKind.HOST_UNREACHABLE,
    (11, 1): IcmpKind.TTL_EXCEEDED,
}
_KINDS6 = {v: k for k, v in _ICMP6.items()} | {
    (1, 5): IcmpKind.PROHIBITED,
    (1, 6): IcmpKind.PROHIBITED,
    (3, 1): IcmpKind.TTL_EXCEEDED,
}
_ECHO4, _ECHO6 = (8, 0), (128, 129)  # request, reply
_QUOTED4, _QUOTED6 = 576 - 20 - 8, 1280 - 40 - 8  # RFC 1812 4.3.2.3, RFC 4443 2.4: the size limits of an error


# ------------------------------------------------------------------------------------------------------------- length


def length(packet: IpPacket) -> int:
    """Return the bytes of the packet on the wire, IP header included."""
    size = len(packet.payload) + (40 if ":" in packet.source.host else 20)
    if packet.fragment is not None:
        return size + 8 if ":" in packet.source.host else size
    if packet.protocol is Protocol.UDP:
        return size + 8
    if packet.protocol is Protocol.TCP:
        return size + 20
    if packet.icmp is None or packet.icmp.about is None:
        return size + 8
    quoted = _QUOTED6 if ":" in packet.source.host else _QUOTED4
    return size + 8 + min(length(packet.icmp.about), quoted)


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words."""
    if len(data) & 1:
        data += b"\0"
    total = int.from_bytes(data, "big")
    # The sum with end-around carry is the number modulo 0xFFFF, except that a multiple is 0xFFFF instead of 0.
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


# ------------------------------------------------------------------------------------------------------------- encode


def encode(packet: IpPacket) -> bytes:
    """Encode a packet, IP header included; raises ValueError if its addresses are of two families."""
    source, destination = pack_host(packet.source.host), pack_host(packet.destination.host)
    if len(source) != len(destination):
        raise ValueError(f"packet {packet.id} goes from {packet.source} to {packet.destination}: two families")
    body = packet.payload if packet.fragment is not None else encode_transport(packet)
    traffic_class = packet.dscp << 2 | packet.ecn
    fragment = packet.fragment
    if len(source) == 16:
        protocol = _ICMPV6 if packet.protocol is Protocol.ICMP else int(packet.protocol)
        if fragment is not None:
            head = bytes((protocol, 0)) + (fragment.offset | fragment.more).to_bytes(2, "big")
            body = head + (fragment.identification & 0xFFFFFFFF).to_bytes(4, "big") + body
            protocol = _IPV6_FRAGMENT
        first = 6 << 28 | traffic_class << 20
        return _IPV6_HEADER.pack(first, len(body), protocol, packet.ttl, source, destination) + body
    offset = packet.dont_fragment << 14
    identification = packet.id & 0xFFFF
    if fragment is not None:
        offset |= fragment.more << 13 | fragment.offset >> 3
        identification = fragment.identification & 0xFFFF
    fields = (_VERSION_IHL, traffic_class, 20 + len(body), identification, offset, packet.ttl, int(packet.protocol))
    header = _IPV4_HEADER.pack(*fields, 0, source, destination)
    return _IPV4_HEADER.pack(*fields, checksum(header), source, destination) + body


def encode_transport(packet: IpPacket) -> bytes:
    """Encode the IP payload of an unfragmented packet: UDP, TCP or ICMP with its checksum."""
    source, destination = pack_host(packet.source.host), pack_host(packet.destination.host)
    payload = packet.payload
    if packet.protocol is Protocol.UDP:
        size = 8 + len(payload)
        ports = packet.source.port, packet.destination.port, size
        body = _UDP_HEADER.pack(*ports, 0) + payload
        # A checksum of zero is sent as all ones, because zero means that there is none (RFC 768).
        return _UDP_HEADER.pack(*ports, checksum(_pseudo(source, destination, 17, size) + body) or 0xFFFF) + payload
    if packet.protocol is Protocol.TCP:
        tcp = packet.tcp or TcpFields(flags=TcpFlags.ACK)
        flags = 5 << 12 | int(tcp.flags)
        fields = (packet.source.port, packet.destination.port, tcp.sequence, tcp.acknowledgment, flags, 0xFFFF)
        body = _TCP_HEADER.pack(*fields, 0, 0) + payload
        total = checksum(_pseudo(source, destination, 6, len(body)) + body)
        return _TCP_HEADER.pack(*fields, total, 0) + payload
    return _encode_icmp(packet, source, destination)


def _encode_icmp(packet: IpPacket, source: bytes, destination: bytes) -> bytes:
    icmp = packet.icmp or IcmpMessage()
    six = len(source) == 16
    body = packet.payload
    if icmp.about is None or icmp.kind is None:
        kind, code = (_ECHO6 if six else _ECHO4)[icmp.reply], 0
        rest = icmp.identifier << 16 | icmp.sequence
    else:
        kind, code = (_ICMP6 if six else _ICMP4)[icmp.kind]
        rest = icmp.mtu or 0
        body = encode(icmp.about)[: _QUOTED6 if six else _QUOTED4] + body
    message = _ICMP_HEADER.pack(kind, code, 0, rest) + body
    covered = _pseudo(source, destination, _ICMPV6, len(message)) + message if six else message
    return _ICMP_HEADER.pack(kind, code, checksum(covered), rest) + body


def _pseudo(source: bytes, destination: bytes, protocol: int, size: int) -> bytes:
    if len(source) == 16:
        return source + destination + size.to_bytes(4, "big") + b"\0\0\0" + bytes((protocol,))
    return source + destination + bytes((0, protocol)) + size.to_bytes(2, "big")


# ------------------------------------------------------------------------------------------------------------- decode


def decode(data: bytes, *, id: int = 0, verify: bool = True) -> IpPacket:
    """Decode a packet, IP header included. `verify` checks the transport checksum; the IP header's is always checked.

    Raises DecodeError, and no other exception, for bytes that are not a packet of a known protocol.
    """
    return _decode(data, id, verify=verify, quoted=False)


def decode_transport(packet: IpPacket, body: bytes, *, verify: bool = True) -> IpPacket:
    """Decode the IP payload into `packet`, which is changed; used for reassembled datagrams."""
    return _decode_transport(packet, body, verify=verify, quoted=False)


def _decode(data: bytes, id: int, *, verify: bool, quoted: bool) -> IpPacket:
    version = data[0] >> 4 if data else 0
    if version == 4:
        packet, body = _decode4(data, id, quoted=quoted)
    elif version == 6:
        packet, body = _decode6(data, id, quoted=quoted)
    else:
        raise DecodeError(f"IP version {version} of {len(data)} bytes")
    if packet.fragment is not None:
        packet.payload = body
        if packet.fragment.offset == 0 and packet.protocol is not Protocol.ICMP and len(body) >= 4:
            _set_ports(packet, int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big"))
        return packet
    return _decode_transport(packet, body, verify=verify, quoted=quoted)


def _decode4(data: bytes, id: int, *, quoted: bool) -> tuple[IpPacket, bytes]:
    if len(data) < 20:
        raise DecodeError(f"an IPv4 header of {len(data)} bytes")
    first, tos, size, identification, offset, ttl, protocol, _, source, destination = _IPV4_HEADER.unpack_from(data)
    header = (first & 15) * 4
    if header < 20 or size < header or (not quoted and (size > len(data) or checksum(data[:header]))):
        raise DecodeError(
            f"an IPv4 header of {header} bytes and a length of {size} in {len(data)} bytes, or a wrong checksum"
        )
    packet = IpPacket(
        id, Address.from_packed(source, 0), Address.from_packed(destination, 0), _protocol(protocol),
        ttl=ttl, ecn=tos & 3, dscp=tos >> 2, dont_fragment=bool(offset & 0x4000),
    )  # fmt: skip
    if offset & 0x3FFF:
        packet.fragment = Fragment(
            identification=identification, offset=(offset & 0x1FFF) << 3, more=bool(offset & 0x2000)
        )
    return packet, data[header:size]


def _decode6(data: bytes, id: int, *, quoted: bool) -> tuple[IpPacket, bytes]:
    if len(data) < 40:
        raise DecodeError(f"an IPv6 header of {len(data)} bytes")
    first, size, following, ttl, source, destination = _IPV6_HEADER.unpack_from(data)
    if not quoted and 40 + size > len(data):
        raise DecodeError(f"an IPv6 payload of {size} bytes, in {len(data)}")
    body = data[40 : 40 + size]
    fragment = None
    while following in _IPV6_SKIPPED or following == _IPV6_FRAGMENT:
        if len(body) < 8:
            raise DecodeError("an IPv6 extension header that is cut off")
        if following == _IPV6_FRAGMENT:
            offset = int.from_bytes(body[2:4], "big")
            fragment = Fragment(
                identification=int.from_bytes(body[4:8], "big"), offset=offset & 0xFFF8, more=bool(offset & 1)
            )
            following, body = body[0], body[8:]
            if fragment.offset:
                break  # the rest is a later part of the payload
        else:
            following, body = body[0], body[8 + body[1] * 8 :]
    if fragment is not None and not fragment.offset and not fragment.more:
        fragment = None  # an atomic fragment (RFC 6946) is whole
    protocol = _protocol(1 if following == _ICMPV6 else following if following != 1 else 255)
    packet = IpPacket(
        id, Address.from_packed(source, 0), Address.from_packed(destination, 0), protocol,
        ttl=ttl, ecn=first >> 20 & 3, dscp=first >> 22 & 63, fragment=fragment,
    )  # fmt: skip
    return packet, body


def _decode_transport(packet: IpPacket, body: bytes, *, verify: bool, quoted: bool) -> IpPacket:
    protocol = packet.protocol
    smallest = 20 if protocol is Protocol.TCP and not quoted else 8
    if len(body) < smallest:
        raise DecodeError(f"a {protocol.name} header of {len(body)} bytes")
    if verify and not quoted:
        _verify(packet, body)
    if protocol is Protocol.UDP:
        source, destination, size, _ = _UDP_HEADER.unpack_from(body)
        if not quoted and not 8 <= size <= len(body):
            raise DecodeError(f"a UDP length of {size} in {len(body)} bytes")
        packet.payload = body[8:size]
        return _set_ports(packet, source, destination)
    if protocol is Protocol.TCP:
        source, destination, sequence = Struct("!HHI").unpack_from(body)
        if len(body) < 20:  # an ICMP error may quote no more than eight bytes of it
            packet.tcp = TcpFields(flags=TcpFlags(0), sequence=sequence)
            return _set_ports(packet, source, destination)
        acknowledgment, flags = Struct("!IH").unpack_from(body, 8)
        header = (flags >> 12) * 4
        if not 20 <= header <= len(body):
            raise DecodeError(f"a TCP header of {header} bytes in {len(body)} bytes")
        packet.tcp = TcpFields(flags=TcpFlags(flags & 31), sequence=sequence, acknowledgment=acknowledgment)
        packet.payload = body[header:]
        return _set_ports(packet, source, destination)
    return _decode_icmp(packet, body)


def _decode_icmp(packet: IpPacket, body: bytes) -> IpPacket:
    six = ":" in packet.source.host
    number, code, _, rest = _ICMP_HEADER.unpack_from(body)
    echo = _ECHO6 if six else _ECHO4
    if number in echo:
        packet.icmp = IcmpMessage(identifier=rest >> 16, sequence=rest & 0xFFFF, reply=number == echo[1])
        packet.payload = body[8:]
        return packet
    if number not in ((1, 2, 3, 4) if six else (3, 11, 12)):
        raise DecodeError(f"ICMP{'v6' * six} type {number}")
    codes = _KINDS6 if six else _KINDS4
    kind = codes.get((number, 0 if six and number == 2 else code), IcmpKind.OTHER)
    mtu = (rest if six else rest & 0xFFFF) or None
    about = _decode(body[8:], packet.id, verify=False, quoted=True)
    if about.icmp is not None and about.icmp.about is not None:
        raise DecodeError("an ICMP error about an ICMP error")
    packet.icmp = IcmpMessage(kind=kind, about=about, mtu=mtu if kind is IcmpKind.TOO_BIG else None)
    return packet


def _verify(packet: IpPacket, body: bytes) -> None:
    source, destination = pack_host(packet.source.host), pack_host(packet.destination.host)
    six = len(source) == 16
    if packet.protocol is Protocol.ICMP:
        covered = _pseudo(source, destination, _ICMPV6, len(body)) + body if six else body
    elif packet.protocol is Protocol.UDP:
        if body[6:8] == b"\0\0" and not six:
            return
        covered = _pseudo(source, destination, 17, len(body)) + body
    else:
        covered = _pseudo(source, destination, 6, len(body)) + body
    if checksum(covered):
        raise DecodeError(f"a wrong {packet.protocol.name} checksum")


def _set_ports(packet: IpPacket, source: int, destination: int) -> IpPacket:
    packet.source = Address(packet.source.host, source)
    packet.destination = Address(packet.destination.host, destination)
    return packet


def _protocol(number: int) -> Protocol:
    protocol = _PROTOCOLS.get(number)
    if protocol is None:
        raise DecodeError(f"IP protocol {number}")
    return protocol
