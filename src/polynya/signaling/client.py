"""A member's side of signaling: one room, entered by one link at a time (docs/reference/signaling.md).

    state        event                        next         what is done
    IDLE         start                        CONNECTING   open a link
    CONNECTING   link opened                  JOINING      send join, with the resume token if there is one
    CONNECTING   link closed                  WAITING or ENDED
    JOINING      welcome                      JOINED       `Entered`, and who came or went meanwhile; send what waits
    JOINING      no welcome in time           WAITING or ENDED
    JOINED       link closed                  WAITING      `Interrupted`; what is to be sent waits
    WAITING      timer                        CONNECTING   open a new link
    any          fatal error, leave           ENDED        `Ended` says why, and whether trying again is of use

WAITING is for a member that was in: the first attempt fails at once, so that a wrong address is seen at once. Later
ones go on with a doubling, jittered pause for as long as `Patience` says.

What is sent is paced to what the server said it takes, so a burst of candidates is never refused. A message that was on
its way when the link broke may be lost; all others arrive in order.

Roles need no offer and answer: the member with the larger id controls, so it does not matter who described itself
first. Descriptions and candidates of an older generation than the newest description of that peer are dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum
from random import Random

from polynya.core.errors import DecodeError, UsageError
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Counters
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Tracer

from .limits import Bucket
from .links import (
    NORMAL,
    POLICY,
    CloseLink,
    LinkClosed,
    LinkInput,
    LinkOpened,
    LinkOutput,
    LinkText,
    OpenLink,
    SendText,
)
from .messages import (
    VERSION,
    Body,
    Description,
    Error,
    IceServer,
    Join,
    Joined,
    Keepalive,
    Leave,
    Left,
    Resume,
    Signal,
    Welcome,
    decode_body,
    decode_from_server,
    encode,
    signal,
)

WAITING_MESSAGES = 1024
"""Messages that may wait to be sent; more than this is the caller's error."""

PASSING = frozenset({"shutting-down", "server-full", "host-full", "idle"})
"""Refusals that a member who was in tries to outlast."""


class ClientState(Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    JOINING = "joining"
    JOINED = "joined"
    WAITING = "waiting"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a member waits for the server. Nanoseconds."""

    join: int = 10 * SECOND
    """From asking for a link to the welcome."""
    first_pause: int = 250 * MILLISECOND
    longest_pause: int = 10 * SECOND
    give_up: int = 60 * SECOND
    """After the link broke; 0 never tries again."""


# ------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """The member is in the room. With `resumed` it kept its id; else it has a new one and all peers are new."""

    peer_id: str
    peers: tuple[str, ...]
    servers: tuple[IceServer, ...]
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJoined:
    """Another member came since the room was entered."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLeft:
    """Another member is gone for good."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReceived:
    """Another member described itself, or sent a candidate."""

    peer: str
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The connection to the server broke; the member tries to come back."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The server refused a message; the member is still in."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The member is out for good. `code` is the server's, `unreachable`, `no-welcome`, `protocol` or `left`."""

    code: str
    reason: str


ClientEvent = Entered | PeerJoined | PeerLeft | BodyReceived | Interrupted | Refused | Ended


class RoomClient:
    """One member of one room."""

    def __init__(
        self,
        room: str,
        *,
        random: Random,
        limit: int | None = None,
        patience: Patience | None = None,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.room = room
        self.state = ClientState.IDLE
        self.peer_id = ""
        self.servers: tuple[IceServer, ...] = ()
        self._peers: dict[str, int] = {}
        """The others, each with the newest generation that it described; -1 before it has."""
        self._random = random
        self._limit = limit
        self._patience = patience or Patience()
        self._trace = trace
        self._link = 0
        self._link_live = False
        self._resume: Resume | None = None
        self._pause = self._patience.first_pause
        self._give_up_at: Instant | None = None
        self._welcome: Welcome | None = None
        self._bucket = Bucket(1, 1, now=Instant(0))
        self._waiting: deque[tuple[str, Body]] = deque()
        self._timers: Timers[str] = Timers()
        self._outputs: list[LinkOutput] = []
        self._events: list[ClientEvent] = []
        self._counters: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------------- what is known

    @property
    def peers(self) -> tuple[str, ...]:
        """The other members, in the order of their coming."""
        return tuple(self._peers)

    def controls(self, peer: str) -> bool:
        """Whether this side has the controlling role towards a peer: the larger id has it (RFC 8445, section 6.1.1)."""
        if not self.peer_id:
            raise UsageError("the room has not been entered: roles follow from the ids that the server gives out")
        return self.peer_id > peer

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent."""
        return len(self._waiting)

    @property
    def counters(self) -> Counters:
        return dict(self._counters)

    # -------------------------------------------------------------------------------------------------- what is asked

    def start(self, *, now: Instant) -> None:
        """Go and enter the room."""
        if self.state is not ClientState.IDLE:
            raise UsageError("the room client has been started")
        self._connect(now=now)

    def send(self, peer: str, body: Body, *, now: Instant) -> None:
        """Send a description or a candidate to a member; it waits while the server cannot be reached.

        What is for one who has left is dropped. UsageError before the room was entered, after the end, or when far more
        waits than any agent has candidates.
        """
        if not self.peer_id or self.state is ClientState.ENDED:
            raise UsageError("not in the room: enter it first, and stop sending when it ended")
        if len(self._waiting) >= WAITING_MESSAGES:
            raise UsageError(f"{WAITING_MESSAGES} messages wait for the signaling server already")
        if peer not in self._peers:
            self._counters["dropped-no-peer"] += 1
            return
        self._waiting.append((peer, body))
        self._flush(now=now)

    def leave(self, *, now: Instant, reason: str = "left") -> None:
        """Say goodbye and close. What waits to be sent is dropped."""
        if self.state is ClientState.ENDED:
            return
        if self.state is ClientState.JOINED:
            self._outputs.append(SendText(self._link, encode(Leave())))
        self._end("left", reason, now=now)

    # ---------------------------------------------------------------------------------------------------- the contract

    def receive(self, input: LinkInput, *, now: Instant) -> None:
        """Take in what the link did. Never raises on what the server or a peer sent."""
        if input.link != self._link or not self._link_live:
            return  # from a link that was given up
        if isinstance(input, LinkText):
            self._said(input.text, now=now)
        elif isinstance(input, LinkClosed):
            self._link_lost(input, now=now)
        elif self.state is ClientState.CONNECTING:
            self._joining(input, now=now)

    def tick(self, *, now: Instant) -> None:
        """Do what is due: connect again, give up, send what waits, show that we are here."""
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

    def next_timer(self) -> Instant | None:
        """When `tick` has something to do."""
        return self._timers.next()

    def outputs(self) -> list[LinkOutput]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[ClientEvent]:
        drained, self._events = self._events, []
        return drained

    # -------------------------------------------------------------------------------------------------------- the link

    def _connect(self, *, now: Instant) -> None:
        self._link += 1
        self._link_live = True
        self._become(ClientState.CONNECTING, "asked for a link", now=now)
        self._timers.set("welcome", Instant(now + self._patience.join))
        self._outputs.append(OpenLink(link=self._link))

    def _joining(self, opened: LinkOpened, *, now: Instant) -> None:
        self._become(ClientState.JOINING, f"link {opened.link} is open", now=now)
        join = Join(version=VERSION, room=self.room, limit=self._limit, resume=self._resume)
        self._outputs.append(SendText(self._link, encode(join)))

    def _link_lost(self, closed: LinkClosed, *, now: Instant) -> None:
        reason = closed.reason or f"the connection was closed with code {closed.code}"
        self._link_live = False
        self._retry_or_end("unreachable", reason, now=now)

    def _retry_or_end(self, code: str, reason: str, *, now: Instant) -> None:
        """The link is of no more use: try another if we were in and there is time left, else it is the end."""
        if self.state is ClientState.JOINED:
            self._events.append(Interrupted(reason=reason))
            self._give_up_at = Instant(now + self._patience.give_up)
            self._pause = self._patience.first_pause
        self._give_link_up()
        self._timers.clear()
        pause = self._pause // 2 + self._random.randrange(self._pause // 2 + 1)
        if self._give_up_at is None or now + pause > self._give_up_at:
            self._end(code, reason, now=now)
            return
        self._become(ClientState.WAITING, reason, now=now)
        self._pause = min(2 * self._pause, self._patience.longest_pause)
        self._timers.set("connect", Instant(now + pause))

    def _end(self, code: str, reason: str, *, now: Instant) -> None:
        self._give_link_up()
        self._become(ClientState.ENDED, reason, now=now)
        self._timers.clear()
        self._waiting.clear()
        self._events.append(Ended(code=code, reason=reason))

    def _give_link_up(self, code: int = NORMAL) -> None:
        if self._link_live:
            self._link_live = False
            self._outputs.append(CloseLink(link=self._link, code=code))

    def _become(self, state: ClientState, reason: str, *, now: Instant) -> None:
        self.state = state
        if self._trace.enabled:
            self._trace.signaling(reason, now=now, event=state.value)

    # -------------------------------------------------------------------------------------------------- what comes in

    def _said(self, text: str | bytes, *, now: Instant) -> None:
        try:
            message = decode_from_server(text)
        except DecodeError as error:
            self._drop("bad-message", str(error), now=now)
            return
        if isinstance(message, Error):
            self._error(message, now=now)
        elif isinstance(message, Welcome):
            self._welcomed(message, now=now)
        elif self.state is not ClientState.JOINED:
            self._drop("not-joined", "said before the welcome", now=now)
        elif isinstance(message, Joined):
            self._joined(message.peer)
        elif isinstance(message, Left):
            self._left(message.peer, message.reason)
        else:
            self._signaled(message, now=now)

    def _error(self, error: Error, *, now: Instant) -> None:
        if error.fatal:
            if error.code in PASSING and self.peer_id:
                self._retry_or_end(error.code, error.message, now=now)
            else:
                self._end(error.code, error.message, now=now)
        else:
            self._events.append(Refused(code=error.code, reason=error.message))

    def _welcomed(self, welcome: Welcome, *, now: Instant) -> None:
        if self.state is not ClientState.JOINING:
            self._drop("unexpected", "a welcome while not joining", now=now)
            return
        if welcome.version != VERSION:
            self._give_link_up(POLICY)
            self._end("version", f"the server speaks version {welcome.version}, this program {VERSION}", now=now)
            return
        resumed = welcome.resumed and welcome.peer == self.peer_id
        before = self._peers
        self._peers = {peer: before.get(peer, -1) if resumed else -1 for peer in welcome.peers}
        self.peer_id = welcome.peer
        self.servers = welcome.servers
        self._resume = Resume(welcome.peer, welcome.token)
        self._welcome = welcome
        self._give_up_at = None
        self._timers.clear()
        self._timers.set("keepalive", Instant(now + welcome.pace.keepalive * SECOND))
        # a second's worth is left to the network, which may squeeze together what was sent apart
        pace = welcome.pace
        self._bucket = Bucket(pace.messages_per_second, max(1, pace.burst - pace.messages_per_second), now=now)
        self._become(ClientState.JOINED, f"{welcome.peer} is in, with {len(welcome.peers)} others", now=now)
        entered = Entered(peer_id=welcome.peer, peers=welcome.peers, servers=welcome.servers, resumed=resumed)
        self._events.append(entered)
        self._events += [
            PeerLeft(peer=peer, reason="it left while we were away")
            for peer in before
            if not resumed or peer not in self._peers
        ]
        if resumed:
            self._events += [PeerJoined(peer=peer) for peer in welcome.peers if peer not in before]
        self._waiting = deque((peer, body) for peer, body in self._waiting if resumed and peer in self._peers)
        self._flush(now=now)

    def _joined(self, peer: str) -> None:
        if peer not in self._peers and peer != self.peer_id:
            self._peers[peer] = -1
            self._events.append(PeerJoined(peer=peer))

    def _left(self, peer: str, reason: str) -> None:
        if self._peers.pop(peer, None) is not None:
            self._waiting = deque(each for each in self._waiting if each[0] != peer)
            self._events.append(PeerLeft(peer=peer, reason=reason))

    def _signaled(self, message: Signal, *, now: Instant) -> None:
        newest = self._peers.get(message.peer)
        if newest is None:
            self._drop("unknown-peer", f"a signal from {message.peer}, who is not in the room", now=now)
            return
        try:
            body = decode_body(message.body)
        except DecodeError as error:
            self._drop("bad-body", f"from {message.peer}: {error}", now=now)
            return
        if body.generation < newest:
            self._drop("old-generation", f"{message.peer} is at generation {newest}, not {body.generation}", now=now)
            return
        if isinstance(body, Description):
            self._peers[message.peer] = body.generation
        self._events.append(BodyReceived(peer=message.peer, body=body))

    def _drop(self, name: str, reason: str, *, now: Instant) -> None:
        self._counters[f"dropped-{name}"] += 1
        if self._trace.enabled:
            self._trace.signaling(reason, now=now, event=f"dropped-{name}")

    # -------------------------------------------------------------------------------------------------- what goes out

    def _flush(self, *, now: Instant) -> None:
        """Send what waits, as fast as the server takes it."""
        if self.state is not ClientState.JOINED:
            return
        while self._waiting:
            if not self._bucket.take(1, now=now):
                self._timers.set("flush", self._bucket.ready(1))
                return
            self._outputs.append(SendText(self._link, encode(signal(*self._waiting.popleft()))))
