"""Gathering: sockets on every chosen address, and from each of them every STUN server asked what it sees.

                start                     all opened, all asked, all answered or given up
    NEW ----------------> GATHERING ----------------------------------------------------> COMPLETE

Servers are asked at the pace of the process (RFC 8445, section 14), in parallel, and none is waited for: candidates are
told as they come. One answer starts a grace period for the others; with no answer at all gathering ends after a
patience, so that an interface whose packets vanish (a VPN, a bridge) delays no one (aiortc/aiortc#1183).

Until a pair is nominated a mapping must outlive the wait for the other side: a Binding indication to the server keeps
it open (RFC 8445, sections 5.1.1.4 and 11).
"""

from __future__ import annotations

import random as random_module
from collections import deque
from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address, scope
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant, in_seconds
from polynya.core.machine import (
    Close,
    Closed,
    IcmpError,
    InterfacesChanged,
    Open,
    Opened,
    Output,
    Resolve,
    Resolved,
    Send,
    SendFailed,
)
from polynya.core.pacer import Pacer
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Message, Received
from polynya.stun.probe import BindingProbe, ProbeEnded
from polynya.stun.registry import Method
from polynya.stun.uris import StunUri

from .interfaces import Refused, choose_addresses
from .options import HostAddress, SessionConfig


class GatheringState(Enum):
    """As in WebRTC's `iceGatheringState`."""

    NEW = "new"
    GATHERING = "gathering"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOpened:
    """A socket stands on a local address: a base, and unless the policy forbids it a host candidate."""

    flow: Flow
    host: HostAddress
    local: Address
    stream: int = 0
    component: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFound:
    """A server saw `mapped` as the source of packets that left by `flow`."""

    flow: Flow
    mapped: Address
    server: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheringStateChanged:
    old: GatheringState
    new: GatheringState
    reason: str


GatheringEvent = BaseOpened | MappingFound | GatheringStateChanged
GatheringInput = Opened | Closed | Resolved | InterfacesChanged | Received | IcmpError | SendFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What one server said to one base, for `why()`: `mapped` and `rtt` (nanoseconds), or the reason there is none."""

    server: str
    base: Address | None = None
    mapped: Address | None = None
    rtt: int | None = None
    reason: str = ""


class _Timer(Enum):
    PACE = "the next question's slot"
    PATIENCE = "no server has answered"
    GRACE = "the others had their time"
    KEEPALIVE = "a mapping must be kept open"


class Gathering:
    """A machine: core inputs in, `Open`, `Resolve` and `Send` out, `GatheringEvent`s for the session."""

    def __init__(
        self,
        config: SessionConfig,
        *,
        random: random_module.Random,
        pacer: Pacer,
        flow_ids: FlowIds,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.state = GatheringState.NEW
        self.answers: list[ServerAnswer] = []
        self.refused: tuple[Refused, ...] = ()
        self.bases: dict[Flow, BaseOpened] = {}
        self._config = config
        self._random = random
        self._pacer = pacer
        self._flow_ids = flow_ids
        self._trace = trace
        self._timers: Timers[_Timer] = Timers()
        self._components = tuple(
            (stream, component)
            for stream, count in enumerate(config.ice.components)
            for component in range(1, count + 1)
        )
        self._opening: dict[Flow, tuple[HostAddress, int, int]] = {}
        self._resolving: dict[Resolve, StunUri] = {}
        self._servers: dict[Address, str] = {}
        self._waiting: deque[tuple[Flow, Address]] = deque()
        self._probes: dict[tuple[Flow, Address], BindingProbe] = {}
        self._mappings: dict[tuple[Flow, Address], Address] = {}
        self._outputs: list[Output] = []
        self._events: list[GatheringEvent] = []

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, interfaces: InterfacesChanged, now: Instant) -> None:
        """Choose among the interfaces' addresses, open a socket on each and look the servers' names up."""
        if self.state is not GatheringState.NEW:
            raise RuntimeError("gathering has been started")
        chosen, self.refused = choose_addresses(interfaces.interfaces, self._config)
        self._change(GatheringState.GATHERING, f"{len(chosen)} local addresses to gather on", now)
        for host in chosen:
            for stream, component in self._components:
                flow = self._flow_ids.new()
                self._opening[flow] = (host, stream, component)
                self._outputs.append(
                    Open(flow=flow, transport=Transport.UDP, local=host.address, ports=self._config.ports)
                )
        for token, uri in enumerate(self._config.stun_servers):
            query = Resolve(name=uri.host, token=token)
            self._resolving[query] = uri
            self._outputs.append(query)
        self._timers.set(_Timer.PATIENCE, Instant(now + self._config.patience))
        self._finish_if_done(now)

    def stop_keepalives(self) -> None:
        """A pair was nominated: checks and consent keep its path open, the other mappings may go."""
        self._mappings.clear()
        self._timers.cancel(_Timer.KEEPALIVE)

    def close(self) -> None:
        """Close every socket and forget every question."""
        self._timers.clear()
        self._probes.clear()
        self._waiting.clear()
        self._mappings.clear()
        self._resolving.clear()
        self._outputs += [Close(flow=flow) for flow in (*self._opening, *self.bases)]
        self._opening.clear()
        self.bases.clear()

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question asked here."""
        return (flow, remote) in self._probes

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: GatheringInput, now: Instant) -> None:
        match input:
            case Received() | IcmpError() | SendFailed():
                self._probe_receives(input, now)
            case Opened():
                self._base_opened(input, now)
            case Closed():
                self._base_failed(input, now)
            case Resolved():
                self._resolved(input, now)
            case InterfacesChanged():
                if self.state is GatheringState.NEW:
                    self.start(input, now)

    def tick(self, now: Instant) -> None:
        for timer in self._timers.due(now):
            match timer:
                case _Timer.PACE:
                    self._ask_next(now)
                case _Timer.PATIENCE | _Timer.GRACE:
                    self._give_up(timer, now)
                case _Timer.KEEPALIVE:
                    self._keep_mappings(now)
        for key, probe in list(self._probes.items()):
            due = probe.next_timer()
            if due is not None and due <= now:
                probe.tick(now)
                self._collect(key, probe, now)

    def next_timer(self) -> Instant | None:
        due = [at for probe in self._probes.values() if (at := probe.next_timer()) is not None]
        if (own := self._timers.next()) is not None:
            due.append(own)
        return min(due, default=None)

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[GatheringEvent]:
        drained, self._events = self._events, []
        return drained

    # --------------------------------------------------------------------------------------------- bases and servers

    def _base_opened(self, opened: Opened, now: Instant) -> None:
        opening = self._opening.pop(opened.flow, None)
        if opening is None:
            return
        host, stream, component = opening
        base = BaseOpened(flow=opened.flow, host=host, local=opened.local, stream=stream, component=component)
        self.bases[opened.flow] = base
        self._events.append(base)
        for server in self._servers:
            self._plan(base, server)
        self._arm(now)
        self._finish_if_done(now)

    def _base_failed(self, closed: Closed, now: Instant) -> None:
        opening = self._opening.pop(closed.flow, None)
        base = self.bases.pop(closed.flow, None)
        host = opening[0] if opening is not None else base.host if base is not None else None
        if host is None:
            return
        refusal = Refused(interface=host.interface, host=host.address.host, reason=closed.reason)
        self.refused = (*self.refused, refusal)
        self._waiting = deque(entry for entry in self._waiting if entry[0] != closed.flow)
        for table in (self._probes, self._mappings):
            for key in [key for key in table if key[0] == closed.flow]:
                del table[key]
        self._finish_if_done(now)

    def _resolved(self, resolved: Resolved, now: Instant) -> None:
        uri = self._resolving.pop(resolved.query, None)
        if uri is None:
            return
        if resolved.error or not resolved.hosts:
            reason = resolved.error or "the name has no address"
            self._trace(now, "server", reason, server=str(uri), state="unresolved")
            self.answers.append(ServerAnswer(server=str(uri), reason=reason))
        families: set[int] = set()
        for host in resolved.hosts:
            server = Address.of(host, uri.port)
            if server.family in families or server in self._servers:
                continue
            families.add(server.family)
            self._servers[server] = str(uri)
            for base in self.bases.values():
                self._plan(base, server)
        self._arm(now)
        self._finish_if_done(now)

    # ------------------------------------------------------------------------------------------------------- asking

    def _plan(self, base: BaseOpened, server: Address) -> None:
        """Queue a question where an answer is possible: one family, and both or neither on loopback."""
        local, remote = scope(base.local.host), scope(server.host)
        same_reach = (local == "loopback") == (remote == "loopback") and (local != "link-local" or remote == local)
        if base.local.family == server.family and same_reach:
            self._waiting.append((base.flow, server))

    def _arm(self, now: Instant) -> None:
        if self._waiting and _Timer.PACE not in self._timers and self.state is GatheringState.GATHERING:
            slot = self._pacer.reserve(now)
            self._timers.set(_Timer.PACE, slot)
            if slot <= now:
                self._timers.cancel(_Timer.PACE)
                self._ask_next(now)

    def _ask_next(self, now: Instant) -> None:
        if self._waiting:
            flow, server = self._waiting.popleft()
            probe = BindingProbe(flow=flow, server=server, random=self._random, trace=self._trace.of("stun"))
            self._probes[flow, server] = probe
            probe.start(now)
            self._collect((flow, server), probe, now)
        self._arm(now)

    def _probe_receives(self, input: Received | IcmpError | SendFailed, now: Instant) -> None:
        key = (input.flow, input.remote)
        probe = self._probes.get(key)
        if probe is not None:
            probe.receive(input, now)
            self._collect(key, probe, now)

    def _collect(self, key: tuple[Flow, Address], probe: BindingProbe, now: Instant) -> None:
        for send in probe.outputs():
            self._outputs.append(send)
            if (send.flow, send.remote) != key and key in self._probes:
                del self._probes[key]  # sent on to an alternate server (RFC 8489, section 10)
                key = (send.flow, send.remote)
                self._probes[key] = probe
        for ended in probe.events():
            self._probes.pop(key, None)
            self._probe_ended(key, ended, now)

    def _probe_ended(self, key: tuple[Flow, Address], ended: ProbeEnded, now: Instant) -> None:
        base = self.bases.get(ended.flow)
        if base is None:
            return
        answer = ServerAnswer(
            server=str(ended.server), base=base.local, mapped=ended.mapped, rtt=ended.rtt, reason=ended.reason
        )
        self.answers.append(answer)
        state = "answered" if ended.mapped else "failed"
        self._trace(now, "server", ended.reason, server=str(ended.server), state=state, base=str(base.local))
        if ended.mapped is not None and self.state is GatheringState.GATHERING:
            self._events.append(MappingFound(flow=ended.flow, mapped=ended.mapped, server=ended.server))
            if ended.mapped != base.local:
                self._mappings[key] = ended.mapped
                if _Timer.KEEPALIVE not in self._timers:
                    self._timers.set(_Timer.KEEPALIVE, Instant(now + self._config.keepalive))
            self._timers.cancel(_Timer.PATIENCE)
            self._timers.set(_Timer.GRACE, Instant(now + self._config.grace))
        self._finish_if_done(now)

    def _keep_mappings(self, now: Instant) -> None:
        for flow, server in self._mappings:
            indication = Message.indication(Method.BINDING, self._random.randbytes(12))
            self._outputs.append(Send(flow, server, indication.encode(fingerprint=True)))
        if self._mappings:
            self._timers.set(_Timer.KEEPALIVE, Instant(now + self._config.keepalive))

    # ----------------------------------------------------------------------------------------------------- the end

    def _give_up(self, timer: _Timer, now: Instant) -> None:
        wait = self._config.patience if timer is _Timer.PATIENCE else self._config.grace
        since = "gathering began" if timer is _Timer.PATIENCE else "the last answer came"
        for flow, server in self._probes:
            if (base := self.bases.get(flow)) is not None:
                reason = f"{server} had not answered {in_seconds(wait):g} s after {since}"
                self.answers.append(ServerAnswer(server=str(server), base=base.local, reason=reason))
        self._probes.clear()
        self._waiting.clear()
        self._abandon_opening()
        self._resolving.clear()
        self._finish_if_done(now)

    def _abandon_opening(self) -> None:
        for flow, (host, _, _) in self._opening.items():
            self._outputs.append(Close(flow=flow))
            refusal = Refused(
                interface=host.interface, host=host.address.host, reason="its socket was not opened in time"
            )
            self.refused = (*self.refused, refusal)
        self._opening.clear()

    def _finish_if_done(self, now: Instant) -> None:
        pending = self._opening or self._resolving or self._waiting or self._probes
        if self.state is not GatheringState.GATHERING or pending:
            return
        self._timers.cancel(_Timer.PATIENCE)
        self._timers.cancel(_Timer.GRACE)
        mapped = sum(1 for answer in self.answers if answer.mapped)
        self._change(GatheringState.COMPLETE, f"{len(self.bases)} sockets, {mapped} answers of servers", now)

    def _change(self, new: GatheringState, reason: str, now: Instant) -> None:
        old, self.state = self.state, new
        self._trace(now, "gathering", reason, old=old.value, new=new.value)
        self._events.append(GatheringStateChanged(old=old, new=new, reason=reason))
