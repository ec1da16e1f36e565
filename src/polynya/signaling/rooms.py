"""The server's side of signaling: links, rooms and their members (docs/reference/signaling.md).

A link (one WebSocket) has a short life:

              join accepted            leave, idle, too many offences, room closed, server closed
    OPENED ------------------> JOINED -----------------------------------------------------------> CLOSED
       |  no join in time, refused                                                                   ^
       +---------------------------------------------------------------------------------------------+

and so has the member behind it, who outlives a link that breaks:

              link broke                       no resume in time, place needed, too much kept
    PRESENT ---------------> AWAY ------------------------------------------------------------> LEFT
       ^         resume        |                                                                  ^
       +-----------------------+                                                                  |
       |  leave, a clean close, a limit, the room closed                                          |
       +------------------------------------------------------------------------------------------+

What is said to a member who is away is kept, bounded, and handed over on resume. Who joins meanwhile is not told of it
(it may be dead), and is told when it comes back: these are its `strangers`. A newcomer takes the place of one who is
away rather than being refused.

A member reaches only the members of its own room. What does not fit the protocol is answered with an error that says
why; whoever goes on is disconnected. Nothing is held for a link but what `Limits` bounds.
"""

from __future__ import annotations

from random import Random
from collections import Counter
from dataclasses import dataclass, field
from hmac import compare_digest

from polynya.core.errors import DecodeError
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Counters
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Tracer

from .limits import Bucket, Limits
from .links import (
    CLEAN,
    GOING_AWAY,
    NORMAL,
    POLICY,
    REPLACED,
    TOO_LARGE,
    TRY_LATER,
    CloseLink,
    LinkClosed,
    LinkInput,
    LinkOpened,
    LinkOutput,
    LinkText,
    SendText,
)
from .messages import (
    VERSION,
    Error,
    FromServer,
    IceServer,
    Join,
    Joined,
    Leave,
    Left,
    Pace,
    Signal,
    Welcome,
    decode_from_member,
    encode,
)

OFFENCE_FORGIVEN = 10 * SECOND
LOST = "its connection was lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJoined:
    """A member entered a room, or came back to it."""

    link: int
    remote: str
    peer: str
    members: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLeft:
    """A member is gone for good."""

    peer: str
    remote: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRefused:
    """A link was closed by the server for something it did or could not have."""

    link: int
    remote: str
    code: str
    reason: str


RoomEvent = MemberJoined | MemberLeft | LinkRefused


@dataclass(slots=True, eq=False)
class _Link:
    id: int
    remote: str
    servers: tuple[IceServer, ...]
    messages: Bucket
    bytes: Bucket
    offences: Bucket
    member: _Member | None = None


@dataclass(slots=True, eq=False)
class _Member:
    id: str
    token: str
    room: _Room
    remote: str
    link: _Link | None
    kept: list[str] = field(default_factory=list)
    """What was said to it while it is away."""
    kept_bytes: int = 0
    strangers: dict[str, None] = field(default_factory=dict)
    """Who joined while it is away and so does not know of it."""


@dataclass(slots=True, eq=False)
class _Room:
    name: str
    limit: int
    members: dict[str, _Member] = field(default_factory=dict)


class RoomServer:
    """All rooms of a server. Feed it what its links do; carry out what it asks for."""

    def __init__(self, limits: Limits | None = None, *, random: Random, trace: Tracer = NO_TRACE) -> None:
        self.limits = limits or Limits()
        self._random = random
        self._trace = trace
        self._links: dict[int, _Link] = {}
        self._hosts: Counter[str] = Counter()
        self._rooms: dict[str, _Room] = {}
        self._members: dict[str, _Member] = {}
        self._away: dict[str, _Member] = {}
        self._timers: Timers[tuple[str, int | str]] = Timers()
        self._outputs: list[LinkOutput] = []
        self._events: list[RoomEvent] = []
        self._counters: Counter[str] = Counter()
        self._kept_bytes = 0
        self._closed = False
        self._pace = Pace(
            message_bytes=self.limits.message_bytes,
            messages_per_second=self.limits.messages_per_second,
            burst=self.limits.burst,
            keepalive=max(1, self.limits.idle_timeout // 3),
            resume=self.limits.resume_timeout,
        )

    # ------------------------------------------------------------------------------------------------ the contract

    def receive(self, input: LinkInput, now: Instant) -> None:
        """Take in what a link did. Never raises on what a member sent."""
        if isinstance(input, LinkText):
            if (link := self._links.get(input.link)) is not None:
                self._said(link, input.text, now)
        elif isinstance(input, LinkOpened):
            self._opened(input, now)
        else:
            self._link_closed(input, now)

    def tick(self, now: Instant) -> None:
        """Close what was silent for too long, and forget who did not come back."""
        limits = self.limits
        for timer in self._timers.due(now):
            # one that is due may have been ended by one that was due before it
            match timer:
                case "join", int(id) if id in self._links:
                    reason = f"no join within {limits.join_timeout} s"
                    self._refuse(self._links[id], "join-timeout", reason, POLICY, now)
                case "idle", int(id) if id in self._links:
                    self._refuse(self._links[id], "idle", f"silent for {limits.idle_timeout} s", GOING_AWAY, now)
                case "away", str(peer) if peer in self._away:
                    self._left(self._away[peer], LOST, now)
                case "room", str(name) if name in self._rooms:
                    self._close_room(self._rooms[name], now)
                case _:
                    pass

    def next_timer(self) -> Instant | None:
        """When `tick` has something to do."""
        return self._timers.next()

    def outputs(self) -> list[LinkOutput]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[RoomEvent]:
        drained, self._events = self._events, []
        return drained

    def close(self, now: Instant) -> None:
        """The server goes: every member is told, every link is closed. What comes after this is ignored."""
        self._closed = True
        for link in list(self._links.values()):
            self._refuse(link, "shutting-down", "the server is shutting down", GOING_AWAY, now)
        self._timers.clear()
        self._away.clear()
        self._members.clear()
        self._rooms.clear()

    @property
    def counters(self) -> Counters:
        """What was counted: by fixed names, and never by anything a member chose."""
        return {**self._counters, "links": len(self._links), "rooms": len(self._rooms), "members": len(self._members)}

    # ------------------------------------------------------------------------------------------------------- links

    def _opened(self, opened: LinkOpened, now: Instant) -> None:
        limits = self.limits
        link = _Link(
            id=opened.link,
            remote=opened.remote,
            servers=opened.servers,
            messages=Bucket(limits.messages_per_second, limits.burst, now),
            bytes=Bucket(limits.bytes_per_second, limits.bytes_burst, now),
            offences=Bucket(1, limits.offences, now, per=OFFENCE_FORGIVEN),
        )
        full = len(self._links) >= limits.links
        self._links[link.id] = link
        self._hosts[link.remote] += 1
        if self._closed:
            self._refuse(link, "shutting-down", "the server is shutting down", GOING_AWAY, now)
        elif full:
            self._refuse(link, "server-full", "the server has as many connections as it may", TRY_LATER, now)
        elif self._hosts[link.remote] > limits.links_per_host:
            self._refuse(link, "host-full", f"more than {limits.links_per_host} connections from here", TRY_LATER, now)
        else:
            self._timers.set(("join", link.id), Instant(now + limits.join_timeout * SECOND))

    def _link_closed(self, closed: LinkClosed, now: Instant) -> None:
        link = self._links.get(closed.link)
        if link is None:
            return
        member = link.member
        self._forget(link)
        if member is None:
            return
        if closed.code in CLEAN or not self.limits.resume_timeout:
            self._left(member, closed.reason or "it left", now)
            return
        if len(self._away) >= self.limits.links:
            self._left(next(iter(self._away.values())), LOST, now)
        member.link = None
        self._away[member.id] = member
        self._timers.set(("away", member.id), Instant(now + self.limits.resume_timeout * SECOND))
        self._note(now, "away", f"the connection of {member.id} was lost")

    def _forget(self, link: _Link) -> None:
        del self._links[link.id]
        self._hosts[link.remote] -= 1
        if not self._hosts[link.remote]:
            del self._hosts[link.remote]
        self._timers.cancel(("join", link.id))
        self._timers.cancel(("idle", link.id))
        link.member = None

    def _close(self, link: _Link, code: int, reason: str) -> None:
        self._forget(link)
        self._outputs.append(CloseLink(link=link.id, code=code, reason=reason))

    def _refuse(self, link: _Link, code: str, reason: str, close_code: int, now: Instant) -> None:
        """Say why, close the link, and let its member go."""
        member = link.member
        self._counters[code] += 1
        self._events.append(LinkRefused(link=link.id, remote=link.remote, code=code, reason=reason))
        self._say(link, Error(code=code, message=reason, fatal=True))
        self._close(link, close_code, code)
        if member is not None and not self._closed:
            self._left(member, reason, now)

    # ---------------------------------------------------------------------------------------------------- messages

    def _said(self, link: _Link, text: str | bytes, now: Instant) -> None:
        self._counters["messages"] += 1
        size = len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if size > self.limits.message_bytes:
            self._offence(link, "too-large", f"a message has at most {self.limits.message_bytes} bytes", now)
            return
        if not (link.messages.take(1, now) and link.bytes.take(size, now)):
            self._offence(
                link, "rate", f"more than {self.limits.messages_per_second} messages/s or too many bytes", now
            )
            return
        try:
            message = decode_from_member(text)
        except DecodeError as error:
            self._offence(link, "bad-message", str(error), now)
            return
        if isinstance(message, Join):
            self._join(link, message, now)
        elif isinstance(message, Leave):
            self._leave(link, now)
        elif link.member is None:
            self._offence(link, "not-joined", "the first message is join", now)
        else:
            self._timers.set(("idle", link.id), Instant(now + self.limits.idle_timeout * SECOND))
            if isinstance(message, Signal):
                self._relay(link, link.member, message, now)

    def _offence(self, link: _Link, code: str, reason: str, now: Instant) -> None:
        """Answer what does not fit the protocol; close the link when it happens too often."""
        if not link.offences.take(1, now):
            self._refuse(link, code, f"{reason}; and this too often", TOO_LARGE if code == "too-large" else POLICY, now)
            return
        self._counters[code] += 1
        self._note(now, "refused", f"{code}: {reason}")
        self._say(link, Error(code=code, message=reason))

    def _leave(self, link: _Link, now: Instant) -> None:
        member = link.member
        self._close(link, NORMAL, "left")
        if member is not None:
            self._left(member, "it left", now)

    def _relay(self, link: _Link, sender: _Member, message: Signal, now: Instant) -> None:
        # only the sender's own room is looked in: an id from elsewhere is unknown here
        peer = sender.room.members.get(message.peer)
        if peer is None or peer is sender:
            self._counters["unknown-peer"] += 1
            self._say(link, Error(code="unknown-peer", message="no such member in this room", peer=message.peer))
            return
        self._counters["relayed"] += 1
        self._timers.set(("room", sender.room.name), Instant(now + self.limits.room_timeout * SECOND))
        self._tell(peer, Signal(peer=sender.id, body=message.body), now)

    def _say(self, link: _Link, message: FromServer) -> None:
        self._outputs.append(SendText(link.id, encode(message)))

    def _tell(self, member: _Member, message: FromServer, now: Instant) -> None:
        """Say it now, or keep it for the one who is away."""
        if member.link is not None:
            self._say(member.link, message)
        elif isinstance(message, Signal):  # who came and went is in the welcome
            text = encode(message)
            limits = self.limits
            if (
                len(member.kept) >= limits.away_messages
                or member.kept_bytes + len(text) > limits.away_bytes
                or self._kept_bytes + len(text) > limits.away_bytes_in_all
            ):
                self._left(member, f"{LOST}, and too much was said to it since", now)
            else:
                member.kept.append(text)
                member.kept_bytes += len(text)
                self._kept_bytes += len(text)

    def _hand_over(self, member: _Member) -> list[str]:
        kept, member.kept = member.kept, []
        self._kept_bytes -= member.kept_bytes
        member.kept_bytes = 0
        return kept

    # ------------------------------------------------------------------------------------------- joining and leaving

    def _join(self, link: _Link, join: Join, now: Instant) -> None:
        if link.member is not None:
            self._offence(link, "already-joined", "this connection has joined a room", now)
            return
        if join.version != VERSION:
            self._refuse(link, "version", f"this server speaks version {VERSION}, not {join.version}", POLICY, now)
            return
        member = self._resumable(join)
        if member is not None:
            self._resume(link, member, now)
            return
        room = self._rooms.get(join.room)
        if room is None:
            if len(self._rooms) >= self.limits.rooms:
                self._refuse(link, "server-full", "the server has as many rooms as it may", TRY_LATER, now)
                return
            room = _Room(join.room, min(self.limits.room_members, join.limit or self.limits.room_members))
            self._rooms[room.name] = room
        if not self._make_place(room, min(room.limit, join.limit or room.limit), now):
            self._refuse(link, "room-full", f"the room has {len(room.members)} members already", TRY_LATER, now)
            return
        member = _Member(self._draw(), self._draw(), room, link.remote, link)
        for each in room.members.values():
            if each.link is None:
                each.strangers[member.id] = None
            else:
                self._say(each.link, Joined(member.id))
        others = tuple(each.id for each in room.members.values() if each.link is not None)
        room.members[member.id] = self._members[member.id] = member
        self._enter(link, member, others, resumed=False, now=now)

    def _resumable(self, join: Join) -> _Member | None:
        """The member that this join proves to have been, in this room."""
        if join.resume is None:
            return None
        member = self._members.get(join.resume.peer)
        if member is None or member.room.name != join.room or not compare_digest(member.token, join.resume.token):
            return None
        return member

    def _resume(self, link: _Link, member: _Member, now: Instant) -> None:
        if member.link is not None:  # the old connection is dead and nobody noticed
            self._close(member.link, REPLACED, "resumed on another connection")
        self._away.pop(member.id, None)
        self._timers.cancel(("away", member.id))
        member.link, member.remote, member.token = link, link.remote, self._draw()
        members = member.room.members
        for stranger in member.strangers:
            if stranger in members:
                self._tell(members[stranger], Joined(member.id), now)
        member.strangers.clear()
        others = tuple(each.id for each in members.values() if each is not member and member.id not in each.strangers)
        self._enter(link, member, others, resumed=True, now=now)
        self._outputs.extend(SendText(link.id, text) for text in self._hand_over(member))

    def _enter(self, link: _Link, member: _Member, others: tuple[str, ...], *, resumed: bool, now: Instant) -> None:
        link.member = member
        self._timers.cancel(("join", link.id))
        self._timers.set(("idle", link.id), Instant(now + self.limits.idle_timeout * SECOND))
        self._timers.set(("room", member.room.name), Instant(now + self.limits.room_timeout * SECOND))
        self._counters["resumed" if resumed else "joined"] += 1
        members = len(member.room.members)
        self._events.append(
            MemberJoined(link=link.id, remote=link.remote, peer=member.id, members=members, resumed=resumed)
        )
        self._note(now, "joined", f"{member.id} {'came back' if resumed else 'joined'}, {members} in the room")
        self._say(
            link,
            Welcome(
                version=VERSION,
                peer=member.id,
                token=member.token,
                peers=others,
                pace=self._pace,
                servers=link.servers,
                resumed=resumed,
            ),
        )

    def _make_place(self, room: _Room, limit: int, now: Instant) -> bool:
        while len(room.members) >= limit:
            away = next((each for each in self._away.values() if each.room is room), None)
            if away is None:
                return False
            self._left(away, LOST, now, keep_room=True)
        return True

    def _left(self, member: _Member, reason: str, now: Instant, *, keep_room: bool = False) -> None:
        """The member is gone for good: the others are told, and the last one takes the room along."""
        room = member.room
        if self._members.pop(member.id, None) is None:
            return
        self._away.pop(member.id, None)
        self._timers.cancel(("away", member.id))
        self._hand_over(member)
        del room.members[member.id]
        self._events.append(MemberLeft(peer=member.id, remote=member.remote, reason=reason))
        self._note(now, "left", f"{member.id}: {reason}")
        for each in room.members.values():
            each.strangers.pop(member.id, None)
            if each.link is not None and each.id not in member.strangers:
                self._say(each.link, Left(member.id, reason))
        if not room.members and not keep_room:
            del self._rooms[room.name]
            self._timers.cancel(("room", room.name))

    def _close_room(self, room: _Room, now: Instant) -> None:
        for member in list(room.members.values()):
            if member.link is None:
                self._left(member, "the room was closed", now)
            else:
                self._refuse(member.link, "room-idle", "nothing happened in the room for too long", GOING_AWAY, now)

    def _draw(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _note(self, now: Instant, event: str, reason: str) -> None:
        if self._trace.enabled:
            self._trace(now, "signaling", reason, event=event)
