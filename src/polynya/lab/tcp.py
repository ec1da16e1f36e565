"""One TCP connection of a host (RFC 9293): as much of it as decides what programs, NATs and firewalls see.

    state        | SYN+ACK     | SYN          | ACK of our SYN | FIN     | close    | FINs both ways, acknowledged
    -------------+-------------+--------------+----------------+---------+----------+-----------------------------
    SYN_SENT     | ESTABLISHED | SYN_RECEIVED |                |         | CLOSED   |
    SYN_RECEIVED |             |              | ESTABLISHED    |         | CLOSED ! |
    ESTABLISHED  |             |              |                | CLOSING | CLOSING  |
    CLOSING      |             |              |                |         |          | CLOSED *
    any          a RST, RETRIES without an answer, an ICMP error before it was established: CLOSED

    !  with a RST
    *  after LINGER for the side whose FIN came first, which answers what the other may send again

Bytes arrive in order: what comes too early waits, what is lost is sent again. A half-closed stream is of no use to any
protocol here, so a FIN is answered with one. There are no options, no congestion control and no zero windows.
"""

from __future__ import annotations

import errno
from collections import deque
from enum import Enum
from typing import Final, Protocol

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import IcmpKind
from polynya.core.packets import IpPacket, TcpFields, TcpFlags
from polynya.core.packets import Protocol as IpProtocol

from .clock import Clock

RTO: Final = SECOND
"""Of a segment that is sent first; doubled each time up to LONGEST_RTO (RFC 6298)."""
LONGEST_RTO: Final = 60 * SECOND
RETRIES: Final = 8
"""How often a segment is sent again: three minutes in all, beyond the R2 of RFC 9293 (3.8.3)."""
LINGER: Final = 60 * SECOND
WINDOW: Final = 0xFFFF
"""Bytes that may be under way, as much as a window without scaling allows."""

_MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31
_FIN, _SYN, _RST, _PSH, _ACK = map(int, (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK))
_FLAGS: Final = tuple(TcpFlags(number) for number in range(32))
"""Flags are reckoned with as plain numbers, which cost a tenth."""
_ERRORS: Final = {
    IcmpKind.PORT_UNREACHABLE: errno.ECONNREFUSED,
    IcmpKind.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    IcmpKind.NET_UNREACHABLE: errno.ENETUNREACH,
    IcmpKind.PROHIBITED: errno.EHOSTUNREACH,
    IcmpKind.TTL_EXCEEDED: errno.EHOSTUNREACH,
}


class TcpState(Enum):
    SYN_SENT = "SYN sent"
    SYN_RECEIVED = "SYN received"
    ESTABLISHED = "established"
    CLOSING = "closing"
    CLOSED = "closed"


class TcpOwner(Protocol):
    """Whose connection it is."""

    def established(self) -> None:
        """Both sides know of it."""

    def arrived(self, data: bytes) -> None:
        """The next bytes of the stream."""

    def ended(self, reason: str, number: int | None) -> None:
        """Nothing more comes, and why, with the system's error number. Not called after `close` and `abort`."""

    def emit(self, tcp: TcpFields, payload: bytes) -> None:
        """Send a segment."""

    def gone(self) -> None:
        """The last call: its endpoints are free."""


class _Segment:
    """What was sent and not acknowledged yet."""

    __slots__ = ("flags", "payload", "sequence")

    def __init__(self, sequence: int, flags: int, payload: bytes) -> None:
        self.sequence = sequence
        self.flags = flags
        self.payload = payload

    @property
    def end(self) -> int:
        return (self.sequence + len(self.payload) + bool(self.flags & (_SYN | _FIN))) % _MODULUS


class Connection:
    """A TCP connection. Its owner sends its segments and hands it those that come."""

    def __init__(self, clock: Clock, owner: TcpOwner, *, sequence: int, mss: int) -> None:
        self.state = TcpState.SYN_SENT
        self.mss = mss
        self._clock = clock
        self._owner = owner
        self._deaf = False
        """Nobody listens any more: what arrives is acknowledged and forgotten."""
        self._next = sequence
        self._unsent = bytearray()
        self._flight: deque[_Segment] = deque()
        self._flying = 0
        self._finishing = self._fin_sent = self._fin_seen = self._was_first = False
        self._expected = 0
        self._ahead: dict[int, tuple[bytes, bool]] = {}
        self._owes = False
        self._retries = 0
        self._deadline: Instant | None = None
        self._scheduled: Instant | None = None

    # ---------------------------------------------------------------------------------------------------------- calls

    @property
    def closed(self) -> bool:
        return self.state is TcpState.CLOSED

    @property
    def waiting(self) -> int:
        """Bytes that were not sent yet."""
        return len(self._unsent)

    def connect(self) -> None:
        """Send a SYN."""
        self._queue(_SYN)

    def accept(self, syn: TcpFields) -> None:
        """Answer a SYN that came to a listener."""
        self.state = TcpState.SYN_RECEIVED
        self._expected = (syn.sequence + 1) % _MODULUS
        self._queue(_SYN | _ACK)

    def send(self, data: bytes) -> None:
        """Send these bytes after those that were given before."""
        self._unsent += data
        self._push()

    def close(self) -> None:
        """Send what is left, then a FIN. The owner hears no more than `gone`."""
        self._deaf = True
        if self.state is TcpState.SYN_RECEIVED:
            self.abort()
        elif self.state is TcpState.SYN_SENT:
            self._close()
        else:
            self._finish()

    def abort(self) -> None:
        """Send a RST and forget everything. The owner hears no more than `gone`."""
        self._deaf = True
        if self.state is not TcpState.CLOSED:
            if self.state is not TcpState.SYN_SENT:
                self._owner.emit(TcpFields(flags=_FLAGS[_RST], sequence=self._next), b"")
            self._close()

    def vanish(self) -> None:
        """Forget everything and tell nobody, as when the power fails."""
        self._deaf = True
        self._close()

    # -------------------------------------------------------------------------------------------------------- network

    def receive(self, tcp: TcpFields, payload: bytes) -> None:
        """A segment came."""
        flags = int(tcp.flags)
        if self.state is TcpState.SYN_SENT:
            self._answered(tcp)
            return
        if flags & _RST:
            if tcp.sequence == self._expected:
                self._end("the other side reset the connection", errno.ECONNRESET)
            elif (tcp.sequence - self._expected) % _MODULUS <= WINDOW:
                self._acknowledge()  # it may be forged: if it is not, the answer is a RST that fits (RFC 5961, 3.2)
            return
        if flags & _SYN:
            self._again(tcp)
            return
        if flags & _ACK:
            self._acknowledged(tcp.acknowledgment)
        if self.state in (TcpState.SYN_RECEIVED, TcpState.CLOSED):
            return
        if payload or flags & _FIN:
            self._owes = True
            self._take(tcp.sequence, payload, fin=bool(flags & _FIN))
            if self._owes and not self.closed:
                self._acknowledge()
        self._settle()

    def unreachable(self, kind: IcmpKind, sequence: int, mss: int | None) -> None:
        """An ICMP error came about a segment of ours; `mss` when it was too big."""
        if not self._flight or not _within(sequence, self._flight[0].sequence, self._next):
            return
        if mss is not None:
            self._resegment(mss)
        elif self.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED) and kind in _ERRORS:
            self._end(kind.value, _ERRORS[kind])

    # -------------------------------------------------------------------------------------------------------- opening

    def _answered(self, tcp: TcpFields) -> None:
        """The first that comes for our SYN."""
        flags = int(tcp.flags)
        if flags & _ACK and tcp.acknowledgment != self._next:
            if not flags & _RST:
                self._owner.emit(TcpFields(flags=_FLAGS[_RST], sequence=tcp.acknowledgment), b"")
        elif flags & _RST:
            if flags & _ACK:
                self._end("nothing listens there: the connection was refused", errno.ECONNREFUSED)
        elif flags & _SYN:
            self._expected = (tcp.sequence + 1) % _MODULUS
            if flags & _ACK:
                self._acknowledged(tcp.acknowledgment)
                self._acknowledge()
                self._establish()
            else:  # both at once (RFC 9293, section 3.5)
                self.state = TcpState.SYN_RECEIVED
                self._flight[0].flags |= _ACK
                self._transmit(self._flight[0])

    def _again(self, tcp: TcpFields) -> None:
        """A SYN, and we know the other side's already: our answer to it was lost, or both opened at once."""
        if self.state is TcpState.SYN_RECEIVED and int(tcp.flags) & _ACK and tcp.acknowledgment == self._next:
            self._acknowledged(tcp.acknowledgment)
        if self.state is TcpState.SYN_RECEIVED:
            self._transmit(self._flight[0])
        else:
            self._acknowledge()

    def _establish(self) -> None:
        self.state = TcpState.ESTABLISHED
        self._owner.established()

    # ------------------------------------------------------------------------------------------------------ receiving

    def _take(self, sequence: int, payload: bytes, *, fin: bool) -> None:
        early = (sequence - self._expected) % _MODULUS
        if early >= _HALF:  # begins with what we have
            known = _MODULUS - early
            if known > len(payload) or (known == len(payload) and not fin):
                return
            sequence, payload = self._expected, payload[known:]
        elif early:
            if early <= WINDOW:
                self._ahead[sequence] = (payload, fin)
            return
        self._in_order(payload, fin=fin)
        while self._ahead and (found := self._ahead.pop(self._expected, None)) is not None:
            self._in_order(found[0], fin=found[1])

    def _in_order(self, payload: bytes, *, fin: bool) -> None:
        if self._fin_seen:
            return
        self._expected = (self._expected + len(payload) + fin) % _MODULUS
        self._fin_seen = fin
        if payload and not self._deaf:
            self._owner.arrived(payload)
        if fin and self.state is TcpState.ESTABLISHED:
            if not self._deaf:
                self._deaf = True
                self._owner.ended("closed by the other side", None)
            self._finish()

    def _acknowledge(self) -> None:
        self._owes = False
        self._owner.emit(TcpFields(flags=_FLAGS[_ACK], sequence=self._next, acknowledgment=self._expected), b"")

    # -------------------------------------------------------------------------------------------------------- sending

    def _push(self) -> None:
        """Send as much as may be under way, then the FIN if there is to be one."""
        if self.state not in (TcpState.ESTABLISHED, TcpState.CLOSING):
            return
        unsent, mss = self._unsent, self.mss
        while unsent and self._flying + min(mss, len(unsent)) <= WINDOW:
            piece = bytes(unsent[:mss])
            del unsent[:mss]
            self._queue(_ACK if unsent else _ACK | _PSH, piece)
        if self._finishing and not unsent and not self._fin_sent:
            self._fin_sent = True
            self._was_first = not self._fin_seen
            self._queue(_ACK | _FIN)

    def _queue(self, flags: int, payload: bytes = b"") -> None:
        segment = _Segment(self._next, flags, payload)
        self._next = segment.end
        self._flight.append(segment)
        self._flying += len(payload)
        self._transmit(segment)
        if self._deadline is None:
            self._arm(RTO)

    def _transmit(self, segment: _Segment) -> None:
        expected = self._expected if segment.flags & _ACK else 0
        self._owes = False
        flags = _FLAGS[segment.flags]
        self._owner.emit(TcpFields(flags=flags, sequence=segment.sequence, acknowledgment=expected), segment.payload)

    def _acknowledged(self, number: int) -> None:
        """Everything before `number` has arrived."""
        flight = self._flight
        if not flight or not _within(number, (flight[0].sequence + 1) % _MODULUS, (self._next + 1) % _MODULUS):
            return
        while flight and (number - flight[0].end) % _MODULUS < _HALF:
            self._flying -= len(flight.popleft().payload)
        self._retries = 0
        self._deadline = None
        if flight:
            self._arm(RTO)
        if self.state is TcpState.SYN_RECEIVED:
            self._establish()
        self._push()

    def _resegment(self, mss: int) -> None:
        """The path takes less: cut what is under way anew and send it again."""
        if mss >= self.mss or mss < 1:
            return
        self.mss = mss
        flight, self._flight = self._flight, deque()
        for segment in flight:
            pieces = [segment.payload[at : at + mss] for at in range(0, len(segment.payload), mss)] or [b""]
            for at, piece in enumerate(pieces):
                flags = segment.flags if at == len(pieces) - 1 else segment.flags & ~(_FIN | _PSH)
                cut = _Segment((segment.sequence + at * mss) % _MODULUS, flags, piece)
                self._flight.append(cut)
                if len(pieces) > 1:
                    self._transmit(cut)

    # ----------------------------------------------------------------------------------------------------- time, end

    def _arm(self, delay: int) -> None:
        self._deadline = Instant(self._clock.now + delay)
        if self._scheduled is None or self._scheduled > self._deadline:
            self._scheduled = self._deadline
            self._clock.at(self._deadline, self._fire, self._deadline)

    def _fire(self, at: Instant) -> None:
        if at != self._scheduled:
            return
        self._scheduled = None
        deadline = self._deadline
        if deadline is None:
            return
        if deadline > at:  # it was moved since
            self._scheduled = deadline
            self._clock.at(deadline, self._fire, deadline)
            return
        self._deadline = None
        if not self._flight:
            self._close()
        elif self._retries == RETRIES:
            self._end(f"no answer to {RETRIES + 1} segments", errno.ETIMEDOUT)
        else:
            self._retries += 1
            self._arm(min(RTO << self._retries, LONGEST_RTO))
            self._transmit(self._flight[0])

    def _finish(self) -> None:
        """Our half ends after what is left."""
        if self.state is TcpState.ESTABLISHED:
            self.state = TcpState.CLOSING
            self._finishing = True
            self._push()

    def _settle(self) -> None:
        """Both halves may have ended."""
        if self.state is TcpState.CLOSING and self._fin_sent and not self._flight:
            if self._fin_seen and not self._was_first:
                self._close()
            elif self._deadline is None:
                self._arm(LINGER)

    def _end(self, reason: str, number: int | None) -> None:
        """It is over, and not by us."""
        deaf, self._deaf = self._deaf, True
        self._close()
        if not deaf:
            self._owner.ended(reason, number)

    def _close(self) -> None:
        if self.state is not TcpState.CLOSED:
            self.state = TcpState.CLOSED
            self._deadline = None
            self._flight.clear()
            self._unsent.clear()
            self._ahead.clear()
            self._owner.gone()


def reset_for(packet: IpPacket, tcp: TcpFields) -> IpPacket:
    """The RST that answers a segment which nobody waits for (RFC 9293, section 3.10.7.1)."""
    if int(tcp.flags) & _ACK:
        fields = TcpFields(flags=_FLAGS[_RST], sequence=tcp.acknowledgment)
    else:
        size = len(packet.payload) + bool(int(tcp.flags) & _SYN) + bool(int(tcp.flags) & _FIN)
        fields = TcpFields(flags=_FLAGS[_RST | _ACK], acknowledgment=(tcp.sequence + size) % _MODULUS)
    return IpPacket(0, packet.destination, packet.source, IpProtocol.TCP, tcp=fields)


def largest_segment(mtu: int, address: Address) -> int:
    """The payload that fits an MTU below the headers of IP and TCP."""
    return mtu - (60 if address.family == 6 else 40)


def _within(number: int, first: int, end: int) -> bool:
    return (number - first) % _MODULUS < (end - first) % _MODULUS
