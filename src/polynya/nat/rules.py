"""Predicts which pairs of NATs plain ICE connects through, from the rules of mapping and filtering alone.

Two agents are behind one NAT each. Both have sent a request to one STUN server and signaled the mapped address. Then
each sends checks to all known candidates of the other. Ports cannot be guessed, so the model has none: an external
endpoint is the side and the key of its mapping. A check from x to an endpoint e of y succeeds if

    1. y's filtering accepts packets from s, where s is x's mapping for packets to e;
    2. y answers from the endpoint e (RFC 8445, 7.2.5.2.1): y's mapping for s is e;
    3. x's filtering accepts the answer.

A check that arrives gives y the endpoint s (a peer-reflexive candidate), even if its answer is lost. Every packet sent
creates permissions. So the model repeats the checks until nothing changes. If inbound packets create sessions, the
order of the checks matters; then the model tries every order.

The model shares no code with the NAT machine. Tests and the table of `polynya demo` compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from polynya.core.behavior import Behavior

from .config import FilterScope, NatConfig

Endpoint = tuple[Any, ...]
"""An external endpoint as `(side, key of its mapping)`."""

_SERVER: Endpoint = ("server", ())
_ROUNDS = 8
"""Agents that answer from a new endpoint each time never connect. Every other case is decided in this many rounds."""
_ORDERS = ("together", "first before second", "second before first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A pair whose check succeeds, by the candidate types that the checking side sees."""

    side: int
    """The side that sent the check: 0 or 1."""
    local: str
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The prediction for two NATs."""

    always: bool
    """A pair succeeds in every order of the checks."""
    ever: bool
    """A pair succeeds in some order."""
    pairs: tuple[Pair, ...]
    """The pairs that succeed in some order, without repetition."""

    @property
    def sure(self) -> bool:
        """Whether the result is the same in every order."""
        return self.always == self.ever


@lru_cache(maxsize=1024)
def expect(first: NatConfig | None, second: NatConfig | None) -> Expectation:
    """Predict whether plain ICE (host, server- and peer-reflexive candidates; no relay) connects through two NATs.

    None means no NAT. Ports cannot be guessed; mappings and permissions do not expire.
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
        """Send to an endpoint and permit its answers. Return the external source endpoint."""
        key = _key(self.config.mapping, remote)
        mapping = self._keys.setdefault(key, (self.name, key))
        self._permits[self._scope(mapping), _key(self.config.filtering, remote)] = True
        return mapping

    def accepts(self, source: Endpoint, own: Endpoint) -> bool:
        """Whether a packet from `source` to the external endpoint `own` reaches the agent."""
        if own not in self._keys.values():
            return False
        if self.config.filtering is not Behavior.EI:
            permit = (self._scope(own), _key(self.config.filtering, source))
            if permit not in self._permits:
                return False
        if self.config.inbound_sessions:
            self._keys.setdefault(_key(self.config.mapping, source), own)
        return True

    def learn(self, endpoint: Endpoint) -> None:
        if endpoint not in self.known:
            self.known.append(endpoint)

    def _scope(self, mapping: Endpoint) -> Endpoint:
        return mapping if self.config.filter_scope is FilterScope.MAPPING else ()

    def state(self) -> tuple[int, ...]:
        return len(self.known), len(self._keys), len(self._permits)


def _key(behavior: Behavior, remote: Endpoint) -> Endpoint:
    """Return the part of a remote endpoint that the behavior uses; a side is one host."""
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
    """Deliver a check of side `i` from `source` to `remote`."""
    sender, receiver = sides[i], sides[1 - i]
    if not receiver.accepts(source, remote):
        return
    receiver.learn(source)
    answered_from = receiver.send(source)
    if answered_from != remote or not sender.accepts(remote, source):
        return
    local = "srflx" if source == sender.reflexive else "prflx"
    works[Pair(side=i, local=local, remote="srflx" if remote == receiver.reflexive else "prflx")] = None
