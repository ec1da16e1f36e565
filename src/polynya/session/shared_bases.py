"""Sockets that many agents share: where they stand, and what STUN servers see of them, found once for all.

             want, never asked or too long ago           all answered or given up
    NEW ----------------------------------------> GATHERING ------------------------> COMPLETE
                                                      ^     want or a changed network     |
                                                      +-----------------------------------+

The first agent that wants the addresses makes the servers be asked, as in `gathering`: at the pace of the process, one
answer gives the others a grace, no answer at all ends it after the patience, and what is late is asked on. All others
get what is known at once, or when it comes. While any agent is there, a Binding indication every Tr keeps the mapping
in the NAT (RFC 8445, sections 5.1.1.4 and 11), and every five minutes the servers are asked again, in silence: a NAT
that was restarted maps the socket to another address. When the last agent has gone, nothing is sent, and after Tr
without a keepalive a mapping counts as lost.
"""

from __future__ import annotations

import random as random_module
from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowPath, Transport
from polynya.core.instants import SECOND, Instant, earliest, in_seconds
from polynya.core.machine import IcmpError, Open, Opened, Output, Resolved, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.candidates import Gathered
from polynya.stun.message import Received
from polynya.stun.probe import ProbeEnded

from .answers import ServerAnswer
from .gathering_events import GatheringState
from .interfaces import Refused
from .local_candidates import of_mapping, of_socket
from .options import Base, HostAddress, SessionConfig
from .stun_servers import StunServers

REFRESH: Final = 300 * SECOND
"""How old an answer becomes before the server is asked again, while agents are there."""

RETRY: Final = 30 * SECOND
"""How long ago servers of which none has answered were asked, before a new agent makes them be asked again."""

MAX_CHANGES: Final = 8
"""How many addresses of one socket agents that live on are told of: a NAT may map it anew each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFound:
    """A candidate for every agent."""

    gathered: Gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesComplete:
    """No more candidates are to come, for those who wait for them."""


SharedEvent = AddressFound | AddressesComplete


class SharedBases:
    """A machine: `Open`, `Resolve` and `Send` out, `SharedEvent`s for the mux whose sockets these are."""

    def __init__(
        self, config: SessionConfig, *, random: random_module.Random, pacer: Pacer, trace: Tracer = NO_TRACE
    ) -> None:
        self.state = GatheringState.NEW
        self.bases: tuple[Base, ...] = ()
        self.refused: tuple[Refused, ...] = ()
        """Local addresses without a socket, and why; its owner's to fill."""
        self.users = 0
        self._config = config
        self._trace = trace
        self._stun = StunServers(config, random=random, pacer=pacer, trace=trace)
        self._opening: dict[Flow, HostAddress] = {}
        self._mapped: dict[FlowPath, Address] = {}
        self._changes: dict[Flow, int] = {}
        self._answers: dict[tuple[str, Address | None], ServerAnswer] = {}
        self._asked_at: Instant | None = None
        """When the servers were asked last; None where that was in another network, or never."""
        self._left_at = Instant(0)
        self._deadline: tuple[Instant, int, str] | None = None
        self._outputs: list[Output] = []
        self._events: list[SharedEvent] = []

    # -------------------------------------------------------------------------------------------------------- calls

    def open(self, flow: Flow, host: HostAddress) -> None:
        """Ask for a socket on this address."""
        self._opening[flow] = host
        self._outputs.append(
            Open(
                flow=flow,
                transport=Transport.UDP,
                local=host.address,
                ports=self._config.ports,
                interface=host.interface if host.pinned else None,
            )
        )

    def want(self, *, now: Instant) -> None:
        """One agent more. What it is to be told is in `candidates`, and comes as events."""
        self.users += 1
        idle = self.users == 1 and now - self._left_at > self._config.keepalive
        silent = not self._mapped and self._asked_at is not None and now - self._asked_at > RETRY
        if self._config.stun_servers and (self._asked_at is None or idle or silent):
            if self.state is not GatheringState.GATHERING:
                self._begin("an agent wants the addresses", now=now)
        elif self.users == 1:
            self._keep_all(now=now)

    def release(self, *, now: Instant) -> None:
        """One agent less. Without any, nothing is kept and nobody asked again."""
        self.users -= 1
        if not self.users:
            self._left_at = now
            self._changes.clear()
            self._stun.stop_keeping()

    def network_changed(self, *, now: Instant) -> None:
        """What the servers saw was in another network: it is forgotten, and asked for anew where agents are."""
        self._forget()
        if self.users and self._config.stun_servers:
            self._begin("the network changed", now=now)

    def candidates(self) -> list[Gathered]:
        """All that is known now, for an agent that comes."""
        found = [gathered for base in self.bases for gathered in self._of_socket(base)]
        return found + [gathered for path in self._mapped for gathered in self._of_mapping(path)]

    @property
    def complete(self) -> bool:
        """Whether nothing is waited for."""
        return not self._opening and self.state is not GatheringState.GATHERING

    @property
    def answers(self) -> tuple[ServerAnswer, ...]:
        """What each server said last, to each socket."""
        return tuple(self._answers.values())

    def base(self, flow: Flow) -> Base | None:
        """The socket of a flow."""
        return next((base for base in self.bases if base.flow == flow), None)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question asked here."""
        return self._stun.expects(flow, remote)

    def _of_socket(self, base: Base) -> list[Gathered]:
        return of_socket(base, self._config.policy, self._config.external)

    def _of_mapping(self, path: FlowPath) -> list[Gathered]:
        flow, server = path
        base = self.base(flow)
        return [] if base is None else of_mapping(base, self._mapped[path], server, self._config.policy)

    # ------------------------------------------------------------------------------------------------------ machine

    def opened(self, opened: Opened, *, now: Instant) -> None:
        """A socket stands."""
        host = self._opening.pop(opened.flow, None)
        if host is None:
            return
        base = Base(flow=opened.flow, host=host, local=opened.local, note=opened.note)
        self.bases += (base,)
        self._events += [AddressFound(gathered=gathered) for gathered in self._of_socket(base)]
        if self._asked_at is not None:
            self._stun.ask(base, now=now)
        self._end_if_done(now=now)

    def closed(self, flow: Flow, reason: str, *, now: Instant) -> None:
        """A socket could not be opened, or is gone."""
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

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs + self._stun.outputs(), []
        return drained

    def events(self) -> list[SharedEvent]:
        drained, self._events = self._events, []
        return drained

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
        if not self._stun.looks_up(resolved.query):
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
                    self._events += [AddressFound(gathered=gathered) for gathered in self._of_mapping(path)]
            if self.users:
                self._keep(path, now=now)
            if self._deadline is not None:
                self._deadline = (Instant(now + self._config.grace), self._config.grace, "the last answer came")
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
                reason = f"{server} had not answered {in_seconds(wait):g} s after {since}, and is asked on"
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
        self._trace.gathering(reason, now=now, old=self.state.value, new=new.value)
        self.state = new

    def _note(self, answer: ServerAnswer, *, now: Instant) -> None:
        self._answers[answer.server, answer.base] = answer
        state = "answered" if answer.mapped else "failed"
        self._trace.server(answer.reason, now=now, server=answer.server, state=state, base=str(answer.base))
