"""When something that lives on the server is renewed: early enough for two whole transactions to fail before its end.

A transaction over UDP is given up after 39.5 s. Whatever lives 300 s or longer is renewed 100 s before its end, so that
a server or a path that is gone for a minute costs nothing. Relays that die after ten minutes are this field's
best-known fault, because channels, permissions and allocations each run out at a time of their own.
"""

from __future__ import annotations

from typing import Final

from polynya.core.instants import SECOND
from polynya.stun.registry import ErrorCode

MARGIN: Final = 100 * SECOND
RETRY: Final = 5 * SECOND
"""The pause after a renewal that failed; there is one every so often until the end."""
TEMPORARY: Final = frozenset(
    {
        None,
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.STALE_NONCE,
        ErrorCode.SERVER_ERROR,
        ErrorCode.INSUFFICIENT_CAPACITY,
    }
)
"""Failures after which the same request may succeed. None is no answer; a challenge that fails may be a forged one."""


def renewal(lifetime: int) -> int:
    """Nanoseconds after its beginning when something of this lifetime is renewed."""
    return lifetime - min(lifetime // 3, MARGIN)
