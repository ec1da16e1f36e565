"""The NAT behaviors of RFC 4787: implemented by `nat`, discovered by `stun.behavior`."""

from enum import Enum


class Behavior(Enum):
    """The part of the remote endpoint that a mapping or filter depends on (RFC 4787, sections 4.1 and 5)."""

    EI = "endpoint-independent"
    AD = "address-dependent"
    APD = "address-and-port-dependent"
