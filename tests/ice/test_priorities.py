"""Candidate and pair priorities (RFC 8445, sections 5.1.2 and 6.1.2.3; RFC 8421)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.addresses import Address
from polynya.ice.candidates import (
    candidate_priority,
    local_preference_of,
    next_preference,
    pair_priority,
    unique_priority,
)

priorities = st.integers(1, 2**31 - 1)


@pytest.mark.parametrize(
    ("type_preference", "local", "component", "priority"),
    [
        (126, 65535, 1, 2130706431),  # RFC 8839, section 5.1's and appendix B's host candidate
        (100, 65535, 1, 1694498815),  # the server-reflexive one beside it
        (126, 65535, 2, 2130706430),
        (110, 65535, 1, 1862270975),
        (0, 65535, 1, 16777215),
        (0, 0, 256, 0),
    ],
)
def test_candidates_have_the_priorities_of_the_rfcs_examples(
    type_preference: int, local: int, component: int, priority: int
) -> None:
    assert candidate_priority(type_preference, local, component) == priority
    assert local_preference_of(priority) == local


@pytest.mark.parametrize("terms", [(127, 0, 1), (-1, 0, 1), (0, 65536, 1), (0, 0, 0), (0, 0, 257)])
def test_terms_out_of_range_are_refused(terms: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no priority"):
        candidate_priority(*terms)


def test_a_pair_of_two_hosts_has_the_priority_that_the_formula_says() -> None:
    g, d = 2130706431, 1694498815
    assert pair_priority(g, d) == 2**32 * d + 2 * g + 1
    assert pair_priority(d, g) == 2**32 * d + 2 * g
    assert pair_priority(g, g) == 2**32 * g + 2 * g


@given(priorities, priorities, priorities, priorities)
def test_the_worse_candidate_of_a_pair_decides_then_the_better(a: int, b: int, c: int, d: int) -> None:
    """Section 6.1.2.3: 2^32 * min + 2 * max + (G > D)."""
    first, second = pair_priority(a, b), pair_priority(c, d)
    if (min(a, b), max(a, b)) > (min(c, d), max(c, d)):
        assert first > second
    assert pair_priority(a, b) == pair_priority(b, a) + (1 if a > b else -1 if a < b else 0)


def test_families_are_interleaved_and_link_local_comes_last() -> None:
    """RFC 8421, section 4: neither family waits for all of the other."""
    hosts = ["192.0.2.1", "192.0.2.2", "fe80::1", "2001:db8::1", "2001:db8::2", "169.254.1.1"]
    given_out: dict[str, int] = {}
    for host in hosts:
        given_out[host] = next_preference(Address(host, 1), given_out.values())
    order = sorted(hosts, key=lambda host: -given_out[host])
    assert order == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "fe80::1", "169.254.1.1"]


def test_no_two_candidates_of_a_component_share_a_priority() -> None:
    """Section 5.1.2: each candidate has a priority of its own."""
    wanted = candidate_priority(100, 65535, 1)
    given_out: list[int] = []
    for _ in range(5):
        given_out.append(unique_priority(wanted, given_out))
    assert given_out == [wanted - 256 * index for index in range(5)]


def test_three_hundred_addresses_still_get_preferences_in_range() -> None:
    given_out: list[int] = []
    for n in range(300):
        given_out.append(next_preference(Address(f"192.0.2.{n % 256}", n), given_out))
    assert all(0 <= preference <= 65535 for preference in given_out)
