"""The control plane of a TURN server: a machine that answers requests and commands a data plane.

In come datagrams that the plane does not know, streams, the plane's reports and answers to look-ups; out go answers,
commands and look-ups. It forwards nothing itself.

    | what comes in                                        | what becomes of it                                        |
    |------------------------------------------------------|-----------------------------------------------------------|
    | a Binding request                                    | answered at once, without any state                       |
    | a request that is being worked on, sent again        | dropped: its answer will come                             |
    | the Allocate or the ending Refresh that was answered | the same answer again                                     |
    | another request                                      | authenticated, then run as a procedure of commands        |
    | an indication, a response, anything else             | dropped and counted                                       |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from functools import partial
from random import Random
from typing import Final, Protocol

from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Closed, Counters, Datagram, Opened, Send, StreamData
from polynya.core.machine import Input as CoreInput
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.attributes import UNKNOWN_ATTRIBUTES
from polynya.stun.budget import Budget, source_of
from polynya.stun.framing import is_channel_data
from polynya.stun.message import Message, Received, decode
from polynya.stun.origins import Origin
from polynya.stun.registry import Class, ErrorCode, Method
from polynya.stun.server import MAX_UNKNOWN, BindingServer

from . import icmp
from .allocating import Allocating
from .allocations import Allocation, Allocations
from .alternates import Alternate, fitting
from .answers import Answers
from .authentication import Authenticator, Denied, Granted, MustAsk
from .commands import (
    Client,
    Command,
    Done,
    Forward,
    PeerError,
    PeerForbidden,
    Refused,
    RelayLost,
    Report,
    SetPolicy,
    Traffic,
)
from .config import ServerConfig
from .events import Drained, PeerRefused, TurnEvent
from .frames import SEND_TYPE
from .lookups import LookUp, LookUps, UserFound, Waiting
from .nonces import KEY_BYTES
from .permitting import Permitting
from .policy import PeerPolicy
from .procedures import Outcome, Procedures
from .requests import Ask, Procedure, Refusal
from .streams import Streams
from .users import Directory

TurnInput = CoreInput | Received | Report | UserFound
TurnOutput = Send | Close | Command | Forward | LookUp

FIXED: Final = ("realm", "relays", "ports", "port_rest", "algorithms")
"""What of its configuration a server keeps for its life; clients hold on to most of it."""

_ERRORS: Final[dict[int, str]] = {code: f"answers {code:d}" for code in ErrorCode}
_SUCCESSES: Final[dict[int, str]] = {method: f"answers to {method.name}" for method in Method}
_FAREWELLS: Final = 4096
_FAREWELL_KEPT: Final = 40 * SECOND
"""How long a client may send again what it did not hear the answer to (RFC 8489, section 6.3.1)."""


class Handler(Protocol):
    """Answers one kind of request from an authenticated client (RFC 8656, 7 to 12)."""

    def __call__(self, ask: Ask, *, now: Instant) -> Procedure: ...


class TurnServer:
    """The control plane. `random` must be the system's in production: ports, nonces and tokens come from it."""

    def __init__(self, config: ServerConfig, directory: Directory, *, random: Random, trace: Tracer = NO_TRACE) -> None:
        self.config = config
        self._trace = trace
        self._random = random
        self._nonce_key = random.randbytes(KEY_BYTES)
        self._directory = directory
        self._auth = Authenticator(config, directory, self._nonce_key)
        self.allocations = Allocations(config, random)
        """Read it; it changes by requests only."""
        self._allocating = Allocating(config, self.allocations)
        self._permitting = Permitting(config, self.allocations)
        self._handlers: dict[int, Handler] = {
            Method.ALLOCATE: self._allocating.allocate,
            Method.REFRESH: self._allocating.refresh,
            Method.CREATE_PERMISSION: self._permitting.create_permission,
            Method.CHANNEL_BIND: self._permitting.channel_bind,
        }
        self._procedures: Procedures[Ask | None] = Procedures()
        self._busy: dict[tuple[Client, bytes], Ask] = {}
        self._farewells: OrderedDict[tuple[Client, bytes], tuple[Instant, bytes]] = OrderedDict()
        self._lookups = LookUps(config.limits)
        self._streams = Streams(config.limits)
        self._answers = Answers(config.limits)
        self._binding = BindingServer(trace=trace, budget=self._answers.budget)
        self._requests = Budget(config.limits.requests_per_second)
        self._unix_offset: int | None = None
        self._draining = False
        """Whether `Drained` is still to be told."""
        self._outputs: list[TurnOutput] = []
        self._events: list[TurnEvent] = []
        self._counters: dict[str, int] = {}
        self._procedures.order(partial(SetPolicy, policy=config.policy))

    # ---------------------------------------------------------------------------------------------------- owner's calls

    def set_unix_time(self, seconds: int, *, now: Instant) -> None:
        """Tell the time of day, which expiring credentials need. Without it none of them is good."""
        self._unix_offset = seconds - now // SECOND

    def set_policy(self, policy: PeerPolicy, *, now: Instant) -> None:
        """Go by new rules at once: permissions that they forbid are taken back."""
        self._permitting.policy = policy
        self._procedures.order(partial(SetPolicy, policy=policy))
        for allocation in list(self.allocations.by_client.values()):
            self._procedures.start(self._permitting.revoke(allocation, now=now), None, now=now)
        self._settle(now=now)

    def set_config(self, config: ServerConfig, *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Go by new limits, lifetimes and channel range; what is there already keeps what it has.

        The peer policy is `set_policy`'s. Raises ConfigurationError for a change of what is FIXED.
        """
        fixed = [name for name in FIXED if getattr(self.config, name) != getattr(config, name)]
        if fixed:
            raise ConfigurationError(f"fixed while a TURN server runs: {', '.join(fixed)}")
        self.config = config
        self._auth = Authenticator(config, self._directory, self._nonce_key)
        self.allocations.limits = self._lookups.limits = self._streams.limits = config.limits
        self._allocating.config = config
        self._permitting.configure(config)
        self._answers = Answers(config.limits)
        self._binding.budget = self._answers.budget
        self._requests = Budget(config.limits.requests_per_second)

    def set_origins(self, origins: Mapping[Flow, Origin], *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Serve behavior discovery (RFC 5780) on these listeners."""
        self._binding.origins = origins

    def set_directory(self, directory: Directory, *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Use another user directory. Allocations go on; nonces stay good."""
        self._directory = directory
        self._auth = Authenticator(self.config, directory, self._nonce_key)
        self._lookups.forget()

    def set_secure_listeners(self, listeners: Collection[Flow], *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """The streams that are accepted on these from now on are TLS: such a client is sent elsewhere by TLS only."""
        self._streams.secure_listeners = listeners

    def drain(self, *, now: Instant, alternates: tuple[Alternate, ...] = ()) -> None:  # noqa: ARG002 - as a driver calls
        """Make no new allocations: clients are sent to `alternates`, or away. `Drained` when the last one is over."""
        self._allocating.draining = lambda client: fitting(
            alternates, client.remote, self._streams.transport(client.flow)
        )
        self._draining = True
        self._tell_drained()

    def _tell_drained(self) -> None:
        """Once, when neither an allocation nor a reservation is left."""
        if self._draining and not self.allocations.claimed:
            self._draining = False
            self._events.append(Drained())

    def close_all(self, reason: str, *, now: Instant) -> None:
        """End every allocation."""
        for allocation in list(self.allocations.by_client.values()):
            self._end(allocation, reason, now=now)
        self._settle(now=now)

    # --------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: TurnInput, *, now: Instant) -> None:
        """Take in a packet, what became of a stream, a report of the plane, or the answer to a look-up."""
        match input:
            case Datagram():
                self._take_datagram(input, now=now)
            case Done() | Refused():
                if not self._procedures.take(input, now=now) and isinstance(input, Refused):
                    self._count("commands refused that nobody waited for")
            case StreamData():
                self._take_stream(input, now=now)
            case Received():
                self._message(
                    input.message, Client(input.flow, input.remote), now=now, stream=input.flow in self._streams
                )
            case Send():
                self._outputs.append(input)
            case Traffic():
                relayed = self.allocations.relayed.get(input.relay)
                if relayed is not None:
                    relayed.traffic = input
            case PeerError():
                self._peer_error(input, now=now)
            case PeerForbidden():
                self._peer_forbidden(input)
            case RelayLost():
                self._relay_lost(input, now=now)
            case UserFound():
                users = (input.user,) if input.user is not None else ()
                for waiting in self._lookups.found(input.name, users, now=now):
                    self._message(waiting.message, waiting.client, now=now, stream=waiting.stream)
            case Opened() if input.remote is not None:
                client = Client(input.flow, input.remote)
                if (oldest := self._streams.crowded_out(client)) is not None:
                    self._count("streams closed: others came")
                    self._close_stream(oldest, "others came, and it had no allocation", now=now)
                if not self._streams.accept(client, now=now, listener=input.listener):
                    self._count("streams refused")
                    self._outputs.append(Close(flow=input.flow))
            case Closed():
                self._stream_gone(input.flow, "its stream closed", now=now)
            case _:
                self._count("not for a TURN server")
        self._settle(now=now)

    def tick(self, *, now: Instant) -> None:
        for client in self.allocations.expiries.due(now=now):
            allocation = self.allocations.by_client[client]
            self._procedures.start(self._allocating.expire(allocation, now=now), None, now=now)
        for token in self.allocations.reserved_until.due(now=now):
            self._procedures.start(self._allocating.give_up(token, now=now), None, now=now)
        for flow in self._streams.idle(now=now):
            self._count("streams closed: no allocation")
            self._close_stream(flow, "it had no allocation", now=now)
        for _ in range(self._lookups.tick(now=now)):
            self._count("requests dropped: nobody answered the look-up")
        self._procedures.tick(now=now)
        self._settle(now=now)

    def next_timer(self) -> Instant | None:
        timers = (
            self.allocations.expiries.next(),
            self.allocations.reserved_until.next(),
            self._streams.next_timer(),
            self._lookups.next_timer(),
            self._procedures.next_timer(),
        )
        return min((due for due in timers if due is not None), default=None)

    def outputs(self) -> list[TurnOutput]:
        commands: list[TurnOutput] = [*self._procedures.commands()]
        drained, self._outputs = self._outputs, []
        return commands + drained + self._lookups.outputs()

    def events(self) -> list[TurnEvent]:
        drained, self._events = self._events, []
        return drained

    @property
    def counters(self) -> Counters:
        """Answers by kind and code, and what was dropped by why."""
        return self._counters

    # ---------------------------------------------------------------------------------------------------------- inputs

    def _take_datagram(self, datagram: Datagram, *, now: Instant) -> None:
        client = Client(datagram.flow, datagram.remote)
        if not self._requests.take(source_of(datagram.remote.host), now=now):
            self._drop(client, "too many requests", now=now, packet=datagram.packet)
            return
        try:
            message = decode(datagram.data, legacy=True, lenient=True)
        except DecodeError as error:
            self._drop(client, f"not STUN: {error}", now=now, packet=datagram.packet)
            return
        self._message(message, client, now=now, stream=client.flow in self._streams)

    def _take_stream(self, chunk: StreamData, *, now: Instant) -> None:
        taken = self._streams.feed(chunk.flow, chunk.data)
        if taken is None:
            self._count("data of a stream that is not open")
            return
        client, frames, broken = taken
        for frame in frames:
            if is_channel_data(frame) or frame.startswith(SEND_TYPE):
                self._outputs.append(Forward(client, frame))
            elif chunk.flow in self._streams:
                self._take_datagram(Datagram(client.flow, client.remote, frame), now=now)
        if broken:
            self._drop(client, f"stream closed: {broken}", now=now)
            self._close_stream(chunk.flow, "its stream lost step", now=now)

    def _close_stream(self, flow: Flow, reason: str, *, now: Instant) -> None:
        self._outputs.append(Close(flow=flow))
        self._stream_gone(flow, reason, now=now)

    def _stream_gone(self, flow: Flow, reason: str, *, now: Instant) -> None:
        client = self._streams.close(flow)
        if client is None:
            return
        for (busy, _), ask in self._busy.items():
            if busy == client:
                ask.abandoned = True
        allocation = self.allocations.by_client.get(client)
        if allocation is not None:
            self._end(allocation, reason, now=now)

    def _peer_error(self, report: PeerError, *, now: Instant) -> None:
        """Tell the client of an ICMP error from a peer that it has a permission for (RFC 8656, section 11.5)."""
        allocation = self.allocations.by_client.get(report.client)
        if allocation is None or allocation.permissions.get(report.peer.host, now) <= now:
            return
        data = icmp.indication(self._random.randbytes(12), report)
        if data is not None:
            self._count("icmp indications")
            self._outputs.append(Send(report.client.flow, report.client.remote, data))

    def _peer_forbidden(self, report: PeerForbidden) -> None:
        allocation = self.allocations.by_relay.get(report.relay)
        if allocation is not None:
            client, user = allocation.client, allocation.user.name
            self._events.append(PeerRefused(client=client, user=user, peer=report.peer, rule=report.rule))

    def _relay_lost(self, report: RelayLost, *, now: Instant) -> None:
        allocation = self.allocations.by_relay.get(report.relay)
        if allocation is not None:
            self._end(allocation, f"the relay port is lost: {report.reason}", now=now)

    # -------------------------------------------------------------------------------------------------------- messages

    def _message(self, message: Message, client: Client, *, now: Instant, stream: bool) -> None:
        if message.cls is not Class.REQUEST:
            self._drop(client, f"nothing to answer: {message.method!r} {message.cls.name}", now=now)
        elif message.method == Method.BINDING and not message.malformed:
            self._bind(message, client, now=now)
        elif message.legacy or message.method not in self._handlers:
            self._drop(client, f"not a request that is answered here: {message.method!r}", now=now)
        elif (client, message.transaction_id) in self._busy:
            self._count("requests dropped: being worked on")
        elif (answer := self._given(message, client, now=now)) is not None:
            self._count("answers repeated")
            self._outputs.append(Send(client.flow, client.remote, answer))
        else:
            self._authenticate(message, client, now=now, stream=stream)

    def _given(self, message: Message, client: Client, *, now: Instant) -> bytes | None:
        """The answer that this very request got before."""
        allocation = self.allocations.by_client.get(client)
        if message.method == Method.ALLOCATE and allocation is not None:
            same = allocation.answer and allocation.transaction_id == message.transaction_id
            return allocation.answer if same else None
        farewell = self._farewells.get((client, message.transaction_id))
        return farewell[1] if farewell is not None and message.method == Method.REFRESH and now < farewell[0] else None

    def _bind(self, message: Message, client: Client, *, now: Instant) -> None:
        self._binding.receive(Received(client.flow, client.remote, message, b""), now=now)
        answers = [output for output in self._binding.outputs() if isinstance(output, Send)]
        self._count("binding answers" if answers else "dropped: too many answers to strangers")
        self._outputs += answers

    def _authenticate(self, message: Message, client: Client, *, now: Instant, stream: bool) -> None:
        unix = None if self._unix_offset is None else now // SECOND + self._unix_offset
        verdict = self._auth.check(message, client, now=now, unix=unix)
        if isinstance(verdict, MustAsk):
            known = self._lookups.known(verdict.name, now=now)
            if known is None:
                if not self._answers.may_answer(client, now=now):  # who would be refused anyway costs no look-up
                    self._drop(client, "too many look-ups for one source", now=now)
                elif not self._lookups.wait(verdict.name, Waiting(message, client, stream), now=now):
                    self._drop(client, "too many look-ups", now=now)
                return
            verdict = self._auth.check(message, client, now=now, unix=unix, known=known)
        if isinstance(verdict, Denied):
            self._deny(message, client, verdict, now=now)
        elif isinstance(verdict, Granted):
            self._run(Ask(message, client, verdict, stream), now=now)

    def _deny(self, message: Message, client: Client, denied: Denied, *, now: Instant) -> None:
        answer = self._answers.denial(message, client, denied, self._auth, now=now)
        if answer is None:
            self._drop(client, "too many answers to strangers", now=now)
            return
        self._count(_ERRORS[denied.code])
        self._outputs.append(Send(client.flow, client.remote, answer))

    # ------------------------------------------------------------------------------------------------------ procedures

    def _run(self, ask: Ask, *, now: Instant) -> None:
        message = ask.message
        if message.malformed:
            self._finish(Outcome(ask, refusal=Refusal(ErrorCode.BAD_REQUEST, message.malformed)), now=now)
            return
        if message.unknown_required:
            listed = tuple(dict.fromkeys(message.unknown_required))[:MAX_UNKNOWN]
            refusal = Refusal(ErrorCode.UNKNOWN_ATTRIBUTE, "unknown attributes", {UNKNOWN_ATTRIBUTES: listed})
            self._finish(Outcome(ask, refusal=refusal), now=now)
            return
        self._busy[ask.client, message.transaction_id] = ask
        self._procedures.start(self._handlers[message.method](ask, now=now), ask, now=now)

    def _end(self, allocation: Allocation, reason: str, *, now: Instant) -> None:
        self._procedures.start(self._allocating.end(allocation, reason, now=now), None, now=now)

    def _settle(self, *, now: Instant) -> None:
        """Carry on whatever this call has set off, until nothing moves."""
        while self._procedures.over:
            for outcome in self._procedures.outcomes():
                self._finish(outcome, now=now)
        for event in self._allocating.events():
            self._events.append(event)
            flow = event.client.flow
            if event.client in self.allocations.by_client:
                self._streams.settle(flow)
            else:
                self._streams.wait(flow, now=now)
        self._tell_drained()
        if self._answers.refused:
            refused, self._answers.refused = self._answers.refused, []
            self._events += refused

    def _finish(self, outcome: Outcome[Ask | None], *, now: Instant) -> None:
        """Answer the request that a procedure was for."""
        ask = outcome.context
        if ask is None:
            return
        client, message = ask.client, ask.message
        self._busy.pop((client, message.transaction_id), None)
        if ask.abandoned:
            return
        if outcome.refusal is not None:
            refused = self._answers.refusal(ask, outcome.refusal, now=now)
            if refused is None:
                self._drop(client, "too many answers to one who only gets errors", now=now)
                return
            answer = refused
            self._count(_ERRORS[outcome.refusal.code])
        else:
            answer = self._answers.success(ask, outcome.value)
            self._count(_SUCCESSES[message.method])
            self._remember(ask, answer, now=now)
        self._outputs.append(Send(client.flow, client.remote, answer))

    def _remember(self, ask: Ask, answer: bytes, *, now: Instant) -> None:
        """Keep the answers that a second execution would not give again."""
        allocation = self.allocations.by_client.get(ask.client)
        if ask.message.method == Method.ALLOCATE and allocation is not None:
            allocation.transaction_id, allocation.answer = ask.message.transaction_id, answer
        elif ask.message.method == Method.REFRESH and allocation is None and not ask.stream:
            farewells = self._farewells
            while farewells and (len(farewells) >= _FAREWELLS or next(iter(farewells.values()))[0] <= now):
                farewells.popitem(last=False)
            farewells[ask.client, ask.message.transaction_id] = Instant(now + _FAREWELL_KEPT), answer

    def _drop(self, client: Client, reason: str, *, now: Instant, packet: int = 0) -> None:
        self._count(f"dropped: {reason.partition(':')[0]}")
        if self._trace.enabled:
            self._trace.message_dropped(reason, now=now, remote=str(client.remote), packet=packet)

    def _count(self, what: str) -> None:
        self._counters[what] = self._counters.get(what, 0) + 1
