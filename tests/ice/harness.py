"""Two agents in one memory: a virtual clock, paths with delay and loss, NATs, and trickle, all from one seed.

`World` moves every datagram that an agent sends through the NATs of both ends to the other agent, and every event
through `Side.events`. Nothing sleeps: the clock jumps to whatever comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Datagram, Send
from polynya.core.pacer import Pacer
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice import (
    AgentState,
    CandidateType,
    Gathered,
    IceAgent,
    IceConfig,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    RemoteAuthenticated,
    RemoteRevoked,
    Restarted,
)
from polynya.stun.message import Message, decode

EventT = TypeVar("EventT")


@dataclass(slots=True)
class Nat:
    """A NAT in front of one host: endpoint-independent or symmetric mapping, filtering by address and port."""

    host: str
    symmetric: bool = False
    filtering: bool = True
    ports: int = 40000
    mappings: dict[tuple[Address, Address | None], Address] = field(default_factory=dict)
    opened: dict[tuple[Address, Address], None] = field(default_factory=dict)

    def outward(self, inside: Address, remote: Address) -> Address:
        key = (inside, remote if self.symmetric else None)
        if key not in self.mappings:
            self.ports += 1
            self.mappings[key] = Address(self.host, self.ports)
        self.opened[self.mappings[key], remote] = None
        return self.mappings[key]

    def inward(self, outside: Address, remote: Address) -> Address | None:
        if self.filtering and (outside, remote) not in self.opened:
            return None
        for (inside, _), mapped in self.mappings.items():
            if mapped == outside:
                return inside
        return None


@dataclass(slots=True)
class Packet:
    at: Instant
    source: Address
    destination: Address
    data: bytes
    sender: str

    @property
    def message(self) -> Message:
        return decode(self.data)


class Side:
    """One agent with its sockets."""

    def __init__(self, world: World, name: str, agent: IceAgent, nat: Nat | None) -> None:
        self.world = world
        self.name = name
        self.agent = agent
        self.nat = nat
        self.sockets: dict[Flow, Address] = {}
        self.events: list[tuple[Instant, Any]] = []
        self.accepted: dict[tuple[Flow, Address], None] = {}
        self.trickle = True

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def when(self, kind: type[EventT], test: Callable[[EventT], bool] = lambda _: True) -> Instant:
        return next(at for at, event in self.events if isinstance(event, kind) and test(event))

    def host(self, host: str, port: int = 5000, **options: Any) -> Flow:
        """Bind a socket and add its host candidate."""
        flow = Flow(self.world.flows)
        self.world.flows += 1
        address = Address.of(host, port)
        self.sockets[flow] = address
        self.agent.add_local(
            Gathered(type=CandidateType.HOST, address=address, flow=flow, **options), now=self.world.now
        )
        self.world.drain()
        return flow

    def relay(self, host: str, port: int = 5000) -> Flow:
        """Add a relayed candidate, as if a relay had this address and delayed nothing."""
        flow, address = Flow(self.world.flows), Address(host, port)
        self.world.flows += 1
        self.sockets[flow] = address
        self.agent.add_local(
            Gathered(type=CandidateType.RELAYED, address=address, flow=flow, server="203.0.113.9"), now=self.world.now
        )
        self.world.drain()
        return flow

    def reflexive(self, flow: Flow, server: Address = Address("203.0.113.1", 3478), **options: Any) -> Address:  # noqa: B008
        """Ask an imagined STUN server and add what it saw."""
        base = self.sockets[flow]
        mapped = self.nat.outward(base, server) if self.nat else base
        self.agent.add_local(
            Gathered(
                type=CandidateType.SERVER_REFLEXIVE, address=mapped, base=base, flow=flow, server=server.host, **options
            ),
            now=self.world.now,
        )
        self.world.drain()
        return mapped

    def end(self) -> None:
        self.agent.end_of_local_candidates(now=self.world.now)
        self.world.drain()

    @property
    def path(self) -> str:
        selected = self.agent.selected()
        return "none" if selected is None else str(selected)


class World:
    """Two agents, `a` and `b`, what lies between them, and the clock."""

    traced = True

    def __init__(
        self,
        seed: int = 1,
        *,
        delay: int = 20 * MILLISECOND,
        loss: float = 0.0,
        jitter: int = 0,
        signaling: int = 10 * MILLISECOND,
        a: IceConfig | None = None,
        b: IceConfig | None = None,
        nat_a: Nat | None = None,
        nat_b: Nat | None = None,
        signal: bool = True,
        pacer: Pacer | None = None,
    ) -> None:
        self.random = Random(seed)
        self.now = Instant(1_000 * SECOND)
        self.started = self.now
        self.delay, self.loss, self.jitter, self.signaling = delay, loss, jitter, signaling
        self.flows = 1
        self.order = 0
        self.queue: list[tuple[Instant, int, Callable[[], None]]] = []
        self.packets: list[Packet] = []
        self.dropped: list[tuple[Packet, str]] = []
        self.blocked: Callable[[Packet], bool] = lambda _: False
        self.echoes = False
        """A socket gets what it sends to itself."""
        self.agreed: tuple[int, ...] | None = None
        """The components that signaling says with each description."""
        self.trace: list[TraceEvent] = []
        tracer = Tracer(self.trace.append if self.traced else None)
        pacer = pacer or Pacer()
        config_a = a or IceConfig(controlling=True)
        config_b = b or IceConfig(controlling=False)
        self.a = Side(
            self,
            "a",
            IceAgent(config_a, random=Random(f"{seed} a"), pacer=pacer, trace=tracer.at_node("a", "ice")),
            nat_a,
        )
        self.b = Side(
            self,
            "b",
            IceAgent(config_b, random=Random(f"{seed} b"), pacer=pacer, trace=tracer.at_node("b", "ice")),
            nat_b,
        )
        if signal:
            self.describe(self.a)
            self.describe(self.b)

    def other(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    # -------------------------------------------------------------------------------------------------------- signaling

    def later(self, delay: int, action: Callable[[], None]) -> None:
        self.order += 1
        heappush(self.queue, (Instant(self.now + delay), self.order, action))

    def describe(self, side: Side) -> None:
        """Signal a side's description, with the delay of signaling."""
        other, description = self.other(side), side.agent.local_description
        agreed = self.agreed
        self.later(self.signaling, lambda: other.agent.set_remote(description, now=self.now, components=agreed))

    def signal(self, side: Side, event: Any) -> None:
        other = self.other(side)
        if not side.trickle:
            return
        if isinstance(event, LocalCandidateAdded):
            self.later(
                self.signaling, lambda: other.agent.add_remote(event.candidate, now=self.now, stream=event.local.stream)
            )
        elif isinstance(event, LocalCandidatesEnded):
            self.later(self.signaling, lambda: other.agent.end_of_remote_candidates(now=self.now))
        elif isinstance(event, Restarted):
            self.describe(side)

    # ---------------------------------------------------------------------------------------------------------- network

    def drain(self) -> None:
        for side in (self.a, self.b):
            for output in side.agent.outputs():
                if isinstance(output, Send):
                    self._send(side, output)
            for event in side.agent.events():
                side.events.append((self.now, event))
                if isinstance(event, RemoteAuthenticated):
                    side.accepted[event.flow, event.remote] = None
                elif isinstance(event, RemoteRevoked):
                    side.accepted.pop((event.flow, event.remote), None)
                self.signal(side, event)

    def _send(self, side: Side, send: Send) -> None:
        inside = side.sockets[send.flow]
        source = side.nat.outward(inside, send.remote) if side.nat and _leaves(inside, send.remote) else inside
        packet = Packet(self.now, source, send.remote, send.data, side.name)
        self.packets.append(packet)
        if self.blocked(packet):
            self.dropped.append((packet, "blocked"))
            return
        if self.loss and self.random.random() < self.loss:
            self.dropped.append((packet, "lost"))
            return
        delay = self.delay + (self.random.randrange(self.jitter) if self.jitter else 0)
        self.later(delay, lambda: self.arrive(packet))

    def arrive(self, packet: Packet) -> None:
        for side in (self.a, self.b):
            target: Address | None = packet.destination
            if side.nat and packet.destination.host == side.nat.host:
                target = side.nat.inward(packet.destination, packet.source)
                if target is None:
                    self.dropped.append((packet, "filtered"))
                    return
            elif not _reaches(packet.source, packet.destination):
                continue
            for flow, address in side.sockets.items():
                if address == target and (self.echoes or packet.sender != side.name or packet.source != address):
                    side.agent.receive(Datagram(flow, packet.source, packet.data), now=self.now)
                    return
        self.dropped.append((packet, "no host there"))

    # ------------------------------------------------------------------------------------------------------------ clock

    def run(self, seconds: float = 60.0, until: Callable[[], bool] | None = None) -> bool:
        """Let the clock jump until `until` holds, or nothing more happens within `seconds`."""
        end = self.now + round(seconds * SECOND)
        self.drain()
        while not (until and until()):
            timers = [side.agent.next_timer() for side in (self.a, self.b)]
            due = [at for at in timers if at is not None] + [entry[0] for entry in self.queue[:1]]
            if not due or min(due) > end:
                self.now = Instant(end)
                return until is None or until()
            self.now = max(self.now, min(due))
            if self.queue and self.queue[0][0] <= self.now:
                heappop(self.queue)[2]()
                self.drain()
            for side, at in zip((self.a, self.b), timers, strict=True):
                if at is not None and at <= self.now:
                    side.agent.tick(now=self.now)
                    self.drain()
                    again = side.agent.next_timer()
                    assert again is None or again > self.now, f"{side.name} is due again at once"
        return True

    def connect(self, seconds: float = 60.0) -> bool:
        """Run until both sides have completed."""
        return self.run(
            seconds, lambda: all(side.agent.state is AgentState.COMPLETED for side in (self.a, self.b))
        )  # fmt: skip

    def ends(self, side: Side) -> tuple[Flow, Address] | None:
        """Where a packet comes out that `side` sends on its selected pair: the flow there, and the source it has."""
        selected, other = side.agent.selected(), self.other(side)
        if selected is None:
            return None
        source, target = side.sockets[selected.flow], selected.remote_address
        if side.nat and _leaves(source, target):
            source = side.nat.outward(source, target)
        if other.nat and target.host == other.nat.host:
            inside = other.nat.inward(target, source)
            if inside is None:
                return None
            target = inside
        for flow, address in other.sockets.items():
            if address == target:
                return flow, source
        return None

    def same_path(self) -> bool:
        """Whether both sides send on one path, and each accepts what the other sends."""
        for side in (self.a, self.b):
            other = self.other(side)
            selected, ends = other.agent.selected(), self.ends(side)
            if ends is None or selected is None or ends != (selected.flow, selected.remote_address):
                return False
            if ends not in other.accepted:
                return False
        return True

    def elapsed(self) -> float:
        return (self.now - self.started) / SECOND


def _private(address: Address) -> bool:
    return address.host.startswith(("10.", "192.168.", "fd"))


def _leaves(inside: Address, remote: Address) -> bool:
    """Whether a packet between these two crosses the NAT: private addresses stay inside."""
    return _private(inside) and not _private(remote)


def _reaches(source: Address, target: Address) -> bool:
    """A private address is reached from its own network only."""
    return not _private(target) or source.host.split(".")[:2] == target.host.split(".")[:2]


def plain(seed: int = 1, **options: Any) -> World:
    """Two agents on one LAN, each with one host candidate."""
    world = World(seed, **options)
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    world.a.end()
    world.b.end()
    return world


def behind_nats(seed: int = 1, nat_a: Nat | None = None, nat_b: Nat | None = None, **options: Any) -> World:
    """Two agents behind a NAT each, with host and server-reflexive candidates; the two LANs differ."""
    world = World(seed, nat_a=nat_a or Nat("198.51.100.1"), nat_b=nat_b or Nat("198.51.100.2"), **options)
    for side, host in ((world.a, "10.1.0.2"), (world.b, "10.2.0.2")):
        side.reflexive(side.host(host))
        side.end()
    return world
