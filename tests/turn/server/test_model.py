"""Random sequences of requests, data and time against a model of RFC 8656, whose only state is what the RFC names."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from polynya.core.addresses import Address
from polynya.stun import attributes as a
from polynya.stun.message import decode
from tests.turn.server.harness import HOST, HOST6, Person, Table, code, config

CLIENTS = [Address("198.51.100.1", 1000), Address("198.51.100.1", 1001), Address("2001:db8:7::1", 1000)]
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
class Model:
    """One allocation: the times are seconds at which things end."""

    owner: str
    ends: dict[int, int]
    """By family."""
    permissions: dict[str, int] = field(default_factory=dict)
    channels: dict[int, tuple[Address, int]] = field(default_factory=dict)


class Requests(RuleBasedStateMachine):
    """Every rule says what the server must answer, and what must and must not pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(config())
        self.people_: dict[tuple[int, str], Person] = {}
        self.models: dict[int, Model] = {}
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
        """437 or 441, 0 when the allocation is there and its user's."""
        model = self.model(client)
        return 437 if model is None else 441 if model.owner != name else 0

    # --------------------------------------------------------------------------------------------------------- rules

    @initialize()
    def two_have_allocations(self) -> None:
        for client in (0, 1):
            self.allocate(client, "alice", "46", 3600)
            self.channel_bind(client, "alice", 0x4000, PEERS[client])

    @rule(client=clients, name=names, families=st.sampled_from(["4", "6", "46", "46", "46", "default"]),
          lifetime=st.sampled_from([None, 0, 30, 900, 10**6]))  # fmt: skip
    def allocate(self, client: int, name: str, families: str, lifetime: int | None) -> None:
        wish: dict = {
            "4": {a.REQUESTED_ADDRESS_FAMILY: 4},
            "6": {a.REQUESTED_ADDRESS_FAMILY: 6},
            "46": {a.ADDITIONAL_ADDRESS_FAMILY: 6},
            "default": {},
        }[families]
        if lifetime is not None:
            wish |= {a.LIFETIME: lifetime}
        answer = self.person(client, name).allocate(wish)
        if self.model(client) is not None:
            assert code(answer) == 437
            return
        assert code(answer) == 0
        granted = 600 if lifetime is None else min(max(lifetime, 600), 3600)
        expected = {"4": [HOST], "6": [HOST6], "46": [HOST, HOST6], "default": [HOST]}[families]
        assert answer[a.LIFETIME] == granted
        assert [each.host for each in answer[a.XOR_RELAYED_ADDRESS]] == expected
        self.models[client] = Model(name, {6 if host == HOST6 else 4: self.time + granted for host in expected})

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
        """Time goes to the very edge, where servers err."""
        edges: list[int] = []
        for model in self.models.values():
            edges += [*model.ends.values(), *model.permissions.values()]
            edges += [end + rest for _, end in model.channels.values() for rest in (0, 300)]
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
        expected = sum(len(model.ends) for client in range(len(CLIENTS)) if (model := self.model(client)) is not None)
        assert len(self.table.flows) == expected
        allocations = self.table.server.control.allocations
        assert len(allocations.by_relay) == len(allocations.relayed) == expected
        assert allocations.claimed == len(self.models) == len(allocations.by_client)
        assert len(self.table.server.control._procedures) == 0


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
