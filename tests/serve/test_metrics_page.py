"""docs/reference/metrics.md names every metric, with its type, labels and meaning, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polynya.serve import ServeConfig, Server
from polynya.serve.metrics import Metrics
from tests.serve.turn_house import ANY4, client, config, echo, works

pytestmark = pytest.mark.loops("asyncio", "uvloop")

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "metrics.md"
Rows = set[tuple[str, str, str, str]]


def documented() -> Rows:
    found = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (?:`(\w+)`)? ?\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return set(found)


def exposed(server: Server) -> Rows:
    text = Metrics(server).text().decode()
    helped = dict(re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    labels = dict(re.findall(r"^(\w+)\{(\w+)=", text, re.MULTILINE))
    own = [name for name in helped if not name.startswith("polynya_process_")]
    return {(name, kinds[name], labels.get(name, ""), helped[name]) for name in own}


async def test_the_page_names_every_metric_and_no_other() -> None:
    async with Server(ServeConfig(listen=(ANY4,), http=(ANY4,))) as server:
        alone = exposed(server)
    async with Server(config(http=(ANY4,))) as server, echo() as peer, client(server) as relay:
        await relay.permit(peer)
        await works(relay, peer)
        both = alone | exposed(server)
    page = documented()
    assert {row[0] for row in page} == {row[0] for row in both}
    # a metric without samples shows no label
    unlabeled = {(name, kind, "", meaning) for name, kind, _, meaning in page}
    assert both <= page | unlabeled
