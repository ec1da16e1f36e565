"""A TCP connection of a host (RFC 9293), as far as programs, NATs and firewalls can observe it.

    state        | SYN+ACK     | SYN          | ACK of our SYN | FIN     | close    | FINs both ways, acknowledged
    -------------+-------------+--------------+----------------+---------+----------+-----------------------------
    SYN_SENT     | ESTABLISHED | SYN_RECEIVED |                |         | CLOSED   |
    SYN_RECEIVED |             |              | ESTABLISHED    |         | CLOSED ! |
    ESTABLISHED  |             |              |                | CLOSING | CLOSING  |
    CLOSING      |             |              |                |         |          | CLOSED *
    any          a RST, RETRIES without an answer, or an ICMP error before it is established: CLOSED

    !  with a RST
    *  after LINGER on the side that sent the first FIN, which answers retransmissions until then

Bytes arrive in order: early segments are kept, lost ones are retransmitted. No protocol here uses a half-closed stream,
so a FIN is answered by a FIN. There are no options, no congestion control and no zero windows.
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
"""The first retransmission timeout, doubled each time up to LONGEST_RTO (RFC 6298)."""
LONGEST_RTO: Final = 60 * SECOND
RETRIES: Final = 8
"""Retransmissions of a segment: more than three minutes in all, beyond the R2 of RFC 9293 (3.8.3)."""
LINGER: Final = 60 * SECOND
WINDOW: Final = 0xFFFF
"""The largest number of unacknowledged bytes, as without window scaling."""

_MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31
_FIN, _SYN, _RST, _PSH, _ACK = map(int, (TcpFlags.FIN, TcpFlags.SYN, TcpFlags.RST, TcpFlags.PSH, TcpFlags.ACK))
_FLAGS: Final = tuple(TcpFlags(number) for number in range(32))
"""Flags are computed as plain integers, which takes a tenth of the time."""
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
    """The owner of a connection."""

    def established(self) -> None:
        """Handle the established connection."""

    def arrived(self, data: bytes) -> None:
        """Handle the next bytes of the stream."""

    def ended(self, reason: str, number: int | None) -> None:
        """Handle the end of the stream, with the system's error number. Not called after `close` or `abort`."""

    def emit(self, tcp: TcpFields, payload: bytes) -> None:
        """Send a segment."""

    def gone(self) -> None:
        """Release the endpoints. This is the last call."""


class _Segment:
    """A segment that was sent and is not acknowledged yet."""

    __slots__ = ("flags", "payload", "sequence")

    def __init__(self, sequence: int, flags: int, payload: bytes) -> None:
        self.sequence = sequence
        self.flags = flags
        self.payload = payload

    @property
    def end(self) -> int:
        return (self.sequence + len(self.payload) + bool(self.flags & (_SYN | _FIN))) % _MODULUS


class Connection:
    """A TCP connection. Its owner sends its segments and passes in those that arrive."""

    def __init__(self, clock: Clock, owner: TcpOwner, *, sequence: int, mss: int) -> None:
        self.state = TcpState.SYN_SENT
        self.mss = mss
        self._clock = clock
        self._owner = owner
        self._deaf = False
        """Whether received bytes are acknowledged and discarded, because the owner has closed."""
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
        """The number of bytes that are not sent yet."""
        return len(self._unsent)

    def connect(self) -> None:
        """Send a SYN."""
        self._queue(_SYN)

    def accept(self, syn: TcpFields) -> None:
        """Answer a SYN that arrived at a listener."""
        self.state = TcpState.SYN_RECEIVED
        self._expected = (syn.sequence + 1) % _MODULUS
        self._queue(_SYN | _ACK)

    def send(self, data: bytes) -> None:
        """Append bytes to the stream and send what the window allows."""
        self._unsent += data
        self._push()

    def close(self) -> None:
        """Send the buffered bytes, then a FIN. Of the owner, only `gone` is still called."""
        self._deaf = True
        if self.state is TcpState.SYN_RECEIVED:
            self.abort()
        elif self.state is TcpState.SYN_SENT:
            self._close()
        else:
            self._finish()

    def abort(self) -> None:
        """Send a RST and close at once. Of the owner, only `gone` is still called."""
        self._deaf = True
        if self.state is not TcpState.CLOSED:
            if self.state is not TcpState.SYN_SENT:
                self._owner.emit(TcpFields(flags=_FLAGS[_RST], sequence=self._next), b"")
            self._close()

    def vanish(self) -> None:
        """Close at once without sending a packet, as after a power failure."""
        self._deaf = True
        self._close()

    # -------------------------------------------------------------------------------------------------------- network

    def receive(self, tcp: TcpFields, payload: bytes) -> None:
        """Process a received segment."""
        flags = int(tcp.flags)
        if self.state is TcpState.SYN_SENT:
            self._answered(tcp)
            return
        if flags & _RST:
            if tcp.sequence == self._expected:
                self._end("the other side reset the connection", errno.ECONNRESET)
            elif (tcp.sequence - self._expected) % _MODULUS <= WINDOW:
                self._acknowledge()  # challenge ACK: the RST may be forged (RFC 5961, 3.2)
            return
        if flags & _SYN:
            self._syn_repeated(tcp)
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
        """Process an ICMP error about a segment; `mss` is set if the segment was too big."""
        if not self._flight or not _within(sequence, self._flight[0].sequence, self._next):
            return
        if mss is not None:
            self._resegment(mss)
        elif self.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED) and kind in _ERRORS:
            self._end(kind.value, _ERRORS[kind])

    # -------------------------------------------------------------------------------------------------------- opening

    def _answered(self, tcp: TcpFields) -> None:
        """Process a segment in SYN_SENT."""
        flags = int(tcp.flags)
        if flags & _ACK and tcp.acknowledgment != self._next:
            if not flags & _RST:
                self._owner.emit(TcpFields(flags=_FLAGS[_RST], sequence=tcp.acknowledgment), b"")
        elif flags & _RST:
            if flags & _ACK:
                self._end("the connection was refused: nothing listens there", errno.ECONNREFUSED)
        elif flags & _SYN:
            self._expected = (tcp.sequence + 1) % _MODULUS
            if flags & _ACK:
                self._acknowledged(tcp.acknowledgment)
                self._acknowledge()
                self._establish()
            else:  # simultaneous open (RFC 9293, section 3.5)
                self.state = TcpState.SYN_RECEIVED
                self._flight[0].flags |= _ACK
                self._transmit(self._flight[0])

    def _syn_repeated(self, tcp: TcpFields) -> None:
        """Process a repeated SYN: our answer was lost, or it is a simultaneous open."""
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
        if early >= _HALF:  # the segment begins with known bytes
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
        """Send as many bytes as the window allows, then the FIN if the stream is closing."""
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
        """Process an acknowledgment of all bytes before `number`."""
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
        """Split the unacknowledged segments for a smaller path MTU and send them again."""
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
        if deadline > at:  # the deadline was postponed
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
        """Send a FIN after the buffered bytes."""
        if self.state is TcpState.ESTABLISHED:
            self.state = TcpState.CLOSING
            self._finishing = True
            self._push()

    def _settle(self) -> None:
        """Close if both FINs are sent and acknowledged."""
        if self.state is TcpState.CLOSING and self._fin_sent and not self._flight:
            if self._fin_seen and not self._was_first:
                self._close()
            elif self._deadline is None:
                self._arm(LINGER)

    def _end(self, reason: str, number: int | None) -> None:
        """Close and report the reason, unless the owner has closed."""
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
    """Return the RST for a segment that belongs to no connection (RFC 9293, section 3.10.7.1)."""
    if int(tcp.flags) & _ACK:
        fields = TcpFields(flags=_FLAGS[_RST], sequence=tcp.acknowledgment)
    else:
        size = len(packet.payload) + bool(int(tcp.flags) & _SYN) + bool(int(tcp.flags) & _FIN)
        fields = TcpFields(flags=_FLAGS[_RST | _ACK], acknowledgment=(tcp.sequence + size) % _MODULUS)
    return IpPacket(0, packet.destination, packet.source, IpProtocol.TCP, tcp=fields)


def largest_segment(mtu: int, address: Address) -> int:
    """Return the largest payload of a segment for an MTU, without the headers of IP and TCP."""
    return mtu - (60 if address.family == 6 else 40)


def _within(number: int, first: int, end: int) -> bool:
    return (number - first) % _MODULUS < (end - first) % _MODULUS
