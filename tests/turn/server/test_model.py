"""Random sequences of requests, data and time against a model of RFC 8656 that has only the state of the RFC."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from polynya.core.addresses import Address
from polynya.stun import attributes as a
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.turn.server.config import ChannelRange
from tests.turn.server.harness import HOST, HOST6, Person, Table, code, config

pytestmark = pytest.mark.slow

CLIENTS = [
    Address("198.51.100.1", 1000), Address("198.51.100.1", 1001), Address("2001:db8:7::1", 1000),
    Address("198.51.100.2", 1000), Address("198.51.100.3", 1000),
]  # fmt: skip
PEERS = [
    Address("203.0.113.1", 10), Address("203.0.113.1", 11), Address("203.0.113.2", 10), Address("2001:db8:9::1", 10),
    Address("2001:db8:9::2", 10), Address("10.0.0.1", 10), Address("::ffff:10.0.0.1", 10),
]  # fmt: skip
FORBIDDEN = {"10.0.0.1", "::ffff:10.0.0.1"}
NUMBERS = [0x4000, 0x4001, 0x4FFF, 0x5000]

clients = st.sampled_from([0, 0, 0, 1, 2])
names = st.sampled_from(["alice"] * 5 + ["bob"])
peers = st.sampled_from(PEERS[:2] * 4 + PEERS[2:4] * 2 + PEERS[4:])


@dataclass
class Token:
    """A port that is reserved for a second allocation."""

    owner: str
    port: int
    ends: int


@dataclass
class Model:
    """One allocation; the times are expiry times in seconds."""

    owner: str
    ends: dict[int, int]
    """Expiry by address family."""
    permissions: dict[str, int] = field(default_factory=dict)
    channels: dict[int, tuple[Address, int]] = field(default_factory=dict)
    request: bytes = b""
    """Its Allocate request."""
    answer: Message | None = None
    """The response to that request, and whether another request has followed."""
    fresh: bool = True


class Requests(RuleBasedStateMachine):
    """Each rule asserts the response of the server, and which data passes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(config(channel_range=ChannelRange.RFC8656))
        self.people_: dict[tuple[int, str], Person] = {}
        self.models: dict[int, Model] = {}
        self.tokens: dict[bytes, Token] = {}
        self.time = 0

    # ------------------------------------------------------------------------------------------------------- helpers

    def person(self, client: int, name: str) -> Person:
        key = client, name
        if key not in self.people_:
            self.people_[key] = Person(self.table, CLIENTS[client], name)
        return self.people_[key]

    def model(self, client: int) -> Model | None:
        found = self.models.get(client)
        if found is None:
            return None
        found.ends = {family: end for family, end in found.ends.items() if end > self.time}
        if not found.ends:
            del self.models[client]
            return None
        return found

    def mismatch(self, client: int, name: str) -> int:
        """Return 437 or 441, or 0 if the allocation exists and belongs to the user."""
        model = self.model(client)
        if model is None:
            return 437
        model.fresh = model.fresh and model.owner != name
        return 441 if model.owner != name else 0

    def held(self) -> dict[bytes, Token]:
        self.tokens = {token: each for token, each in self.tokens.items() if each.ends > self.time}
        return self.tokens

    def allocated(self, person: Person, attributes: dict) -> tuple[bytes, Message]:
        """Send an Allocate and return its response; a challenge is answered once."""
        for _ in range(2):
            request = person.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17, **attributes})
            answer = person.say(request)
            assert answer is not None
            if code(answer) not in (401, 438) or not person.learn(answer):
                break
        return request, answer

    # --------------------------------------------------------------------------------------------------------- rules

    @initialize()
    def two_have_allocations(self) -> None:
        for client in (0, 1):
            self.allocate(client, "alice", "46", 3600)
            self.channel_bind(client, "alice", 0x4000, PEERS[client])

    @rule(client=clients, name=names, families=st.sampled_from(["4", "6", "46", "46", "46", "default"]),
          lifetime=st.sampled_from([None, 0, 30, 900, 10**6]))  # fmt: skip
    def allocate(self, client: int, name: str, families: str, lifetime: int | None) -> None:
        attributes: dict = {
            "4": {a.REQUESTED_ADDRESS_FAMILY: 4},
            "6": {a.REQUESTED_ADDRESS_FAMILY: 6},
            "46": {a.ADDITIONAL_ADDRESS_FAMILY: 6},
            "default": {},
        }[families]
        if lifetime is not None:
            attributes |= {a.LIFETIME: lifetime}
        request, answer = self.allocated(self.person(client, name), attributes)
        if self.model(client) is not None:
            assert code(answer) == 437
            return
        assert code(answer) == 0
        granted = 600 if lifetime is None else min(max(lifetime, 600), 3600)
        expected = {"4": [HOST], "6": [HOST6], "46": [HOST, HOST6], "default": [HOST]}[families]
        assert answer[a.LIFETIME] == granted
        assert [each.host for each in answer[a.XOR_RELAYED_ADDRESS]] == expected
        ends = {6 if host == HOST6 else 4: self.time + granted for host in expected}
        self.models[client] = Model(name, ends, request=request, answer=answer)

    @rule(client=clients, name=names)
    def allocate_a_pair(self, client: int, name: str) -> None:
        request, answer = self.allocated(self.person(client, name), {a.EVEN_PORT: True})
        if self.model(client) is not None:
            assert code(answer) == 437
            return
        [relayed] = answer[a.XOR_RELAYED_ADDRESS]
        assert relayed.port % 2 == 0
        self.models[client] = Model(name, {4: self.time + 600}, request=request, answer=answer)
        self.tokens[answer[a.RESERVATION_TOKEN]] = Token(name, relayed.port + 1, self.time + 30)

    @rule(first=names, second=st.sampled_from(["alice", "bob"]), wait=st.sampled_from([0, 0, 29, 30]))
    def a_pair_is_allocated_and_its_second_port_asked_for(self, first: str, second: str, wait: int) -> None:
        for client in (3, 4):
            model = self.model(client)
            if model is not None:
                self.refresh(client, model.owner, 0, None)
        self.allocate_a_pair(3, first)
        if wait:
            self.time_passes(wait)
        self.redeem(4, second, len(self.tokens) - 1)

    @rule(client=st.sampled_from([0, 1, 2, 2, 2, 2]), name=st.sampled_from(["alice", "bob"]), which=st.integers(0, 3))
    def redeem(self, client: int, name: str, which: int) -> None:
        """A token that is valid, expired, another user's, or invented."""
        known = [*self.tokens, bytes(8)]
        token = known[which % len(known)]
        request, answer = self.allocated(self.person(client, name), {a.RESERVATION_TOKEN: token})
        held = self.held().get(token)
        if self.model(client) is not None:
            assert code(answer) == 437
        elif held is None or held.owner != name:
            assert code(answer) == 508
        else:
            del self.tokens[token]
            assert answer[a.XOR_RELAYED_ADDRESS] == (Address(HOST, held.port),)
            self.models[client] = Model(name, {4: self.time + 600}, request=request, answer=answer)

    @rule(client=clients)
    def the_allocate_comes_again(self, client: int) -> None:
        """Until the client sends another request, the response to its Allocate may be lost."""
        model = self.model(client)
        if model is None or model.answer is None:
            return
        answer = self.person(client, model.owner).say(model.request)
        if model.fresh:
            assert answer is not None and answer.attributes == model.answer.attributes
        else:
            assert code(answer) in (437, 438), "a stale nonce is reported first"

    @rule(client=clients, method=st.sampled_from([Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION]))
    def somebody_guesses_the_password(self, client: int, method: Method) -> None:
        """The invariants check that nothing has changed."""
        person = self.person(client, "alice")
        forger = Person(self.table, CLIENTS[client], "alice", "a guess")
        forger.nonce, forger.offered = person.nonce, person.offered
        values = {a.REQUESTED_TRANSPORT: 17, a.LIFETIME: 0, a.XOR_PEER_ADDRESS: (PEERS[0],)}
        assert code(forger.say(forger.build(method, values))) in (401, 438)

    @rule(
        client=clients,
        name=names,
        lifetime=st.sampled_from([None, 3000, 3600, 700, 0]),
        family=st.sampled_from([None, None, 4, 6]),
    )
    def refresh(self, client: int, name: str, lifetime: int | None, family: int | None) -> None:
        extra = {} if family is None else {a.REQUESTED_ADDRESS_FAMILY: family}
        answer = self.person(client, name).refresh(lifetime, extra)
        wrong = self.mismatch(client, name)
        model = self.model(client)
        if wrong or model is None:
            assert code(answer) == wrong
        elif family is not None and family not in model.ends:
            assert code(answer) == 443
        else:
            assert code(answer) == 0
            granted = 600 if lifetime is None else lifetime
            assert answer[a.LIFETIME] == granted
            for each in [family] if family is not None else list(model.ends):
                model.ends[each] = self.time + granted

    @rule(client=clients, name=names, wanted=st.lists(peers, min_size=1, max_size=2))
    def create_permission(self, client: int, name: str, wanted: list[Address]) -> None:
        answer = self.person(client, name).permit(*wanted)
        wrong = self.mismatch(client, name)
        model = self.model(client)
        if wrong or model is None:
            assert code(answer) == wrong
        elif any(peer.family not in model.ends for peer in wanted):
            assert code(answer) == 443
        elif any(peer.host in FORBIDDEN for peer in wanted):
            assert code(answer) == 403
        else:
            assert code(answer) == 0
            model.permissions |= {peer.host: self.time + 300 for peer in wanted}

    @rule(client=clients, name=names, number=st.sampled_from(NUMBERS), peer=peers)
    def channel_bind(self, client: int, name: str, number: int, peer: Address) -> None:
        answer = self.person(client, name).bind(number, peer)
        wrong = self.mismatch(client, name)
        model = self.model(client)
        if wrong or model is None:
            assert code(answer) == wrong
            return
        resting = {n: p for n, (p, end) in model.channels.items() if end + 300 > self.time}
        if number == 0x5000:
            assert code(answer) == 400
        elif peer.family not in model.ends:
            assert code(answer) == 443
        elif resting.get(number, peer) != peer or any(p == peer and n != number for n, p in resting.items()):
            assert code(answer) == 400
        elif peer.host in FORBIDDEN:
            assert code(answer) == 403
        else:
            assert code(answer) == 0
            model.permissions[peer.host] = self.time + 300
            model.channels = {n: c for n, c in model.channels.items() if n in resting}
            model.channels[number] = peer, self.time + 600

    @rule(client=clients, which=st.integers(0, 3), offset=st.sampled_from([-300, -299, -1, 0, 1]), peer=peers)
    def a_channel_that_has_rested_is_bound_to_another(
        self, client: int, which: int, offset: int, peer: Address
    ) -> None:
        """Or one that has almost expired."""
        model = self.model(client)
        if model is None or not model.channels:
            return
        number, (_, end) = list(model.channels.items())[which % len(model.channels)]
        for _ in range(2):  # an allocation may have to be refreshed
            self.refresh(client, model.owner, 3600, None)
            if (seconds := end + 300 + offset - self.time) > 0:
                self.time_passes(min(seconds, 3000))
        self.channel_bind(client, model.owner, number, peer)

    @rule(client=clients, name=names, peer=peers, data=st.binary(max_size=40))
    def send(self, client: int, name: str, peer: Address, data: bytes) -> None:
        sent = self.person(client, name).send(data, peer)
        assert [(each.remote, each.data) for each in sent] == ([(peer, data)] if self.passes(client, peer) else [])

    @rule(client=clients, number=st.sampled_from(NUMBERS), data=st.binary(max_size=40))
    def channel_data(self, client: int, number: int, data: bytes) -> None:
        sent = self.person(client, "alice").channel(number, data)
        model = self.model(client)
        peer, end = model.channels.get(number, (None, 0)) if model is not None else (None, 0)
        good = peer is not None and end > self.time and self.passes(client, peer)
        assert [(each.remote, each.data) for each in sent] == ([(peer, data)] if good else [])

    @rule(client=clients, peer=peers, data=st.binary(max_size=40))
    def data_of_a_peer(self, client: int, peer: Address, data: bytes) -> None:
        allocation = next((each for c, each in self.allocations() if c == CLIENTS[client]), None)
        relay = allocation.of_family(peer.family) if allocation is not None else None
        if relay is None:
            assert not self.passes(client, peer)
            return
        sent = self.table.from_peer(relay.relay, data, peer)
        if not self.passes(client, peer):
            assert sent == []
            return
        [back] = sent
        assert back.remote == CLIENTS[client]
        model = self.model(client)
        assert model is not None
        number = next((n for n, (p, end) in model.channels.items() if p == peer and end > self.time), None)
        if number is not None:
            assert back.data == number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
        else:
            message = decode(back.data)
            assert (message[a.XOR_PEER_ADDRESS], message[a.DATA]) == ((peer,), data)

    @rule(seconds=st.sampled_from([1, 5, 60, 149, 150, 250, 299, 301, 600, 3000]))
    def time_passes(self, seconds: int) -> None:
        self.table.run_for(seconds)
        self.time += seconds
        self.everything_is_tried()

    @rule(which=st.integers(0, 30), offset=st.sampled_from([-1, 0, 1]))
    def something_is_about_to_end(self, which: int, offset: int) -> None:
        """Advance the clock to the second around an expiry, where servers err."""
        edges: list[int] = []
        for model in self.models.values():
            edges += [*model.ends.values(), *model.permissions.values()]
            edges += [end + rest for _, end in model.channels.values() for rest in (0, 300)]
        edges += [token.ends for token in self.tokens.values()]
        ahead = sorted(edge for edge in edges if edge > self.time)
        if ahead and (seconds := ahead[which % len(ahead)] + offset - self.time) > 0:
            self.time_passes(seconds)

    def everything_is_tried(self) -> None:
        for client in range(len(CLIENTS)):
            for peer in PEERS:
                self.send(client, "alice", peer, b"x")
                self.data_of_a_peer(client, peer, b"y")
            for number in NUMBERS:
                self.channel_data(client, number, b"z")

    def passes(self, client: int, peer: Address) -> bool:
        model = self.model(client)
        return (
            model is not None
            and model.ends.get(peer.family, 0) > self.time
            and model.permissions.get(peer.host, 0) > self.time
        )

    def allocations(self) -> list:
        return [(client.remote, each) for client, each in self.table.server.control.allocations.by_client.items()]

    # ----------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def what_is_open_is_what_is_allocated(self) -> None:
        held = len(self.held())
        expected = sum(len(model.ends) for client in range(len(CLIENTS)) if (model := self.model(client)) is not None)
        expected += held
        assert len(self.table.flows) == expected
        allocations = self.table.server.control.allocations
        assert len(allocations.by_relay) + held == len(allocations.relayed) == expected
        assert allocations.claimed - held == len(self.models) == len(allocations.by_client)
        assert allocations.ports_in_use == expected, "a port without an allocation is free or rests"
        assert self.table.server.control.size["procedures"] == 0


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
