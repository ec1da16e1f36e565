"""How a NAT goes by the remote endpoint: `nat` does it, `stun.behavior` finds it out."""

from enum import Enum


class Behavior(Enum):
    """How much of the remote endpoint counts (RFC 4787, sections 4.1 and 5)."""

    EI = "endpoint-independent"
    AD = "address-dependent"
    APD = "address-and-port-dependent"
