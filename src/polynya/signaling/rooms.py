"""Rooms of the signaling server: their members, who announces whom, and the messages kept for absent members.

A member outlives its WebSocket when the connection breaks:

              connection broke              not resumed in time, place needed, too many messages kept
    PRESENT ------------------> AWAY ------------------------------------------------------------> LEFT
       ^         resume           |                                                                  ^
       +--------------------------+                                                                  |
       |  leave, a clean close, refused, the room closed                                             |
       +---------------------------------------------------------------------------------------------+

Signals for a member that is AWAY are kept, within limits, and sent when it resumes. The welcome of a client that joins
meanwhile does not list the absent member, which may be dead. That client gets a `joined` when the member resumes: see
`Member.joined_meanwhile`. A newcomer to a full room takes the place of an absent member. The others get `away`, and
`resumed` when a member resumes: what they sent before the server noticed the broken connection is lost.

Each `welcome` has a new token for the next resume. The token before it counts until the client's first message on the
new link: the connection may break before the welcome arrives.

`Rooms` is the inner part of `server.RoomServer`, which owns the links and calls `Rooms` for each change of membership.
The texts to send wait in `outbox` and the members that have left in `departures`; the owner drains both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hmac import compare_digest
from random import Random
from typing import Final

from polynya.core.compact import Queue
from polynya.core.instants import SECOND, Instant
from polynya.core.timers import Timers

from .limits import Limits
from .links import SendText
from .messages import VERSION, Away, FromServer, IceServer, Join, Joined, Left, Pace, Resumed, Signal, Welcome, encode

LOST: Final = "its connection was lost"


@dataclass(slots=True, eq=False)
class Member:
    """One member of one room. `link` is None while the member is away."""

    id: str
    token: str
    room: Room
    remote: str
    link: int | None
    old_token: str = ""
    """The token of the last resume, while the client may not have the new one."""
    kept: list[str] = field(default_factory=list)
    """Signals that arrived for the member while it is away."""
    kept_bytes: int = 0
    joined_meanwhile: dict[str, None] = field(default_factory=dict)
    """Members that joined while this one is away. They get a `joined` for it when it resumes."""
    version: int = VERSION
    """The protocol version of the client."""


@dataclass(slots=True, eq=False)
class Room:
    """One room; `members` are in the order in which they joined."""

    name: str
    limit: int
    members: dict[str, Member] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """A join was refused because the room or the server is full."""

    code: str
    reason: str


class Rooms:
    """All rooms and their members."""

    def __init__(self, limits: Limits, random: Random) -> None:
        self.outbox: Queue[SendText] = Queue()
        self.departures: Queue[tuple[Member, str]] = Queue()
        """Members that have left, each with the reason."""
        self.no_relay = ""
        """The reason why the server lists have no TURN server, for people."""
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

    # ------------------------------------------------------------------------------------------------------------- time

    def tick(self, *, now: Instant) -> list[Room]:
        """Remove members that did not resume in time. Returns the idle rooms, which the caller must close."""
        idle: list[Room] = []
        for kind, name in self._timers.due(now=now):
            # an earlier timer in this list may have removed the member or the room
            if kind == "away" and name in self._away:
                self.leave(self._away[name], LOST)
            elif kind == "room" and name in self._rooms:
                idle.append(self._rooms[name])
        return idle

    def next_timer(self) -> Instant | None:
        return self._timers.next()

    def clear(self) -> None:
        """Remove all rooms and members without sending anything."""
        self._timers.clear()
        self._away.clear()
        self._members.clear()
        self._rooms.clear()

    # ------------------------------------------------------------------------------------------------------- membership

    def enter(
        self, join: Join, link: int, remote: str, servers: tuple[IceServer, ...], *, now: Instant
    ) -> Member | JoinRefused:
        """Add a new member to a room, which is created if it does not exist, and send it the `welcome`."""
        most = self._limits.room_members
        room = self._rooms.get(join.room)
        if room is None:
            if len(self._rooms) >= self._limits.rooms:
                return JoinRefused("server-full", f"the server already has {self._limits.rooms} rooms")
            room = Room(join.room, min(most, join.limit or most))
            self._rooms[room.name] = room
        if not self._make_place(room, min(room.limit, join.limit or room.limit)):
            return JoinRefused("room-full", f"the room already has {len(room.members)} members")
        member = Member(self._draw(), self._draw(), room, remote, link, version=join.version)
        for each in room.members.values():
            if each.link is None:
                each.joined_meanwhile[member.id] = None
            else:
                self._send(each, Joined(member.id))
        others = tuple(each.id for each in room.members.values() if each.link is not None)
        room.members[member.id] = self._members[member.id] = member
        self._welcome(member, others, servers, resumed=False)
        self._touch(room, now=now)
        return member

    def resumable(self, join: Join) -> Member | None:
        """Return the member that this join may resume: its id, token and room must match."""
        if join.resume is None:
            return None
        member = self._members.get(join.resume.peer)
        if member is None or member.room.name != join.room:
            return None
        shown = join.resume.token
        current = compare_digest(member.token, shown)
        former = bool(member.old_token) and compare_digest(member.old_token, shown)
        return member if current or former else None

    def room(self, name: str) -> Room | None:
        """Return the room of this name, if it exists."""
        return self._rooms.get(name)

    def resume(
        self, member: Member, shown: str, link: int, remote: str, servers: tuple[IceServer, ...], *, now: Instant
    ) -> None:
        """Put the member on another link; send it the `welcome` and the kept signals. `shown` is the client's token."""
        self._away.pop(member.id, None)
        self._timers.cancel(("away", member.id))
        member.link, member.remote, member.old_token, member.token = link, remote, shown, self._draw()
        members = member.room.members
        for each in members.values():
            if each.id in member.joined_meanwhile:
                self._send(each, Joined(member.id))
            elif each is not member and each.link is not None and member.id not in each.joined_meanwhile:
                self._send(each, Resumed(member.id))
        member.joined_meanwhile.clear()
        others = tuple(
            each.id for each in members.values() if each is not member and member.id not in each.joined_meanwhile
        )
        self._welcome(member, others, servers, resumed=True)
        for other in others:
            if members[other].link is None:
                self._send(member, Away(other))
        self.outbox.extend(SendText(link, text) for text in self._take_kept(member))
        self._touch(member.room, now=now)

    def go_away(self, member: Member, *, now: Instant) -> None:
        """Mark a member as away after its connection broke. Without a resume timeout it leaves at once."""
        if not self._limits.resume_timeout:
            self.leave(member, LOST)
            return
        if len(self._away) >= self._limits.links:
            self.leave(next(iter(self._away.values())), LOST)
        member.link = None
        self._away[member.id] = member
        self._timers.set(("away", member.id), Instant(now + self._limits.resume_timeout * SECOND))
        for each in member.room.members.values():
            if each.link is not None and member.id not in each.joined_meanwhile:
                self._send(each, Away(member.id))

    def leave(self, member: Member, reason: str, *, clean: bool = False) -> None:
        """Remove a member for good and send `left` to the others. An empty room is removed, too."""
        if self._members.get(member.id) is not member:
            return
        self._remove(member, reason, clean=clean)
        room = member.room
        if not room.members:
            del self._rooms[room.name]
            self._timers.cancel(("room", room.name))

    def _remove(self, member: Member, reason: str, *, clean: bool = False) -> None:
        del self._members[member.id]
        self._away.pop(member.id, None)
        self._timers.cancel(("away", member.id))
        self._take_kept(member)
        del member.room.members[member.id]
        self.departures.append((member, reason))
        for each in member.room.members.values():
            each.joined_meanwhile.pop(member.id, None)
            if each.link is not None and each.id not in member.joined_meanwhile:
                self._send(each, Left(member.id, reason, clean))

    def _make_place(self, room: Room, limit: int) -> bool:
        while len(room.members) >= limit:
            away = next((each for each in room.members.values() if each.link is None), None)
            if away is None:
                return False
            self._remove(away, LOST)  # keeps the room, even if it is empty now
        return True

    def _touch(self, room: Room, *, now: Instant) -> None:
        self._timers.set(("room", room.name), Instant(now + self._limits.room_timeout * SECOND))

    def _draw(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    # ---------------------------------------------------------------------------------------------------------- sending

    def relay(self, sender: Member, message: Signal, *, now: Instant) -> bool:
        """Send a signal to another member of the sender's room. Returns False if that room has no such member."""
        peer = sender.room.members.get(message.peer)
        if peer is None or peer is sender:
            return False
        self._touch(sender.room, now=now)
        self._send(peer, Signal(peer=sender.id, body=message.body))
        return True

    def _welcome(
        self, member: Member, others: tuple[str, ...], servers: tuple[IceServer, ...], *, resumed: bool
    ) -> None:
        welcome = Welcome(
            version=member.version,
            peer=member.id,
            token=member.token,
            peers=others,
            pace=self._pace,
            servers=servers,
            resumed=resumed,
            no_relay=self.no_relay,
        )
        self._send(member, welcome)

    def _send(self, member: Member, message: FromServer) -> None:
        """Send a message, or keep a signal for a member that is away."""
        if member.link is not None:
            self.outbox.append(SendText(member.link, encode(message)))
        elif isinstance(message, Signal):  # the welcome will list the members
            self._keep(member, encode(message))

    def _keep(self, member: Member, text: str) -> None:
        limits = self._limits
        if (
            len(member.kept) >= limits.away_messages
            or member.kept_bytes + len(text) > limits.away_bytes
            or self._kept_bytes + len(text) > limits.away_bytes_in_all
        ):
            self.leave(member, f"{LOST}, and too many messages waited for it")
            return
        member.kept.append(text)
        member.kept_bytes += len(text)
        self._kept_bytes += len(text)

    def _take_kept(self, member: Member) -> list[str]:
        kept, member.kept = member.kept, []
        self._kept_bytes -= member.kept_bytes
        member.kept_bytes = 0
        return kept
