"""The signaling server: its links, and what a client may do on them (docs/reference/signaling.md).

A link is one WebSocket. Its states:

              join accepted             leave, idle, too many offenses, room closed, server closed
    OPENED ------------------> JOINED ------------------------------------------------------------> CLOSED
       |  no join in time, refused                                                                    ^
       +----------------------------------------------------------------------------------------------+

The member may outlive its link: see `rooms`.

A newcomer to a full room waits while the server pings the room's members. A member without a sign of life within
`Limits.silence_timeout` loses its place, and the newcomer enters; otherwise the newcomer is refused:

    OPENED --join to a full room--> waiting --a place is free--> JOINED
                                       +------all are alive----> CLOSED

A member reaches only the members of its own room. A message that violates the protocol is answered with an error that
gives the reason; a client that repeats it is disconnected. Everything that is stored for a link is bounded by `Limits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from random import Random
from typing import Final

from polynya.core.compact import Queue
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
    SILENT,
    TOO_LARGE,
    TRY_LATER,
    CloseLink,
    FindServers,
    LinkAnswered,
    LinkClosed,
    LinkOpened,
    LinkText,
    PingLink,
    SendText,
    ServerInput,
    ServerOutput,
    ServersFound,
)
from .messages import (
    VERSIONS,
    Error,
    IceServer,
    Join,
    Leave,
    ListServers,
    ServerList,
    Signal,
    decode_from_client,
    encode,
)
from .rooms import JoinRefused, Member, Room, Rooms

REFILL: Final = 10 * SECOND
"""Interval at which one offense is forgiven and one more server list granted."""
LEFT: Final = "it left"
NEWCOMERS: Final = 16
"""Newcomers that may wait for one full room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJoined:
    """A member joined a room, or resumed its place."""

    link: int
    remote: str
    peer: str
    members: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLeft:
    """A member left for good."""

    peer: str
    remote: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRefused:
    """The server closed a link because it refused the client."""

    link: int
    remote: str
    code: str
    reason: str


UNAUTHORIZED: Final = "this server needs a room token: set token=, --token or POLYNYA_TOKEN"
REFUSED: Final = "the room token is not one of this server's"

RoomEvent = MemberJoined | MemberLeft | LinkRefused


@dataclass(slots=True, eq=False)
class _Link:
    id: int
    remote: str
    servers: tuple[IceServer, ...]
    messages: Bucket
    bytes: Bucket
    offenses: Bucket
    server_lists: Bucket
    member: Member | None = None
    waits_for: str = ""
    """The full room whose members are asked for a sign of life."""


@dataclass(slots=True, eq=False)
class _FullRoom:
    """A full room whose members are asked for a sign of life because newcomers wait."""

    silent: dict[int, None]
    """The links that have not answered yet."""
    newcomers: dict[int, Join]
    """Each newcomer by its link, in order."""


class RoomServer:
    """The signaling server: takes the events of its links, returns what to do with them."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        random: Random,
        tokens: Sequence[str] = (),
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.limits = limits or Limits()
        self.tokens = tuple(tokens)
        """A client must show one of these to join a room or to get the server list; none are needed if it is empty."""
        self._trace = trace
        self._rooms = Rooms(self.limits, random)
        self._links: dict[int, _Link] = {}
        self._closing: dict[int, str] = {}
        """Remote host of each link that the server has closed and whose connection still exists; they count."""
        self._hosts: Counter[str] = Counter()
        self._full: dict[str, _FullRoom] = {}
        self._timers: Timers[tuple[str, int]] = Timers()
        self._deadlines: Timers[str] = Timers()
        """When the members of each full room must have answered."""
        self._outputs: Queue[ServerOutput] = Queue()
        self._events: Queue[RoomEvent] = Queue()
        self._counters: Counter[str] = Counter()
        self._closed = False

    # ----------------------------------------------------------------------------------------------------- the contract

    def receive(self, input: ServerInput, *, now: Instant) -> None:
        """Handle an event of a link. Never raises because of a client's message."""
        if isinstance(input, LinkText):
            if (link := self._links.get(input.link)) is not None:
                self._on_text(link, input.text, now=now)
        elif isinstance(input, ServersFound):
            if input.link in self._links:
                self._outputs.append(SendText(input.link, encode(ServerList(input.servers, self.no_relay))))
        elif isinstance(input, LinkOpened):
            self._on_opened(input, now=now)
        elif isinstance(input, LinkAnswered):
            if (link := self._links.get(input.link)) is not None:
                self._alive(link, now=now)
        else:
            self._on_closed(input, now=now)
        self._drain_rooms(now=now)

    def tick(self, *, now: Instant) -> None:
        """Close links that were silent for too long, and remove members that did not resume in time."""
        for kind, number in self._timers.due(now=now):
            link = self._links.get(number)
            if link is None:  # closed by an earlier timer in this list
                continue
            if kind == "join":
                self._refuse(
                    link, "join-timeout", f"the client did not join within {self.limits.join_timeout} s", POLICY
                )
            else:
                self._refuse(link, "idle", f"the client was silent for {self.limits.idle_timeout} s", GOING_AWAY)
        for name in self._deadlines.due(now=now):
            self._replace_silent(name, now=now)
        for room in self._rooms.tick(now=now):
            self._close_room(room)
        self._drain_rooms(now=now)

    def next_timer(self) -> Instant | None:
        """The instant of the next timeout, if there is one."""
        return earliest(self._timers.next(), self._deadlines.next(), self._rooms.next_timer())

    def outputs(self) -> list[ServerOutput]:
        return self._outputs.drain()

    def events(self) -> list[RoomEvent]:
        return self._events.drain()

    def close(self, *, now: Instant) -> None:
        """Shut down: send every client an error and close its link. Later inputs are ignored."""
        self._closed = True
        self._rooms.clear()
        self._full.clear()
        self._deadlines.clear()
        for link in list(self._links.values()):
            self._refuse(link, "shutting-down", "the server is shutting down", GOING_AWAY)
        self._drain_rooms(now=now)

    @property
    def no_relay(self) -> str:
        """The reason why the server lists have no TURN server, for people; empty if they have one."""
        return self._rooms.no_relay

    @no_relay.setter
    def no_relay(self, reason: str) -> None:
        self._rooms.no_relay = reason

    @property
    def counters(self) -> Counters:
        """Counters and gauges. Their names are fixed and never contain text from a client."""
        links = {"links": len(self._links), "closing": len(self._closing)}
        now = {**links, "rooms": len(self._rooms), "members": self._rooms.members}
        return {**self._counters, **now}

    # ------------------------------------------------------------------------------------------------------------ links

    def _on_opened(self, opened: LinkOpened, *, now: Instant) -> None:
        limits = self.limits
        link = _Link(
            id=opened.link,
            remote=opened.remote,
            servers=opened.servers,
            messages=Bucket(limits.messages_per_second, limits.burst, now=now),
            bytes=Bucket(limits.bytes_per_second, limits.bytes_burst, now=now),
            offenses=Bucket(1, limits.offenses, now=now, per=REFILL),
            server_lists=Bucket(1, limits.server_lists, now=now, per=REFILL),
        )
        full = len(self._links) + len(self._closing) >= limits.links
        self._links[link.id] = link
        self._hosts[link.remote] += 1
        if self._closed:
            self._refuse(link, "shutting-down", "the server is shutting down", GOING_AWAY)
        elif full:
            self._refuse(link, "server-full", f"the server already has {limits.links} connections", TRY_LATER)
        elif self._hosts[link.remote] > limits.links_per_host:
            reason = f"the server already has {limits.links_per_host} connections from this address"
            self._refuse(link, "host-full", reason, TRY_LATER)
        else:
            self._timers.set(("join", link.id), Instant(now + limits.join_timeout * SECOND))

    def _on_closed(self, closed: LinkClosed, *, now: Instant) -> None:
        link = self._links.get(closed.link)
        if link is None:
            if (remote := self._closing.pop(closed.link, None)) is not None:
                self._leave_host(remote)
            return
        member = link.member
        self._forget(link)
        self._leave_host(link.remote)
        if member is None:
            return
        if closed.code in CLEAN:
            self._rooms.leave(member, closed.reason or LEFT, clean=True)
        else:
            self._trace.signaling(f"the connection of {member.id} was lost", now=now, event="away")
            self._rooms.go_away(member, now=now)
        self._place_freed(member.room, now=now)

    def _forget(self, link: _Link) -> None:
        del self._links[link.id]
        if (full := self._full.get(link.waits_for)) is not None:
            full.newcomers.pop(link.id, None)
        self._timers.cancel(("join", link.id))
        self._timers.cancel(("idle", link.id))
        link.member = None

    def _leave_host(self, remote: str) -> None:
        self._hosts[remote] -= 1
        if not self._hosts[remote]:
            del self._hosts[remote]

    def _close(self, link: _Link, code: int, reason: str) -> None:
        self._forget(link)
        self._closing[link.id] = link.remote
        self._outputs.append(CloseLink(link=link.id, code=code, reason=reason))

    def _refuse(self, link: _Link, code: str, reason: str, close_code: int) -> None:
        """Send a fatal error, close the link, and remove its member."""
        member = link.member
        self._counters[code] += 1
        self._events.append(LinkRefused(link=link.id, remote=link.remote, code=code, reason=reason))
        self._send_error(link, Error(code=code, message=reason, fatal=True))
        self._close(link, close_code, code)
        if member is not None:
            self._rooms.leave(member, reason)

    def _close_room(self, room: Room) -> None:
        for member in list(room.members.values()):
            link = self._links.get(member.link) if member.link is not None else None
            if link is None:
                self._rooms.leave(member, "the room was closed")
            else:
                reason = f"the room was idle for {self.limits.room_timeout} s"
                self._refuse(link, "room-idle", reason, GOING_AWAY)

    # --------------------------------------------------------------------------------------------------------- messages

    def _on_text(self, link: _Link, text: str | bytes, *, now: Instant) -> None:
        self._counters["messages"] += 1
        if link.member is not None:
            link.member.old_token = ""
            self._alive(link, now=now)
        size = len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if size > self.limits.message_bytes:
            self._offense(link, "too-large", f"a message may have at most {self.limits.message_bytes} bytes", now=now)
            return
        if not (link.messages.take(1, now=now) and link.bytes.take(size, now=now)):
            limits = self.limits
            reason = f"more than {limits.messages_per_second} messages/s or {limits.bytes_per_second} bytes/s"
            self._offense(link, "rate", reason, now=now)
            return
        try:
            message = decode_from_client(text)
        except DecodeError as error:
            self._offense(link, "bad-message", str(error), now=now)
            return
        if isinstance(message, Join):
            self._join(link, message, now=now)
        elif isinstance(message, Leave):
            self._leave(link, now=now)
        elif isinstance(message, ListServers):
            self._restart_idle_timer(link, now=now)
            if link.member is not None or self._authorized(link, message.token):
                self._list_servers(link, now=now)
        elif link.member is None:
            self._offense(link, "not-joined", "this connection has not joined a room: send join first", now=now)
        else:
            self._restart_idle_timer(link, now=now)
            if isinstance(message, Signal):
                self._relay(link, link.member, message, now=now)

    def _restart_idle_timer(self, link: _Link, *, now: Instant) -> None:
        if link.member is not None:
            self._timers.set(("idle", link.id), Instant(now + self.limits.idle_timeout * SECOND))

    def _offense(self, link: _Link, code: str, reason: str, *, now: Instant) -> None:
        """Answer a protocol violation with an error. Close the link after too many of them."""
        if not link.offenses.take(1, now=now):
            self._refuse(
                link, code, f"{reason}; too many refused messages", TOO_LARGE if code == "too-large" else POLICY
            )
            return
        self._counters[code] += 1
        self._trace.signaling(f"{code}: {reason}", now=now, event="refused")
        self._send_error(link, Error(code=code, message=reason))

    def _join(self, link: _Link, join: Join, *, now: Instant) -> None:
        if link.member is not None or link.waits_for:
            self._offense(link, "already-joined", "this connection has already joined a room", now=now)
            return
        if join.version not in VERSIONS:
            supported = " and ".join(map(str, VERSIONS))
            self._refuse(link, "version", f"this server supports versions {supported}, not {join.version}", POLICY)
            return
        if not self._authorized(link, join.token):
            return
        member = self._rooms.resumable(join)
        if member is not None and join.resume is not None:
            old = self._links.get(member.link) if member.link is not None else None
            if old is not None:  # the old connection is dead, which its close has not shown yet
                self._close(old, REPLACED, "resumed on another connection")
            member.version = join.version
            self._rooms.resume(member, join.resume.token, link.id, link.remote, link.servers, now=now)
            self._entered(link, member, resumed=True, now=now)
            return
        refused = self._enter(link, join, now=now)
        if refused is not None and not (refused.code == "room-full" and self._wait(link, join, now=now)):
            self._refuse(link, refused.code, refused.reason, TRY_LATER)

    def _authorized(self, link: _Link, shown: str) -> bool:
        """Whether a client showed a token of the operator; refuse it otherwise. All are compared in constant time."""
        given = shown.encode("utf-8", "surrogatepass")
        fitting = [compare_digest(given, token.encode("utf-8", "surrogatepass")) for token in self.tokens]
        if any(fitting) or not self.tokens:
            return True
        self._refuse(link, "token", REFUSED if shown else UNAUTHORIZED, POLICY)
        return False

    def _enter(self, link: _Link, join: Join, *, now: Instant) -> JoinRefused | None:
        """Let a new member in, or return why that is impossible."""
        entered = self._rooms.enter(join, link.id, link.remote, link.servers, now=now)
        if isinstance(entered, JoinRefused):
            return entered
        link.waits_for = ""
        self._entered(link, entered, resumed=False, now=now)
        return None

    # ------------------------------------------------------------------------------------------------------- full rooms

    def _wait(self, link: _Link, join: Join, *, now: Instant) -> bool:
        """Let a newcomer wait while the members of its full room are pinged. Returns False if too many wait."""
        room, full = self._rooms.room(join.room), self._full.get(join.room)
        if room is None:
            return False
        if full is None:
            links = [each.link for each in room.members.values() if each.link is not None]
            full = self._full[room.name] = _FullRoom(dict.fromkeys(links), {})
            self._deadlines.set(room.name, Instant(now + self.limits.silence_timeout * SECOND))
            self._outputs.extend(PingLink(link=each) for each in links)
        elif len(full.newcomers) >= NEWCOMERS:
            return False
        full.newcomers[link.id] = join
        link.waits_for = room.name
        return True

    def _alive(self, link: _Link, *, now: Instant) -> None:
        """Take a sign of life of a member. When all members have given one, the newcomers to the room are refused."""
        full = None if link.member is None else self._full.get(link.member.room.name)
        if full is None or link.member is None:
            return
        full.silent.pop(link.id, None)
        if not any(each in self._links for each in full.silent):
            self._decide(link.member.room.name, now=now)

    def _replace_silent(self, name: str, *, now: Instant) -> None:
        """Remove members of a full room that did not answer, one for each newcomer, and let the newcomers in."""
        full = self._full[name]
        for number in list(full.silent)[: len(full.newcomers)]:
            link = self._links.get(number)
            if link is not None and link.member is not None and link.member.room.name == name:
                member = link.member
                self._counters["silent"] += 1
                self._close(link, SILENT, "no answer to a ping")
                self._rooms.leave(member, f"it did not answer for {self.limits.silence_timeout} s")
        self._decide(name, now=now)

    def _decide(self, name: str, *, now: Instant) -> None:
        """Let the newcomers to a room in while there are places, and refuse the others."""
        self._deadlines.cancel(name)
        for number, join in self._full.pop(name).newcomers.items():
            if (link := self._links.get(number)) is not None:
                link.waits_for = ""
                if (refused := self._enter(link, join, now=now)) is not None:
                    self._refuse(link, refused.code, refused.reason, TRY_LATER)

    def _place_freed(self, room: Room, *, now: Instant) -> None:
        """Let a newcomer in: a member has left or is absent."""
        full = self._full.get(room.name)
        if full is None:
            return
        for number, join in list(full.newcomers.items()):
            if self._enter(self._links[number], join, now=now) is None:
                del full.newcomers[number]
        if not full.newcomers:
            del self._full[room.name]
            self._deadlines.cancel(room.name)

    def _entered(self, link: _Link, member: Member, *, resumed: bool, now: Instant) -> None:
        link.member = member
        self._timers.cancel(("join", link.id))
        self._restart_idle_timer(link, now=now)
        self._counters["resumed" if resumed else "joined"] += 1
        members = len(member.room.members)
        event = MemberJoined(link=link.id, remote=link.remote, peer=member.id, members=members, resumed=resumed)
        self._events.append(event)
        verb = "resumed" if resumed else "joined"
        self._trace.signaling(f"{member.id} {verb}, {members} in the room", now=now, event="joined")

    def _leave(self, link: _Link, *, now: Instant) -> None:
        member = link.member
        self._close(link, NORMAL, "left")
        if member is not None:
            self._rooms.leave(member, LEFT, clean=True)
            self._place_freed(member.room, now=now)

    def _relay(self, link: _Link, sender: Member, message: Signal, *, now: Instant) -> None:
        if self._rooms.relay(sender, message, now=now):
            self._counters["relayed"] += 1
            return
        self._counters["unknown-peer"] += 1
        error = Error(code="unknown-peer", message="the room has no member with this id", peer=message.peer)
        self._send_error(link, error)

    def _list_servers(self, link: _Link, *, now: Instant) -> None:
        """Request the server list for this client, which costs an HMAC, from the owner."""
        if link.server_lists.take(1, now=now):
            self._counters["server-lists"] += 1
            self._outputs.append(FindServers(link=link.id))
            return
        self._counters["servers-rate"] += 1
        reason = f"more than {self.limits.server_lists} server lists at once, or one in {REFILL // SECOND} s"
        self._send_error(link, Error(code="servers-rate", message=reason))

    # ---------------------------------------------------------------------------------------------------------- sending

    def _send_error(self, link: _Link, error: Error) -> None:
        self._take_outbox()  # keep the order: the rooms' messages are older
        self._outputs.append(SendText(link.id, encode(error)))

    def _take_outbox(self) -> None:
        self._outputs.extend(self._rooms.outbox.drain())

    def _drain_rooms(self, *, now: Instant) -> None:
        self._take_outbox()
        for member, reason in self._rooms.departures.drain():
            self._events.append(MemberLeft(peer=member.id, remote=member.remote, reason=reason))
            self._trace.signaling(f"{member.id}: {reason}", now=now, event="left")
