"""The conversation of two peers: numbered messages, each verified and counted by its receiver.

A message contains its sender, number, total count and send time. It ends with a keyed digest of these fields. The key
is the room name, so the digest proves that the message belongs to this conversation and arrived unchanged.
"""

from __future__ import annotations

import hashlib
import hmac
from statistics import median

from polynya.core.instants import MILLISECOND, Instant, in_seconds

from .records import Messages

_WORD = b"polynya-demo"


class Dialogue:
    """One side of the conversation."""

    def __init__(self, *, name: str, other: str, room: str, messages: int) -> None:
        self.sent = 0
        self._name = name.encode()
        self._other = other.encode()
        self._key = hashlib.blake2s(room.encode()).digest()
        self._messages = messages
        self._numbers: set[int] = set()
        self._latencies: list[int] = []
        self._duplicates = self._wrong = self._bytes = 0
        self._began: Instant | None = None
        self._ended: Instant | None = None

    @property
    def received(self) -> int:
        """The number of distinct messages received from the other side."""
        return len(self._numbers)

    @property
    def all_sent(self) -> bool:
        return self.sent >= self._messages

    @property
    def all_received(self) -> bool:
        return self.received >= self._messages

    def message(self, *, now: Instant) -> bytes:
        """Return the next message to send. Call `count_sent` after it was sent."""
        text = b"%s %s %d/%d %d" % (_WORD, self._name, self.sent + 1, self._messages, now)
        return text + b" " + self._digest(text)

    def count_sent(self, *, now: Instant) -> None:
        self._began = now if self._began is None else self._began
        self.sent += 1

    def take(self, data: bytes, *, now: Instant) -> None:
        """Verify and count a received datagram."""
        parsed = self._parse(data)
        if parsed is None:
            self._wrong += 1
            return
        number, sent_at = parsed
        if number in self._numbers:
            self._duplicates += 1
            return
        self._numbers.add(number)
        self._latencies.append(now - sent_at)
        self._bytes += len(data)
        self._ended = now

    def counts(self) -> Messages:
        """Return the current counts."""
        both = self._began is not None and self._ended is not None
        return Messages(
            sent=self.sent,
            received=self.received,
            duplicates=self._duplicates,
            wrong=self._wrong,
            bytes_received=self._bytes,
            latency_ms=median(self._latencies) / MILLISECOND if self._latencies else None,
            seconds=in_seconds(max(0, self._ended - self._began)) if both else None,  # type: ignore[operator]
        )

    def _parse(self, data: bytes) -> tuple[int, int] | None:
        """Return number and send time of a message of the other side; None if `data` is no such message."""
        text, _, digest = data.rpartition(b" ")
        if not hmac.compare_digest(digest, self._digest(text)):
            return None
        parts = text.split(b" ")
        if len(parts) != 4 or parts[:2] != [_WORD, self._other]:
            return None
        number, _, of = parts[2].partition(b"/")
        if int(of) != self._messages or not 1 <= int(number) <= self._messages:
            return None
        return int(number), int(parts[3])

    def _digest(self, text: bytes) -> bytes:
        return hashlib.blake2s(text, key=self._key, digest_size=8).hexdigest().encode()
