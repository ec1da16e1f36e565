"""Every order of things: two agents, and whatever is under way between them arrives in each order that there is.

`Orders` is a `World` without delays: packets and signaling messages lie in a pool, and what happens next is a choice:
any of them arrives, the next timer fires, and, as far as the budget goes, one is lost, arrives twice, or a side
restarts. `search` takes every choice at every point, depth first. A point that is like one that was seen before (the
same states, the same things under way, times that differ by less than `STEP`) is not looked at again: so all that can
happen is covered, though not all ways to get there are walked. In the end there must be a way from every point to one
where both are through.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.ice import AgentState, IceConfig, Restarted
from polynya.ice.description import Description
from polynya.stun.attributes import ERROR_CODE, ICE_CONTROLLED, ICE_CONTROLLING, NOMINATION, USE_CANDIDATE, USERNAME
from tests.ice.harness import Packet, Side, World

PACE = 60 * MILLISECOND
"""A timer that is due within this is the pacing's, and may always fire while packets are under way."""
STEP = 50 * MILLISECOND
TOO_LONG = 300 * SECOND

Choice = tuple[str, int]


@dataclass(slots=True)
class Under:
    """Something under way. `channel` is who sent it, and how: what goes by one channel may arrive in order."""

    channel: tuple[str, bool]
    label: Hashable
    arrive: Callable[[], None]
    packet: Packet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How often each event besides an arrival may happen in one run."""

    overtakes: int = 99
    """Arrivals before something that was sent earlier, by the same side and by the same way."""
    late: int = 0
    """Timers other than the pacing's that fire while something is under way."""
    losses: int = 0
    duplicates: int = 0
    restarts: tuple[str, ...] = ()
    """Who restarts once, at any moment."""
    turns: int = 0
    """Changes of role by hand."""


class Orders(World):
    """Two hosts on one network. `hosts` is the number of addresses of each."""

    traced = False

    def __init__(
        self, budget: Budget, a: IceConfig, b: IceConfig, *, hosts: tuple[int, int] = (1, 1), trickle: bool = False
    ) -> None:
        self.pool: list[Under] = []
        self.budget = budget
        self.spent = dict.fromkeys(("overtake", "late", "lose", "twice", "restart a", "restart b", "turn"), 0)
        self.settling = a.nomination.bound > 0 or b.nomination.bound > 0
        """Whether it matters how long ago things were."""
        self._sender = ""
        self._label: Hashable = None
        self._packet: Packet | None = None
        super().__init__(1, a=a, b=b, signal=trickle)
        self.a.trickle = self.b.trickle = trickle
        self.a.agent.role.tie_breaker, self.b.agent.role.tie_breaker = 1, 2
        for side, count, network in ((self.a, hosts[0], 1), (self.b, hosts[1], 2)):
            for number in range(count):
                side.host(f"192.168.0.{10 * network + number}")
            side.end()
        if not trickle:
            self.tell(self.a)
            self.tell(self.b)

    def tell(self, side: Side) -> None:
        """Signal a side's description with all its candidates at once."""
        agent, other = side.agent, self.other(side).agent
        description, candidates = agent.local_description, [local.candidate for local in agent.local_candidates()]

        def arrive() -> None:
            other.set_remote(description, now=self.now)
            for candidate in candidates:
                other.add_remote(candidate, now=self.now)
            other.end_of_remote_candidates(now=self.now)

        self._sender, self._label = side.name, ("all", description.ufrag)
        self.later(0, arrive)

    # ---------------------------------------------------------------------------------------- what is under way, named

    def later(self, delay: int, action: Callable[[], None]) -> None:
        self.pool.append(Under((self._sender, self._packet is None), self._label, action, self._packet))

    def _send(self, side: Side, send: Any) -> None:
        message = Packet(self.now, side.sockets[send.flow], send.remote, send.data, side.name)
        self._sender, self._packet = side.name, message
        super()._send(side, send)
        self._packet = None

    def describe(self, side: Side) -> None:
        self._sender, self._label = side.name, ("description", side.agent.local_description.ufrag)
        super().describe(side)

    def signal(self, side: Side, event: Any) -> None:
        if isinstance(event, Restarted) and not side.trickle:
            self.tell(side)
        self._sender, self._label = side.name, ("signal", str(event))
        super().signal(side, event)

    # --------------------------------------------------------------------------------------------------------- choices

    def choices(self) -> list[Choice]:
        """Return the possible events; none once both agents are done and no message is under way."""
        if not self.pool and self.through():
            return []
        found = [("arrive", index) for index in self._different() if self._in_turn(index)]
        due = self._due()
        if due is not None and (not self.pool or due <= self.now + PACE or self._may("late", self.budget.late)):
            found.append(("tick", 0))
        if self._may("lose", self.budget.losses):
            found += [("lose", index) for index in self._different() if self.pool[index].packet]
        if self._may("twice", self.budget.duplicates):
            found += [("twice", index) for index in self._different() if self.pool[index].packet]
        for index, side in enumerate((self.a, self.b)):
            if side.name in self.budget.restarts and not self.spent[f"restart {side.name}"]:
                found.append(("restart", index))
            if self._may("turn", self.budget.turns):
                found.append(("turn", index))
        return found

    def take(self, choice: Choice) -> None:
        kind, index = choice
        side = (self.a, self.b)[index] if index < 2 else self.a
        if kind == "tick":
            due = self._due()
            assert due is not None
            self.spent["late"] += bool(self.pool) and due > self.now + PACE
            self.now = max(self.now, due)
            for each in (self.a, self.b):
                each.agent.tick(now=self.now)
        elif kind == "restart":
            self.spent[f"restart {side.name}"] += 1
            side.agent.restart(now=self.now)
        elif kind == "turn":
            self.spent[kind] += 1
            side.agent.set_controlling(not side.agent.controlling, now=self.now)
        else:
            self.spent[kind] = self.spent.get(kind, 0) + 1
            if kind == "arrive" and self.budget.overtakes < 99:
                self.spent["overtake"] += not self._oldest(index)
            under = self.pool[index] if kind == "twice" else self.pool.pop(index)
            if kind != "lose":
                under.arrive()
        self.drain()

    def _may(self, kind: str, limit: int) -> bool:
        return self.spent[kind] < limit

    def _oldest(self, index: int) -> bool:
        channel = self.pool[index].channel
        return all(under.channel != channel for under in self.pool[:index])

    def _in_turn(self, index: int) -> bool:
        return self._may("overtake", self.budget.overtakes) or self._oldest(index)

    def _different(self) -> Iterator[int]:
        """One of each kind of what is under way."""
        seen: set[Hashable] = set()
        for index, under in enumerate(self.pool):
            name = self._name(under)
            if name not in seen:
                seen.add(name)
                yield index

    def _due(self) -> Instant | None:
        timers = (side.agent.next_timer() for side in (self.a, self.b))
        return min((at for at in timers if at is not None), default=None)

    def through(self) -> bool:
        """Both have completed, in one generation, with roles that differ.

        A role that is changed by hand late shows in consent checks only, and there are none here.
        """
        agents = [side.agent for side in (self.a, self.b)]
        return (
            all(agent.state is AgentState.COMPLETED and len(agent.generations) == 1 for agent in agents)
            and len({agent.local_description.generation for agent in agents}) == 1
            and (self.spent["turn"] > 0 or agents[0].controlling is not agents[1].controlling)
        )

    # ------------------------------------------------------------------------------------------------------ fingerprint

    def fingerprint(self) -> Hashable:
        """All that decides what can happen from here on."""
        under = [(under.channel, repr(self._name(under))) for under in self.pool]
        under.sort(key=None if self.budget.overtakes >= 99 else lambda each: each[0])
        spent = tuple(value for kind, value in self.spent.items() if kind != "arrive")
        return tuple(under), spent, self._agent(self.a), self._agent(self.b)

    def _name(self, under: Under) -> Hashable:
        packet = under.packet
        if packet is None:
            return under.channel, under.label
        message = packet.message
        error = message.get(ERROR_CODE)
        attributes = (USERNAME, USE_CANDIDATE, NOMINATION, ICE_CONTROLLED, ICE_CONTROLLING)
        asked = [
            self._transaction(generation.transactions.by_id[message.transaction_id])
            for side in (self.a, self.b)
            for generation in side.agent.generations
            if message.transaction_id in generation.transactions
        ]
        said = tuple(str(message.get(attribute)) for attribute in attributes)
        kind = message.cls.name, None if error is None else error.code, *said
        return str(packet.source), str(packet.destination), kind, tuple(asked)

    def _transaction(self, transaction: Any) -> Hashable:
        check, state = transaction.context, transaction.state.name
        due = None if state == "QUIET" else self._ago(transaction.next_timer())
        about = str(check.pair.path), check.nominate, check.nomination, check.controlling, check.triggered
        return *about, state, transaction.sends, due

    def _agent(self, side: Side) -> Hashable:
        agent = side.agent
        generations = tuple(self._generation(each) for each in agent.generations)
        pacing = agent.pacing
        last = pacing.waits(now=self.now)
        selected = tuple((str(one.pair.path), one.nominated, one.generation.number) for one in agent.selections.all)
        role = agent.controlling, agent.role.tie_breaker
        return role, agent.state, generations, last, selected

    def _generation(self, generation: Any) -> Hashable:
        checklist = generation.checklists.lists[0]
        remote: Description | None = generation.remote
        return (
            generation.number,
            generation.local.ufrag,
            None if remote is None else remote.ufrag,
            generation.remote_ended,
            tuple(sorted(map(str, checklist.remotes))),
            tuple(map(str, generation.pending)),
            tuple((str(check.remote), check.remote_ufrag, check.nominate) for check, _ in generation.early),
            tuple(str(pair.path) for pair in checklist.triggered),
            tuple(map(self._pair, checklist.pairs)),
            tuple(sorted(repr(self._transaction(one)) for one in generation.transactions.by_id.values())),
        )

    def _pair(self, pair: Any) -> Hashable:
        flags = pair.writable, pair.readable, pair.valid, pair.nominated, pair.revoked, pair.answered_from is not None
        nomination = pair.nominating, pair.nominate_on_success, pair.nomination, pair.nominated_order
        times = (self._ago(pair.tried_at), self._ago(pair.valid_at), pair.rtt) if self.settling else ()
        return str(pair.path), pair.remote.type.name, pair.state.name, flags, nomination, times

    def _ago(self, at: int | None) -> int | None:
        """How long ago, or until then, in coarse steps: the few milliseconds of the pacing make no difference."""
        return None if at is None else (at - self.now) // STEP


@dataclass(slots=True)
class Found:
    """Result of a search."""

    points: int = 0
    ends: int = 0
    """Different points at which all was over."""
    faults: list[str] = field(default_factory=list)
    """Violations, with the choices that lead to them."""


def search(make: Callable[[], Orders], *, limit: int = 1_000_000) -> Found:
    """Take every choice at every point, and see that an end can be reached from each. The first fault ends it."""
    found = Found()
    ways: dict[int, tuple[Choice, ...]] = {}
    before: dict[int, list[int]] = {}
    ends: list[int] = []
    stack: list[tuple[tuple[Choice, ...], int]] = [((), 0)]
    while stack and not found.faults:
        way, parent = stack.pop()
        world = make()
        for choice in way:
            world.take(choice)
        while True:
            key = hash(world.fingerprint())
            before.setdefault(key, []).append(parent)
            if key in ways:
                break
            ways[key], parent = way, key
            assert len(ways) <= limit, "there are more points than this search is meant for"
            choices = world.choices()
            if why := _fault(world, over=not choices):
                found.faults.append(f"{why} after {list(way)}")
                break
            if not choices:
                ends.append(key)
                break
            stack += [((*way, choice), key) for choice in choices[1:]]
            way += (choices[0],)
            world.take(choices[0])
    found.points, found.ends = len(ways), len(ends)
    if not found.faults:
        found.faults += [f"there is no end after {list(ways[key])}" for key in _endless(ways, before, ends)[:1]]
    return found


def _endless(points: Iterable[int], before: dict[int, list[int]], ends: list[int]) -> list[int]:
    """The points from which no end can be reached."""
    reached: set[int] = set()
    stack = list(ends)
    while stack:
        key = stack.pop()
        if key not in reached:
            reached.add(key)
            stack += before.get(key, ())
    return [key for key in points if key not in reached]


def _fault(world: Orders, *, over: bool) -> str:
    """Return the violation at this point, or an empty text."""
    for side in (world.a, world.b):
        for view in side.agent.pairs():
            if view.nominated and not view.valid:
                return f"{side.name} has nominated {view}, which is not valid"
        if side.agent.state is AgentState.FAILED:
            return f"{side.name} has failed: {side.agent.reason}"
    if over and not world.same_path():
        return f"the two sides ended on {world.a.path} and {world.b.path}"
    if world.now > world.started + TOO_LONG:
        return f"nothing is decided: {world.a.agent.why()}; {world.b.agent.why()}"
    return ""
