"""No check too early (RFC 8445, sections 6.1.4.2 and 14.2), for one agent and for a process of them."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Send
from polynya.core.pacer import Pacer
from polynya.ice import Candidate, CandidateType, Description, Gathered, IceAgent, IceConfig
from polynya.stun.message import decode
from polynya.stun.registry import Class
from tests.ice.harness import World

START = Instant(100 * SECOND)


def new_checks(world: World, sender: str) -> list[int]:
    """When `sender` began a transaction, in order."""
    seen: dict[bytes, int] = {}
    for packet in world.packets:
        if packet.sender == sender and packet.message.cls is Class.REQUEST:
            seen.setdefault(packet.message.transaction_id, packet.at)
    return sorted(seen.values())


def crowd(**options: IceConfig) -> World:
    """Four addresses on each side, none of which answers: sixteen pairs to check."""
    world = World(**options, pacer=None)
    world.blocked = lambda _: True
    for n in range(4):
        world.a.host(f"192.168.0.{10 + n}")
        world.b.host(f"192.168.0.{20 + n}")
    return world


def test_both_speak_the_same_pace_when_both_offer_one() -> None:
    """The larger `ice-pacing` counts."""
    world = crowd(a=IceConfig(controlling=True, pacing=0.007), b=IceConfig(controlling=False))
    world.run(2)
    for sender in ("a", "b"):
        at = new_checks(world, sender)
        assert len(at) == 16
        assert all(second - first >= 7 * MILLISECOND for first, second in pairwise(at))
        assert at[-1] - at[0] < 16 * 25 * MILLISECOND


def test_a_peer_that_says_nothing_gets_a_check_every_20_ms() -> None:
    """That is the pace of aioice and libnice; libwebrtc has 48 ms."""
    world = World(signal=False)
    world.blocked = lambda _: True
    silent = Description(ufrag="them", password="theirpasswordtheirpass")
    for n in range(6):
        world.a.host(f"192.168.0.{10 + n}")
    world.a.agent.set_remote(silent, now=world.now)
    world.a.agent.add_remote(Candidate.parse("candidate:1 1 udp 1 192.168.0.99 5000 typ host"), now=world.now)
    world.run(2)
    gaps = [second - first for first, second in pairwise(new_checks(world, "a"))]
    assert gaps == [20 * MILLISECOND] * 5


def test_the_50_ms_of_the_rfc_towards_silent_peers_are_an_option() -> None:
    world = World(signal=False, a=IceConfig(silent_pacing=0.05))
    world.blocked = lambda _: True
    for n in range(3):
        world.a.host(f"192.168.0.{10 + n}")
    world.a.agent.set_remote(Description(ufrag="them", password="theirpasswordtheirpass"), now=world.now)
    world.a.agent.add_remote(Candidate.parse("candidate:1 1 udp 1 192.168.0.99 5000 typ host"), now=world.now)
    world.run(2)
    at = new_checks(world, "a")
    assert [second - first for first, second in pairwise(at)] == [50 * MILLISECOND] * 2


def test_two_hundred_agents_of_one_process_share_its_pace_and_none_starves() -> None:
    """Section 14.2: over all agents of a process no two transactions within 5 ms."""
    pacer = Pacer()
    agents = []
    for n in range(200):
        agent = IceAgent(IceConfig(), random=Random(n), pacer=pacer)
        host = Address("192.168.0.1", 10000 + n)
        agent.add_local(Gathered(type=CandidateType.HOST, address=host, flow=Flow(n + 1)), now=START)
        agent.set_remote(Description(ufrag="them", password="theirpasswordtheirpass", pacing=0), now=START)
        for m in range(2):
            address = Address(f"192.168.1.{m + 1}", 5000)
            candidate = Candidate(
                foundation=str(m), component=1, priority=m + 1, address=address, type=CandidateType.HOST
            )  # fmt: skip
            agent.add_remote(candidate, now=START)
        agents.append(agent)
    sent: list[tuple[int, int, bytes]] = []
    now = START
    while now < START + 3 * SECOND:
        for number, agent in enumerate(agents):
            due = agent.next_timer()
            if due is not None and due <= now:
                agent.tick(now=now)
            sent += [
                (now, number, decode(output.data).transaction_id)
                for output in agent.outputs()
                if isinstance(output, Send)
            ]
        now = min(due for agent in agents if (due := agent.next_timer()) is not None)
    first: dict[bytes, tuple[int, int]] = {}
    for at, number, transaction in sent:
        first.setdefault(transaction, (at, number))
    began = sorted(first.values())
    assert len(began) == 400
    assert all(second[0] - one[0] >= 5 * MILLISECOND for one, second in pairwise(began))
    assert began[-1][0] - began[0][0] == 399 * 5 * MILLISECOND
    assert {number for _, number in began[:200]} == set(range(200))


def test_retransmissions_follow_the_rto_and_not_the_pace() -> None:
    """Section 14.3: 500 ms, doubling."""
    world = World()
    world.blocked = lambda _: True
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    world.run(40)
    at = [packet.at for packet in world.packets if packet.sender == "a"]
    assert [(second - first) / SECOND for first, second in pairwise(at)] == [0.5, 1, 2, 4, 8, 16]
