"""Our behaviour discovery as a program: `discovery_peer.py URI` prints what it found, as an object of JSON."""

import asyncio
import json
import sys

from polynya.aio.behaviour import discover_behaviour
from polynya.stun.transactions import Schedule

report = asyncio.run(discover_behaviour(sys.argv[1], schedule=Schedule(sends=4, last_wait=2)))
print(
    json.dumps(
        {
            "translated": report.translated,
            "mapping": report.mapping and report.mapping.name,
            "filtering": report.filtering and report.filtering.name,
            "hairpinning": report.hairpinning,
            "mapped": report.mapped and report.mapped.host,
            "reasons": [report.mapping_reason, report.filtering_reason, report.hairpinning_reason],
        }
    )
)
