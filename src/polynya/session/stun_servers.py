"""The STUN servers of a session: their names looked up, and each asked from every base that can reach it.

Gathering waits only so long. What is not there by then is *late*: a name that is still looked up, a question without an
answer. Nobody waits for it any more, and it goes on to the end that it has by itself: the resolver's, or that of the
transaction, 39.5 s after its first send (RFC 8489, section 6.2.1). What it brings then is as good as what came in time.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterable, Mapping

from polynya.core.addresses import Address
from polynya.core.empty import NOTHING
from polynya.core.flows import Flow, FlowPath
from polynya.core.instants import Instant
from polynya.core.machine import IcmpError, Output, Resolve, Resolved, SendFailed
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.message import Received
from polynya.stun.probe import ProbeEnded
from polynya.stun.uris import StunUri

from .options import Base, SessionConfig
from .questions import Questions, can_ask


class StunServers:
    """A machine: bases, names and answers in, `Resolve` and `Send` out, a `ProbeEnded` for each question."""

    __slots__ = ("_config", "_late", "_outputs", "_pacer", "_questions", "_random", "_resolving", "_servers", "_trace")

    def __init__(
        self, config: SessionConfig, *, random: random_module.Random, pacer: Pacer, trace: Tracer = NO_TRACE
    ) -> None:
        self._config = config
        self._random = random
        self._pacer = pacer
        self._trace = trace
        self._questions: Questions | None = None
        """Made for the first question, and left when the last one is answered and no mapping is kept."""
        self._resolving: Mapping[Resolve, StunUri] = NOTHING
        self._late = False
        """The names that are still looked up are."""
        self._servers: Mapping[Address, str] = NOTHING
        self._outputs: tuple[Output, ...] = ()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self) -> None:
        """Look the servers' names up; anew where they were, and what was asked then is forgotten."""
        self.close()
        queries = {Resolve(name=uri.host, token=token): uri for token, uri in enumerate(self._config.stun_servers)}
        self._resolving = queries or NOTHING
        self._outputs += tuple(queries)

    def ask(self, base: Base, *, now: Instant, late: bool = False) -> None:
        """Ask every server that is known from this base, anew where it was asked before; `late` if nobody waits."""
        for server in self._servers:
            self._ask(base, server, now=now, late=late)

    def keep(self, flow: Flow, server: Address, *, now: Instant) -> None:
        """Keep the mapping that `server` saw open."""
        self._asking().keep(flow, server, now=now)

    def stop_keeping(self) -> None:
        """Let every mapping go."""
        if self._questions is not None:
            self._questions.stop_keeping()

    def forget(self, flow: Flow) -> None:
        """A base is gone: so are its questions and mappings."""
        if self._questions is not None:
            self._questions.forget(flow)

    def release(self, hopeful: Callable[[Flow, Address], bool] | None = None) -> list[FlowPath]:
        """Wait for nothing any more, but for the answers that are `hopeful`; the questions that are late now."""
        self._late = True
        return [] if self._questions is None else self._questions.release(hopeful)

    def close(self) -> None:
        """Forget every name, every server and every question."""
        self._resolving = NOTHING
        self._late = False
        self._servers = NOTHING
        self._questions = None
        self._outputs = ()

    @property
    def pending(self) -> bool:
        """Whether a name or an answer is waited for."""
        return bool(self._resolving and not self._late) or (self._questions is not None and self._questions.pending)

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether a response from `remote` on `flow` belongs to a question."""
        return self._questions is not None and self._questions.expects(flow, remote)

    def looks_up(self, query: Resolve) -> bool:
        """Whether a name is looked up here."""
        return query in self._resolving

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Received | IcmpError | SendFailed, *, now: Instant) -> None:
        if self._questions is not None:
            self._questions.receive(input, now=now)

    def resolved(self, resolved: Resolved, bases: Iterable[Base], *, now: Instant) -> tuple[str, str]:
        """A name was looked up: ask one address of each family from these bases. Which server it is, and why not."""
        uri = self._resolving[resolved.query]
        self._resolving = {query: each for query, each in self._resolving.items() if query != resolved.query} or NOTHING
        families: set[int] = set()
        for host in resolved.hosts:
            server = Address.of(host, uri.port)
            if server.family in families or server in self._servers:
                continue
            families.add(server.family)
            self._servers = {**self._servers, server: str(uri)}
            for base in bases:
                self._ask(base, server, now=now, late=self._late)
        return str(uri), resolved.error or ("" if resolved.hosts else "the name has no address")

    def tick(self, *, now: Instant) -> None:
        if self._questions is not None:
            self._questions.tick(now=now)

    def next_timer(self) -> Instant | None:
        return None if self._questions is None else self._questions.next_timer()

    def outputs(self) -> list[Output]:
        drained, self._outputs = list(self._outputs), ()
        if self._questions is not None:
            drained += self._questions.outputs()
            if self._questions.idle:
                self._questions = None
        return drained

    def events(self) -> list[ProbeEnded]:
        return [] if self._questions is None else self._questions.events()

    def _ask(self, base: Base, server: Address, *, now: Instant, late: bool) -> None:
        if can_ask(base.local, server):
            self._asking().ask(base.flow, server, now=now, late=late)

    def _asking(self) -> Questions:
        if self._questions is None:
            self._questions = Questions(
                keepalive=self._config.keepalive,
                random=self._random,
                pacer=self._pacer,
                trace=self._trace.of("stun"),
            )
        return self._questions
