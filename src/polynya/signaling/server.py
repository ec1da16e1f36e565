"""The server's side of signaling: the links, and what each may do (docs/reference/signaling.md).

A link (one WebSocket) has a short life:

              join accepted            leave, idle, too many offences, room closed, server closed
    OPENED ------------------> JOINED -----------------------------------------------------------> CLOSED
       |  no join in time, refused                                                                   ^
       +---------------------------------------------------------------------------------------------+

The member behind it may outlive it: see `rooms`.

A member reaches only the members of its own room. What does not fit the protocol is answered with an error that says
why; whoever goes on is disconnected. Nothing is held for a link but what `Limits` bounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Final

from polynya.core.errors import DecodeError
from polynya.core.instants import SECOND, Instant, earliest
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
from .messages import VERSION, Error, IceServer, Join, Leave, Signal, decode_from_member, encode
from .rooms import Member, NoPlace, Room, Rooms

OFFENCE_FORGIVEN: Final = 10 * SECOND
LEFT: Final = "it left"


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
    member: Member | None = None


class RoomServer:
    """All rooms of a server. Feed it what its links do; carry out what it asks for."""

    def __init__(self, limits: Limits | None = None, *, random: Random, trace: Tracer = NO_TRACE) -> None:
        self.limits = limits or Limits()
        self._trace = trace
        self._rooms = Rooms(self.limits, random)
        self._links: dict[int, _Link] = {}
        self._hosts: Counter[str] = Counter()
        self._timers: Timers[tuple[str, int]] = Timers()
        self._outputs: list[LinkOutput] = []
        self._events: list[RoomEvent] = []
        self._counters: Counter[str] = Counter()
        self._closed = False

    # ------------------------------------------------------------------------------------------------ the contract

    def receive(self, input: LinkInput, *, now: Instant) -> None:
        """Take in what a link did. Never raises on what a member sent."""
        if isinstance(input, LinkText):
            if (link := self._links.get(input.link)) is not None:
                self._said(link, input.text, now=now)
        elif isinstance(input, LinkOpened):
            self._opened(input, now=now)
        else:
            self._link_closed(input, now=now)
        self._drain_rooms(now=now)

    def tick(self, *, now: Instant) -> None:
        """Close what was silent for too long, and forget who did not come back."""
        for kind, number in self._timers.due(now=now):
            link = self._links.get(number)
            if link is None:  # ended by a timer that was due before
                continue
            if kind == "join":
                self._refuse(link, "join-timeout", f"no join within {self.limits.join_timeout} s", POLICY)
            else:
                self._refuse(link, "idle", f"silent for {self.limits.idle_timeout} s", GOING_AWAY)
        for room in self._rooms.tick(now=now):
            self._close_room(room)
        self._drain_rooms(now=now)

    def next_timer(self) -> Instant | None:
        """When `tick` has something to do."""
        return earliest(self._timers.next(), self._rooms.next_timer())

    def outputs(self) -> list[LinkOutput]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[RoomEvent]:
        drained, self._events = self._events, []
        return drained

    def close(self, *, now: Instant) -> None:
        """The server goes: every member is told, every link is closed. What comes after this is ignored."""
        self._closed = True
        self._rooms.clear()
        for link in list(self._links.values()):
            self._refuse(link, "shutting-down", "the server is shutting down", GOING_AWAY)
        self._drain_rooms(now=now)

    @property
    def counters(self) -> Counters:
        """What was counted: by fixed names, and never by anything a member chose."""
        now = {"links": len(self._links), "rooms": len(self._rooms), "members": self._rooms.members}
        return {**self._counters, **now}

    # ------------------------------------------------------------------------------------------------------- links

    def _opened(self, opened: LinkOpened, *, now: Instant) -> None:
        limits = self.limits
        link = _Link(
            id=opened.link,
            remote=opened.remote,
            servers=opened.servers,
            messages=Bucket(limits.messages_per_second, limits.burst, now=now),
            bytes=Bucket(limits.bytes_per_second, limits.bytes_burst, now=now),
            offences=Bucket(1, limits.offences, now=now, per=OFFENCE_FORGIVEN),
        )
        full = len(self._links) >= limits.links
        self._links[link.id] = link
        self._hosts[link.remote] += 1
        if self._closed:
            self._refuse(link, "shutting-down", "the server is shutting down", GOING_AWAY)
        elif full:
            self._refuse(link, "server-full", "the server has as many connections as it may", TRY_LATER)
        elif self._hosts[link.remote] > limits.links_per_host:
            self._refuse(link, "host-full", f"more than {limits.links_per_host} connections from here", TRY_LATER)
        else:
            self._timers.set(("join", link.id), Instant(now + limits.join_timeout * SECOND))

    def _link_closed(self, closed: LinkClosed, *, now: Instant) -> None:
        link = self._links.get(closed.link)
        if link is None:
            return
        member = link.member
        self._forget(link)
        if member is None:
            return
        if closed.code in CLEAN:
            self._rooms.leave(member, closed.reason or LEFT)
        else:
            self._note(now=now, event="away", reason=f"the connection of {member.id} was lost")
            self._rooms.go_away(member, now=now)

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

    def _refuse(self, link: _Link, code: str, reason: str, close_code: int) -> None:
        """Say why, close the link, and let its member go."""
        member = link.member
        self._counters[code] += 1
        self._events.append(LinkRefused(link=link.id, remote=link.remote, code=code, reason=reason))
        self._say(link, Error(code=code, message=reason, fatal=True))
        self._close(link, close_code, code)
        if member is not None:
            self._rooms.leave(member, reason)

    def _close_room(self, room: Room) -> None:
        for member in list(room.members.values()):
            link = self._links.get(member.link) if member.link is not None else None
            if link is None:
                self._rooms.leave(member, "the room was closed")
            else:
                self._refuse(link, "room-idle", "nothing happened in the room for too long", GOING_AWAY)

    # ---------------------------------------------------------------------------------------------------- messages

    def _said(self, link: _Link, text: str | bytes, *, now: Instant) -> None:
        self._counters["messages"] += 1
        size = len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if size > self.limits.message_bytes:
            self._offence(link, "too-large", f"a message has at most {self.limits.message_bytes} bytes", now=now)
            return
        if not (link.messages.take(1, now=now) and link.bytes.take(size, now=now)):
            self._offence(
                link, "rate", f"more than {self.limits.messages_per_second} messages/s or too many bytes", now=now
            )
            return
        try:
            message = decode_from_member(text)
        except DecodeError as error:
            self._offence(link, "bad-message", str(error), now=now)
            return
        if isinstance(message, Join):
            self._join(link, message, now=now)
        elif isinstance(message, Leave):
            self._leave(link)
        elif link.member is None:
            self._offence(link, "not-joined", "the first message is join", now=now)
        else:
            self._timers.set(("idle", link.id), Instant(now + self.limits.idle_timeout * SECOND))
            if isinstance(message, Signal):
                self._relay(link, link.member, message, now=now)

    def _offence(self, link: _Link, code: str, reason: str, *, now: Instant) -> None:
        """Answer what does not fit the protocol; close the link when it happens too often."""
        if not link.offences.take(1, now=now):
            self._refuse(link, code, f"{reason}; and this too often", TOO_LARGE if code == "too-large" else POLICY)
            return
        self._counters[code] += 1
        self._note(now=now, event="refused", reason=f"{code}: {reason}")
        self._say(link, Error(code=code, message=reason))

    def _join(self, link: _Link, join: Join, *, now: Instant) -> None:
        if link.member is not None:
            self._offence(link, "already-joined", "this connection has joined a room", now=now)
            return
        if join.version != VERSION:
            self._refuse(link, "version", f"this server speaks version {VERSION}, not {join.version}", POLICY)
            return
        member = self._rooms.resumable(join)
        if member is not None:
            old = self._links.get(member.link) if member.link is not None else None
            if old is not None:  # it is dead and nobody noticed
                self._close(old, REPLACED, "resumed on another connection")
            self._rooms.resume(member, link.id, link.remote, link.servers, now=now)
            self._entered(link, member, resumed=True, now=now)
            return
        entered = self._rooms.enter(join, link.id, link.remote, link.servers, now=now)
        if isinstance(entered, NoPlace):
            self._refuse(link, entered.code, entered.reason, TRY_LATER)
        else:
            self._entered(link, entered, resumed=False, now=now)

    def _entered(self, link: _Link, member: Member, *, resumed: bool, now: Instant) -> None:
        link.member = member
        self._timers.cancel(("join", link.id))
        self._timers.set(("idle", link.id), Instant(now + self.limits.idle_timeout * SECOND))
        self._counters["resumed" if resumed else "joined"] += 1
        members = len(member.room.members)
        event = MemberJoined(link=link.id, remote=link.remote, peer=member.id, members=members, resumed=resumed)
        self._events.append(event)
        self._note(
            now=now, event="joined", reason=f"{member.id} {'came back' if resumed else 'joined'}, {members} in the room"
        )

    def _leave(self, link: _Link) -> None:
        member = link.member
        self._close(link, NORMAL, "left")
        if member is not None:
            self._rooms.leave(member, LEFT)

    def _relay(self, link: _Link, sender: Member, message: Signal, *, now: Instant) -> None:
        if self._rooms.relay(sender, message, now=now):
            self._counters["relayed"] += 1
            return
        self._counters["unknown-peer"] += 1
        self._say(link, Error(code="unknown-peer", message="no such member in this room", peer=message.peer))

    # ----------------------------------------------------------------------------------------------------- telling

    def _say(self, link: _Link, error: Error) -> None:
        self._take_outbox()  # what the rooms said before comes before
        self._outputs.append(SendText(link.id, encode(error)))

    def _take_outbox(self) -> None:
        self._outputs += self._rooms.outbox
        self._rooms.outbox.clear()

    def _drain_rooms(self, *, now: Instant) -> None:
        self._take_outbox()
        for member, reason in self._rooms.gone:
            self._events.append(MemberLeft(peer=member.id, remote=member.remote, reason=reason))
            self._note(now=now, event="left", reason=f"{member.id}: {reason}")
        self._rooms.gone.clear()

    def _note(self, *, now: Instant, event: str, reason: str) -> None:
        if self._trace.enabled:
            self._trace.signaling(reason, now=now, event=event)
