"""Keepalives to the TURN server: an indication after some silence, as RFC 8445, section 11, sends them for pairs.

A NAT may remove a UDP mapping after 30 s of silence, and permissions are renewed every few minutes only. The allocation
would be lost with the mapping, because it belongs to the address and port that made it.
"""

from __future__ import annotations

from polynya.core.instants import Instant
from polynya.stun.message import Message
from polynya.stun.registry import Method


class Keepalive:
    """Timer of the next indication. An interval of 0 disables it."""

    __slots__ = ("_interval", "_since")

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._since: Instant | None = None

    def start(self, *, now: Instant) -> None:
        """Start the timer, unless it runs."""
        if self._since is None and self._interval:
            self._since = now

    def clear(self) -> None:
        self._since = None

    def sent(self, *, now: Instant) -> None:
        """Restart the timer: a packet was sent to the server."""
        if self._since is not None:
            self._since = now

    def next_timer(self) -> Instant | None:
        return None if self._since is None else Instant(self._since + self._interval)

    @staticmethod
    def indication(transaction_id: bytes) -> bytes:
        """Return a Binding indication, which the server does not answer."""
        return Message.indication(Method.BINDING, transaction_id).encode()
