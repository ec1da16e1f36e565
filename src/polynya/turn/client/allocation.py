"""State machine of one allocation, with its flow and server (RFC 8656, sections 7 and 8).

    state      | opened     | flow gone | success   | 300       | 437       | refused, no answer | close
    -----------+------------+-----------+-----------+-----------+-----------+--------------------+--------
    NEW        |            |           |           |           |           |                    | CLOSED
    OPENING    | ALLOCATING | FAILED    |           |           |           |                    | CLOSED
    ALLOCATING |            | FAILED    | ALLOCATED | OPENING * | OPENING + | FAILED             | CLOSING
    ALLOCATED  |            | LOST      | ALLOCATED | later     | LOST      | later, at last LOST | CLOSING
    CLOSING    |            | CLOSED    | CLOSED #  | CLOSED    | CLOSED    | CLOSED             |
    FAILED, LOST, CLOSED: final

    `start` leads from NEW to OPENING *
    *  ALLOCATING at once if the present flow can be used: it is a UDP flow of the server's family; at most 3 hops
    +  with another port, at most 3 times; then FAILED
    #  of the Refresh with lifetime 0; an allocation that is granted only now is freed first

The owner supplies a flow, which it closes itself, or the allocation opens one. It also opens another one if the server
reports that the port is in use (437), or redirects to a server that the flow cannot reach (300).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.compact import Queue
from polynya.core.errors import Attempt
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Open
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    SOFTWARE,
    SSODA_ADDITIONAL_ADDRESS_FAMILY,
    SSODA_ADDRESS_ERROR_CODE,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
    Attribute,
)
from polynya.stun.message import Message
from polynya.stun.registry import ErrorCode, Method
from polynya.stun.reported import first_possible, why_impossible
from polynya.turn.numbers import DEFAULT_LIFETIME, MAX_LIFETIME, UDP

from .config import ClientConfig
from .events import Allocated, AllocationFailed, Lost, Released, ServerAddress, ServerChosen
from .lifetimes import RETRY, renewal
from .requests import Answer, Ask

MAX_HOPS: Final = 3
"""Limit of redirections by ALTERNATE-SERVER."""
MAX_PORTS: Final = 3
"""Limit of other local ports after a 437."""
CLOSE_PATIENCE: Final = 5 * SECOND
"""Wait for the response to the last Refresh."""
ALPN: Final = ("stun.turn",)
"""RFC 7443."""
UNSPECIFIED: Final = {IPV4: Address("0.0.0.0", 0), IPV6: Address("::", 0)}  # noqa: S104  # source addresses, no listeners

AllocationEvent = ServerChosen | Allocated | AllocationFailed | Lost | Released


class State(Enum):
    NEW = "new"
    OPENING = "opening"
    ALLOCATING = "allocating"
    ALLOCATED = "allocated"
    CLOSING = "closing"
    FAILED = "failed"
    LOST = "lost"
    CLOSED = "closed"


ENDED: Final = (State.FAILED, State.LOST, State.CLOSED)

TRANSITIONS: Final[Mapping[State, tuple[State, ...]]] = {
    State.NEW: (State.OPENING, State.ALLOCATING, State.CLOSED),
    State.OPENING: (State.ALLOCATING, State.FAILED, State.CLOSED),
    State.ALLOCATING: (State.ALLOCATING, State.ALLOCATED, State.OPENING, State.FAILED, State.CLOSING, State.CLOSED),
    State.ALLOCATED: (State.LOST, State.CLOSING),
    State.CLOSING: (State.CLOSED,),
    State.FAILED: (),
    State.LOST: (),
    State.CLOSED: (),
}
"""The allowed transitions, asserted by the one writer."""


class _Timer(Enum):
    RENEW = "renew"
    END = "the lifetime's end"
    PATIENCE = "the wait for the last response"


class Allocation:
    """One allocation. The client drains `asks`, then `outputs` (after it has sent the asks), then `events`."""

    def __init__(
        self,
        server: ServerAddress,
        config: ClientConfig,
        *,
        flow_ids: FlowIds,
        flow: Flow | None,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = State.NEW
        self.server = server
        self.flow = flow
        self.relayed: tuple[Address, ...] = ()
        self.mapped: Address | None = None
        self.history: list[tuple[Instant, State, str]] = []
        self.attempts: list[Attempt] = []
        """Failed attempts, oldest first."""
        self._config = config
        self._flow_ids = flow_ids
        self._trace = trace
        self._ours = False
        self._dont_fragment = config.dont_fragment
        self._servers = [server]
        self._ports = 0
        self._ends = Instant(0)
        self._unauthenticated = ""
        """Why the latest request was refused with 401, if it waits for credentials."""
        self._timers: Timers[_Timer] = Timers()
        self._asks: Queue[Ask] = Queue()
        self._outputs: Queue[Open | Close] = Queue()
        self._events: Queue[AllocationEvent] = Queue()

    # ---------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        if self.state is State.NEW:
            self._approach("an allocation was requested", now=now, fresh=self.flow is None)

    def close(self, *, now: Instant, possible: bool) -> None:
        """Free the allocation. `possible`: the server may have granted an Allocate that is unanswered."""
        if self.state is State.ALLOCATED:
            self._become(State.CLOSING, "closed here", now=now)
            self._timers.clear()
            self._timers.set(_Timer.PATIENCE, Instant(now + CLOSE_PATIENCE))
            self._asks.append(self._release())
        elif self.state is State.ALLOCATING and possible:
            self._become(State.CLOSING, "closed here while allocating", now=now)
            self._timers.set(_Timer.PATIENCE, Instant(now + CLOSE_PATIENCE))
        elif self.state in (State.NEW, State.OPENING, State.ALLOCATING):
            self._released("closed here before the allocation was made", now=now)

    def renew(self, *, now: Instant) -> None:
        """Refresh the allocation now, because the server may have lost it."""
        if self.state is State.ALLOCATED:
            self._timers.set(_Timer.RENEW, now)
            self.tick(now=now)

    def free_unseen(self) -> None:
        """Free an allocation that the server may still grant to an unanswered Allocate."""
        if not self.relayed:
            self._asks.append(self._release())

    def leave(self, *, now: Instant) -> None:
        """Stop waiting for the server's confirmation."""
        if self.state is State.CLOSING:
            self._released("closed here without waiting for a response", now=now)

    def opened(self, flow: Flow, *, now: Instant) -> None:
        """Continue: the allocation's own flow is open."""
        if self.state is State.OPENING and flow == self.flow:
            self._allocate("its flow is open", now=now)

    def flow_gone(self, reason: str, *, now: Instant, still_open: bool = False) -> None:
        """End the allocation: its flow was closed, could not be opened, or is unusable (`still_open`)."""
        self._ours = self._ours and still_open
        self._end(None, reason, now=now)

    def unauthenticated(self, reason: str) -> None:
        """Record a refusal of the credentials (401); requests wait for others."""
        self._unauthenticated = f"{reason} (401)"
        self.attempts.append(Attempt(str(self.server), self._unauthenticated))

    def gone(self, code: int | None, reason: str, *, now: Instant) -> None:
        """End the allocation: the server reported to another part of the client that it has none."""
        if self.state is State.ALLOCATED:
            self._end(code, reason, now=now)

    # -------------------------------------------------------------------------------------------------------- machine

    def answered(self, answer: Answer, *, now: Instant) -> None:
        """Handle the result of an own request."""
        if answer.ask.method == Method.ALLOCATE:
            self._allocate_answered(answer, now=now)
        elif self.state is State.CLOSING:
            if answer.ask.attributes[LIFETIME]:
                return  # a renewal that was sent before
            freed = answer.ok or answer.code == ErrorCode.ALLOCATION_MISMATCH
            self._released("the server has freed it" if freed else answer.reason, now=now)
        elif self.state is State.ALLOCATED:
            self._refresh_answered(answer, now=now)

    def tick(self, *, now: Instant) -> None:
        for timer in self._timers.due(now=now):
            if timer is _Timer.RENEW:
                self._asks.append(Ask(Method.REFRESH, {LIFETIME: self._config.lifetime // SECOND}))
            elif timer is _Timer.END:
                why = self._unauthenticated or (self.attempts[-1].reason if self.attempts else "no response")
                code = ErrorCode.UNAUTHENTICATED if self._unauthenticated else None
                self._end(code, f"the allocation could not be refreshed before its lifetime ended: {why}", now=now)
            else:
                self._released(f"{self.server} did not confirm in time that it is freed", now=now)

    def next_timer(self) -> Instant | None:
        return self._timers.next()

    def asks(self) -> list[Ask]:
        """Return and remove the requests to send."""
        return self._asks.drain()

    def outputs(self) -> list[Open | Close]:
        return self._outputs.drain()

    def events(self) -> list[AllocationEvent]:
        return self._events.drain()

    # ----------------------------------------------------------------------------------------------- flow and server

    def _approach(self, reason: str, *, now: Instant, fresh: bool) -> None:
        """Contact `self.server` by the present flow, or by a fresh one."""
        if fresh:
            self._close_flow()
            self.flow = self._flow_ids.new()
            self._ours = True
            self._become(State.OPENING, reason, now=now)
            self._outputs.append(self._open(self.flow))
        assert self.flow is not None
        self._events.append(ServerChosen(flow=self.flow, server=self.server, reason=reason))
        if not fresh:
            self._allocate(reason, now=now)

    def _open(self, flow: Flow) -> Open:
        server, config = self.server, self._config
        local = config.local if config.local is not None and config.local.family == server.address.family else None
        if not server.transport.reliable:
            local = local or UNSPECIFIED[server.address.family]
            return Open(flow=flow, transport=server.transport, local=local, interface=config.interface)
        return Open(
            flow=flow,
            transport=server.transport,
            local=local,
            remote=server.address,
            interface=config.interface,
            server_name=(server.name or server.address.host) if server.transport.secure else None,
            alpn=ALPN if server.transport.secure else (),
        )

    def _close_flow(self) -> None:
        if self._ours and self.flow is not None:
            self._outputs.append(Close(flow=self.flow))
        self._ours = False

    # ------------------------------------------------------------------------------------------------------- allocate

    def _allocate(self, reason: str, *, now: Instant) -> None:
        self._become(State.ALLOCATING, reason, now=now)
        config = self._config
        values: dict[Attribute[Any], Any] = {REQUESTED_TRANSPORT: UDP}
        if config.lifetime != DEFAULT_LIFETIME:
            values[LIFETIME] = config.lifetime // SECOND
        if len(config.families) > 1:
            values[ADDITIONAL_ADDRESS_FAMILY] = values[SSODA_ADDITIONAL_ADDRESS_FAMILY] = IPV6
        elif config.families[0] == IPV6 and config.reservation_token is None:
            values[REQUESTED_ADDRESS_FAMILY] = IPV6
        if config.even_port is not None:
            values[EVEN_PORT] = config.even_port
        if config.reservation_token is not None:
            values[RESERVATION_TOKEN] = config.reservation_token
        if self._dont_fragment:
            values[DONT_FRAGMENT] = True
        self._asks.append(Ask(Method.ALLOCATE, values))

    def _allocate_answered(self, answer: Answer, *, now: Instant) -> None:
        if self.state is State.CLOSING:
            if answer.ok:
                self._asks.append(self._release())
            else:
                self._released("there was no allocation after all", now=now)
            return
        if self.state is not State.ALLOCATING:
            return
        if answer.ok:
            assert answer.message is not None
            self._succeeded(answer.message, answer.sent_at, now=now)
            return
        self.attempts.append(Attempt(str(self.server), answer.reason))
        message = answer.message
        if answer.code == ErrorCode.TRY_ALTERNATE and message is not None:
            self._try_alternate(message, answer, now=now)
        elif answer.code == ErrorCode.ALLOCATION_MISMATCH and self._ports < MAX_PORTS:
            self._ports += 1
            self._approach("trying another port: the server reports the last one as in use", now=now, fresh=True)
        elif self._dont_fragment and message is not None and self._unknown(message, DONT_FRAGMENT):
            self._dont_fragment = False
            self._allocate("asking again without DONT-FRAGMENT, which the server does not know", now=now)
        else:
            self._end(answer.code, answer.reason, now=now)

    @staticmethod
    def _unknown(message: Message, attribute: Attribute[Any]) -> bool:
        return attribute.number in (message.get(UNKNOWN_ATTRIBUTES) or ())

    def _try_alternate(self, message: Message, answer: Answer, *, now: Instant) -> None:
        """Follow a redirection (RFC 8489, section 10) by the same transport."""
        named, here = message.get(ALTERNATE_SERVER) or (), self.server.address
        known = [server.address for server in self._servers]
        impossible = [why for address in named if (why := why_impossible(address, by=here))]
        fresh = [each for each in named if each not in known and not why_impossible(each, by=here)]
        fresh.sort(key=lambda address: address.family != self.server.address.family)
        if len(self._servers) > MAX_HOPS:
            self._end(answer.code, f"{answer.reason}; {MAX_HOPS} redirections were followed before", now=now)
        elif not fresh:
            what = f", and one that is impossible: {'; '.join(impossible)}" if impossible else ""
            self._end(answer.code, f"{answer.reason}, and it names no server that was not tried before{what}", now=now)
        else:
            old, name = self.server, message.get(ALTERNATE_DOMAIN) or self.server.name
            self.server = ServerAddress(address=fresh[0], transport=old.transport, name=name)
            self._servers.append(self.server)
            serves = old.transport is Transport.UDP and old.address.family == self.server.address.family
            self._approach(f"{old} redirected the client", now=now, fresh=not serves)

    def _succeeded(self, message: Message, sent_at: Instant, *, now: Instant) -> None:
        here = self.server.address
        given = message.get(XOR_RELAYED_ADDRESS) or ()
        by_family = [
            first_possible([address for address in given if address.family == family], by=here)[0]
            for family in self._config.families
        ]
        relayed = [address for address in by_family if address is not None]
        impossible = first_possible(given, by=here)[1]
        ignored = [f"as relayed address: {impossible}"] if impossible else []
        self.mapped, impossible = first_possible((message.get(XOR_MAPPED_ADDRESS),), by=here, mapped=True)
        ignored += [f"as mapped address: {impossible}"] if impossible else []
        lifetime = self._lifetime(message)
        if not relayed or not lifetime:
            what = "a lifetime of zero" if relayed else "no relayed address of a requested family"
            what = f"{what} ({'; '.join(ignored)})" if ignored else what
            self._end(None, f"{self.server} answered with success but {what}", now=now)
            self._asks.append(self._release())  # RFC 8656, section 7.3: free an allocation that cannot be used
            return
        self.relayed = tuple(relayed)
        note = f"; ignored {'; '.join(ignored)}" if ignored else ""
        self._become(State.ALLOCATED, f"relayed at {', '.join(map(str, relayed))}{note}", now=now)
        self._granted(lifetime, sent_at)
        assert self.flow is not None
        self._events.append(
            Allocated(
                relayed=self.relayed,
                mapped=self.mapped,
                lifetime=lifetime // SECOND,
                flow=self.flow,
                server=self.server,
                refused=self._refused_families(message),
                ignored=tuple(ignored),
                reservation_token=message.get(RESERVATION_TOKEN),
                dont_fragment=self._dont_fragment,
                software=message.get(SOFTWARE) or "",
            )
        )

    def _refused_families(self, message: Message) -> tuple[AddressError, ...]:
        given = tuple(address.family for address in self.relayed)
        reported = message.get(ADDRESS_ERROR_CODE) or message.get(SSODA_ADDRESS_ERROR_CODE)
        silent = AddressError(
            0, ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED, "the server allocated one family only, without a reason"
        )
        return tuple(
            reported if reported is not None and reported.family == family else silent._replace(family=family)
            for family in self._config.families
            if family not in given
        )

    # -------------------------------------------------------------------------------------------------------- refresh

    def _refresh_answered(self, answer: Answer, *, now: Instant) -> None:
        if answer.ok:
            assert answer.message is not None
            lifetime = self._lifetime(answer.message)
            if lifetime:
                self._granted(lifetime, answer.sent_at)
            else:
                self._end(None, f"{self.server} ended the allocation: it granted a lifetime of zero", now=now)
        elif answer.code == ErrorCode.ALLOCATION_MISMATCH:
            self._end(answer.code, answer.reason, now=now)
        else:
            self.attempts.append(Attempt(str(self.server), answer.reason))
            self._timers.set(_Timer.RENEW, Instant(now + RETRY))

    def _granted(self, lifetime: int, sent_at: Instant) -> None:
        self._unauthenticated = ""
        self._ends = Instant(sent_at + lifetime)
        self._timers.set(_Timer.RENEW, Instant(sent_at + renewal(lifetime)))
        self._timers.set(_Timer.END, self._ends)

    @staticmethod
    def _lifetime(message: Message) -> int:
        """Return the granted lifetime in nanoseconds, at most an hour."""
        seconds = message.get(LIFETIME)
        return DEFAULT_LIFETIME if seconds is None else min(seconds * SECOND, MAX_LIFETIME)

    @staticmethod
    def _release() -> Ask:
        return Ask(Method.REFRESH, {LIFETIME: 0}, last=True)

    # ------------------------------------------------------------------------------------------------------------ end

    def _end(self, code: int | None, reason: str, *, now: Instant) -> None:
        """End the allocation as FAILED, LOST or CLOSED, depending on the state."""
        if self.state is State.ALLOCATED:
            self._finish(State.LOST, reason, now=now)
            self._events.append(Lost(code=code, reason=reason))
        elif self.state is State.CLOSING:
            self._released(reason, now=now)
        elif self.state in (State.OPENING, State.ALLOCATING):
            self._finish(State.FAILED, reason, now=now)
            self._events.append(AllocationFailed(code=code, reason=reason, server=self.server))

    def _released(self, reason: str, *, now: Instant) -> None:
        self._finish(State.CLOSED, reason, now=now)
        self._events.append(Released(reason=reason))

    def _finish(self, state: State, reason: str, *, now: Instant) -> None:
        self._become(state, reason, now=now)
        self._timers.clear()
        self._asks.clear()
        self._close_flow()

    def _become(self, state: State, reason: str, *, now: Instant) -> None:
        """The one writer of `state`."""
        assert state in TRANSITIONS[self.state], f"{self.state} does not become {state}"
        self.state = state
        self.history.append((now, state, reason))
        self._trace.server(reason, now=now, server=self.server, state=state)
