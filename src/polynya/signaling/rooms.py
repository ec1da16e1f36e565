"""Who is in which room, who is told of it, and what is kept for those who are away.

A member outlives the connection that breaks under it:

              connection broke                 no resume in time, place needed, too much kept
    PRESENT ------------------> AWAY ---------------------------------------------------------> LEFT
       ^         resume           |                                                               ^
       +--------------------------+                                                               |
       |  leave, a clean close, refused, the room closed                                          |
       +------------------------------------------------------------------------------------------+

What is said to a member who is away is kept, bounded, and handed over on resume. Who joins meanwhile is not told of it
(it may be dead), and is told when it comes back: these are its `strangers`. A newcomer takes the place of one who is
away rather than being refused.

`Rooms` is the inner part of `server.RoomServer`, which knows the links: it is asked, and what it wants said waits in
`outbox`, who is gone in `gone`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hmac import compare_digest
from random import Random
from typing import Final

from polynya.core.instants import SECOND, Instant
from polynya.core.timers import Timers

from .limits import Limits
from .links import SendText
from .messages import VERSION, FromServer, IceServer, Join, Joined, Left, Pace, Signal, Welcome, encode

LOST: Final = "its connection was lost"


@dataclass(slots=True, eq=False)
class Member:
    """One member of one room. `link` is None while it is away."""

    id: str
    token: str
    room: Room
    remote: str
    link: int | None
    kept: list[str] = field(default_factory=list)
    """What was said to it while it is away."""
    kept_bytes: int = 0
    strangers: dict[str, None] = field(default_factory=dict)
    """Who joined while it is away and so does not know of it."""


@dataclass(slots=True, eq=False)
class Room:
    name: str
    limit: int
    members: dict[str, Member] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why nobody can enter."""

    code: str
    reason: str


class Rooms:
    """All rooms and their members."""

    def __init__(self, limits: Limits, random: Random) -> None:
        self.outbox: list[SendText] = []
        self.gone: list[tuple[Member, str]] = []
        self._limits = limits
        self._random = random
        self._rooms: dict[str, Room] = {}
        self._members: dict[str, Member] = {}
        self._away: dict[str, Member] = {}
        self._kept_bytes = 0
        self._timers: Timers[tuple[str, str]] = Timers()
        self._pace = Pace(
            message_bytes=limits.message_bytes,
            messages_per_second=limits.messages_per_second,
            burst=limits.burst,
            keepalive=max(1, limits.idle_timeout // 3),
            resume=limits.resume_timeout,
        )

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def members(self) -> int:
        return len(self._members)

    # ----------------------------------------------------------------------------------------------------- time

    def tick(self, *, now: Instant) -> list[Room]:
        """Forget who did not come back. Returns the rooms in which nothing happened for too long: to be closed."""
        idle: list[Room] = []
        for kind, name in self._timers.due(now=now):
            # one that is due may have been ended by one that was due before it
            if kind == "away" and name in self._away:
                self.leave(self._away[name], LOST)
            elif kind == "room" and name in self._rooms:
                idle.append(self._rooms[name])
        return idle

    def next_timer(self) -> Instant | None:
        return self._timers.next()

    def clear(self) -> None:
        """Forget everything; nobody is told."""
        self._timers.clear()
        self._away.clear()
        self._members.clear()
        self._rooms.clear()

    # ------------------------------------------------------------------------------------------- coming and going

    def enter(
        self, join: Join, link: int, remote: str, servers: tuple[IceServer, ...], *, now: Instant
    ) -> Member | NoPlace:
        """A newcomer enters a room, which is made when it is not there, and is welcomed."""
        most = self._limits.room_members
        room = self._rooms.get(join.room)
        if room is None:
            if len(self._rooms) >= self._limits.rooms:
                return NoPlace("server-full", "the server has as many rooms as it may")
            room = Room(join.room, min(most, join.limit or most))
            self._rooms[room.name] = room
        if not self._make_place(room, min(room.limit, join.limit or room.limit)):
            return NoPlace("room-full", f"the room has {len(room.members)} members already")
        member = Member(self._draw(), self._draw(), room, remote, link)
        for each in room.members.values():
            if each.link is None:
                each.strangers[member.id] = None
            else:
                self._tell(each, Joined(member.id))
        others = tuple(each.id for each in room.members.values() if each.link is not None)
        room.members[member.id] = self._members[member.id] = member
        self._welcome(member, others, servers, resumed=False)
        self._touch(room, now=now)
        return member

    def resumable(self, join: Join) -> Member | None:
        """The member that this join proves to have been, in this room."""
        if join.resume is None:
            return None
        member = self._members.get(join.resume.peer)
        if member is None or member.room.name != join.room or not compare_digest(member.token, join.resume.token):
            return None
        return member

    def resume(self, member: Member, link: int, remote: str, servers: tuple[IceServer, ...], *, now: Instant) -> None:
        """The member is back, on another link, and gets what was kept for it."""
        self._away.pop(member.id, None)
        self._timers.cancel(("away", member.id))
        member.link, member.remote, member.token = link, remote, self._draw()
        members = member.room.members
        for stranger in member.strangers:
            if stranger in members:
                self._tell(members[stranger], Joined(member.id))
        member.strangers.clear()
        others = tuple(each.id for each in members.values() if each is not member and member.id not in each.strangers)
        self._welcome(member, others, servers, resumed=True)
        self.outbox.extend(SendText(link, text) for text in self._hand_over(member))
        self._touch(member.room, now=now)

    def go_away(self, member: Member, *, now: Instant) -> None:
        """The member's connection broke: its place is kept for a while, if the server keeps places."""
        if not self._limits.resume_timeout:
            self.leave(member, LOST)
            return
        if len(self._away) >= self._limits.links:
            self.leave(next(iter(self._away.values())), LOST)
        member.link = None
        self._away[member.id] = member
        self._timers.set(("away", member.id), Instant(now + self._limits.resume_timeout * SECOND))

    def leave(self, member: Member, reason: str) -> None:
        """The member is gone for good: the others are told, and the last one takes the room along."""
        if self._members.get(member.id) is not member:
            return
        self._remove(member, reason)
        room = member.room
        if not room.members:
            del self._rooms[room.name]
            self._timers.cancel(("room", room.name))

    def _remove(self, member: Member, reason: str) -> None:
        del self._members[member.id]
        self._away.pop(member.id, None)
        self._timers.cancel(("away", member.id))
        self._hand_over(member)
        del member.room.members[member.id]
        self.gone.append((member, reason))
        for each in member.room.members.values():
            each.strangers.pop(member.id, None)
            if each.link is not None and each.id not in member.strangers:
                self._tell(each, Left(member.id, reason))

    def _make_place(self, room: Room, limit: int) -> bool:
        while len(room.members) >= limit:
            away = next((each for each in room.members.values() if each.link is None), None)
            if away is None:
                return False
            self._remove(away, LOST)  # and leaves the room, for the newcomer
        return True

    def _touch(self, room: Room, *, now: Instant) -> None:
        self._timers.set(("room", room.name), Instant(now + self._limits.room_timeout * SECOND))

    def _draw(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    # --------------------------------------------------------------------------------------------------- saying

    def relay(self, sender: Member, message: Signal, *, now: Instant) -> bool:
        """Hand a signal to another member of the sender's room; False when there is none of that id."""
        peer = sender.room.members.get(message.peer)
        if peer is None or peer is sender:
            return False
        self._touch(sender.room, now=now)
        self._tell(peer, Signal(peer=sender.id, body=message.body))
        return True

    def _welcome(
        self, member: Member, others: tuple[str, ...], servers: tuple[IceServer, ...], *, resumed: bool
    ) -> None:
        welcome = Welcome(
            version=VERSION,
            peer=member.id,
            token=member.token,
            peers=others,
            pace=self._pace,
            servers=servers,
            resumed=resumed,
        )
        self._tell(member, welcome)

    def _tell(self, member: Member, message: FromServer) -> None:
        """Say it now, or keep it for the one who is away."""
        if member.link is not None:
            self.outbox.append(SendText(member.link, encode(message)))
        elif isinstance(message, Signal):  # who came and went is in the welcome
            self._keep(member, encode(message))

    def _keep(self, member: Member, text: str) -> None:
        limits = self._limits
        if (
            len(member.kept) >= limits.away_messages
            or member.kept_bytes + len(text) > limits.away_bytes
            or self._kept_bytes + len(text) > limits.away_bytes_in_all
        ):
            self.leave(member, f"{LOST}, and too much was said to it since")
            return
        member.kept.append(text)
        member.kept_bytes += len(text)
        self._kept_bytes += len(text)

    def _hand_over(self, member: Member) -> list[str]:
        kept, member.kept = member.kept, []
        self._kept_bytes -= member.kept_bytes
        member.kept_bytes = 0
        return kept
