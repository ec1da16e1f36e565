"""Bases that many agents share: their sockets and mappings, gathered once for all agents.

             want, never asked or too long ago           all answered or timed out
    NEW ----------------------------------------> GATHERING ------------------------> COMPLETE
                                                      ^     want or a changed network     |
                                                      +-----------------------------------+

The first agent that gathers starts the questions to the servers. As in `gathering` they are paced, one answer gives the
other servers a grace period, and without any answer the wait ends after the patience; late questions continue. Other
agents get the known addresses at once, and later ones as they are found. While any agent is present, a Binding
indication every Tr keeps the mapping in the NAT (RFC 8445, sections 5.1.1.4 and 11). Every five minutes the servers are
asked again, because a NAT that was restarted maps the socket to another address. Without agents nothing is sent, and
after Tr without a keepalive a mapping counts as lost.
"""

from __future__ import annotations

import random as random_module
from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowPath, Transport
from polynya.core.instants import SECOND, Instant, earliest, in_seconds
from polynya.core.machine import IcmpError, Open, Opened, Output, Resolved, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Gathered
from polynya.stun.message import Received
from polynya.stun.probe import ProbeEnded

from .events import GatheringState
from .interfaces import Refused
from .local_candidates import of_mapping, of_socket
from .options import Base, HostAddress, SessionConfig
from .report import ServerAnswer, SessionReport, session_report
from .stun_servers import StunServers

REFRESH: Final = 300 * SECOND
"""Age of an answer when its server is asked again, while agents are present."""

RETRY: Final = 30 * SECOND
"""Time after questions without any answer before a new agent starts them again."""

MAX_CHANGES: Final = 8
"""Limit of changed addresses of one socket that become candidates: a NAT may change its mapping each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFound:
    """An address was found: a candidate for every agent."""

    gathered: Gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesComplete:
    """Gathering is complete: agents that wait get no more candidates."""


SharedEvent = AddressFound | AddressesComplete


class SharedBases:
    """Machine of a mux's sockets: core inputs in, `SharedEvent`s out; outputs are appended to `outbox`."""

    def __init__(
        self,
        config: SessionConfig,
        *,
        random: random_module.Random,
        pacer: Pacer,
        outbox: Queue[Output],
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = GatheringState.NEW
        self.bases: tuple[Base, ...] = ()
        self.refused: tuple[Refused, ...] = ()
        """Local addresses without a socket, with the reasons; the owner adds those of its filters."""
        self.users = 0
        self._config = config
        self._trace = trace
        self._stun = StunServers(config, random=random, pacer=pacer, trace=trace, outbox=outbox)
        self._opening: dict[Flow, HostAddress] = {}
        self._mapped: dict[FlowPath, Address] = {}
        self._changes: dict[Flow, int] = {}
        self._answers: dict[tuple[str, Address | None], ServerAnswer] = {}
        self._asked_at: Instant | None = None
        """When the servers were asked last in the present network; None if never."""
        self._left_at = Instant(0)
        self._deadline: tuple[Instant, int, str] | None = None
        self._outbox = outbox
        self._events: Queue[SharedEvent] = Queue()

    # -------------------------------------------------------------------------------------------------------- calls

    def open(self, flow: Flow, host: HostAddress) -> None:
        """Open a socket on this address."""
        self._opening[flow] = host
        self._outbox.append(
            Open(
                flow=flow,
                transport=Transport.UDP,
                local=host.address,
                ports=self._config.ports,
                interface=host.interface if host.pinned else None,
            )
        )

    def want(self, *, now: Instant) -> None:
        """Register an agent; its present addresses are in `candidates`, later ones come as events."""
        self.users += 1
        idle = self.users == 1 and now - self._left_at > self._config.keepalive
        silent = not self._mapped and self._asked_at is not None and now - self._asked_at > RETRY
        if self._config.stun_servers and (self._asked_at is None or idle or silent):
            if self.state is not GatheringState.GATHERING:
                self._begin("an agent gathers", now=now)
        elif self.users == 1:
            self._keep_all(now=now)

    def release(self, *, now: Instant) -> None:
        """Remove an agent. After the last one, keepalives and questions end."""
        self.users -= 1
        if not self.users:
            self._left_at = now
            self._changes.clear()
            self._stun.stop_keeping()

    def network_changed(self, *, now: Instant) -> None:
        """Drop the mappings, which belong to another network, and ask the servers again if agents are present."""
        self._forget()
        if self.users and self._config.stun_servers:
            self._begin("the network changed", now=now)

    def candidates(self) -> list[Gathered]:
        """Return all known candidates, for a new agent."""
        found = [gathered for base in self.bases for gathered in self._of_socket(base)]
        return found + [gathered for path in self._mapped for gathered in self._of_mapping(path)]

    @property
    def complete(self) -> bool:
        """Whether no socket or answer is awaited."""
        return not self._opening and self.state is not GatheringState.GATHERING

    @property
    def answers(self) -> tuple[ServerAnswer, ...]:
        """The last answer of each server to each socket."""
        return tuple(self._answers.values())

    def base(self, flow: Flow) -> Base | None:
        """Return the base of a flow."""
        return next((base for base in self.bases if base.flow == flow), None)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question."""
        return self._stun.expects(flow, remote)

    def why(self, agent: IceAgent) -> SessionReport:
        """Return the report of an agent on these sockets, with the last answer of each server."""
        return session_report(
            agent, state=self.state, bases=self.bases, refused=self.refused, answers=self.answers
        )  # fmt: skip

    def _of_socket(self, base: Base) -> list[Gathered]:
        return of_socket(base, self._config.policy, self._config.external)

    def _of_mapping(self, path: FlowPath) -> list[Gathered]:
        flow, server = path
        base = self.base(flow)
        return [] if base is None else of_mapping(base, self._mapped[path], server, self._config.policy)

    # ------------------------------------------------------------------------------------------------------ machine

    def opened(self, opened: Opened, *, now: Instant) -> None:
        """Add a socket that was opened."""
        host = self._opening.pop(opened.flow, None)
        if host is None:
            return
        base = Base(flow=opened.flow, host=host, local=opened.local, note=opened.note)
        self.bases += (base,)
        self._events.extend(AddressFound(gathered=gathered) for gathered in self._of_socket(base))
        if self._asked_at is not None:
            self._stun.ask(base, now=now)
        self._end_if_done(now=now)

    def closed(self, flow: Flow, reason: str, *, now: Instant) -> None:
        """Remove a socket that could not be opened, or that was closed."""
        base, host = self.base(flow), self._opening.pop(flow, None)
        host = base.host if base is not None else host
        if host is not None:
            self.refused += (Refused(interface=host.interface, host=host.address.host, reason=reason),)
        self.bases = tuple(other for other in self.bases if other.flow != flow)
        self._mapped = {path: mapped for path, mapped in self._mapped.items() if path[0] != flow}
        self._stun.forget(flow)
        self._end_if_done(now=now)

    def receive(self, input: Received | IcmpError | SendFailed | Resolved, *, now: Instant) -> None:
        if isinstance(input, Resolved):
            self._resolved(input, now=now)
        else:
            self._stun.receive(input, now=now)
        self._collect(now=now)

    def tick(self, *, now: Instant) -> None:
        self._stun.tick(now=now)
        self._collect(now=now)
        if self._deadline is not None and now >= self._deadline[0]:
            self._give_up(*self._deadline[1:], now=now)
        refresh = self._refresh_at()
        if refresh is not None and now >= refresh:
            self._asked_at = now
            for base in self.bases:
                self._stun.ask(base, now=now, late=True)

    def next_timer(self) -> Instant | None:
        deadline = None if self._deadline is None else self._deadline[0]
        return earliest(self._stun.next_timer(), deadline, self._refresh_at())

    def events(self) -> list[SharedEvent]:
        return self._events.drain()

    # ------------------------------------------------------------------------------------------------------- asking

    def _refresh_at(self) -> Instant | None:
        if not self.users or self._asked_at is None or self.state is GatheringState.GATHERING:
            return None
        return Instant(self._asked_at + REFRESH)

    def _begin(self, reason: str, *, now: Instant) -> None:
        self._forget()
        self._change(GatheringState.GATHERING, reason, now=now)
        self._asked_at = now
        self._deadline = (Instant(now + self._config.patience), self._config.patience, "they were asked")
        self._stun.start()

    def _forget(self) -> None:
        self._stun.close()
        self._mapped.clear()
        self._answers.clear()
        self._asked_at = None

    def _resolved(self, resolved: Resolved, *, now: Instant) -> None:
        if not self._stun.resolves(resolved.query):
            return
        server, reason = self._stun.resolved(resolved, self.bases, now=now)
        if reason:
            self._note(ServerAnswer(server=server, reason=reason), now=now)
        self._end_if_done(now=now)

    def _collect(self, *, now: Instant) -> None:
        for ended in self._stun.events():
            self._answered(ended, now=now)

    def _answered(self, ended: ProbeEnded, *, now: Instant) -> None:
        base = self.base(ended.flow)
        if base is None:
            return
        path = (ended.flow, ended.server)
        server, mapped = str(ended.server), ended.mapped
        answer = ServerAnswer(server=server, base=base.local, mapped=mapped, rtt=ended.rtt, reason=ended.reason)
        self._note(answer, now=now)
        if mapped is not None:
            if self._mapped.get(path) != mapped:
                self._mapped[path] = mapped
                changes = self._changes[ended.flow] = self._changes.get(ended.flow, 0) + 1
                if changes <= MAX_CHANGES:
                    self._events.extend(AddressFound(gathered=gathered) for gathered in self._of_mapping(path))
            if self.users:
                self._keep(path, now=now)
            if self._deadline is not None:
                self._deadline = (Instant(now + self._config.grace), self._config.grace, "the last answer")
        self._end_if_done(now=now)

    def _keep_all(self, *, now: Instant) -> None:
        for path in self._mapped:
            self._keep(path, now=now)

    def _keep(self, path: FlowPath, *, now: Instant) -> None:
        base = self.base(path[0])
        if base is not None and self._mapped[path] != base.local:
            self._stun.keep(*path, now=now)

    # ------------------------------------------------------------------------------------------------------ the end

    def _give_up(self, wait: int, since: str, *, now: Instant) -> None:
        for flow, server in self._stun.release():
            if (base := self.base(flow)) is not None:
                reason = f"{server} had not answered {in_seconds(wait):g} s after {since}; its requests continue"
                self._note(ServerAnswer(server=str(server), base=base.local, reason=reason), now=now)
        self._end_if_done(now=now)

    def _end_if_done(self, *, now: Instant) -> None:
        waiting = self._opening or self._stun.pending
        if self.state is GatheringState.GATHERING and not waiting:
            self._deadline = None
            self._change(GatheringState.COMPLETE, f"{len(self._mapped)} answers of servers", now=now)
        if self.complete:
            self._events.append(AddressesComplete())

    def _change(self, new: GatheringState, reason: str, *, now: Instant) -> None:
        self._trace.gathering(reason, now=now, old=self.state, new=new)
        self.state = new

    def _note(self, answer: ServerAnswer, *, now: Instant) -> None:
        self._answers[answer.server, answer.base] = answer
        state = "answered" if answer.mapped else "failed"
        self._trace.server(answer.reason, now=now, server=answer.server, state=state, base=answer.base)
