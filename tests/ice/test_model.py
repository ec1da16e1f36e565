"""The states of pairs and checklists against a model of RFC 8445's rules, for any order of events (hypothesis).

The model is written from the RFC's sections, not from the code: forming (6.1.2.6; RFC 8838, section 12), scheduling
(6.1.4.2), success and failure (7.2.5), the other side's checks (7.3.1), nomination (8.1). It predicts every state,
every check that is sent and when, and what is selected. Where the agent deviates on purpose (`docs/deviations.md`), so
does the model, at a line that says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant, in_seconds
from polynya.core.machine import Datagram, Send
from polynya.core.pacer import Pacer
from polynya.ice import (
    AgentState,
    Candidate,
    CandidateType,
    Description,
    Gathered,
    IceAgent,
    IceConfig,
    NominationPolicy,
)
from polynya.ice.candidates import candidate_priority
from polynya.ice.checks import request_check
from polynya.ice.roles import Role
from polynya.stun.attributes import USE_CANDIDATE, XOR_MAPPED_ADDRESS
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, ErrorCode

pytestmark = pytest.mark.slow

TA = 5 * MILLISECOND
RTO = 500 * MILLISECOND
COMPONENTS = (2, 1)
KEYS = ((0, 1), (0, 2), (1, 1))
FROZEN, WAITING, IN_PROGRESS, SUCCEEDED, FAILED = "frozen", "waiting", "in-progress", "succeeded", "failed"
OURS = Description(ufrag="ours", password="ourpasswordourpassword")
THEIRS = Description(ufrag="them", password="theirpasswordtheirpassword", options=("ice2",), pacing=in_seconds(TA))


# ---------------------------------------------------------------------------------------------------------- the model


@dataclass(eq=False)
class ModelPair:
    number: int
    stream: int
    component: int
    path: tuple[Flow, Address]
    foundation: tuple[str, str, str]
    local: Candidate
    remote: Candidate
    state: str = FROZEN
    valid: bool = False
    nominated: int = 0
    nominating: bool = False
    nominate_on_success: bool = False
    current: bytes | None = None
    current_triggered: bool = False
    sent_at: int = 0


@dataclass
class Model:
    controlling: bool
    pairs: list[ModelPair] = field(default_factory=list)
    queues: dict[int, list[ModelPair]] = field(default_factory=lambda: {0: [], 1: []})
    selected: dict[tuple[int, int], ModelPair] = field(default_factory=dict)
    turn: int = 0
    last: int | None = None
    nominations: int = 0
    made: int = 0

    def priority(self, pair: ModelPair) -> int:
        """Section 6.1.2.3."""
        ours, theirs = pair.local.priority, pair.remote.priority
        g, d = (ours, theirs) if self.controlling else (theirs, ours)
        return 2**32 * min(g, d) + 2 * max(g, d) + (1 if g > d else 0)

    def ordered(self, stream: int) -> list[ModelPair]:
        mine = [pair for pair in self.pairs if pair.stream == stream]
        return sorted(mine, key=lambda pair: (-self.priority(pair), pair.number))

    def at(self, path: tuple[Flow, Address]) -> ModelPair | None:
        return next((pair for pair in self.pairs if pair.path == path), None)

    def concluded(self, stream: int, component: int) -> bool:
        """A component with a nominated pair is done (section 8.1.2)."""
        return any(
            pair.nominated and pair.valid and (pair.stream, pair.component) == (stream, component)
            for pair in self.pairs
        )

    # forming

    def form(self, pair: ModelPair, *, learnt: bool = False) -> None:
        """Section 6.1.2.6 and RFC 8838, section 12; a learned pair is queued by its caller."""
        self.made += 1
        pair.number = self.made
        self.pairs.append(pair)
        if learnt or self.concluded(pair.stream, pair.component):
            return
        column = [other for other in self.pairs if other.foundation == pair.foundation]
        topmost = min(column, key=lambda one: (one.component, -self.priority(one), one.stream, one.number))
        if any(other.state == SUCCEEDED for other in column):  # rule 2
            pair.state = WAITING
        elif topmost is pair:  # rule 1
            for other in column:
                if other.state == WAITING and other not in self.queues[other.stream]:
                    other.state = FROZEN  # as if it had been formed together with the new one
            pair.state = WAITING

    # scheduling

    def slot(self, *, now: int) -> tuple[ModelPair, bool] | None:
        """Section 6.1.4.2: the check that is sent now, and whether it nominates."""
        if self.last is not None and now - self.last < TA:
            return None
        for _ in COMPONENTS:
            stream = self.turn
            chosen = self._pick(stream, now=now)
            if chosen is None and not any(self._pick(other, now=now, dry=True) for other in (0, 1)):
                return None  # nothing to check: the turn stays
            self.turn = (self.turn + 1) % len(COMPONENTS)
            if chosen is not None:
                pair, triggered = chosen
                if pair.state != SUCCEEDED:
                    pair.state = IN_PROGRESS
                pair.sent_at, pair.current_triggered = now, triggered
                self.last = now
                return pair, pair.nominating
        return None

    def _pick(self, stream: int, *, now: int, dry: bool = False) -> tuple[ModelPair, bool] | None:
        if self.queues[stream]:
            return (self.queues[stream][0] if dry else self.queues[stream].pop(0)), True
        if all(self.concluded(stream, component) for component in range(1, COMPONENTS[stream] + 1)):
            return None  # the checklist is Completed
        mine = self.ordered(stream)
        waiting = [pair for pair in mine if pair.state == WAITING]
        if not waiting:
            thawed: list[tuple[str, str]] = []
            for pair in mine:
                idle = not any(
                    other.state == WAITING or (other.state == IN_PROGRESS and now - other.sent_at < RTO)  # a deviation
                    for other in self.pairs
                    if other.foundation == pair.foundation
                )
                open_ = not self.concluded(stream, pair.component)
                if pair.state == FROZEN and idle and open_ and pair.foundation not in thawed:
                    thawed.append(pair.foundation)
                    waiting.append(pair)
            if not dry:
                for pair in waiting:
                    pair.state = WAITING
        return (waiting[0], False) if waiting else None

    def sent(self, pair: ModelPair, transaction: bytes) -> None:
        pair.current = transaction

    # outcomes

    def answered(self, pair: ModelPair, *, nominating: bool) -> None:
        """Section 7.2.5.3."""
        if nominating:
            pair.nominating = False
        if not pair.nominating:
            if pair in self.queues[pair.stream]:
                self.queues[pair.stream].remove(pair)
            pair.current = None
        pair.state, pair.valid = SUCCEEDED, True
        for other in self.pairs:
            if (
                other.state == FROZEN
                and other.foundation == pair.foundation
                and not self.concluded(other.stream, other.component)
            ):
                other.state = WAITING
        if nominating or (pair.nominate_on_success and not self.controlling):
            self.nominate(pair)

    def failed(self, pair: ModelPair) -> None:
        """Section 7.2.5.2. A failed nomination fails the pair and not the checklist (a deviation)."""
        if pair in self.queues[pair.stream]:
            self.queues[pair.stream].remove(pair)
        pair.state, pair.valid, pair.nominated, pair.current = FAILED, False, 0, None
        pair.nominating = pair.nominate_on_success = False

    def nominate(self, pair: ModelPair) -> None:
        """Section 8.1.2; what is open is set aside, not removed (a deviation)."""
        pair.nominate_on_success = False
        if pair.nominated or not pair.valid:
            return
        self.nominations += 1
        pair.nominated = self.nominations
        for other in self.pairs:
            if other is pair or (other.stream, other.component) != (pair.stream, pair.component):
                continue
            if other.state == IN_PROGRESS:
                other.current = None
            if other.state in (WAITING, IN_PROGRESS):
                other.state = FROZEN
                if other in self.queues[other.stream]:
                    self.queues[other.stream].remove(other)

    def heard(self, pair: ModelPair, *, now: int, nominate: bool) -> None:
        """Sections 7.3.1.4 and 7.3.1.5."""
        if nominate and not self.controlling:
            if pair.valid:
                self.nominate(pair)
            else:
                pair.nominate_on_success = True
        if pair.state == SUCCEEDED:
            return
        if pair.state == IN_PROGRESS:
            if pair.current_triggered and now - pair.sent_at < RTO:
                return  # two agents would trigger each other for ever (a deviation)
            pair.current = None  # cancelled: it is not sent again, but an answer still counts
        pair.state = WAITING
        if pair not in self.queues[pair.stream]:
            self.queues[pair.stream].append(pair)

    # what follows

    def evaluate(self) -> None:
        for key in KEYS:
            mine = [pair for pair in self.ordered(key[0]) if pair.component == key[1] and pair.valid]
            nominated = [pair for pair in mine if pair.nominated]
            if nominated:
                self.selected[key] = max(nominated, key=lambda pair: pair.nominated)
            elif mine:  # section 12.1: any valid pair, so the best one
                self.selected[key] = mine[0]
            else:
                self.selected.pop(key, None)
        if self.controlling:  # the policy nominates the best valid pair at once
            for key in KEYS:
                mine = [pair for pair in self.ordered(key[0]) if pair.component == key[1]]
                if any(pair.nominating or (pair.nominated and pair.valid) for pair in mine):
                    continue
                best = next((pair for pair in mine if pair.valid), None)
                if best is not None:
                    best.nominating = True
                    if best not in self.queues[best.stream]:
                        self.queues[best.stream].append(best)

    def state(self) -> AgentState:
        """Section 8.1.2."""
        if all(self.concluded(*key) for key in KEYS):
            return AgentState.COMPLETED
        if all(any(p.valid and (p.stream, p.component) == key for p in self.pairs) for key in KEYS):
            return AgentState.CONNECTED
        return AgentState.CHECKING


# ---------------------------------------------------------------------------------------------------- the two of them


@dataclass
class Asked:
    """A request of the agent that may still be answered."""

    pair: ModelPair
    nominating: bool
    request: Message


class ChecklistMachine(RuleBasedStateMachine):
    """Does the same to the agent and to the model, and compares."""

    controlling = False

    @initialize()
    def begin(self) -> None:
        self.now = Instant(1_000 * SECOND)
        config = IceConfig(
            controlling=self.controlling,
            ufrag=OURS.ufrag,
            password=OURS.password,
            components=COMPONENTS,
            nomination=NominationPolicy.immediate(),
            consent=False,
            keepalive=3600.0,
        )
        self.agent = IceAgent(config, random=Random(1), pacer=Pacer())
        self.agent.set_remote(THEIRS, now=self.now)
        self.model = Model(self.controlling)
        self.asked: dict[bytes, Asked] = {}
        self.known: list[bytes] = []
        self.remotes: dict[tuple[int, int, Address], Candidate] = {}
        self.bases: dict[tuple[int, int, int], tuple[Flow, Candidate]] = {}
        self.learnt = 0
        self.their_credentials = Credentials()
        self.their_role = Role(not self.controlling, Random(2))
        self.ids = Random(3)

    def settle(self) -> None:
        """Compare the agent with the model after an event."""
        self.model.evaluate()
        expected = self.model.slot(now=self.now)
        fresh = []
        for output in self.agent.outputs():
            assert isinstance(output, Send)
            message = decode(output.data)
            if message.cls is not Class.REQUEST:
                continue
            if message.transaction_id not in self.known:
                fresh.append((output, message))
            else:
                current = [pair.current for pair in self.model.pairs]
                assert message.transaction_id in current, "a check that was given up is sent again"
        if expected is None:
            assert fresh == [], "a check was sent out of turn"
            return
        [(output, message)] = fresh
        pair, nominating = expected
        assert (output.flow, output.remote) == pair.path
        assert (USE_CANDIDATE in message) is nominating
        self.model.sent(pair, message.transaction_id)
        self.asked[message.transaction_id] = Asked(pair, nominating, message)
        self.known.append(message.transaction_id)

    # ------------------------------------------------------------------------------------------------------ candidates

    @rule(key=st.sampled_from(KEYS), host=st.integers(1, 2))
    def gather(self, key: tuple[int, int], host: int) -> None:
        if (*key, host) in self.bases:
            return
        flow = Flow(100 * host + 10 * key[0] + key[1])
        address = Address(f"203.0.113.{host}", flow.id)
        local = self.agent.add_local(
            Gathered(type=CandidateType.HOST, address=address, flow=flow, stream=key[0], component=key[1]), now=self.now
        )
        assert local is not None
        self.bases[*key, host] = (flow, local.candidate)
        for (stream, component, _), remote in self.remotes.items():
            if (stream, component) == key and remote.type is not CandidateType.PEER_REFLEXIVE:
                self._form(key, flow, local.candidate, remote)
        self.settle()

    @rule(key=st.sampled_from(KEYS), number=st.integers(1, 3), foundation=st.integers(1, 2))
    def signal(self, key: tuple[int, int], number: int, foundation: int) -> None:
        remote = Candidate(
            foundation=f"R{foundation}",
            component=key[1],
            priority=candidate_priority(126, 60000 - number, key[1]),
            address=self._place(key, number),
            type=CandidateType.HOST,
        )
        self.agent.add_remote(remote, now=self.now, stream=key[0])
        known = self.remotes.get((*key, remote.address))
        if known is None or known.type is CandidateType.PEER_REFLEXIVE:
            self.remotes[*key, remote.address] = remote
            for pair in self.model.pairs:  # adopted: all else stays
                if (pair.stream, pair.component) == key and pair.path[1] == remote.address:
                    pair.remote, pair.foundation = remote, (pair.foundation[0], remote.foundation, remote.address.host)
            for base, (flow, candidate) in self.bases.items():
                if base[:2] == key:
                    self._form(key, flow, candidate, remote)
        self.settle()

    def _place(self, key: tuple[int, int], number: int) -> Address:
        return Address(f"198.51.100.{number}", 1000 + 10 * key[0] + key[1])

    def _form(
        self, key: tuple[int, int], flow: Flow, local: Candidate, remote: Candidate, *, learnt: bool = False
    ) -> None:
        path = (flow, remote.address)
        if self.model.at(path) is None:
            pair = ModelPair(0, *key, path, (local.foundation, remote.foundation, remote.address.host), local, remote)
            self.model.form(pair, learnt=learnt)

    # ---------------------------------------------------------------------------------------------------------- checks

    @precondition(lambda self: self.bases)
    @rule(data=st.data(), number=st.integers(1, 4), nominate=st.booleans())
    def hear(self, data: st.DataObject, number: int, nominate: bool) -> None:
        """The other side's check arrives, from an address that may not be known."""
        *key, host = data.draw(st.sampled_from(sorted(self.bases)))
        place = (key[0], key[1])
        flow, local = self.bases[key[0], key[1], host]
        source = self._place(place, number)
        nominate = nominate and not self.controlling
        priority = candidate_priority(110, 50000 - number, place[1])
        request = request_check(
            self.their_credentials,  # type: ignore[arg-type]
            self.ids.randbytes(12),
            self.their_role,
            priority,
            nominate=nominate,
        )
        self.agent.receive(Datagram(flow, source, request), now=self.now)
        pair = self.model.at((flow, source))
        if pair is None:
            remote = self.remotes.get((*place, source))
            if remote is None:
                self.learnt += 1
                remote = Candidate(
                    foundation=f"learnt {self.learnt}",
                    component=place[1],
                    priority=priority,
                    address=source,
                    type=CandidateType.PEER_REFLEXIVE,
                )
                self.remotes[*place, source] = remote
            self._form(place, flow, local, remote, learnt=True)
            pair = self.model.at((flow, source))
        assert pair is not None
        self.model.heard(pair, now=self.now, nominate=nominate)
        self.settle()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """A check is answered, which may have been given up for a newer one."""
        transaction = data.draw(st.sampled_from(sorted(self.asked)))
        asked = self.asked.pop(transaction)
        success = Message.success(asked.request, {XOR_MAPPED_ADDRESS: asked.pair.local.address})
        self._reply(asked, success)
        self.model.answered(asked.pair, nominating=asked.nominating)
        self.settle()

    @precondition(lambda self: any(asked.pair.current == one for one, asked in self.asked.items()))
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """A check that is under way fails."""
        current = sorted(one for one, asked in self.asked.items() if asked.pair.current == one)
        asked = self.asked.pop(data.draw(st.sampled_from(current)))
        self._reply(asked, Message.error(asked.request, ErrorCode.SERVER_ERROR))
        self.model.failed(asked.pair)
        self.settle()

    def _reply(self, asked: Asked, message: Message) -> None:
        data = message.encode(integrity=IntegrityKey.short_term(THEIRS.password), fingerprint=True)
        self.agent.receive(Datagram(*asked.pair.path, data), now=self.now)

    # ------------------------------------------------------------------------------------------------------------ time

    @rule(slots=st.sampled_from([1, 1, 2, 5, 120]))
    def wait(self, slots: int) -> None:
        for _ in range(slots):
            self.now = Instant(self.now + TA)
            self.agent.tick(now=self.now)
            self.settle()

    # --------------------------------------------------------------------------------------------------------- compare

    @invariant()
    def every_pair_is_in_the_state_that_the_rules_say(self) -> None:
        mine = {
            pair.path: (pair.state, pair.valid, bool(pair.nominated), self.model.priority(pair))
            for pair in self.model.pairs
        }
        theirs: dict[Any, Any] = {
            (view.flow, view.remote_address): (view.state.value, view.valid, view.nominated, view.priority)
            for view in self.agent.pairs()
        }
        assert theirs == mine

    @invariant()
    def the_lists_are_ordered_and_so_far_as_the_rules_say(self) -> None:
        for checklist in self.agent.generation.checklists.lists:
            paths = [pair.path for pair in checklist.pairs]
            assert paths == [pair.path for pair in self.model.ordered(checklist.stream)]
            assert [pair.path for pair in checklist.triggered] == [
                pair.path for pair in self.model.queues[checklist.stream]
            ]
            done = all(
                self.model.concluded(checklist.stream, component)
                for component in range(1, COMPONENTS[checklist.stream] + 1)
            )
            assert checklist.state.value == ("completed" if done else "running")

    @invariant()
    def the_agent_is_where_its_pairs_are(self) -> None:
        if self.bases:
            assert self.agent.state is self.model.state()
        for key in KEYS:
            selected = self.agent.selected(*key)
            expected = self.model.selected.get(key)
            assert (None if selected is None else (selected.flow, selected.remote_address)) == (
                None if expected is None else expected.path
            )


class Credentials:
    """The other side's, as `request_check` takes them."""

    username = f"{OURS.ufrag}:{THEIRS.ufrag}"
    remote_key = IntegrityKey.short_term(OURS.password)


class ControllingMachine(ChecklistMachine):
    """The same for an agent that nominates the best valid pair at once."""

    controlling = True


SETTINGS = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestControlled = ChecklistMachine.TestCase
TestControlled.settings = SETTINGS
TestControlling = ControllingMachine.TestCase
TestControlling.settings = SETTINGS
