"""Asking STUN servers what they see, at the pace of the process, and keeping what they saw open.

Every question is a Binding probe from one flow to one server; a new one starts in each slot of the pacer (RFC 8445,
section 14). An answer is found by the flow and the server it comes from. A question that is late is asked on like any
other; only, nobody waits for it. A mapping that is kept gets a Binding indication every Tr (RFC 8445, sections 5.1.1.4
and 11).
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Collection

from polynya.core.addresses import Address, scope
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant, earliest
from polynya.core.machine import IcmpError, Send, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Message, Received
from polynya.stun.probe import BindingProbe, ProbeEnded
from polynya.stun.registry import TRANSACTION_ID_LENGTH, Method


def can_ask(local: Address, server: Address) -> bool:
    """Whether an answer is possible: in one family, and both or neither on loopback."""
    here, there = scope(local.host), scope(server.host)
    same_reach = (here == "loopback") == (there == "loopback") and (here != "link-local" or there == here)
    return local.family == server.family and same_reach


class Questions:
    """A machine: answers in, `Send` out, a `ProbeEnded` for each question."""

    __slots__ = (
        "_ask_at",
        "_events",
        "_interval",
        "_keep_at",
        "_kept",
        "_late",
        "_outputs",
        "_pacer",
        "_probes",
        "_random",
        "_trace",
        "_waiting",
    )

    def __init__(self, *, keepalive: int, random: random_module.Random, pacer: Pacer, trace: Tracer = NO_TRACE) -> None:
        self._interval = keepalive
        self._random = random
        self._pacer = pacer
        self._trace = trace
        self._ask_at: Instant | None = None
        """The slot of the next question."""
        self._keep_at: Instant | None = None
        self._waiting: list[FlowPath] = []
        self._probes: dict[FlowPath, BindingProbe] = {}
        self._late: tuple[FlowPath, ...] = ()
        self._kept: dict[FlowPath, None] = {}
        self._outputs: list[Send] = []
        self._events: list[ProbeEnded] = []

    # -------------------------------------------------------------------------------------------------------- calls

    def ask(self, flow: Flow, server: Address, *, now: Instant, late: bool = False) -> None:
        """Ask `server` by `flow` in the next slot that is free. What was asked there before is forgotten."""
        path = (flow, server)
        self._forget([path])
        self._waiting.append(path)
        if late:
            self._late += (path,)
        self._arm(now=now)

    def keep(self, flow: Flow, server: Address, *, now: Instant) -> None:
        """Keep the mapping that `server` saw open."""
        self._kept[flow, server] = None
        if self._keep_at is None:
            self._keep_at = Instant(now + self._interval)

    def stop_keeping(self) -> None:
        """Let every mapping go."""
        self._kept.clear()
        self._keep_at = None

    def forget(self, flow: Flow) -> None:
        """A flow is gone: so are its questions and mappings."""
        self._forget([path for path in (*self._waiting, *self._probes) if path[0] == flow])
        self._kept = {path: None for path in self._kept if path[0] != flow}

    def release(self, hopeful: Callable[[Flow, Address], bool] | None = None) -> list[FlowPath]:
        """Wait for no answer any more, but for those that are `hopeful`; the questions that are late from now on."""
        late = [path for path in self._pending() if hopeful is None or not hopeful(*path)]
        self._late += tuple(late)
        return late

    @property
    def pending(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._pending())

    @property
    def idle(self) -> bool:
        """Whether nothing is asked, kept or to be told: then nobody needs this any more."""
        return not (self._waiting or self._probes or self._kept or self._outputs or self._events)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question."""
        return (flow, remote) in self._probes

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Received | IcmpError | SendFailed, *, now: Instant) -> None:
        path = (input.flow, input.remote)
        probe = self._probes.get(path)
        if probe is not None:
            probe.receive(input, now=now)
            self._collect(path, probe)

    def tick(self, *, now: Instant) -> None:
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            self._ask_next(now=now)
            self._arm(now=now)
        if self._keep_at is not None and now >= self._keep_at:
            self._keep_all(now=now)
        for path, probe in list(self._probes.items()):
            due = probe.next_timer()
            if due is not None and due <= now:
                probe.tick(now=now)
                self._collect(path, probe)

    def next_timer(self) -> Instant | None:
        return earliest(self._ask_at, self._keep_at, *(probe.next_timer() for probe in self._probes.values()))

    def outputs(self) -> list[Send]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[ProbeEnded]:
        drained, self._events = self._events, []
        return drained

    # ------------------------------------------------------------------------------------------------------- asking

    def _arm(self, *, now: Instant) -> None:
        """Reserve slots, one at a time, and use at once what is free at once."""
        while self._waiting and self._ask_at is None:
            slot = self._pacer.reserve(now=now)
            if slot > now:
                self._ask_at = slot
            else:
                self._ask_next(now=now)

    def _ask_next(self, *, now: Instant) -> None:
        if self._waiting:
            if self._pacer.free_at > now:  # another's slot was used late
                self._ask_at = self._pacer.free_at
                return
            self._pacer.used(now=now)
            flow, server = path = self._waiting.pop(0)
            probe = BindingProbe(flow=flow, server=server, random=self._random, trace=self._trace)
            self._probes[path] = probe
            probe.start(now=now)
            self._collect(path, probe)

    def _collect(self, path: FlowPath, probe: BindingProbe) -> None:
        for send in probe.outputs():
            self._outputs.append(send)
            if (send.flow, send.remote) != path:  # sent on to an alternate server (RFC 8489, section 10)
                late = path in self._late
                self._forget([path])
                path = (send.flow, send.remote)
                self._probes[path] = probe
                if late:
                    self._late += (path,)
        for ended in probe.events():
            self._forget([path])
            self._events.append(ended)

    def _pending(self) -> list[FlowPath]:
        return [path for path in (*self._probes, *self._waiting) if path not in self._late]

    def _forget(self, paths: Collection[FlowPath]) -> None:
        """These are not asked any more."""
        for path in paths:
            self._probes.pop(path, None)
        self._waiting = [path for path in self._waiting if path not in paths]
        self._late = tuple(path for path in self._late if path not in paths)

    def _keep_all(self, *, now: Instant) -> None:
        for flow, server in self._kept:
            indication = Message.indication(Method.BINDING, self._random.randbytes(TRANSACTION_ID_LENGTH))
            self._outputs.append(Send(flow, server, indication.encode(fingerprint=True)))
        self._keep_at = Instant(now + self._interval) if self._kept else None
