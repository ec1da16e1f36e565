"""One pace for a whole process: what gathering asks and what agents check (RFC 8445, sections 14 and 14.2)."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from polynya.core.addresses import Address
from polynya.core.flows import FlowIds
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Send
from polynya.core.pacer import Pacer
from polynya.ice.candidates import Candidate, CandidateType
from polynya.ice.config import IceConfig
from polynya.ice.description import Description
from polynya.session.options import SessionConfig
from polynya.session.session import Session
from polynya.stun.message import decode
from polynya.stun.uris import StunUri
from tests.session.conftest import ETH0, Bench

AGENTS = 200


def test_two_hundred_agents_that_start_at_once_gather_and_check_at_one_pace_and_none_starves() -> None:
    """Each asks one server and checks one pair: 400 transactions, each begun 5 ms after the one before."""
    pacer = Pacer()
    config = SessionConfig(ice=IceConfig(), stun_servers=(StunUri.parse("stun:192.0.2.1"),))
    benches = [
        Bench(Session(config, random=Random(number), pacer=pacer, flow_ids=FlowIds())) for number in range(AGENTS)
    ]
    theirs = Candidate(
        foundation="1", component=1, priority=1, address=Address("10.0.0.9", 5000), type=CandidateType.HOST
    )  # fmt: skip
    for bench in benches:
        bench.start(ETH0)
        description = Description(ufrag="them", password="theirpasswordtheirpass", pacing=0)
        bench.session.set_remote(description, now=bench.now)
        bench.session.add_remote(theirs, now=bench.now)
        bench.drain()
    begun: dict[bytes, tuple[Instant, int, Address]] = {}
    now = Instant(0)
    while now < 3 * SECOND:
        for number, bench in enumerate(benches):
            due = bench.session.next_timer()
            if due is not None and due <= now:
                bench.now = now
                bench.session.tick(now=now)
                bench.drain()
            for send in bench.take(Send):
                begun.setdefault(decode(send.data).transaction_id, (now, number, send.remote))
        now = min(due for bench in benches if (due := bench.session.next_timer()) is not None)
    started = sorted(begun.values(), key=lambda each: each[0])
    assert len(started) == 2 * AGENTS
    assert all(after[0] - before[0] >= 5 * MILLISECOND for before, after in pairwise(started))
    assert started[-1][0] - started[0][0] == (2 * AGENTS - 1) * 5 * MILLISECOND, "no slot is left unused"
    for remote in (Address("192.0.2.1", 3478), theirs.address):
        assert {number for _, number, where in started if where == remote} == set(range(AGENTS))
