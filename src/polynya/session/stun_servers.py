"""STUN servers of a session: resolves their names, asks each from every base, and keeps the mappings open.

A question is a Binding request from one base to one server (RFC 8445, section 5.1.1.2):

    WAITING --slot of the pacer--> ASKING --answered, failed--> a `ProbeEnded`, and none

A question starts in each slot of the pacer (section 14). A response is found by its flow and server. Gathering stops
waiting after some time: names and questions that are pending then are late. They continue to their own end, the
resolver's or that of the transaction, 39.5 s after its first send (RFC 8489, section 6.2.1), and their results count
like any other. A kept mapping gets a Binding indication every Tr (RFC 8445, sections 5.1.1.4 and 11).
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from polynya.core.addresses import Address, scope
from polynya.core.compact import Queue, Table
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant, earliest
from polynya.core.machine import IcmpError, Output, Resolve, Resolved, Send, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Message, Received
from polynya.stun.probe import BindingProbe, ProbeEnded
from polynya.stun.registry import TRANSACTION_ID_LENGTH, Method
from polynya.stun.reported import why_impossible
from polynya.stun.uris import StunUri

from .options import Base, SessionConfig


@dataclass(slots=True)
class _Question:
    """A Binding request from a flow to a server."""

    late: bool
    """Whether gathering does not wait for it."""
    probe: BindingProbe | None = None
    """None until the pacer grants a slot."""
    again: bool = False
    """Whether one more transaction waits for a slot."""

    @property
    def waiting(self) -> bool:
        """Whether a request waits for a slot."""
        return self.probe is None or self.again


class StunServers:
    """Machine of a session's STUN servers: bases, names and responses in, outputs and `ProbeEnded`s out.

    Its outputs are appended to `outbox`; without one they wait in `outputs`.
    """

    __slots__ = (
        "_ask_at", "_config", "_events", "_keep_at", "_kept", "_names_late", "_outbox", "_pacer", "_questions",
        "_random", "_resolving", "_servers", "_trace", "asked_at",
    )  # fmt: skip

    def __init__(
        self,
        config: SessionConfig,
        *,
        random: random_module.Random,
        pacer: Pacer,
        trace: Tracer = NO_TRACE,
        outbox: Queue[Output] | None = None,
    ) -> None:
        self._config = config
        self._random = random
        self._pacer = pacer
        self._trace = trace.of("stun")
        self._resolving: Table[Resolve, StunUri] = Table()
        self._names_late = False
        """Whether gathering does not wait for the names that are being resolved."""
        self._servers: dict[Address, str] = {}
        self._questions: Table[FlowPath, _Question] = Table()
        self._ask_at: Instant | None = None
        """The slot of the next question."""
        self._kept: tuple[FlowPath, ...] = ()
        """The mappings that are kept open."""
        self._keep_at: Instant | None = None
        self.asked_at = Instant(0)
        """When the latest question to a configured server was first sent."""
        self._outbox: Queue[Output] = Queue() if outbox is None else outbox
        self._events: Queue[ProbeEnded] = Queue()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self) -> None:
        """Resolve the names of all servers; earlier names and questions are dropped."""
        self.close()
        for token, uri in enumerate(self._config.stun_servers):
            query = Resolve(name=uri.host, token=token)
            self._resolving[query] = uri
            self._outbox.append(query)

    def ask(self, base: Base, *, now: Instant, late: bool = False) -> None:
        """Ask every resolved server from a base, also those that were asked before; gathering waits unless `late`."""
        for server in self._servers:
            self._ask(base, server, now=now, late=late)

    def ask_also(self, base: Base, server: Address, *, now: Instant) -> None:
        """Ask a server that is not configured, the UDP port of a TURN server. Gathering does not wait for it."""
        if (base.flow, server) not in self._questions:
            self._ask(base, server, now=now, late=True)

    def ask_again(self, *, now: Instant) -> None:
        """Start one more transaction for each unanswered question that gathering waits for, or of `ask_also`."""
        for (_, server), question in self._questions.items():
            wanted = not question.late or server not in self._servers
            question.again = question.probe is not None and wanted
        self._arm(now=now)

    def keep(self, flow: Flow, server: Address, *, now: Instant) -> None:
        """Keep the mapping that `server` saw open."""
        if (flow, server) not in self._kept:
            self._kept += ((flow, server),)
        if self._keep_at is None:
            self._keep_at = Instant(now + self._config.keepalive)

    def stop_keeping(self) -> None:
        """Stop the keepalives of all mappings."""
        self._kept = ()
        self._keep_at = None

    def forget(self, flow: Flow) -> None:
        """Drop the questions and mappings of a base that is gone."""
        for path in [path for path in self._questions if path[0] == flow]:
            del self._questions[path]
        self._kept = tuple(path for path in self._kept if path[0] != flow)

    def release(self, hopeful: Callable[[Flow, Address], bool] | None = None) -> list[FlowPath]:
        """Stop waiting for names and answers, except for `hopeful` questions; return those that are late now."""
        self._names_late = True
        late = [path for path, question in self._questions.items() if not question.late]
        late = [path for path in late if hopeful is None or not hopeful(*path)]
        for path in late:
            self._questions[path].late = True
        return late

    def close(self) -> None:
        """Drop all names, servers, questions and mappings."""
        self._resolving.clear()
        self._names_late = False
        self._servers.clear()
        self._questions.clear()
        self._ask_at = None
        self.stop_keeping()
        self._events.clear()

    @property
    def asking(self) -> bool:
        """Whether gathering waits for a name, or for a question that has not been sent yet."""
        names = bool(self._resolving) and not self._names_late
        return names or any(question.probe is None and not question.late for question in self._questions.values())

    @property
    def pending(self) -> bool:
        """Whether gathering waits for a name or an answer."""
        names = bool(self._resolving) and not self._names_late
        return names or not all(question.late for question in self._questions.values())

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question."""
        question = self._questions.get((flow, remote))
        return question is not None and question.probe is not None

    def resolves(self, query: Resolve) -> bool:
        """Whether a query is for the name of a STUN server."""
        return query in self._resolving

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Received | IcmpError | SendFailed, *, now: Instant) -> None:
        path = (input.flow, input.remote)
        question = self._questions.get(path)
        if question is not None and question.probe is not None:
            question.probe.receive(input, now=now)
            self._collect(path, question)

    def resolved(self, resolved: Resolved, bases: Iterable[Base], *, now: Instant) -> tuple[str, str]:
        """Ask one address of each family of a resolved name from all bases; return the server, and why there is none.

        The second text is empty if the name has an address. Impossible ones, such as a filter's `0.0.0.0`, are ignored.
        """
        uri = self._resolving.pop(resolved.query)
        families: set[int] = set()
        impossible = []
        for host in resolved.hosts:
            server = Address.of(host, uri.port)
            if why := why_impossible(server):
                impossible.append(why)
                continue
            if server.family in families or server in self._servers:
                continue
            families.add(server.family)
            self._servers[server] = str(uri)
            for base in bases:
                self._ask(base, server, now=now, late=self._names_late)
        reason = "; ".join(impossible) or ("" if resolved.hosts else "the name has no address")
        return str(uri), resolved.error or reason

    def tick(self, *, now: Instant) -> None:
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            self._ask_next(now=now)
            self._arm(now=now)
        if self._keep_at is not None and now >= self._keep_at:
            self._keep_all(now=now)
        for path, question in list(self._questions.items()):
            due = None if question.probe is None else question.probe.next_timer()
            if question.probe is not None and due is not None and due <= now:
                question.probe.tick(now=now)
                self._collect(path, question)

    def next_timer(self) -> Instant | None:
        probes = (question.probe for question in self._questions.values())
        return earliest(self._ask_at, self._keep_at, *(probe.next_timer() for probe in probes if probe is not None))

    def outputs(self) -> list[Output]:
        """Return and remove the outputs; empty with an outbox that the owner drains."""
        return self._outbox.drain()

    def events(self) -> list[ProbeEnded]:
        return self._events.drain()

    # ------------------------------------------------------------------------------------------------------- asking

    def _ask(self, base: Base, server: Address, *, now: Instant, late: bool) -> None:
        """Ask a server in the next free slot; an earlier question to it is dropped."""
        if can_ask(base.local, server):
            self._questions.pop((base.flow, server), None)
            self._questions[base.flow, server] = _Question(late)
            self._arm(now=now)

    def _arm(self, *, now: Instant) -> None:
        """Reserve a slot for the next question; use the slots that are free now."""
        while self._ask_at is None and any(question.waiting for question in self._questions.values()):
            slot = self._pacer.reserve(now=now)
            if slot > now:
                self._ask_at = slot
            else:
                self._ask_next(now=now)

    def _ask_next(self, *, now: Instant) -> None:
        path = next((path for path, question in self._questions.items() if question.waiting), None)
        if path is None:
            return
        if self._pacer.free_at > now:  # an earlier slot was used late
            self._ask_at = self._pacer.free_at
            return
        self._pacer.used(now=now)
        flow, server = path
        question = self._questions.pop(path)
        self._questions[path] = question
        if question.probe is not None:
            question.again = False
            question.probe.ask_again(now=now)
        else:
            question.probe = BindingProbe(
                flow=flow, server=server, random=self._random, trace=self._trace, outbox=self._outbox
            )
            if server in self._servers:
                self.asked_at = now
            question.probe.start(now=now)
        self._collect(path, question)

    def _collect(self, path: FlowPath, question: _Question) -> None:
        probe = question.probe
        assert probe is not None
        if probe.server != path[1]:  # redirected to an alternate server (RFC 8489, section 10)
            del self._questions[path]
            path = (path[0], probe.server)
            self._questions[path] = question
        for ended in probe.events():
            self._questions.pop(path, None)
            self._events.append(ended)

    def _keep_all(self, *, now: Instant) -> None:
        for flow, server in self._kept:
            indication = Message.indication(Method.BINDING, self._random.randbytes(TRANSACTION_ID_LENGTH))
            self._outbox.append(Send(flow, server, indication.encode(fingerprint=True)))
        self._keep_at = Instant(now + self._config.keepalive) if self._kept else None


def can_ask(local: Address, server: Address) -> bool:
    """Whether a server can be reached from an address: same family, and both or neither on loopback."""
    here, there = scope(local.host), scope(server.host)
    same_reach = (here == "loopback") == (there == "loopback") and (here != "link-local" or there == here)
    return local.family == server.family and same_reach
