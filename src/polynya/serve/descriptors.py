"""Open files: every relay port and every stream is one, and systems start programs with few of them allowed."""

from __future__ import annotations

import logging
import sys
from typing import Final

logger: Final = logging.getLogger("polynya.serve")

MOST: Final = 1 << 20
"""More than anybody's relay ports; some hosts allow a thousand times that, and programs walk over it."""
FEW: Final = 4096


def raise_limit() -> int:
    """Let this process, and the workers that it starts, open as many files as it may; how many that is, 0 for any."""
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415 - only where there are such limits

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return max(soft, 0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        return soft
    return allowed


def tell(allowed: int) -> None:
    """Log how many files may be open; a warning where that is few."""
    if allowed:
        level = logging.WARNING if allowed < FEW else logging.INFO
        logger.log(level, "%d files may be open: one for each relay port and each stream", allowed)
