"""Reads and rewrites the endpoints of packets, and builds the packets that a NAT itself sends.

An ICMP echo is identified by its identifier in place of a port (RFC 5508, section 3.1).
"""

from __future__ import annotations

from dataclasses import replace

from polynya.core.addresses import Address
from polynya.core.machine import IcmpKind
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, TcpFields, TcpFlags


def source_of(packet: IpPacket) -> Address:
    """Return the source endpoint of a packet."""
    if packet.icmp is not None:
        return Address(packet.source.host, 0 if packet.icmp.reply else packet.icmp.identifier)
    return packet.source


def destination_of(packet: IpPacket) -> Address:
    """Return the destination endpoint of a packet."""
    if packet.icmp is not None:
        return Address(packet.destination.host, packet.icmp.identifier if packet.icmp.reply else 0)
    return packet.destination


def set_source(packet: IpPacket, address: Address) -> None:
    if packet.icmp is not None:
        packet.icmp = replace(packet.icmp, identifier=address.port)
        address = Address(address.host, 0)
    packet.source = address


def set_destination(packet: IpPacket, address: Address) -> None:
    if packet.icmp is not None:
        packet.icmp = replace(packet.icmp, identifier=address.port)
        address = Address(address.host, 0)
    packet.destination = address


def refusal(syn: IpPacket) -> IpPacket:
    """Return the ICMP error "port unreachable" in answer to a SYN."""
    source, destination = Address(syn.destination.host, 0), Address(syn.source.host, 0)
    about = IcmpMessage(kind=IcmpKind.PORT_UNREACHABLE, about=syn)
    return IpPacket(0, source, destination, Protocol.ICMP, icmp=about)


def reset(syn: IpPacket, tcp: TcpFields) -> IpPacket:
    """Return the RST in answer to a SYN (RFC 9293, section 3.10.7.1)."""
    sequence = (tcp.sequence + 1 + len(syn.payload)) & 0xFFFFFFFF
    answer = TcpFields(flags=TcpFlags.RST | TcpFlags.ACK, acknowledgment=sequence)
    return IpPacket(0, syn.destination, syn.source, Protocol.TCP, tcp=answer)
