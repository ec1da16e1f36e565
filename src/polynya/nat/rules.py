"""Which NATs can plain ICE connect through? Derived from the rules of mapping and filtering, in the abstract.

Two agents stand behind a NAT each. Both have asked one STUN server for their external endpoint and told each other
the answer. Then each sends checks to all it knows of the other. Ports are unknowable and stand for themselves: an
external endpoint *is* the side and the key of its mapping. A check from x to an endpoint e of y works when

    1. y's filtering lets in what comes from s, the endpoint that x's mapping gives to packets for e;
    2. y answers from the very endpoint e (RFC 8445, 7.2.5.2.1): y's mapping for s is e;
    3. x's filtering lets the answer in.

A check that arrives teaches y the endpoint s (a peer-reflexive candidate), even when its answer fails, and whatever is
sent opens filters. So checks go round until nothing new is learnt. Where inbound packets make sessions, it matters who
sends first; then every order is tried.

This shares no code with the NAT machine: the two are compared in tests and in the table that `polynya demo` shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from polynya.core.behavior import Behavior

from .config import FilterScope, NatConfig

Endpoint = tuple[Any, ...]
"""`(side, key)`: an external endpoint, named by the mapping that holds it."""

_SERVER: Endpoint = ("server", ())
_ROUNDS = 8
"""Two agents that answer each other from ever new endpoints never meet; so many rounds show every other case."""
_ORDERS = ("together", "first before second", "second before first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair that works, in the types of its candidates as the checking side sees them."""

    side: int
    """0 or 1: whose check it was."""
    local: str
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the rules imply for two NATs."""

    always: bool
    """A pair works whatever the order of the checks."""
    ever: bool
    """A pair works in some order."""
    pairs: tuple[Pair, ...]
    """The pairs that work in some order, without repetition."""

    @property
    def sure(self) -> bool:
        """Whether the order does not matter."""
        return self.always == self.ever


@lru_cache(maxsize=1024)
def expect(first: NatConfig | None, second: NatConfig | None) -> Expectation:
    """Whether plain ICE (host, server- and peer-reflexive candidates; no relay) connects through two NATs.

    None stands for no NAT at all. Ports cannot be guessed; mappings and permissions do not end meanwhile.
    """
    outcomes = [_meet(first, second, order) for order in _ORDERS]
    pairs = tuple(dict.fromkeys(pair for outcome in outcomes for pair in outcome))
    return Expectation(always=all(outcomes), ever=any(outcomes), pairs=pairs)


class _Side:
    """One agent behind its NAT."""

    def __init__(self, name: str, config: NatConfig | None) -> None:
        self.name = name
        self.config = config or NatConfig(mapping=Behavior.EI, filtering=Behavior.EI)
        self.known: list[Endpoint] = []
        self._keys: dict[Endpoint, Endpoint] = {}
        self._permits: dict[tuple[Endpoint, Endpoint], bool] = {}
        self.reflexive = self.send(_SERVER)

    def send(self, remote: Endpoint) -> Endpoint:
        """Send to an endpoint: the endpoint that it is sent from. Opens the filter."""
        key = _count(self.config.mapping, remote)
        mapping = self._keys.setdefault(key, (self.name, key))
        self._permits[self._scope(mapping), _count(self.config.filtering, remote)] = True
        return mapping

    def lets_in(self, source: Endpoint, own: Endpoint) -> bool:
        """Whether what comes from `source` to the own external endpoint reaches the agent."""
        if own not in self._keys.values():
            return False
        if self.config.filtering is not Behavior.EI:
            permit = (self._scope(own), _count(self.config.filtering, source))
            if permit not in self._permits:
                return False
        if self.config.inbound_sessions:
            self._keys.setdefault(_count(self.config.mapping, source), own)
        return True

    def learn(self, endpoint: Endpoint) -> None:
        if endpoint not in self.known:
            self.known.append(endpoint)

    def _scope(self, mapping: Endpoint) -> Endpoint:
        return mapping if self.config.filter_scope is FilterScope.MAPPING else ()

    def state(self) -> tuple[int, ...]:
        return len(self.known), len(self._keys), len(self._permits)


def _count(behavior: Behavior, remote: Endpoint) -> Endpoint:
    """As much of a remote endpoint as the behavior counts; a side is one host."""
    if behavior is Behavior.EI:
        return ()
    return (remote[0],) if behavior is Behavior.AD else remote


def _meet(first: NatConfig | None, second: NatConfig | None, order: str) -> list[Pair]:
    sides = _Side("first", first), _Side("second", second)
    sides[0].learn(sides[1].reflexive)
    sides[1].learn(sides[0].reflexive)
    works: dict[Pair, None] = {}
    for _ in range(_ROUNDS):
        before = (sides[0].state(), sides[1].state(), len(works))
        if order == "together":
            sent = [(i, remote, sides[i].send(remote)) for i in (0, 1) for remote in list(sides[i].known)]
            for i, remote, source in sent:
                _arrive(sides, i, remote, source, works)
        else:
            for i in (0, 1) if order == _ORDERS[1] else (1, 0):
                for remote in list(sides[i].known):
                    _arrive(sides, i, remote, sides[i].send(remote), works)
        if (sides[0].state(), sides[1].state(), len(works)) == before:
            break
    return list(works)


def _arrive(sides: tuple[_Side, _Side], i: int, remote: Endpoint, source: Endpoint, works: dict[Pair, None]) -> None:
    """A check of side `i` is on its way from `source` to `remote`."""
    sender, receiver = sides[i], sides[1 - i]
    if not receiver.lets_in(source, remote):
        return
    receiver.learn(source)
    answered_from = receiver.send(source)
    if answered_from != remote or not sender.lets_in(remote, source):
        return
    local = "srflx" if source == sender.reflexive else "prflx"
    works[Pair(side=i, local=local, remote="srflx" if remote == receiver.reflexive else "prflx")] = None
