"""Resolution of remote candidates that have a name in place of an address (RFC 8839, 5.1; mDNS candidates, 3.2).

    ignored    another name than `.local`, unless `IceConfig.fqdn` asks for it; `.local` without `IceConfig.mdns`
    queued     while `LIMIT` look-ups of this generation are pending, until one of them ends
    pending    looked up; all candidates of the name wait for one answer
    resolved   each address makes a candidate; a repeated candidate takes the known addresses
    failed     the reason is in the report; a repeated candidate is looked up again

The other side chooses the names, so each generation looks up at most `TOTAL`. An answer of an earlier generation is
ignored, unless the candidate names its ufrag: then `Generation.add_remote` decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from polynya.core.addresses import Address
from polynya.core.compact import Queue, Table
from polynya.core.errors import DecodeError
from polynya.core.machine import Resolve, Resolved

from .candidates import Candidate

LIMIT: Final = 16
"""Look-ups of one generation that are pending at a time."""
TOTAL: Final = 256
"""Look-ups of one generation, its names in the report, and its candidates that wait."""
FIRST_TOKEN: Final = 1 << 32
"""Token of the first query; those of gathering are smaller, so that no answer reaches the wrong query."""


class _Waiting(NamedTuple):
    """A candidate that waits for its name."""

    candidate: Candidate
    stream: int
    bound: bool
    """Whether it belongs to the generation in which it arrived."""


@dataclass(slots=True)
class _Name:
    """A name of this generation."""

    outcome: str = "is looked up"
    """For people: what became of it."""
    query: Resolve | None = None
    """The pending look-up."""
    waiting: list[_Waiting] = field(default_factory=list)
    hosts: tuple[str, ...] = ()


class Names:
    """The names of one agent's remote candidates."""

    __slots__ = ("_asked", "_fqdn", "_mdns", "_names", "_ready", "_token")

    def __init__(self, *, mdns: bool = True, fqdn: bool = False) -> None:
        self._mdns = mdns
        self._fqdn = fqdn
        self._asked = 0
        """Look-ups of this generation so far."""
        self._token = FIRST_TOKEN
        self._names: Table[str, _Name] = Table()
        self._ready: Queue[tuple[Candidate, int]] = Queue()

    def expects(self, query: Resolve) -> bool:
        """Return whether a query of this agent is pending."""
        return any(name.query == query for name in self._names.values())

    def look_up(self, candidate: Candidate, text: str, stream: int, *, bound: bool) -> str:
        """Let a candidate wait for its name, and return the outcome for the trace; `queries` and `found` follow.

        `bound`: the candidate is lost with the present generation.
        """
        key = text.rstrip(".").lower()
        name = self._names.get(key)
        refused = self._refusal(key, new=name is None)
        if refused:
            if len(self._names) < TOTAL:
                self._names[key] = _Name(outcome=f"is ignored: {refused}")
            return f"dropped: {refused}"
        if name is None:
            name = self._names[key] = _Name()
        if name.hosts:
            self._add(candidate, stream, name.hosts)
            return "its name is known"
        entry = _Waiting(candidate, stream, bound)
        if entry not in name.waiting:
            name.waiting.append(entry)
        return "its name is looked up"

    def _refusal(self, key: str, *, new: bool) -> str:
        """Return why a name is not looked up, or nothing."""
        if key == "local" or key.endswith(".local"):
            if not self._mdns:
                return "names of the local network are not looked up here"
        elif not self._fqdn:
            return "only names that end with .local are looked up, unless IceConfig(fqdn=True) asks for all"
        if new and (self._asked >= TOTAL or len(self._names) >= TOTAL):
            return f"{TOTAL} names of this generation are known"
        if sum(len(name.waiting) for name in self._names.values()) >= TOTAL:
            return f"{TOTAL} candidates wait for their names"
        return ""

    def queries(self) -> list[Resolve]:
        """Return the look-ups to make now."""
        free = LIMIT - sum(name.query is not None for name in self._names.values())
        made: list[Resolve] = []
        for key, name in self._names.items():
            if free <= len(made) or self._asked >= TOTAL:
                break
            if name.waiting and name.query is None:
                name.query = Resolve(name=key, token=self._token, by_peer=True)
                name.outcome = "is looked up"
                self._token += 1
                self._asked += 1
                made.append(name.query)
        return made

    def resolved(self, answer: Resolved) -> None:
        """Handle the answer to a query: each usable address makes a candidate of each that waits."""
        for key, name in self._names.items():
            if name.query == answer.query:
                waiting, name.waiting, name.query = name.waiting, [], None
                name.hosts = tuple(dict.fromkeys(host for host in answer.hosts if _usable(host)))
                reason = answer.error.removeprefix(f"{key}: ") or "it has no usable address"
                found = f"has the address{'es' if len(name.hosts) > 1 else ''} {', '.join(name.hosts)}"
                name.outcome = found if name.hosts else f"was not resolved: {reason}"
                for candidate, stream, _ in waiting:
                    self._add(candidate, stream, name.hosts)

    def found(self) -> list[tuple[Candidate, int]]:
        """Return and remove the candidates whose names are known, one for each address, and their streams."""
        return self._ready.drain()

    def renew(self) -> None:
        """Begin a new generation: only candidates that may belong to it still wait."""
        for key, name in list(self._names.items()):
            name.waiting = [entry for entry in name.waiting if not entry.bound]
            if not name.waiting:
                del self._names[key]
        self._asked = sum(name.query is not None for name in self._names.values())

    @property
    def outcomes(self) -> dict[str, str]:
        """The result of each name of this generation, for people."""
        return {key: name.outcome for key, name in self._names.items()}

    def _add(self, candidate: Candidate, stream: int, hosts: tuple[str, ...]) -> None:
        for host in hosts:
            self._ready.append((replace(candidate, address=Address.of(host, candidate.address.port)), stream))


def _usable(host: str) -> bool:
    try:
        Address.of(host, 0)
    except DecodeError:
        return False
    return True
