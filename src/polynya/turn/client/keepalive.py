"""Keeping the path to the server open: an indication after some silence (as RFC 8445, section 11, does for pairs).

A NAT forgets a UDP mapping after as little as 30 s of silence, and permissions are renewed every few minutes only. With
the mapping the allocation is lost, too: it belongs to the address and port that made it.
"""

from __future__ import annotations

from polynya.core.instants import Instant
from polynya.stun.message import Message
from polynya.stun.registry import Method


class Keepalive:
    """When the next indication is due. An interval of 0 is for never."""

    __slots__ = ("_interval", "_since")

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._since: Instant | None = None

    def start(self, *, now: Instant) -> None:
        """Begin; nothing happens when it has begun."""
        if self._since is None and self._interval:
            self._since = now

    def clear(self) -> None:
        self._since = None

    def spoke(self, *, now: Instant) -> None:
        """Something was sent."""
        if self._since is not None:
            self._since = now

    def next_timer(self) -> Instant | None:
        return None if self._since is None else Instant(self._since + self._interval)

    @staticmethod
    def indication(transaction_id: bytes) -> bytes:
        """What is sent: a Binding indication, which nobody answers."""
        return Message.indication(Method.BINDING, transaction_id).encode()
