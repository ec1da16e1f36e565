"""A signaling server and its members joined by links of no delay, on a virtual clock."""

from __future__ import annotations

import random

from polynya.core.instants import SECOND, Instant
from polynya.signaling.client import ClientEvent, Patience, RoomClient
from polynya.signaling.limits import Limits
from polynya.signaling.links import CloseLink, LinkClosed, LinkOpened, LinkText, OpenLink, SendText
from polynya.signaling.messages import Description, FromMember, FromServer, IceServer, decode_from_server, encode
from polynya.signaling.server import RoomEvent, RoomServer

SERVERS = (IceServer(uris=("stun:192.0.2.1:3478",)),)
PASSWORD = "p" * 24


def description(generation: int = 0, ufrag: str = "abcd") -> Description:
    return Description(ufrag=ufrag, pwd=PASSWORD, options=("ice2", "trickle"), pacing=5, generation=generation)


class RawLink:
    """A link driven by hand: what a hostile or foreign member may do."""

    def __init__(self, house: House, link: int) -> None:
        self.house = house
        self.link = link
        self.said: list[FromServer] = []
        self.closed: tuple[int, str] | None = None

    def say(self, message: FromMember | str | bytes) -> list[FromServer]:
        """Say something; what the server says back."""
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
    """A client machine with its events kept."""

    def __init__(self, house: House, client: RoomClient) -> None:
        self.house = house
        self.client = client
        self.events: list[ClientEvent] = []
        self.link: int | None = None
        """The link as the server numbers it."""

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
    """The world: every text that was sent is at the other end at once, and in order."""

    def __init__(self, seed: int = 1, **limits: int) -> None:
        self.now = Instant(0)
        self.random = random.Random(seed)
        self.server = RoomServer(Limits(**limits), random=self.random)
        self.server_events: list[RoomEvent] = []
        self.up = True
        self._links = 0
        self._raw: dict[int, RawLink] = {}
        self._members: list[Member] = []
        self._of_link: dict[int, tuple[Member, int]] = {}
        self.texts: list[str] = []

    def raw(self, remote: str = "198.51.100.1") -> RawLink:
        self._links += 1
        link = RawLink(self, self._links)
        self._raw[link.link] = link
        self.server.receive(LinkOpened(link=link.link, remote=remote, servers=SERVERS), now=self.now)
        self.settle()
        return link

    def member(self, room: str = "room", *, patience: Patience | None = None, limit: int | None = None) -> Member:
        member = Member(self, RoomClient(room, random=self.random, patience=patience, limit=limit))
        self._members.append(member)
        member.client.start(now=self.now)
        self.settle()
        return member

    def break_link(self, member: Member, code: int = 1006) -> None:
        """The member's connection breaks, and both ends see it."""
        assert member.link is not None
        own = self._of_link.pop(member.link)[1]
        self.server.receive(LinkClosed(link=member.link, code=code), now=self.now)
        member.client.receive(LinkClosed(link=own, code=code, reason="broke"), now=self.now)
        self.settle()

    def settle(self) -> None:
        """Carry everything until nothing moves."""
        moved = True
        while moved:
            moved = self._from_server()
            for member in self._members:
                moved = self._from_member(member) or moved

    def run(self, seconds: float) -> None:
        """Let the clock jump from timer to timer."""
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
                self.server.receive(LinkOpened(link=member.link, remote="member", servers=SERVERS), now=self.now)
                member.client.receive(LinkOpened(link=output.link), now=self.now)
            elif member.link in self._of_link and self._of_link[member.link][1] == output.link:
                if isinstance(output, SendText):
                    self.texts.append(output.text)
                    self.server.receive(LinkText(member.link, output.text), now=self.now)
                else:
                    del self._of_link[member.link]
                    self.server.receive(LinkClosed(link=member.link, code=output.code), now=self.now)
        return bool(outputs)
