"""How soon the real aioice is connected, as the controlled side and without trickle, behind virtual NATs.

aioice uses no pair before it is nominated. All links have 25 ms, so the round trip between the hosts is 100 ms, and
that to the servers 50 ms. The programs gather, exchange one text each, and connect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.ice import AgentState, Candidate, Description, IceConfig, LocalCandidateAdded, LocalCandidatesEnded
from polynya.lab import UDP_BLOCKED, Host, Network
from polynya.lab.exchange import Peer
from polynya.lab.invariants import violations
from polynya.lab.links import Profile
from polynya.lab.nodes import Node
from polynya.lab.relaying import TURN_SERVER, USER, relay, turn_server
from polynya.lab.topologies import SERVER, STUN_PORT, stun_server
from polynya.nat import Behavior, FilterScope, NatConfig, PortAssignment, every_class
from polynya.session.options import SessionConfig
from polynya.stun.uris import StunUri
from tests.interop.virtual_aioice import Aioice

pytestmark = pytest.mark.peer("aioice")

BASE = NatConfig(ports=PortAssignment.RANDOM, filter_scope=FilterScope.MAPPING)
PORT = replace(BASE, mapping=Behavior.EI, filtering=Behavior.APD)
SYMMETRIC = replace(BASE, mapping=Behavior.APD, filtering=Behavior.APD)
BLOCKED = "UDP is blocked"
Gate = NatConfig | str | None
MADE: list[Meeting] = []
"""The meetings of one test."""
Then = Callable[[str, str, list[str]], None]


class Whole:
    """A peer of ours that signals everything in one text."""

    def __init__(self, network: Network, host: Host, config: SessionConfig) -> None:
        self.peer = Peer(network, host, config)
        self.peer.signal = self._signal
        self._network = network
        self._lines: list[str] = []
        self._then: Then | None = None

    def gather(self, then: Then) -> None:
        self._then = then
        self.peer.start()

    def _signal(self, event: Any) -> None:
        if isinstance(event, LocalCandidateAdded):
            self._lines.append(event.candidate.to_sdp().removeprefix("candidate:"))
        elif isinstance(event, LocalCandidatesEnded) and self._then is not None:
            local, then, self._then = self.peer.session.agent.local_description, self._then, None
            self._network.clock.after(0, then, local.ufrag, local.password, self._lines)

    def meet(self, ufrag: str, password: str, lines: list[str], options: tuple[str, ...] = ()) -> None:
        self.peer.call(self.peer.session.set_remote, Description(ufrag=ufrag, password=password, options=options))
        for line in lines:
            self.peer.call(self.peer.session.add_remote, Candidate.parse(f"candidate:{line}"))
        self.peer.call(self.peer.session.add_remote, None)

    @property
    def connected_at(self) -> Instant | None:
        """Time of the first valid pair."""
        times = (self.peer.first(AgentState.CONNECTED), self.peer.first(AgentState.COMPLETED))
        return min((at for at in times if at is not None), default=None)


class Meeting:
    """Two programs that connect without trickle: ours, which controls, and another one of ours or aioice."""

    def __init__(
        self, one: Gate, other: Gate, *, aioice: bool = True, seed: int = 1, loss: float = 0.0, turn: bool = True
    ) -> None:
        MADE.append(self)
        self.net = Network(seed)
        self.loss = loss
        internet = self.net.router("internet")
        self.stun = stun_server(self.net, internet, delay=0)
        turn_server(self.net, internet, delay=0, addresses=TURN_SERVER[:1])
        self.turn = turn
        hosts = self._host(internet, "alice", 1, one), self._host(internet, "bob", 2, other)
        self.tcp = BLOCKED in (one, other)
        self.one = Whole(self.net, hosts[0], self._config(controlling=True))
        self.aioice = self._aioice(hosts[1], tcp=other == BLOCKED) if aioice else None
        self.other = Whole(self.net, hosts[1], self._config(controlling=False)) if not aioice else None

    def _host(self, internet: Node, name: str, number: int, gate: Gate) -> Host:
        link = Profile(delay=25 * MILLISECOND, loss=self.loss)
        if gate is None:
            return self.net.host(name, f"192.0.2.{number}", internet, link=link)
        if isinstance(gate, str):
            wall = self.net.firewall(f"wall-{name}", outside=internet, rules=(UDP_BLOCKED,), link=link)
            return self.net.host(name, f"192.0.2.{number}", wall)
        nat = self.net.nat(
            f"nat-{name}", outside=internet, address=f"198.51.100.{number}", inside=f"10.0.{number}.0/24", config=gate,
            link=link,
        )  # fmt: skip
        return self.net.host(name, f"10.0.{number}.2", nat)

    def _config(self, *, controlling: bool) -> SessionConfig:
        servers = [relay(), *([relay(f"turn:{TURN_SERVER[0]}?transport=tcp")] if self.tcp else [])]
        return SessionConfig(
            ice=IceConfig(controlling=controlling, options=("ice2",)),
            stun_servers=(StunUri.parse(self.stun),),
            turn_servers=tuple(servers) if self.turn else (),
        )

    def _aioice(self, host: Host, *, tcp: bool) -> Aioice:
        turn: dict[str, Any] = {
            "turn_server": (TURN_SERVER[0], 3478),
            "turn_username": USER[0],
            "turn_password": USER[1],
            "turn_transport": "tcp" if tcp else "udp",
        }
        return Aioice(
            self.net, host, controlling=False, stun_server=(SERVER[0], STUN_PORT), **(turn if self.turn else {})
        )

    def run(self, seconds: int = 8) -> Meeting:
        """Let both gather, exchange their texts and connect; then let some time pass."""
        sides = self.one, self.aioice or self.other
        texts: dict[int, tuple[str, str, list[str]]] = {}

        def gathered(number: int, *text: Any) -> None:
            texts[number] = text  # type: ignore[assignment]
            if len(texts) == 2:
                for side, other in ((0, 1), (1, 0)):
                    sides[side].meet(*texts[other])  # type: ignore[union-attr]

        for number, side in enumerate(sides):
            side.gather(lambda *text, number=number: gathered(number, *text))  # type: ignore[misc,union-attr]
        self.net.run_for(seconds * SECOND)
        return self

    @property
    def milliseconds(self) -> int:
        """Time until both sides can send."""
        times = [self.one.connected_at, (self.aioice or self.other).connected_at]  # type: ignore[union-attr]
        assert None not in times
        return round(max(at or 0 for at in times) / MILLISECOND)

    @property
    def settled(self) -> int:
        """Time until aioice is connected."""
        assert self.aioice is not None and self.aioice.connected_at is not None
        return round(self.aioice.connected_at / MILLISECOND)

    def same_pair(self) -> bool:
        """Whether both sides send on one pair: each to the address that the other one sends from."""
        ours, theirs = self.one.peer.selected, None if self.aioice is None else self.aioice.pair
        if ours is None or theirs is None:
            return False
        local, remote = theirs
        return remote == ours.local.address and self._seen(local, ours.remote.address)

    def _seen(self, local: Address, seen: Address) -> bool:
        """Whether aioice's local address is seen as this one: it names the base of a mapping."""
        relayed = [
            Address(candidate.host, candidate.port)
            for candidate in self.aioice.connection.local_candidates  # type: ignore[union-attr]
            if candidate.type == "relay"
        ]
        return local == seen or (local not in relayed and seen not in relayed)

    def talk(self) -> bool:
        """Whether data arrives in both directions."""
        assert self.aioice is not None
        for _ in range(20):
            self.aioice.send(b"from aioice")
            self.one.peer.send(b"from us")
            self.net.run_for(SECOND)
            if b"from us" in self.aioice.received and b"from aioice" in self.one.peer.received:
                return True
        return False

    def end(self) -> list[str]:
        MADE.remove(self)
        if self.aioice is not None:
            self.aioice.end()
        peers = [side.peer for side in (self.one, self.other) if side is not None]
        for peer in peers:
            peer.close()
        self.net.run_for(2 * SECOND)
        return violations(peers)


@pytest.fixture(autouse=True)
def every_meeting_ends() -> Iterator[None]:
    """A failed test leaves no event loop of aioice."""
    yield
    for made in list(MADE):
        made.end()


@pytest.mark.parametrize(
    ("one", "other", "most"),
    [(PORT, PORT, 300), (PORT, SYMMETRIC, 520), (SYMMETRIC, PORT, 520), (SYMMETRIC, SYMMETRIC, 520)],
    ids=["port:port", "port:sym", "sym:port", "sym:sym"],
)
def test_a_controlled_aioice_waits_no_longer_for_us_than_for_aioice(one: Gate, other: Gate, most: int) -> None:
    made = Meeting(one, other).run()
    assert made.settled <= most
    assert made.same_pair()
    assert made.talk()
    assert made.end() == []


def test_where_udp_is_blocked_it_waits_no_more_than_a_quarter_longer_than_we_do() -> None:
    ours = Meeting(BLOCKED, PORT, aioice=False).run()
    made = Meeting(BLOCKED, PORT).run()
    assert made.settled <= 1.25 * ours.milliseconds
    assert made.same_pair()
    assert made.talk()
    assert ours.end() == made.end() == []


CLASSES = list(every_class(BASE))


@pytest.mark.parametrize("one", CLASSES, ids=lambda config: config.label)
def test_both_sides_end_on_one_pair_behind_every_two_nats(one: NatConfig) -> None:
    for other in CLASSES:
        made = Meeting(one, other).run()
        assert made.same_pair(), (one.label, other.label, made.one.peer.session.why())
        assert made.settled <= 1000, (one.label, other.label)
        assert made.talk(), (one.label, other.label)
        assert made.end() == []


@pytest.mark.parametrize("seed", range(8))
def test_with_loss_data_flows_in_both_directions(seed: int) -> None:
    one, other = CLASSES[seed % 9], CLASSES[seed * 5 % 9]
    made = Meeting(one, other, seed=seed, loss=0.1).run(40)
    assert made.talk(), made.one.peer.session.why()
    assert made.end() == []
