"""Renewal times of allocations, permissions and channels: two whole transactions may fail before the lifetime ends.

A transaction over UDP fails after 39.5 s. Lifetimes of 300 s or more are renewed 100 s before their end, so that a
server or path that fails for a minute costs nothing. Relays that die after ten minutes are this field's best-known
fault, because channels, permissions and allocations expire at different times.
"""

from __future__ import annotations

from typing import Final

from polynya.core.instants import SECOND
from polynya.stun.registry import ErrorCode

MARGIN: Final = 100 * SECOND
RETRY: Final = 5 * SECOND
"""The pause after a failed renewal; renewals are repeated until the lifetime ends."""
TEMPORARY: Final = frozenset(
    {
        None,
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.STALE_NONCE,
        ErrorCode.SERVER_ERROR,
        ErrorCode.INSUFFICIENT_CAPACITY,
    }
)
"""Failures after which the same request may succeed. None is a timeout; a failed challenge may be a forged one."""


def renewal(lifetime: int) -> int:
    """Return when to renew, in nanoseconds after the start of this lifetime."""
    return lifetime - min(lifetime // 3, MARGIN)
