"""The signaling client: one member of one room, on one link at a time (docs/reference/signaling.md).

    state        event                        next         action
    IDLE         start                        CONNECTING   open a link
    CONNECTING   link opened                  JOINING      send join, with the resume token if there is one
    CONNECTING   link closed                  WAITING or ENDED
    JOINING      welcome                      JOINED       emit `Entered` and the changes of membership; send the queue
    JOINING      no welcome in time           WAITING or ENDED
    JOINED       link closed                  WAITING      emit `Interrupted`; keep the queue
    WAITING      timer, network changed       CONNECTING   open a new link
    CONNECTING   network changed              CONNECTING   abandon the link, open a new one
    any          fatal error, leave           ENDED        emit `Ended` with the reason

Only a client that has been a member reconnects (WAITING). A first attempt that fails ends the client, so that the user
sees a wrong address at once. The pause between attempts doubles, with jitter, until `ClientTimeouts.give_up`.

Messages are paced to the limits in the welcome, so the server never refuses a burst of candidates. A message in flight
may be lost when a link breaks; all others arrive in order.

Roles need no offer and answer: the member with the larger id controls, whichever side sends its description first.
Descriptions and candidates of a generation older than the peer's newest description are dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum
from random import Random

from polynya.core.compact import Queue
from polynya.core.errors import DecodeError, UsageError
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Counters
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Tracer

from .limits import Bucket
from .links import (
    NORMAL,
    POLICY,
    ClientInput,
    ClientOutput,
    CloseLink,
    LinkClosed,
    LinkOpened,
    LinkText,
    OpenLink,
    SendText,
)
from .messages import (
    VERSION,
    Away,
    Body,
    Description,
    Error,
    IceServer,
    Join,
    Joined,
    Keepalive,
    Leave,
    Left,
    ListServers,
    Resume,
    Resumed,
    ServerList,
    Signal,
    Welcome,
    decode_body,
    decode_from_server,
    encode,
    signal,
)

QUEUE_LENGTH = 1024
"""Messages that may wait to be sent. `send` raises UsageError beyond."""

TRANSIENT = frozenset({"shutting-down", "server-full", "host-full", "idle"})
"""Fatal error codes after which a client that has been a member reconnects."""

NO_SERVER_LIST = frozenset({"servers-rate", "rate", "bad-message"})
"""Error codes that may refuse a pending request of the server list; `bad-message` of a server that does not know it."""


class ClientState(Enum):
    """State of a signaling client; see the table above."""

    IDLE = "idle"
    CONNECTING = "connecting"
    JOINING = "joining"
    JOINED = "joined"
    WAITING = "waiting"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTimeouts:
    """Timeouts of a signaling client, in nanoseconds."""

    answer: int = 10 * SECOND
    """From opening a link to the welcome, and from a request of the server list to the answer."""
    first_pause: int = 250 * MILLISECOND
    """Pause before the first attempt to reconnect. Each further pause is twice as long."""
    longest_pause: int = 10 * SECOND
    give_up: int = 60 * SECOND
    """Time after the link broke in which the client tries to reconnect; 0 for never."""


# --------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """The client is a member. With `resumed` it has kept its id; otherwise its id and all peers are new."""

    peer_id: str
    peers: tuple[str, ...]
    servers: tuple[IceServer, ...]
    resumed: bool
    no_relay: str = ""
    """The reason why `servers` has no TURN server, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined:
    """Another member has joined the room."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResumed:
    """The way to another member was interrupted, on this side or on the other, and is whole again.

    Bodies that were sent in either direction just before may be lost.
    """

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft:
    """Another member has left for good."""

    peer: str
    reason: str
    clean: bool = False
    """Whether it left by itself, and not because the server lost it or this side did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAway:
    """The connection of another member to the server broke."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReceived:
    """Another member sent its description or a candidate."""

    peer: str
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The connection to the server broke. The client tries to reconnect."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersReceived:
    """The server list that was requested arrived: it is now in `RoomClient.servers`."""

    servers: tuple[IceServer, ...]
    no_relay: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServersRefused:
    """The server list that was requested is not available. `code` is the server's or `no-answer`."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The server refused a message. The client is still a member."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The client has ended. `code` is the server's, or `unreachable`, `no-welcome`, `version` or `left`."""

    code: str
    reason: str


ClientEvent = (
    Entered
    | PeerJoined
    | PeerResumed
    | PeerLeft
    | PeerAway
    | BodyReceived
    | ServersReceived
    | ServersRefused
    | Interrupted
    | Refused
    | Ended
)


class RoomClient:
    """The signaling client of one room."""

    def __init__(
        self,
        room: str,
        *,
        random: Random,
        limit: int | None = None,
        token: str = "",
        timeouts: ClientTimeouts | None = None,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.room = room
        self.state = ClientState.IDLE
        self.peer_id = ""
        self.servers: tuple[IceServer, ...] = ()
        self._peers: dict[str, int] = {}
        """The other members, each with the generation of its newest description; -1 before the first."""
        self._random = random
        self._limit = limit
        self._token = token
        self._timeouts = timeouts or ClientTimeouts()
        self._trace = trace
        self._link = 0
        self._link_live = False
        self._resume: Resume | None = None
        self._pause = self._timeouts.first_pause
        self._give_up_at: Instant | None = None
        self._welcome: Welcome | None = None
        self._bucket = Bucket(1, 1, now=Instant(0))
        self._queue: deque[tuple[str, Body]] = deque()
        self._servers_requested = False
        self._timers: Timers[str] = Timers()
        self._outputs: Queue[ClientOutput] = Queue()
        self._events: Queue[ClientEvent] = Queue()
        self._counters: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------------------------ state

    @property
    def peers(self) -> tuple[str, ...]:
        """Ids of the other members, in the order in which they joined."""
        return tuple(self._peers)

    def controls(self, peer: str) -> bool:
        """Whether this side controls (RFC 8445, section 6.1.1): the member with the larger id does."""
        if not self.peer_id:
            raise UsageError(
                "the room has not been entered: roles depend on the ids, which the server assigns on joining"
            )
        return self.peer_id > peer

    @property
    def queued(self) -> int:
        """Number of messages that wait to be sent."""
        return len(self._queue)

    @property
    def counters(self) -> Counters:
        return dict(self._counters)

    # --------------------------------------------------------------------------------------------------------- commands

    def start(self, *, now: Instant) -> None:
        """Open a link and join the room."""
        if self.state is not ClientState.IDLE:
            raise UsageError("the signaling client has already been started")
        self._connect(now=now)

    def send(self, peer: str, body: Body, *, now: Instant) -> None:
        """Send a description or a candidate to a member. It is queued while there is no connection to the server.

        A body for a member that has left is dropped. Raises UsageError before the room was entered, after the end, and
        when QUEUE_LENGTH messages are queued.
        """
        if not self.peer_id or self.state is ClientState.ENDED:
            raise UsageError("cannot send: the room has not been entered, or the signaling client has ended")
        if len(self._queue) >= QUEUE_LENGTH:
            raise UsageError(f"cannot send: {QUEUE_LENGTH} messages already wait for the signaling server")
        if peer not in self._peers:
            self._counters["dropped-no-peer"] += 1
            return
        self._queue.append((peer, body))
        self._flush(now=now)

    def request_servers(self, *, now: Instant) -> None:
        """Request the current server list; `ServersReceived` or `ServersRefused` follows.

        Does nothing while a request is pending. After a broken link the next welcome is the answer.
        """
        if not self.peer_id or self.state is ClientState.ENDED:
            raise UsageError("cannot request servers: the room has not been entered, or the signaling client has ended")
        if self._servers_requested:
            return
        self._servers_requested = True
        if self.state is ClientState.JOINED:
            self._timers.set("servers", Instant(now + self._timeouts.answer))
            self._outputs.append(SendText(self._link, encode(ListServers())))

    def network_changed(self, *, now: Instant) -> None:
        """Try to connect now if there is no open link: an attempt under way may hang on a lost address."""
        self._pause = self._timeouts.first_pause
        if self.state is ClientState.CONNECTING:
            self._abandon_link()
            self._connect(now=now)
        elif self.state is ClientState.WAITING:
            self._connect(now=now)

    def leave(self, *, now: Instant, reason: str = "left") -> None:
        """Leave the room and close the link. Queued messages are dropped."""
        if self.state is ClientState.ENDED:
            return
        if self.state is ClientState.JOINED:
            self._outputs.append(SendText(self._link, encode(Leave())))
        self._end("left", reason, now=now)

    # ----------------------------------------------------------------------------------------------------- the contract

    def receive(self, input: ClientInput, *, now: Instant) -> None:
        """Handle an event of the link. Never raises because of a message from the server or a peer."""
        if input.link != self._link or not self._link_live:
            return  # an abandoned link
        if isinstance(input, LinkText):
            self._on_text(input.text, now=now)
        elif isinstance(input, LinkClosed):
            self._on_closed(input, now=now)
        elif self.state is ClientState.CONNECTING:
            self._on_opened(input, now=now)

    def tick(self, *, now: Instant) -> None:
        """Run the due timers: reconnect, give up, send queued messages, send a keepalive."""
        for timer in self._timers.due(now=now):
            if timer == "connect":
                self._connect(now=now)
            elif timer == "welcome":
                self._retry_or_end("no-welcome", "the signaling server did not answer in time", now=now)
            elif timer == "keepalive" and self._welcome is not None:
                self._outputs.append(SendText(self._link, encode(Keepalive())))
                self._timers.set("keepalive", Instant(now + self._welcome.pace.keepalive * SECOND))
            elif timer == "flush":
                self._flush(now=now)
            elif timer == "servers":
                self._refuse_servers("no-answer", "the signaling server did not answer in time")

    def next_timer(self) -> Instant | None:
        """The instant of the next timer, if there is one."""
        return self._timers.next()

    def outputs(self) -> list[ClientOutput]:
        return self._outputs.drain()

    def events(self) -> list[ClientEvent]:
        return self._events.drain()

    # --------------------------------------------------------------------------------------------------------- the link

    def _connect(self, *, now: Instant) -> None:
        self._link += 1
        self._link_live = True
        self._become(ClientState.CONNECTING, "opening a link", now=now)
        self._timers.set("welcome", Instant(now + self._timeouts.answer))
        self._outputs.append(OpenLink(link=self._link))

    def _on_opened(self, opened: LinkOpened, *, now: Instant) -> None:
        self._become(ClientState.JOINING, f"link {opened.link} is open", now=now)
        join = Join(version=VERSION, room=self.room, limit=self._limit, resume=self._resume, token=self._token)
        self._outputs.append(SendText(self._link, encode(join)))

    def _on_closed(self, closed: LinkClosed, *, now: Instant) -> None:
        reason = closed.reason or f"the connection was closed with code {closed.code}"
        self._link_live = False
        self._retry_or_end("unreachable", reason, now=now)

    def _retry_or_end(self, code: str, reason: str, *, now: Instant) -> None:
        """Abandon the link. Reconnect if this client has been a member and there is time left; otherwise end."""
        if self.state is ClientState.JOINED:
            self._events.append(Interrupted(reason=reason))
            self._give_up_at = Instant(now + self._timeouts.give_up)
            self._pause = self._timeouts.first_pause
        self._abandon_link()
        self._timers.clear()
        pause = self._pause // 2 + self._random.randrange(self._pause // 2 + 1)
        if self._give_up_at is None or now + pause > self._give_up_at:
            self._end(code, reason, now=now)
            return
        self._become(ClientState.WAITING, reason, now=now)
        self._pause = min(2 * self._pause, self._timeouts.longest_pause)
        self._timers.set("connect", Instant(now + pause))

    def _end(self, code: str, reason: str, *, now: Instant) -> None:
        self._abandon_link()
        self._become(ClientState.ENDED, reason, now=now)
        self._timers.clear()
        self._queue.clear()
        self._events.append(Ended(code=code, reason=reason))

    def _abandon_link(self, code: int = NORMAL) -> None:
        if self._link_live:
            self._link_live = False
            self._outputs.append(CloseLink(link=self._link, code=code))

    def _become(self, state: ClientState, reason: str, *, now: Instant) -> None:
        self.state = state
        self._trace.signaling(reason, now=now, event=state)

    # ------------------------------------------------------------------------------------------------ received messages

    def _on_text(self, text: str | bytes, *, now: Instant) -> None:
        try:
            message = decode_from_server(text)
        except DecodeError as error:
            self._drop("bad-message", str(error), now=now)
            return
        if isinstance(message, Error):
            self._on_error(message, now=now)
        elif isinstance(message, Welcome):
            self._on_welcome(message, now=now)
        elif self.state is not ClientState.JOINED:
            self._drop("not-joined", "a message before the welcome", now=now)
        elif isinstance(message, Joined):
            self._on_joined(message.peer)
        elif isinstance(message, Resumed):
            if message.peer in self._peers:
                self._events.append(PeerResumed(peer=message.peer))
        elif isinstance(message, Away):
            if message.peer in self._peers:
                self._events.append(PeerAway(peer=message.peer))
        elif isinstance(message, Left):
            self._on_left(message.peer, message.reason, clean=message.clean)
        elif isinstance(message, ServerList):
            self._take_servers(message.servers)
        else:
            self._on_signal(message, now=now)

    def _on_error(self, error: Error, *, now: Instant) -> None:
        if error.fatal:
            if error.code in TRANSIENT and self.peer_id:
                self._retry_or_end(error.code, error.message, now=now)
            else:
                self._end(error.code, error.message, now=now)
        elif self._servers_requested and error.code in NO_SERVER_LIST:
            self._refuse_servers(error.code, error.message)
        else:
            self._events.append(Refused(code=error.code, reason=error.message))

    def _on_welcome(self, welcome: Welcome, *, now: Instant) -> None:
        if self.state is not ClientState.JOINING:
            self._drop("unexpected", "a welcome while not joining", now=now)
            return
        if welcome.version != VERSION:
            self._abandon_link(POLICY)
            self._end(
                "version", f"the server uses protocol version {welcome.version}, this client version {VERSION}", now=now
            )
            return
        resumed = welcome.resumed and welcome.peer == self.peer_id
        before = self._peers
        self._peers = {peer: before.get(peer, -1) if resumed else -1 for peer in welcome.peers}
        self.peer_id = welcome.peer
        self._resume = Resume(welcome.peer, welcome.token)
        self._welcome = welcome
        self._give_up_at = None
        self._timers.clear()
        self._timers.set("keepalive", Instant(now + welcome.pace.keepalive * SECOND))
        # keep one second's worth in reserve: the network may bunch up messages that were sent apart
        pace = welcome.pace
        self._bucket = Bucket(pace.messages_per_second, max(1, pace.burst - pace.messages_per_second), now=now)
        self._become(ClientState.JOINED, f"joined as {welcome.peer}, with {len(welcome.peers)} others", now=now)
        entered = Entered(
            peer_id=welcome.peer,
            peers=welcome.peers,
            servers=welcome.servers,
            resumed=resumed,
            no_relay=welcome.no_relay,
        )
        if resumed:
            self._events.append(entered)
        for peer in before:  # after a new entry, all members are new, those with a known id included
            if not resumed or peer not in self._peers:
                self._events.append(PeerLeft(peer=peer, reason="it left while this side was disconnected"))
        if not resumed:
            self._events.append(entered)
        if resumed:
            self._events.extend(PeerJoined(peer=peer) for peer in welcome.peers if peer not in before)
            self._events.extend(PeerResumed(peer=peer) for peer in welcome.peers if peer in before)
        self._take_servers(welcome.servers)
        self._queue = deque((peer, body) for peer, body in self._queue if resumed and peer in self._peers)
        self._flush(now=now)

    def _take_servers(self, servers: tuple[IceServer, ...]) -> None:
        self.servers = servers
        if self._servers_requested:
            self._servers_requested = False
            self._timers.cancel("servers")
            self._events.append(ServersReceived(servers=servers))

    def _refuse_servers(self, code: str, reason: str) -> None:
        self._servers_requested = False
        self._timers.cancel("servers")
        self._events.append(ServersRefused(code=code, reason=reason))

    def _on_joined(self, peer: str) -> None:
        if peer not in self._peers and peer != self.peer_id:
            self._peers[peer] = -1
            self._events.append(PeerJoined(peer=peer))

    def _on_left(self, peer: str, reason: str, *, clean: bool) -> None:
        if self._peers.pop(peer, None) is not None:
            self._queue = deque(each for each in self._queue if each[0] != peer)
            self._events.append(PeerLeft(peer=peer, reason=reason, clean=clean))

    def _on_signal(self, message: Signal, *, now: Instant) -> None:
        newest = self._peers.get(message.peer)
        if newest is None:
            self._drop("unknown-peer", f"a signal from {message.peer}, which is not in the room", now=now)
            return
        try:
            body = decode_body(message.body)
        except DecodeError as error:
            self._drop("bad-body", f"from {message.peer}: {error}", now=now)
            return
        if body.generation < newest:
            self._drop(
                "old-generation", f"generation {body.generation} of {message.peer}, whose newest is {newest}", now=now
            )
            return
        if isinstance(body, Description):
            self._peers[message.peer] = body.generation
        self._events.append(BodyReceived(peer=message.peer, body=body))

    def _drop(self, name: str, reason: str, *, now: Instant) -> None:
        self._counters[f"dropped-{name}"] += 1
        self._trace.signaling(reason, now=now, event=f"dropped-{name}")

    # ---------------------------------------------------------------------------------------------------- sent messages

    def _flush(self, *, now: Instant) -> None:
        """Send queued messages as fast as the server's limits allow."""
        if self.state is not ClientState.JOINED:
            return
        while self._queue:
            if not self._bucket.take(1, now=now):
                self._timers.set("flush", self._bucket.ready(1))
                return
            self._outputs.append(SendText(self._link, encode(signal(*self._queue.popleft()))))
