"""Our behavior discovery as a program: `discovery_peer.py URI` prints its report as JSON.

`discovery_peer.py URI LONGEST RESOLUTION` measures the lifetime of a mapping, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from polynya.aio.behavior import discover_behavior, discover_lifetime
from polynya.stun.transactions import Schedule


async def behavior(server: str) -> dict[str, Any]:
    report = await discover_behavior(server, schedule=Schedule(sends=4, last_wait=2))
    return {
        "translated": report.translated,
        "mapping": report.mapping and report.mapping.name,
        "filtering": report.filtering and report.filtering.name,
        "hairpinning": report.hairpinning,
        "mapped": report.mapped and report.mapped.host,
        "reasons": [report.mapping_reason, report.filtering_reason, report.hairpinning_reason],
    }


async def lifetime(server: str, longest: float, resolution: float) -> dict[str, Any]:
    schedule = Schedule(sends=2, last_wait=2)
    report = await discover_lifetime(server, longest=longest, resolution=resolution, schedule=schedule)
    times = {"survived": report.survived, "gone_after": report.gone_after}
    return {**times, "reason": report.reason}


uri, *times = sys.argv[1:]
print(json.dumps(asyncio.run(lifetime(uri, *map(float, times)) if times else behavior(uri))))
