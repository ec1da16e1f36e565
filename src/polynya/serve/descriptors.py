"""The limit of open files. Every relay port and every stream needs one, and the default limit is low.

TCP clients of TURN, and HTTP connections, each use at most a quarter, so that strangers leave the rest to relays.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

logger: Final = logging.getLogger("polynya.serve")

MOST: Final = 1 << 20
"""Limit to set at most: enough for all relay ports. Some programs iterate over the whole range up to the limit."""
FEW: Final = 4096
"""Limit below which a warning is logged."""


def raise_limit() -> int:
    """Raise the limit of this process and of its workers. Returns the new limit, or 0 if there is none."""
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415 - Unix only

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return max(soft, 0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        return soft
    return allowed


def limit() -> int:
    """Return the limit of this process, or 0 if there is none."""
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415 - Unix only

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def within_share(count: int, parts: int = 4) -> int:
    """Return `count`, or less if it is more than one of `parts` parts of the limit. A count of 0 is unlimited."""
    files = limit()
    if not files:
        return count
    share = max(1, files // parts)
    return min(count, share) if count else share


def log_limit(allowed: int) -> None:
    """Log the limit; as a warning if it is low."""
    if allowed:
        level = logging.WARNING if allowed < FEW else logging.INFO
        logger.log(
            level, "at most %d open files: a quarter for TCP clients, a quarter for HTTP, the rest for relays", allowed
        )
