"""TURN client: one allocation on one server, with its permissions, channels and data (RFC 8656).

    Allocation    flow, server, Allocate, Refresh     Requests    signing, challenges, transactions
    Permissions   CreatePermission                    Channels    ChannelBind
    this file     dispatches packets and carries data

Data travels in Send indications until a channel is bound, then in ChannelData, in the order of the calls. On a link
that neither loses nor reorders packets, the switch to a channel loses and reorders none.

A relay is itself a flow. An owner that composes clients with an ICE agent gives each relayed address a `Flow` of its
own (`flow_ids.new()`). A `Send` on that flow becomes `client.send(peer, data, now=now)`, and a `RelayedData` event
becomes a `Datagram` on that flow from `peer`. Packets that arrive by `ServerChosen.flow` from `ServerChosen.server`
belong to the client.
"""

from __future__ import annotations

import random as random_module
from collections import Counter
from collections.abc import Iterable

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant, earliest
from polynya.core.machine import (
    Closed,
    Counters,
    Datagram,
    IcmpError,
    Input,
    Opened,
    Output,
    Send,
    SendFailed,
    StreamData,
)
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.stun.framing import StreamFramer
from polynya.stun.message import Message, Received, decode
from polynya.stun.registry import TRANSACTION_ID_LENGTH, Class, ErrorCode, Method

from .allocation import ENDED, Allocation, State
from .channels import HEADER as CHANNEL_HEADER
from .channels import Channels
from .config import ClientConfig
from .credentials import Credentials
from .events import CredentialsNeeded, PeerUnreachable, RelayedData, ServerAddress, ServerChosen, TurnEvent
from .indications import MAX_DATA, SEND_HEADER, read_data_indication, send_indication
from .keepalive import Keepalive
from .permissions import Permissions
from .report import RelayOverhead, TurnReport, turn_report
from .requests import Answer, Requests


class TurnClient:
    """Machine of one TURN client: core inputs or decoded messages in, core outputs and `TurnEvent`s out.

    `flow` is a UDP flow of the owner's, which the client never closes; without it the client opens its own. `pacer`
    grants a slot to each transaction. Outputs are appended to `outbox`; without one they wait in `outputs`.
    """

    def __init__(
        self,
        server: ServerAddress,
        config: ClientConfig | None = None,
        *,
        random: random_module.Random,
        flow_ids: FlowIds,
        flow: Flow | None = None,
        credentials: Credentials | None = None,
        pacer: Pacer | None = None,
        trace: Tracer = NO_TRACE,
        outbox: Queue[Output] | None = None,
    ) -> None:
        if flow is not None and server.transport.reliable:
            raise ValueError("a TURN client opens its stream to the server itself: omit `flow`")
        self.config = config or ClientConfig()
        self._draw = random.randbytes
        self._trace = trace
        self._outbox: Queue[Output] = Queue() if outbox is None else outbox
        self._allocation = Allocation(server, self.config, flow_ids=flow_ids, flow=flow, trace=trace)
        self._requests = Requests(
            credentials,
            random=random,
            schedule=self.config.schedule,
            pacer=pacer,
            trace=trace,
            outbox=self._outbox,
        )
        self._permissions = Permissions()
        self._channels = Channels()
        self.wrap = self._channels.wrap
        """`wrap(peer, data)` returns ChannelData for the server, or None without a bound channel: the fast path out."""
        self.unwrap = self._channels.unwrap
        """`unwrap(data)` returns peer and payload of ChannelData from the server, or None: the fast path in."""
        self._framer: StreamFramer | None = None
        self._flow = Flow(0)
        self._address = server.address
        self._keepalive = Keepalive(self.config.keepalive)
        self._due: Instant | None = None
        self._counters: Counter[str] = Counter()
        self._events: Queue[TurnEvent] = Queue()

    # ---------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        """Request the allocation. A second call changes nothing."""
        self._allocation.start(now=now)
        self._collect(now=now)

    def permit(self, peers: Iterable[Address], *, now: Instant) -> None:
        """Install and renew permissions for these peers' hosts until `forget`; the port does not matter.

        `Permitted` or `PermissionFailed` follows for each. Before the allocation is made, the request waits for it.
        """
        if self.state not in ENDED:
            self._permissions.permit(peers)
            self._collect(now=now)

    def bind(self, peer: Address, *, now: Instant) -> None:
        """Bind and renew a channel, and so a permission. `ChannelBound` or `ChannelFailed` follows."""
        if self.state not in ENDED:
            self._channels.bind(peer)
            self._collect(now=now)

    def forget(self, peer: Address, *, now: Instant) -> None:
        """Stop renewing the permission and channel of this peer, and drop data from its host."""
        self._permissions.forget(peer.host)
        self._channels.forget(peer, now=now)

    def set_credentials(self, credentials: Credentials, *, now: Instant) -> None:
        """Sign requests with these credentials: after `CredentialsNeeded`, or before the old ones expire."""
        self._requests.set_credentials(credentials, now=now)
        self._collect(now=now)

    def renew(self, *, now: Instant) -> None:
        """Refresh the allocation now, because the server may have lost it; `Lost` follows if it has."""
        self._allocation.renew(now=now)
        self._collect(now=now)

    def ask_again(self, *, now: Instant) -> None:
        """Start one more transaction for each request to a server that is silent over UDP."""
        self._requests.ask_again(now=now)
        self._collect(now=now)

    def close(self, *, now: Instant, wait: bool = True) -> None:
        """Free the allocation. `Released` follows when the server has answered, at the latest after 5 seconds.

        Without `wait` it follows at once: the Refresh is sent, and the client's own flow is closed.
        """
        self._allocation.close(now=now, possible=self._requests.signed_under_way)
        if not wait and self.state is State.CLOSING:
            self._allocation.free_unseen()
            self._collect(now=now)
            self._allocation.leave(now=now)
        self._collect(now=now)

    @property
    def state(self) -> State:
        return self._allocation.state

    @property
    def server(self) -> ServerAddress:
        """The server in use; after a redirection (300) it is not the one that was given."""
        return self._allocation.server

    @property
    def flow(self) -> Flow | None:
        return self._allocation.flow

    @property
    def heard(self) -> bool:
        """Whether the server has answered anything."""
        return self._requests.heard

    @property
    def waits_for_credentials(self) -> bool:
        """Whether a request waits for `set_credentials`."""
        return self._requests.waiting

    @property
    def rtt(self) -> int | None:
        """The shortest round trip to the server in use, nanoseconds."""
        return self._requests.rtt

    @property
    def relayed(self) -> tuple[Address, ...]:
        """The relayed addresses; empty before the allocation is made."""
        return self._allocation.relayed

    @property
    def mapped(self) -> Address | None:
        """The client's address as seen by the server."""
        return self._allocation.mapped

    def permitted(self, peer: Address) -> bool:
        """Whether data can be sent to this peer."""
        return self.state is State.ALLOCATED and self._permissions.installed(peer.host)

    def overhead(self, peer: Address) -> RelayOverhead:
        """Return how a datagram to this peer is carried to the server now: by a channel, or in a Send indication."""
        channel = self.wrap(peer, b"") is not None
        return RelayOverhead(
            family=self._address.family,
            transport=self.server.transport,
            channel=channel,
            header=CHANNEL_HEADER if channel else SEND_HEADER[peer.family],
        )

    def expects(self, flow: Flow, remote: Address) -> bool:
        """Whether packets from `remote` by `flow` are for this client."""
        return flow == self._flow and remote == self._address

    def owns_transaction(self, transaction_id: bytes) -> bool:
        return self._requests.owns_transaction(transaction_id)

    def why(self) -> TurnReport:
        """Return the history, the server's answers and the present state."""
        return turn_report(
            self._allocation,
            permissions=self._permissions.states(),
            channels=self._channels.states(),
            counters=self.counters,
        )

    @property
    def counters(self) -> Counters:
        return {**self._requests.counters, **self._counters}

    # ----------------------------------------------------------------------------------------------------------- data

    def send(self, peer: Address, data: bytes, *, now: Instant, dont_fragment: bool = False) -> bool:
        """Send a datagram to a peer; return False and count it if the peer is not permitted or the data too long.

        `dont_fragment` requests the DF bit, which only a Send indication can carry.
        """
        frame = None if dont_fragment else self.wrap(peer, data)
        if frame is None:
            if not self.permitted(peer) or len(data) > MAX_DATA:
                self._counters["not sent: too long" if len(data) > MAX_DATA else "not sent: no permission"] += 1
                return False
            frame = send_indication(self._draw(TRANSACTION_ID_LENGTH), peer, data, dont_fragment=dont_fragment)
        self._trace.data("relayed", now=now, flow=self._flow.id, remote=peer, length=len(data))
        self._outbox.append(Send(self._flow, self._address, frame))
        self._keepalive.sent(now=now)
        return True

    # -------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: Input | Received, *, now: Instant) -> None:
        """Handle an input. Packets from elsewhere than the server are dropped and counted."""
        match input:
            case Datagram() | Received() if not self.expects(input.flow, input.remote):
                self._counters["not from the server"] += 1
            case Datagram():
                self._frame(input.data, input.packet, now=now)
            case Received():
                self._message(input.message, input.packet, now=now)
            case StreamData():
                if input.flow == self._flow and self._framer is not None:
                    self._stream(input.data, self._framer, now=now)
            case Opened() | Closed() | IcmpError() | SendFailed() if input.flow == self._flow:
                if isinstance(input, Opened):
                    self._allocation.opened(input.flow, now=now)
                elif isinstance(input, Closed):
                    self._allocation.flow_gone(input.reason, now=now)
                else:
                    self._requests.failed(input, now=now)
                self._collect(now=now)
            case _:
                pass

    def tick(self, *, now: Instant) -> None:
        self._requests.tick(now=now)
        self._allocation.tick(now=now)
        self._permissions.tick(now=now)
        self._channels.tick(now=now)
        quiet = self._keepalive.next_timer()
        if quiet is not None and now >= quiet:
            self._keepalive.sent(now=now)
            self._outbox.append(
                Send(self._flow, self._address, self._keepalive.indication(self._draw(TRANSACTION_ID_LENGTH)))
            )
        self._collect(now=now)

    def next_timer(self) -> Instant | None:
        return self._due

    def outputs(self) -> list[Output]:
        """Return and remove the outputs; empty with an outbox that the owner drains."""
        return self._outbox.drain()

    def events(self) -> list[TurnEvent]:
        return self._events.drain()

    # -------------------------------------------------------------------------------------------------------- packets

    def _stream(self, data: bytes, framer: StreamFramer, *, now: Instant) -> None:
        for frame in framer.feed(data):
            self._frame(frame, 0, now=now)
        if framer.error is not None:
            reason = f"{self.server} sent bytes that are no TURN message: {framer.error}"
            self._allocation.flow_gone(reason, now=now, still_open=True)
            self._collect(now=now)

    def _frame(self, data: bytes, packet: int, *, now: Instant) -> None:
        if data and data[0] >> 6 == 1:
            unwrapped = self.unwrap(data)
            if unwrapped is None:
                self._drop("ChannelData on an unknown channel", packet, now=now)
            else:
                self._incoming(RelayedData(*unwrapped, packet), now=now)
        else:
            try:
                self._message(decode(data), packet, now=now)
            except DecodeError as error:
                self._drop("malformed", packet, now=now, reason=str(error))

    def _message(self, message: Message, packet: int, *, now: Instant) -> None:
        if message.cls is Class.SUCCESS or message.cls is Class.ERROR:
            self._requests.receive(message, self._flow, self._address, now=now)
            self._collect(now=now)
        elif message.cls is Class.INDICATION and message.method == Method.DATA:
            found = read_data_indication(message, packet)
            if found is not None:
                self._incoming(found, now=now)
            else:
                self._drop("Data indication without a possible peer, or without data", packet, now=now)
        else:
            self._drop("neither a response nor data", packet, now=now)

    def _incoming(self, found: RelayedData | PeerUnreachable, *, now: Instant) -> None:
        peer = found.peer
        if self.state is not State.ALLOCATED or (peer.host not in self._permissions and peer not in self._channels):
            self._drop("from a peer without a permission", 0, now=now)
            return
        if isinstance(found, RelayedData):
            self._trace.data("relayed", now=now, flow=self._flow.id, remote=peer, length=len(found.data))
        self._events.append(found)

    def _drop(self, what: str, packet: int, *, now: Instant, reason: str = "") -> None:
        self._counters[what] += 1
        self._trace.message_dropped(reason or what, now=now, remote=self._address, packet=packet)

    # ---------------------------------------------------------------------------------------------------------- parts

    def _collect(self, *, now: Instant) -> None:
        """Pass asks to `Requests` and answers to their parts until neither is left; then collect outputs and events."""
        while True:
            for event in self._allocation.events():
                if isinstance(event, ServerChosen):
                    self._aim(event)
                self._events.append(event)
            asks = self._allocation.asks()
            if self.state is State.ALLOCATED:
                asks += self._permissions.asks() + self._channels.asks()
                if self._framer is None:
                    self._keepalive.start(now=now)
            for ask in asks:
                self._requests.ask(ask, now=now)
            answers = self._requests.events()
            for answer in answers:
                self._answered(answer, now=now)
            if not asks and not answers:
                break
        if self.state in ENDED:
            for part in (self._keepalive, self._requests, self._permissions, self._channels):
                part.clear()
        self._events.extend(self._permissions.events())
        self._events.extend(self._channels.events())
        self._outbox.extend(self._allocation.outputs())
        timed = (self._requests, self._allocation, self._permissions, self._channels, self._keepalive)
        self._due = earliest(*[part.next_timer() for part in timed])

    def _aim(self, chosen: ServerChosen) -> None:
        self._flow, self._address = chosen.flow, chosen.server.address
        self._framer = StreamFramer() if chosen.server.transport.reliable else None
        self._channels.padded = self._framer is not None
        self._requests.aim(chosen.flow, chosen.server)

    def _answered(self, answer: Answer | CredentialsNeeded, *, now: Instant) -> None:
        if isinstance(answer, CredentialsNeeded):
            self._allocation.unauthenticated(answer.reason)
            self._events.append(answer)
            return
        if answer.code == ErrorCode.ALLOCATION_MISMATCH:
            self._allocation.gone(answer.code, answer.reason, now=now)
        if answer.ask.method == Method.CREATE_PERMISSION:
            self._permissions.answered(answer, now=now)
        elif answer.ask.method == Method.CHANNEL_BIND:
            peer = self._channels.answered(answer, now=now)
            if peer is not None:
                self._permissions.by_channel(peer, answer.sent_at)
        else:
            self._allocation.answered(answer, now=now)
