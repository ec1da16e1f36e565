"""The control plane of a TURN server: answers requests and commands a data plane.

Inputs are packets that the data plane doesn't handle, streams, reports of the data plane and results of user lookups.
Outputs are responses, commands and user lookups. The control plane relays no data.

    | input                                                       | handling                                       |
    |-------------------------------------------------------------|------------------------------------------------|
    | a Binding request                                           | answered at once, without state                |
    | a retransmission of a request in progress                   | dropped: the response will come                |
    | a retransmission of an Allocate or of the final Refresh     | the same response again                        |
    | any other request                                           | authenticated, then run as a procedure         |
    | an indication, a response, anything else                    | dropped and counted                            |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from functools import partial
from random import Random
from typing import Final, Protocol

from polynya.core.compact import Queue
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

from .allocating import Allocating
from .allocations import Allocation, Allocations
from .alternates import Alternate, fitting
from .answers import Answers
from .authentication import Authenticated, Authenticator, Denied, LookUpNeeded
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
from .config import Limits, ServerConfig
from .events import Drained, PeerRefused, TurnEvent
from .frames import SEND_TYPE, icmp_indication
from .lookups import LookUp, LookUps, PendingRequest, UserFound
from .nonces import KEY_BYTES
from .policy import PeerPolicy
from .procedures import Completed, ErrorResponse, Procedure, Procedures, Request
from .streams import Streams
from .users import Directory

TurnInput = CoreInput | Received | Report | UserFound
TurnOutput = Send | Close | Command | Forward | LookUp

FIXED: Final = ("realm", "relays", "ports", "port_rest", "algorithms")
"""Fields of ServerConfig that cannot change while a server runs; clients depend on most of them."""

_ERRORS: Final[dict[int, str]] = {code: f"error responses {code:d}" for code in ErrorCode}
_SUCCESSES: Final[dict[int, str]] = {method: f"success responses {method.name}" for method in Method}
_FINAL_ANSWERS: Final = 4096
_FINAL_ANSWER_KEPT: Final = 40 * SECOND
"""Time for which a client may retransmit a request (RFC 8489, section 6.3.1)."""


class Handler(Protocol):
    """Makes the procedure for one kind of authenticated request (RFC 8656, sections 7 to 12)."""

    def __call__(self, request: Request, *, now: Instant) -> Procedure: ...


class ControlPlane:
    """Answers requests. `random` must be the system's in production: ports, nonces and tokens come from it."""

    def __init__(self, config: ServerConfig, directory: Directory, *, random: Random, trace: Tracer = NO_TRACE) -> None:
        self.config = config
        self._trace = trace
        self._random = random
        self._nonce_key = random.randbytes(KEY_BYTES)
        self._directory = directory
        self._authenticator = Authenticator(config, directory, self._nonce_key)
        self.allocations = Allocations(config, random)
        """Read-only; requests change it."""
        self._allocating = Allocating(config, self.allocations)
        self._handlers: dict[int, Handler] = {
            Method.ALLOCATE: self._allocating.allocate,
            Method.REFRESH: self._allocating.refresh,
            Method.CREATE_PERMISSION: self._allocating.create_permission,
            Method.CHANNEL_BIND: self._allocating.channel_bind,
        }
        self._procedures: Procedures[Request | None] = Procedures()
        self._in_progress: dict[tuple[Client, bytes], Request] = {}
        self._final_answers: OrderedDict[tuple[Client, bytes], tuple[Instant, bytes]] = OrderedDict()
        """Responses to Refresh requests that ended an allocation, for retransmissions."""
        self._lookups = LookUps(config.limits)
        self._streams = Streams(config.limits)
        self._answers = Answers(config.limits)
        self._stream_bindings = _answers_budget(config.limits)
        self._binding = BindingServer(trace=trace, budget=self._answers.budget)
        self._requests = Budget(config.limits.requests_per_second)
        self._unix_offset: int | None = None
        self._draining = False
        """Whether `Drained` must still be emitted."""
        self._outputs: Queue[TurnOutput] = Queue()
        self._ordered: Queue[TurnOutput] = Queue()
        """Data of streams, with the commands before it."""
        self._events: Queue[TurnEvent] = Queue()
        self._counters: dict[str, int] = {}
        self._procedures.issue(partial(SetPolicy, policy=config.policy))

    # ---------------------------------------------------------------------------------------------------- owner's calls

    def set_unix_time(self, seconds: int, *, now: Instant) -> None:
        """Set the time of day. Until then all time-limited credentials count as expired."""
        self._unix_offset = seconds - now // SECOND

    def set_policy(self, policy: PeerPolicy, *, now: Instant) -> None:
        """Replace the peer policy; permissions that it denies are removed."""
        self._allocating.policy = policy
        self._procedures.issue(partial(SetPolicy, policy=policy))
        for allocation in list(self.allocations.by_client.values()):
            self._procedures.start(self._allocating.revoke(allocation, now=now), None, now=now)
        self._settle(now=now)

    def set_config(self, config: ServerConfig, *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Apply new limits, lifetimes and channel range; existing allocations are kept.

        The peer policy is changed by `set_policy`. Raises ConfigurationError if a field of FIXED differs.
        """
        fixed = [name for name in FIXED if getattr(self.config, name) != getattr(config, name)]
        if fixed:
            raise ConfigurationError(f"restart the TURN server to change {', '.join(fixed)}")
        self.config = config
        self._authenticator = Authenticator(config, self._directory, self._nonce_key)
        self.allocations.limits = self._lookups.limits = self._streams.limits = config.limits
        self._allocating.configure(config)
        self._answers = Answers(config.limits)
        self._stream_bindings = _answers_budget(config.limits)
        self._binding.budget = self._answers.budget
        self._requests = Budget(config.limits.requests_per_second)

    def set_origins(self, origins: Mapping[Flow, Origin], *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Serve behavior discovery (RFC 5780) on these listeners."""
        self._binding.origins = origins

    def set_directory(self, directory: Directory, *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Replace the user directory. Allocations and nonces stay valid."""
        self._directory = directory
        self._authenticator = Authenticator(self.config, directory, self._nonce_key)
        self._lookups.forget()

    def set_secure_listeners(self, listeners: Collection[Flow], *, now: Instant) -> None:  # noqa: ARG002 - as a driver calls
        """Set the listeners whose streams are TLS; their clients are redirected to alternates with TLS only."""
        self._streams.secure_listeners = listeners

    def drain(self, *, now: Instant, alternates: tuple[Alternate, ...] = ()) -> None:  # noqa: ARG002 - as a driver calls
        """Refuse new allocations, with `alternates` for the clients; emits `Drained` when the last one has ended."""
        self._allocating.draining = lambda client: fitting(
            alternates, client.remote, self._streams.transport(client.flow)
        )
        self._draining = True
        self._check_drained()

    def _check_drained(self) -> None:
        """Emit `Drained` once neither an allocation nor a reservation is left."""
        if self._draining and not self.allocations.claimed:
            self._draining = False
            self._events.append(Drained())

    def close_all(self, reason: str, *, now: Instant) -> None:
        """End every allocation."""
        for allocation in list(self.allocations.by_client.values()):
            self._end(allocation, reason, now=now)
        self._settle(now=now)

    @property
    def policy(self) -> PeerPolicy:
        """The peer policy in use."""
        return self._allocating.policy

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table, to show leaks."""
        return {
            **self.allocations.size,
            **self._streams.size,
            "procedures": len(self._procedures),
            "requests in progress": len(self._in_progress),
        }

    def has_stream(self, flow: Flow) -> bool:
        """Whether a stream is open."""
        return flow in self._streams

    # --------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: TurnInput, *, now: Instant) -> None:
        """Handle a packet, a change of a stream, a report of the data plane, or the result of a lookup."""
        match input:
            case Datagram():
                self._receive_datagram(input, now=now)
            case Done() | Refused():
                if not self._procedures.acknowledge(input, now=now) and isinstance(input, Refused):
                    self._count("commands refused without a procedure")
            case StreamData():
                self._receive_stream(input, now=now)
            case Received():
                self._message(
                    input.message, Client(input.flow, input.remote), now=now, stream=input.flow in self._streams
                )
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
                for pending in self._lookups.found(input.name, users, now=now):
                    self._message(pending.message, pending.client, now=now, stream=pending.stream)
            case Opened() if input.remote is not None:
                self._stream_opened(Client(input.flow, input.remote), input.listener, now=now)
            case Closed():
                self._stream_closed(input.flow, "its stream closed", now=now)
            case _:
                self._count("unexpected inputs")
        self._settle(now=now)

    def tick(self, *, now: Instant) -> None:
        for client in self.allocations.expiries.due(now=now):
            allocation = self.allocations.by_client[client]
            self._procedures.start(self._allocating.expire(allocation, now=now), None, now=now)
        for token in self.allocations.reserved_until.due(now=now):
            self._procedures.start(self._allocating.expire_reservation(token, now=now), None, now=now)
        for flow in self._streams.timed_out(now=now):
            self._count("streams closed: no allocation")
            self._close_stream(flow, "it had no allocation", now=now)
        for _ in range(self._lookups.tick(now=now)):
            self._count("requests dropped: user lookup timed out")
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
        return [*self._ordered.drain(), *self._procedures.commands(), *self._outputs.drain(), *self._lookups.outputs()]

    def events(self) -> list[TurnEvent]:
        return self._events.drain()

    @property
    def counters(self) -> Counters:
        """Responses by kind and code, and dropped messages by reason."""
        return self._counters

    # ---------------------------------------------------------------------------------------------------------- inputs

    def _receive_datagram(self, datagram: Datagram, *, now: Instant) -> None:
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

    def _receive_stream(self, chunk: StreamData, *, now: Instant) -> None:
        received = self._streams.feed(chunk.flow, chunk.data)
        if received is None:
            self._count("data on a stream that is not open")
            return
        client, frames, broken = received
        for frame in frames:
            if is_channel_data(frame) or frame.startswith(SEND_TYPE):
                if self._streams.is_idle(chunk.flow):
                    broken = "data without an allocation"
                    break
                self._ordered.extend(self._procedures.commands())  # data keeps its place among the client's requests
                self._ordered.append(Forward(client, frame))
            elif chunk.flow in self._streams:
                self._receive_datagram(Datagram(client.flow, client.remote, frame), now=now)
        if broken:
            self._drop(client, f"stream closed: {broken}", now=now)
            self._close_stream(chunk.flow, "a frame of its stream was malformed", now=now)

    def _stream_opened(self, client: Client, listener: Flow | None, *, now: Instant) -> None:
        if (evicted := self._streams.evicted_for(client)) is not None:
            self._count("streams closed: too many")
            self._close_stream(evicted, "too many streams, and it had no allocation", now=now)
        if not self._streams.accept(client, now=now, listener=listener):
            self._count("streams refused: too many")
            self._outputs.append(Close(flow=client.flow))

    def _close_stream(self, flow: Flow, reason: str, *, now: Instant) -> None:
        self._outputs.append(Close(flow=flow))
        self._stream_closed(flow, reason, now=now)

    def _stream_closed(self, flow: Flow, reason: str, *, now: Instant) -> None:
        client = self._streams.close(flow)
        if client is None:
            return
        for (requester, _), request in self._in_progress.items():
            if requester == client:
                request.abandoned = True
        allocation = self.allocations.by_client.get(client)
        if allocation is not None:
            self._end(allocation, reason, now=now)

    def _peer_error(self, report: PeerError, *, now: Instant) -> None:
        """Send the client an ICMP error about a peer with a permission (RFC 8656, section 11.5)."""
        allocation = self.allocations.by_client.get(report.client)
        if allocation is None or allocation.permissions.get(report.peer.host, now) <= now:
            return
        data = icmp_indication(self._random.randbytes(12), report)
        if data is not None:
            self._count("ICMP Data indications")
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
            self._drop(client, f"not a request: {message.method!r} {message.cls.name}", now=now)
        elif message.method == Method.BINDING and not message.malformed:
            self._bind(message, client, now=now, stream=stream)
        elif message.legacy or message.method not in self._handlers:
            self._drop(client, f"method not supported: {message.method!r}", now=now)
        elif (client, message.transaction_id) in self._in_progress:
            self._count("requests dropped: in progress")
        elif (answer := self._earlier_answer(message, client, now=now)) is not None:
            self._count("responses retransmitted")
            self._outputs.append(Send(client.flow, client.remote, answer))
        else:
            self._authenticate(message, client, now=now, stream=stream)

    def _earlier_answer(self, message: Message, client: Client, *, now: Instant) -> bytes | None:
        """Return the response to an earlier transmission of this request; None if there is none."""
        allocation = self.allocations.by_client.get(client)
        if message.method == Method.ALLOCATE and allocation is not None:
            same = allocation.answer and allocation.transaction_id == message.transaction_id
            return allocation.answer if same else None
        final = self._final_answers.get((client, message.transaction_id))
        return final[1] if final is not None and message.method == Method.REFRESH and now < final[0] else None

    def _bind(self, message: Message, client: Client, *, now: Instant, stream: bool) -> None:
        if stream and not self._stream_bindings.take(source_of(client.remote.host), now=now):
            self._drop(client, "too many Binding requests on streams", now=now)
            return
        self._binding.receive(Received(client.flow, client.remote, message, b""), now=now)
        answers = [output for output in self._binding.outputs() if isinstance(output, Send)]
        self._count("Binding responses" if answers else "dropped: too many unauthenticated responses")
        self._outputs.extend(answers)

    def _authenticate(self, message: Message, client: Client, *, now: Instant, stream: bool) -> None:
        unix = None if self._unix_offset is None else now // SECOND + self._unix_offset
        result = self._authenticator.check(message, client, now=now, unix=unix)
        if isinstance(result, LookUpNeeded):
            known = self._lookups.known(result.name, now=now)
            if known is None:
                # A lookup takes from the budget, so that a source cannot cause more of them than it gets responses.
                if not self._answers.may_answer(client, now=now):
                    self._drop(client, "too many user lookups for one source", now=now)
                elif not self._lookups.add(result.name, PendingRequest(message, client, stream), now=now):
                    self._drop(client, "too many user lookups", now=now)
                return
            result = self._authenticator.check(message, client, now=now, unix=unix, known=known)
        if isinstance(result, Denied):
            self._deny(message, client, result, now=now)
        elif isinstance(result, Authenticated):
            self._run(Request(message, client, result, stream), now=now)

    def _deny(self, message: Message, client: Client, denied: Denied, *, now: Instant) -> None:
        answer = self._answers.denial(message, client, denied, self._authenticator, now=now)
        if answer is None:
            self._drop(client, "too many unauthenticated responses", now=now)
            return
        self._count(_ERRORS[denied.code])
        self._outputs.append(Send(client.flow, client.remote, answer))

    # ------------------------------------------------------------------------------------------------------ procedures

    def _run(self, request: Request, *, now: Instant) -> None:
        message = request.message
        if message.malformed:
            self._finish(Completed(request, error=ErrorResponse(ErrorCode.BAD_REQUEST, message.malformed)), now=now)
            return
        if message.unknown_required:
            listed = tuple(dict.fromkeys(message.unknown_required))[:MAX_UNKNOWN]
            error = ErrorResponse(ErrorCode.UNKNOWN_ATTRIBUTE, "unknown attributes", {UNKNOWN_ATTRIBUTES: listed})
            self._finish(Completed(request, error=error), now=now)
            return
        self._in_progress[request.client, message.transaction_id] = request
        self._procedures.start(self._handlers[message.method](request, now=now), request, now=now)

    def _end(self, allocation: Allocation, reason: str, *, now: Instant) -> None:
        self._procedures.start(self._allocating.end(allocation, reason, now=now), None, now=now)

    def _settle(self, *, now: Instant) -> None:
        """Answer completed procedures and emit events."""
        while completed := self._procedures.completed():
            for each in completed:
                self._finish(each, now=now)
        for event in self._allocating.events():
            self._events.append(event)
            flow = event.client.flow
            if event.client in self.allocations.by_client:
                self._streams.mark_used(flow)
            else:
                self._streams.mark_idle(flow, now=now)
        self._check_drained()
        self._events.extend(self._answers.refused.drain())

    def _finish(self, completed: Completed[Request | None], *, now: Instant) -> None:
        """Answer the request of a completed procedure."""
        request = completed.context
        if request is None:
            return
        client, message = request.client, request.message
        self._in_progress.pop((client, message.transaction_id), None)
        if request.abandoned:
            return
        if completed.error is not None:
            error = self._answers.error(request, completed.error, now=now)
            if error is None:
                self._drop(client, "too many error responses", now=now)
                return
            answer = error
            self._count(_ERRORS[completed.error.code])
        else:
            answer = self._answers.success(request, completed.value)
            self._count(_SUCCESSES[message.method])
            self._keep(request, answer, now=now)
        self._outputs.append(Send(client.flow, client.remote, answer))

    def _keep(self, request: Request, answer: bytes, *, now: Instant) -> None:
        """Keep a response that the request would not get if it were handled again."""
        allocation = self.allocations.by_client.get(request.client)
        if request.message.method == Method.ALLOCATE and allocation is not None:
            allocation.transaction_id, allocation.answer = request.message.transaction_id, answer
        elif request.message.method == Method.REFRESH and allocation is None and not request.stream:
            kept = self._final_answers
            while kept and (len(kept) >= _FINAL_ANSWERS or next(iter(kept.values()))[0] <= now):
                kept.popitem(last=False)
            kept[request.client, request.message.transaction_id] = Instant(now + _FINAL_ANSWER_KEPT), answer

    def _drop(self, client: Client, reason: str, *, now: Instant, packet: int = 0) -> None:
        self._count(f"dropped: {reason.partition(':')[0]}")
        self._trace.message_dropped(reason, now=now, remote=client.remote, packet=packet)

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1


def _answers_budget(limits: Limits) -> Budget:
    """Make a budget of unauthenticated responses. That of streams is separate, as a source there is not forged."""
    return Budget(limits.unauthenticated_answers_per_second, limits.unauthenticated_burst)
