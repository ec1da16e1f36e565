"""A TCP connection as a NAT tracks it (RFC 5382, sections 4 and 5; RFC 7857, section 2).

A NAT tracks only the flags that its timers need. A connection that opens or closes has the transitory timeout, an
established one the long timeout. Every legal order of segments establishes it, simultaneous open included.

    OPENING      SYN seen both ways, then an ACK without SYN  -> ESTABLISHED
    OPENING      RST                                          -> CLOSING
    ESTABLISHED  FIN seen both ways, or RST                   -> CLOSING
    CLOSING      SYN                                          -> OPENING (the endpoints are reused)
"""

from __future__ import annotations

from enum import Enum

from polynya.core.instants import Instant
from polynya.core.packets import TcpFlags

from .config import NatConfig

OUT, IN = 1, 2
_BOTH = OUT | IN


class TcpState(Enum):
    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"


class Connection:
    """The flags seen between one mapping and one remote endpoint."""

    __slots__ = ("_fin", "_syn", "expires", "state")

    def __init__(self) -> None:
        self.state = TcpState.OPENING
        self.expires = Instant(0)
        self._syn = 0
        self._fin = 0

    def segment(self, flags: TcpFlags, direction: int) -> None:
        """Track a segment; `direction` is OUT or IN."""
        if flags & TcpFlags.SYN:
            if self.state is TcpState.CLOSING:
                self.state, self._syn, self._fin = TcpState.OPENING, 0, 0
            self._syn |= direction
        if flags & TcpFlags.RST:
            self.state = TcpState.CLOSING
            return
        if flags & TcpFlags.FIN:
            self._fin |= direction
        if self.state is TcpState.OPENING and self._syn == _BOTH and flags & (TcpFlags.ACK | TcpFlags.SYN) == _ACK:
            self.state = TcpState.ESTABLISHED
        if self._fin == _BOTH:
            self.state = TcpState.CLOSING

    def lifetime(self, config: NatConfig) -> int:
        """Return the nanoseconds from its last segment to its expiry."""
        return config.tcp_established if self.state is TcpState.ESTABLISHED else config.tcp_transitory


_ACK = TcpFlags.ACK
