"""Local candidates: foundations, priorities, redundancy (RFC 8445, sections 5.1.1.3, 5.1.2 and 5.1.3)."""

from __future__ import annotations

from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.ice.candidates import CandidateType, Gathered, LocalCandidate, LocalCandidates

HOST = Address("10.0.0.1", 5000)
MAPPED = Address("198.51.100.1", 40000)


def host(address: Address = HOST, flow: int = 1, **more: Any) -> Gathered:
    return Gathered(type=CandidateType.HOST, address=address, flow=Flow(flow), **more)


def reflexive(
    address: Address = MAPPED, base: Address = HOST, flow: int = 1, server: str = "203.0.113.1", **more: Any
) -> Gathered:
    return Gathered(
        type=CandidateType.SERVER_REFLEXIVE, address=address, base=base, flow=Flow(flow), server=server, **more
    )


def added(*found: Gathered) -> list[LocalCandidate]:
    candidates = LocalCandidates()
    results = [candidates.add(gathered) for gathered in found]
    assert all(isinstance(result, LocalCandidate) for result in results), results
    return [result for result in results if isinstance(result, LocalCandidate)]


def test_foundations_are_equal_for_equal_type_base_server_and_transport_only() -> None:
    """Section 5.1.1.3."""
    other_port = Address("10.0.0.1", 5001)
    other_host = Address("10.0.0.2", 5000)
    found = added(
        host(),
        host(other_port, 2),
        host(other_host, 3),
        reflexive(),
        reflexive(Address("198.51.100.1", 40001), other_port, 2),
        reflexive(Address("198.51.100.1", 40002), server="203.0.113.2"),
        reflexive(Address("198.51.100.1", 40003), other_host, 3),
    )
    foundations = [local.candidate.foundation for local in found]
    assert foundations[0] == foundations[1]
    assert foundations[3] == foundations[4]
    assert len({foundations[0], foundations[2], foundations[3], foundations[5], foundations[6]}) == 5


def test_the_same_address_with_the_same_base_is_redundant() -> None:
    """Section 5.1.3: two servers that see the same mapping, or no NAT at all."""
    candidates = LocalCandidates()
    candidates.add(host())
    candidates.add(reflexive())
    assert candidates.add(reflexive(server="203.0.113.2")) == "redundant with srflx 198.51.100.1:40000"
    assert candidates.add(reflexive(HOST)) == "redundant with host 10.0.0.1:5000"
    assert len(candidates.all) == 2


def test_a_relayed_candidate_that_is_a_host_candidate_is_discarded() -> None:
    """Section 5.1.1.2: a TURN server on this very host may hand out an address that we have bound."""
    candidates = LocalCandidates()
    host = Gathered(type=CandidateType.HOST, address=Address("192.0.2.1", 5000), flow=Flow(1))
    candidates.add(host)
    relayed = Gathered(type=CandidateType.RELAYED, address=Address("192.0.2.1", 5000), flow=Flow(2))
    assert candidates.add(relayed) == "the relayed address is our own host 192.0.2.1:5000"
    assert isinstance(
        candidates.add(Gathered(type=CandidateType.RELAYED, address=Address("192.0.2.1", 6000), flow=Flow(2))),
        LocalCandidate,
    )


def test_a_reflexive_candidate_tells_its_base_and_ranks_with_it() -> None:
    one, two, of_two = added(
        host(), host(Address("10.0.0.2", 5000), 2), reflexive(base=Address("10.0.0.2", 5000), flow=2)
    )
    assert of_two.candidate.related == of_two.base == Address("10.0.0.2", 5000)
    assert of_two.preference == two.preference < one.preference


def test_another_related_address_can_be_told_to_hide_the_base() -> None:
    """RFC 8839, section 5.1: the related address may be replaced where it must not be known."""
    [local] = added(reflexive(related=Address("0.0.0.0", 9)))
    assert "raddr 0.0.0.0 rport 9" in str(local.candidate)


def test_the_base_stands_for_its_flow_whatever_came_first() -> None:
    candidates = LocalCandidates()
    candidates.add(reflexive())
    only = candidates.base(Flow(1))
    assert only is not None and only.type is CandidateType.SERVER_REFLEXIVE
    candidates.add(host())
    base = candidates.base(Flow(1))
    assert base is not None and base.type is CandidateType.HOST
    assert candidates.base(Flow(9)) is None


def test_a_preference_that_is_given_is_kept() -> None:
    [local] = added(host(preference=7))
    assert local.candidate.priority == (126 << 24) + (7 << 8) + 255


def test_priorities_are_never_shared_even_by_mappings_of_one_base() -> None:
    found = added(host(), *(reflexive(Address("198.51.100.1", 40000 + n), server=f"203.0.113.{n}") for n in range(9)))
    assert len({local.candidate.priority for local in found}) == 10


def test_what_an_answer_shows_becomes_peer_reflexive_once() -> None:
    """Section 7.2.5.3.1: its base is the candidate that the check left from, its priority the request's."""
    candidates = LocalCandidates()
    base = candidates.add(host())
    assert isinstance(base, LocalCandidate)
    learnt = candidates.peer_reflexive(base, MAPPED, 1862270975)
    assert (learnt.type, learnt.base, learnt.candidate.priority) == (CandidateType.PEER_REFLEXIVE, HOST, 1862270975)
    assert not learnt.advertise
    assert candidates.peer_reflexive(base, MAPPED, 1) is learnt
    assert candidates.peer_reflexive(base, HOST, 1) is base


def test_a_flow_that_is_gone_takes_its_candidates_with_it() -> None:
    candidates = LocalCandidates()
    candidates.add(host())
    candidates.add(reflexive())
    candidates.add(host(Address("10.0.0.2", 5000), 2))
    assert len(candidates.remove(Flow(1))) == 2
    assert [local.flow for local in candidates.all] == [Flow(2)]
