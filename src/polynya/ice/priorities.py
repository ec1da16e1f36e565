"""Candidate and pair priorities (RFC 8445, sections 5.1.2 and 6.1.2.3; RFC 8421 for dual stack).

A candidate's priority is `2^24 * type + 2^8 * local + (256 - component)`. The type preference orders host above
peer-reflexive above server-reflexive above relayed. The local preference orders the addresses of one host: the first
IPv6 address, the first IPv4 address, the second IPv6 address and so on, so that neither family waits for all of the
other (RFC 8421, section 4). Every candidate of a component gets a priority of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

from polynya.core.addresses import IPV6, Address, scope

HOST: Final = 126
PEER_REFLEXIVE: Final = 110
SERVER_REFLEXIVE: Final = 100
RELAYED: Final = 0

HIGHEST_PREFERENCE: Final = 65535
PREFERENCE_STEP: Final = 256  # between two addresses; what lies between is for candidates that share a base
LINK_LOCAL_PREFERENCE: Final = 16384  # reaches no further than the link: after all that reaches further


# The agents of a process have the same few priorities: their numbers are kept once for all of them.


@lru_cache(maxsize=1024)
def candidate_priority(type_preference: int, local_preference: int, component: int) -> int:
    """The priority of a candidate (RFC 8445, section 5.1.2.1); ValueError where a term is out of its range."""
    if not (0 <= type_preference <= 126 and 0 <= local_preference <= 65535 and 1 <= component <= 256):
        raise ValueError(f"no priority for type {type_preference}, local {local_preference}, component {component}")
    return (type_preference << 24) + (local_preference << 8) + (256 - component)


def local_preference_of(priority: int) -> int:
    """The local preference inside a candidate's priority."""
    return (priority >> 8) & 0xFFFF


@lru_cache(maxsize=1024)
def pair_priority(controlling: int, controlled: int) -> int:
    """The priority of a pair from the candidate priorities of both sides (RFC 8445, section 6.1.2.3).

    Both agents compute the same number, whichever of them is local.
    """
    low, high = (controlling, controlled) if controlling < controlled else (controlled, controlling)
    return (low << 32) + 2 * high + (1 if controlling > controlled else 0)


def next_preference(address: Address, taken: Collection[int]) -> int:
    """The local preference of a component's next base: families interleaved, IPv6 begins, link-local comes last.

    `taken` are the preferences of the bases that are there.
    """
    start = LINK_LOCAL_PREFERENCE if scope(address.host) == "link-local" else HIGHEST_PREFERENCE
    preference = start - (0 if address.family == IPV6 else PREFERENCE_STEP)
    while preference in taken and preference >= 2 * PREFERENCE_STEP:
        preference -= 2 * PREFERENCE_STEP
    return _kept(preference)


@lru_cache(maxsize=1024)
def _kept(preference: int) -> int:
    return preference


def unique_priority(priority: int, taken: Collection[int]) -> int:
    """`priority`, or the nearest lower one that is not taken: the preference gives way, not the type."""
    while priority in taken and priority >= PREFERENCE_STEP:
        priority -= PREFERENCE_STEP
    return priority
