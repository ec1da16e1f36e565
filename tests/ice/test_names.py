"""Candidates with a name in place of an address (RFC 8839, section 5.1; mDNS ICE candidates, section 3.2)."""

from __future__ import annotations

from random import Random

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Resolve, Resolved
from polynya.core.pacer import Pacer
from polynya.ice import Candidate, CandidateType, Description, Gathered, IceAgent, IceConfig
from polynya.ice.names import LIMIT

NOW = Instant(10 * SECOND)
NAME = "8a3c9d3e-6b1f-4f63-9dbb-3f1d1f2d4b10.local"


@pytest.fixture
def agent() -> IceAgent:
    made = IceAgent(IceConfig(), random=Random(1), pacer=Pacer())
    made.add_local(Gathered(type=CandidateType.HOST, address=Address("192.168.0.1", 5000), flow=Flow(1)), now=NOW)
    made.set_remote(Description(ufrag="them", password="theirpasswordtheirpass"), now=NOW)
    return made


def named(name: str = NAME, component: int = 1, port: int = 6000) -> Candidate:
    return Candidate.parse(f"candidate:1 {component} udp 2122252543 {name} {port} typ host")


def queries(agent: IceAgent) -> list[Resolve]:
    return [output for output in agent.outputs() if isinstance(output, Resolve)]


def test_a_name_is_looked_up_and_its_address_paired(agent: IceAgent) -> None:
    agent.add_remote(named(), now=NOW)
    assert agent.pairs() == []
    [query] = queries(agent)
    assert query.name == NAME
    assert agent.receive(Resolved(query=query, hosts=("192.168.0.2", "192.168.0.3")), now=NOW)
    [view] = agent.pairs()
    assert view.remote_address == Address("192.168.0.2", 6000)
    assert view.remote.host_name == NAME
    assert str(view.remote) == str(named())
    assert not agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW), "it is answered already"


@pytest.mark.parametrize("hosts", [(), ("nonsense",), ("127.0.0.1",), ("2001:db8::1",)])
def test_a_name_that_gives_nothing_usable_makes_no_pair(agent: IceAgent, hosts: tuple[str, ...]) -> None:
    agent.add_remote(named(), now=NOW)
    [query] = queries(agent)
    agent.receive(Resolved(query=query, hosts=hosts, error="" if hosts else "no such name"), now=NOW)
    assert agent.pairs() == []


def test_candidates_of_one_name_share_its_look_up(agent: IceAgent) -> None:
    agent.add_remote(named(port=6000), now=NOW)
    agent.add_remote(named(port=6001), now=NOW)
    [query] = queries(agent)
    assert agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW)
    assert [view.remote_address.port for view in agent.pairs()] == [6000, 6001]


def test_the_other_side_cannot_make_us_look_up_any_number_of_names(agent: IceAgent) -> None:
    for number in range(100):
        agent.add_remote(named(f"host{number}.local"), now=NOW)
    assert len(queries(agent)) == LIMIT


def test_an_answer_that_nobody_waits_for_changes_nothing(agent: IceAgent) -> None:
    agent.receive(Resolved(query=Resolve(name="other.local"), hosts=("192.168.0.2",)), now=NOW)
    assert agent.pairs() == []
