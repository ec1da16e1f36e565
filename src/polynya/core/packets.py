"""IP packets, as the virtual network moves them, NATs rewrite them and captures show them.

A packet keeps its `id` across every hop, so that a trace can follow it; `encode` gives the bytes that would be on the
wire (RFC 791, 8200, 768, 9293, 792, 4443), `decode` reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .addresses import Address
from .machine import IcmpKind


class Protocol(IntEnum):
    """IP protocol numbers. ICMP stands for ICMPv6 too, by the addresses' family."""

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
    """An ICMP error with the head of the packet it is about (RFC 792), or an echo when `about` is None."""

    kind: IcmpKind | None = None
    """None for an echo request or reply."""
    about: IpPacket | None = None
    mtu: int | None = None
    identifier: int = 0
    sequence: int = 0
    reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A part of a packet: `offset` in bytes, a multiple of 8."""

    identification: int
    offset: int
    more: bool


@dataclass(slots=True)
class IpPacket:
    """One IPv4 or IPv6 packet. For ICMP the ports are 0; of a fragment only the first has ports that mean anything."""

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
    """Flagged as TLS or DTLS, which the virtual network models and does not encrypt."""
