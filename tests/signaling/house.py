"""A signaling server and clients on links without delay, with a virtual clock."""

from __future__ import annotations

import random

from polynya.core.instants import SECOND, Instant
from polynya.signaling.client import ClientEvent, ClientTimeouts, RoomClient
from polynya.signaling.limits import Limits
from polynya.signaling.links import (
    CloseLink,
    FindServers,
    LinkAnswered,
    LinkClosed,
    LinkOpened,
    LinkText,
    OpenLink,
    PingLink,
    SendText,
    ServersFound,
)
from polynya.signaling.messages import (
    Description,
    Error,
    FromClient,
    FromServer,
    IceServer,
    Join,
    Resume,
    Welcome,
    decode_from_server,
    encode,
)
from polynya.signaling.server import RoomEvent, RoomServer

SERVERS = (IceServer(uris=("stun:192.0.2.1:3478",)),)
PASSWORD = "p" * 24
JOIN = Join(version=1, room="room")


def description(generation: int = 0, ufrag: str = "abcd") -> Description:
    return Description(ufrag=ufrag, pwd=PASSWORD, options=("ice2", "trickle"), pacing=5, generation=generation)


class RawLink:
    """A link driven by hand, for hostile and foreign clients."""

    def __init__(self, house: House, link: int) -> None:
        self.house = house
        self.link = link
        self.said: list[FromServer] = []
        self.closed: tuple[int, str] | None = None
        self.answers = True
        """Whether it answers pings."""
        self.pings = 0

    def say(self, message: FromClient | str | bytes) -> list[FromServer]:
        """Send a message and return the server's answers."""
        text = message if isinstance(message, str | bytes) else encode(message)
        self.house.server.receive(LinkText(self.link, text), now=self.house.now)
        self.house.settle()
        return self.heard()

    def heard(self) -> list[FromServer]:
        said, self.said = self.said, []
        return said

    def close(self, code: int = 1006) -> None:
        self.house.server.receive(LinkClosed(link=self.link, code=code), now=self.house.now)
        self.house.settle()


class Member:
    """A client machine and its events."""

    def __init__(self, house: House, client: RoomClient) -> None:
        self.house = house
        self.client = client
        self.events: list[ClientEvent] = []
        self.link: int | None = None
        """The server's number of the link."""

    def drain(self) -> list[ClientEvent]:
        events, self.events = self.events, []
        return events

    def leave(self) -> None:
        self.client.leave(now=self.house.now)
        self.house.settle()

    def send(self, peer: Member | str, body: Description) -> None:
        self.client.send(peer if isinstance(peer, str) else peer.client.peer_id, body, now=self.house.now)
        self.house.settle()


class House:
    """A signaling server and its clients. Every text arrives at once and in order."""

    def __init__(self, seed: int = 1, **limits: int) -> None:
        self.now = Instant(0)
        self.random = random.Random(seed)
        self.server = RoomServer(Limits(**limits), random=self.random)
        self.server_events: list[RoomEvent] = []
        self.up = True
        self.connections_stay = False
        """Whether the connection of a link that the server closes stays open, as with a client that never reads."""
        self.servers = SERVERS
        """The server list that every client gets now."""
        self._links = 0
        self._raw: dict[int, RawLink] = {}
        self._members: list[Member] = []
        self._of_link: dict[int, tuple[Member, int]] = {}
        self.texts: list[str] = []

    def raw(self, remote: str = "198.51.100.1") -> RawLink:
        self._links += 1
        link = RawLink(self, self._links)
        self._raw[link.link] = link
        self.server.receive(LinkOpened(link=link.link, remote=remote, servers=self.servers), now=self.now)
        self.settle()
        return link

    def member(self, room: str = "room", *, timeouts: ClientTimeouts | None = None, limit: int | None = None) -> Member:
        member = Member(self, RoomClient(room, random=self.random, timeouts=timeouts, limit=limit))
        self._members.append(member)
        member.client.start(now=self.now)
        self.settle()
        return member

    def break_link(self, member: Member, code: int = 1006) -> None:
        """Break the member's connection at both ends."""
        assert member.link is not None
        own = self._of_link.pop(member.link)[1]
        self.server.receive(LinkClosed(link=member.link, code=code), now=self.now)
        member.client.receive(LinkClosed(link=own, code=code, reason="broke"), now=self.now)
        self.settle()

    def settle(self) -> None:
        """Deliver all texts until none is left."""
        moved = True
        while moved:
            moved = self._from_server()
            for member in self._members:
                moved = self._from_member(member) or moved

    def run(self, seconds: float) -> None:
        """Advance the clock from timer to timer."""
        end = self.now + round(seconds * SECOND)
        while True:
            machines = [self.server, *(member.client for member in self._members)]
            due = [at for machine in machines if (at := machine.next_timer()) is not None and at <= end]
            if not due:
                break
            self.now = max(self.now, min(due))
            for machine in machines:
                machine.tick(now=self.now)
            self.settle()
        self.now = Instant(end)

    def _from_server(self) -> bool:
        outputs = self.server.outputs()
        self.server_events += self.server.events()
        for output in outputs:
            if isinstance(output, CloseLink) and not self.connections_stay:
                self.server.receive(LinkClosed(link=output.link, code=output.code), now=self.now)
            if isinstance(output, PingLink):
                self._ping(output.link)
                continue
            if isinstance(output, FindServers):
                self.server.receive(ServersFound(link=output.link, servers=self.servers), now=self.now)
                continue
            raw = self._raw.get(output.link)
            if raw is not None:
                if isinstance(output, SendText):
                    raw.said.append(decode_from_server(output.text))
                elif isinstance(output, CloseLink):
                    raw.closed = (output.code, output.reason)
                continue
            member, own = self._of_link.get(output.link, (None, 0))
            if member is None:
                continue
            if isinstance(output, SendText):
                self.texts.append(output.text)
                member.client.receive(LinkText(own, output.text), now=self.now)
            elif isinstance(output, CloseLink):
                del self._of_link[output.link]
                member.client.receive(LinkClosed(link=own, code=output.code, reason=output.reason), now=self.now)
        return bool(outputs)

    def _ping(self, link: int) -> None:
        raw = self._raw.get(link)
        if raw is not None:
            raw.pings += 1
        if raw is None or raw.answers:
            self.server.receive(LinkAnswered(link=link), now=self.now)

    def _from_member(self, member: Member) -> bool:
        outputs = member.client.outputs()
        member.events += member.client.events()
        for output in outputs:
            if isinstance(output, OpenLink):
                if not self.up:
                    member.client.receive(LinkClosed(link=output.link, reason="connection refused"), now=self.now)
                    continue
                self._links += 1
                member.link = self._links
                self._of_link[member.link] = (member, output.link)
                self.server.receive(LinkOpened(link=member.link, remote="member", servers=self.servers), now=self.now)
                member.client.receive(LinkOpened(link=output.link), now=self.now)
            elif member.link in self._of_link and self._of_link[member.link][1] == output.link:
                if isinstance(output, SendText):
                    self.texts.append(output.text)
                    self.server.receive(LinkText(member.link, output.text), now=self.now)
                else:
                    del self._of_link[member.link]
                    self.server.receive(LinkClosed(link=member.link, code=output.code), now=self.now)
        return bool(outputs)


def join(house: House, room: str = "room", *, resume: Welcome | None = None) -> tuple[RawLink, Welcome]:
    link = house.raw()
    proof = Resume(resume.peer, resume.token) if resume else None
    welcome, *link.said = link.say(Join(version=1, room=room, resume=proof))
    assert isinstance(welcome, Welcome)
    return link, welcome


def codes(said: list[FromServer]) -> list[str]:
    return [each.code for each in said if isinstance(each, Error)]
