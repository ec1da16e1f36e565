"""Channels: they add 4 bytes to each datagram instead of 36 or more (RFC 8656, sections 2.5 and 12).

    state   | bind            | success       | refused, no answer   | renewal due | its end | rest over
    --------+-----------------+---------------+----------------------+-------------+---------+----------
    (none)  | ASKED           |               |                      |             |         |
    ASKED   |                 | BOUND         | RESTING              |             |         |
    BOUND   |                 | BOUND         | BOUND, later;        | asks again  | RESTING |
            |                 |               | refused: RESTING     |             |         |
    RESTING | ASKED, same     | BOUND         |                      |             |         | (none)
            | number          |               |                      |             |         |

Data on a channel is accepted from the moment of the request, since the server may use the channel before its response
arrives. A number or peer that was bound rests before it is bound to another; the same two may be bound again at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from struct import Struct, error
from typing import Any, Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.instants import Instant
from polynya.core.timers import Timers
from polynya.stun.attributes import CHANNEL_NUMBER, XOR_PEER_ADDRESS, Attribute
from polynya.stun.registry import Method
from polynya.turn.numbers import CHANNEL_LIFETIME, CHANNEL_REST, FIRST_CHANNEL, LAST_CHANNEL

from .events import ChannelBound, ChannelFailed
from .lifetimes import RETRY, TEMPORARY, renewal
from .requests import Answer, Ask

COUNT: Final = LAST_CHANNEL - FIRST_CHANNEL + 1
MAX_PAYLOAD: Final = 0xFFFF
HEADER: Final = 4
"""Bytes before the payload of ChannelData; over a stream up to three bytes of padding follow it."""
_HEADER: Final = Struct("!HH").pack
_READ_HEADER: Final = Struct("!HH").unpack_from
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_NEVER: Final = Instant(0)


class State(Enum):
    ASKED = "asked"
    BOUND = "bound"
    RESTING = "resting"


class _Timer(Enum):
    RENEW = "renew"
    END = "end"
    REST = "rest"


@dataclass(slots=True)
class _Channel:
    peer: Address
    number: int
    state: State = State.ASKED
    ends: Instant = _NEVER


class Channels:
    """The channels of one allocation. The client drains `asks`, then `events`."""

    def __init__(self) -> None:
        self.padded = False
        """Whether frames are padded to four bytes, as on a stream (section 12.5)."""
        self._numbers: dict[Address, int] = {}
        """The channels to send on, by peer."""
        self._peers: dict[int, Address] = {}
        """The peers of received channels, by number."""
        self._by_number: dict[int, _Channel] = {}
        self._by_peer: dict[Address, _Channel] = {}
        self._last = LAST_CHANNEL
        self._timers: Timers[tuple[_Timer, int]] = Timers()
        self._asks: Queue[Ask] = Queue()
        self._events: Queue[ChannelBound | ChannelFailed] = Queue()

    # ---------------------------------------------------------------------------------------------------------- calls

    def bind(self, peer: Address) -> None:
        """Bind a channel to this peer, unless one is bound or requested."""
        channel = self._by_peer.get(peer)
        if channel is None:
            number = self._free_number()
            if number is None:
                reason = f"all {COUNT} channel numbers of the allocation are bound or resting"
                self._events.append(ChannelFailed(peer=peer, code=None, reason=reason))
                return
            channel = self._by_number[number] = self._by_peer[peer] = _Channel(peer, number)
            self._peers[number] = peer
        elif channel.state is State.RESTING:
            channel.state = State.ASKED
            self._timers.cancel((_Timer.REST, channel.number))
        else:
            return
        self._ask(channel)

    def forget(self, peer: Address, *, now: Instant) -> None:
        """Stop renewing the channel to this peer and sending on it."""
        channel = self._by_peer.get(peer)
        if channel is not None and channel.state is not State.RESTING:
            self._rest(channel, now=now)

    def clear(self) -> None:
        """Remove all channels: the allocation has ended."""
        self._numbers.clear()
        self._peers.clear()
        self._by_number.clear()
        self._by_peer.clear()
        self._timers.clear()
        self._asks.clear()

    def __contains__(self, peer: object) -> bool:
        """Whether a channel to this peer is bound, resting or requested."""
        return peer in self._by_peer

    def states(self) -> dict[str, str]:
        """Return each peer's channel and state, for `why()`."""
        return {str(one.peer): f"{one.number:#06x} {one.state.value}" for one in self._by_number.values()}

    # ----------------------------------------------------------------------------------------------------------- data

    def wrap(self, peer: Address, data: bytes) -> bytes | None:
        """Return `data` as ChannelData to `peer`; None without a bound channel, or if `data` is too long."""
        number = self._numbers.get(peer)
        size = len(data)
        if number is None or size > MAX_PAYLOAD:
            return None
        if self.padded:
            return _HEADER(number, size) + data + _PADDING[size & 3]
        return _HEADER(number, size) + data

    def unwrap(self, data: bytes) -> tuple[Address, bytes] | None:
        """Return peer and payload of ChannelData from the server; None for any other bytes."""
        try:
            number, size = _READ_HEADER(data)
        except error:
            return None
        peer = self._peers.get(number)
        payload = data[4:]
        if peer is None or len(payload) < size:
            return None
        return peer, payload if len(payload) == size else payload[:size]

    # -------------------------------------------------------------------------------------------------------- machine

    def answered(self, answer: Answer, *, now: Instant) -> Address | None:
        """Handle the result of a ChannelBind; return the peer if its channel was bound or renewed."""
        channel = self._by_number.get(answer.ask.subject)
        if channel is None:
            return None
        if channel.state is State.RESTING:
            if answer.ok:
                channel.ends = Instant(answer.sent_at + CHANNEL_LIFETIME)
                self._timers.set((_Timer.REST, channel.number), Instant(channel.ends + CHANNEL_REST))
            return None
        if answer.ok:
            self._bound(channel, answer.sent_at)
            return channel.peer
        if channel.state is State.BOUND and answer.code in TEMPORARY:
            self._timers.set((_Timer.RENEW, channel.number), Instant(now + RETRY))
            return None
        self._rest(channel, now=now)
        self._events.append(ChannelFailed(peer=channel.peer, code=answer.code, reason=answer.reason))
        return None

    def tick(self, *, now: Instant) -> None:
        for timer, number in self._timers.due(now=now):
            channel = self._by_number[number]
            if timer is _Timer.RENEW:
                self._ask(channel)
            elif timer is _Timer.END:
                self._rest(channel, now=now)
                reason = f"the channel to {channel.peer} could not be renewed in time"
                self._events.append(ChannelFailed(peer=channel.peer, code=None, reason=reason))
            else:
                del self._by_number[number], self._by_peer[channel.peer], self._peers[number]

    def next_timer(self) -> Instant | None:
        return self._timers.next()

    def asks(self) -> list[Ask]:
        """Return and remove the requests to send."""
        return self._asks.drain()

    def events(self) -> list[ChannelBound | ChannelFailed]:
        return self._events.drain()

    # --------------------------------------------------------------------------------------------------------- inside

    def _ask(self, channel: _Channel) -> None:
        attributes: dict[Attribute[Any], Any] = {CHANNEL_NUMBER: channel.number, XOR_PEER_ADDRESS: (channel.peer,)}
        self._asks.append(Ask(Method.CHANNEL_BIND, attributes, channel.number))

    def _bound(self, channel: _Channel, sent_at: Instant) -> None:
        if channel.state is State.ASKED:
            channel.state = State.BOUND
            self._numbers[channel.peer] = channel.number
            self._events.append(ChannelBound(peer=channel.peer, number=channel.number))
        channel.ends = Instant(sent_at + CHANNEL_LIFETIME)
        self._timers.set((_Timer.RENEW, channel.number), Instant(sent_at + renewal(CHANNEL_LIFETIME)))
        self._timers.set((_Timer.END, channel.number), channel.ends)

    def _rest(self, channel: _Channel, *, now: Instant) -> None:
        """Stop using the channel. Data on it is still accepted, since the server may not have removed it yet."""
        if channel.state is State.ASKED:  # the server may have bound it
            channel.ends = Instant(now + CHANNEL_LIFETIME)
        channel.state = State.RESTING
        self._numbers.pop(channel.peer, None)
        self._timers.cancel((_Timer.RENEW, channel.number))
        self._timers.cancel((_Timer.END, channel.number))
        self._timers.set((_Timer.REST, channel.number), Instant(channel.ends + CHANNEL_REST))

    def _free_number(self) -> int | None:
        """Return the next number that is neither bound nor resting; None if there is none."""
        if len(self._by_number) >= COUNT:
            return None
        while True:
            self._last = self._last + 1 if self._last < LAST_CHANNEL else FIRST_CHANNEL
            if self._last not in self._by_number:
                return self._last
