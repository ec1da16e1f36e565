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
from polynya.ice.names import LIMIT, TOTAL

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
    assert query.name == NAME and query.by_peer
    assert agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW)
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
    """A number of look-ups is pending at a time; the others follow, up to a total for one generation."""
    for number in range(2 * TOTAL):
        agent.add_remote(named(f"host{number}.local"), now=NOW)
    asked = []
    while pending := queries(agent):
        assert len(pending) <= LIMIT
        asked += pending
        for query in pending:
            assert agent.receive(Resolved(query=query, error=f"{query.name}: no such name"), now=NOW)
    assert len({query.name for query in asked}) == len(asked) == TOTAL
    assert len(agent.why().data["names"]) == TOTAL


def test_an_answer_that_nobody_waits_for_changes_nothing(agent: IceAgent) -> None:
    agent.receive(Resolved(query=Resolve(name="other.local"), hosts=("192.168.0.2",)), now=NOW)
    assert agent.pairs() == []


def test_all_addresses_of_a_name_are_paired(agent: IceAgent) -> None:
    agent.add_remote(named(), now=NOW)
    [query] = queries(agent)
    agent.receive(Resolved(query=query, hosts=("192.168.0.2", "2001:db8::1", "192.168.0.3")), now=NOW)
    assert [view.remote_address.host for view in agent.pairs()] == ["192.168.0.2", "192.168.0.3"]
    assert agent.why().data["names"] == {NAME: "has the addresses 192.168.0.2, 2001:db8::1, 192.168.0.3"}


def test_repetitions_of_a_name_are_no_further_look_ups(agent: IceAgent) -> None:
    for _ in range(3 * TOTAL):
        agent.add_remote(named(), now=NOW)
    [query] = queries(agent)
    agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW)
    for port in (6000, 6001):
        agent.add_remote(named(NAME.upper().replace("LOCAL", "local."), port=port), now=NOW)
    assert queries(agent) == []
    assert [view.remote_address.port for view in agent.pairs()] == [6000, 6001]


def test_names_are_looked_up_in_every_generation(agent: IceAgent) -> None:
    """An agent's life once had 16 look-ups."""
    for generation in range(40):
        agent.add_remote(named(f"host{generation}.local"), now=NOW)
        [query] = queries(agent)
        agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW)
        assert len(agent.pairs()) == 1
        description = Description(
            ufrag=f"them{generation}", password="theirpasswordtheirpass", generation=generation + 1
        )
        agent.set_remote(description, now=NOW)
        assert agent.pairs() == [] and agent.why().data["names"] == {}


def test_an_answer_after_a_restart_is_not_for_the_new_generation(agent: IceAgent) -> None:
    agent.add_remote(named(), now=NOW)
    [query] = queries(agent)
    agent.restart(now=NOW)
    agent.set_remote(Description(ufrag="them2", password="theirpasswordtheirpass", generation=1), now=NOW)
    assert not agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW)
    assert agent.pairs() == [] and agent.remote_candidates() == []


def test_a_candidate_that_names_its_ufrag_finds_its_generation(agent: IceAgent) -> None:
    """It may arrive before the description of its restart, and its answer after it."""
    line = f"candidate:1 1 udp 2122252543 {NAME} 6000 typ host ufrag "
    agent.add_remote(Candidate.parse(line + "them2"), now=NOW)
    agent.add_remote(Candidate.parse(line.replace("6000", "6001") + "them"), now=NOW)
    [query] = queries(agent)
    agent.set_remote(Description(ufrag="them2", password="theirpasswordtheirpass", generation=1), now=NOW)
    assert agent.receive(Resolved(query=query, hosts=("192.168.0.2",)), now=NOW)
    assert [view.remote_address.port for view in agent.pairs()] == [6000]


def test_a_name_that_is_not_resolved_is_in_the_report(agent: IceAgent) -> None:
    agent.add_remote(named(), now=NOW)
    assert agent.why().data["names"] == {NAME: "is looked up"}
    [query] = queries(agent)
    agent.receive(Resolved(query=query, error=f"{NAME}: no answer within 5 s"), now=NOW)
    assert f"remote name {NAME} was not resolved: no answer within 5 s" in str(agent.why())
    agent.add_remote(named(), now=NOW)
    [again] = queries(agent)
    assert agent.receive(Resolved(query=again, hosts=("192.168.0.2",)), now=NOW) and agent.pairs()


@pytest.mark.parametrize("name", ["host.example.org", "localhost", "local.example", "notlocal"])
def test_other_names_than_local_ones_are_ignored_unless_asked_for(name: str) -> None:
    """RFC 8839, section 5.1."""
    for fqdn in (False, True):
        agent = IceAgent(IceConfig(fqdn=fqdn), random=Random(1), pacer=Pacer())
        agent.add_remote(named(name), now=NOW)
        assert len(queries(agent)) == fqdn
        assert ("is ignored: only names that end with .local" in str(agent.why())) is not fqdn


def test_local_names_are_an_option() -> None:
    agent = IceAgent(IceConfig(mdns=False), random=Random(1), pacer=Pacer())
    agent.add_remote(named(), now=NOW)
    assert queries(agent) == [] and f"remote name {NAME} is ignored" in str(agent.why())
