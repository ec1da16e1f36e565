"""Peers of RFC 5245 that nominate with every check (its section 8.1.1.2), and what we do with several nominations."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND
from polynya.ice import AgentState, IceConfig, SelectedPairChanged
from polynya.stun.attributes import ICE_CONTROLLING, PRIORITY, USE_CANDIDATE, USERNAME
from polynya.stun.message import Message
from polynya.stun.registry import Class
from tests.ice.harness import Packet, World


def aggressive(*, options: tuple[str, ...] = (), hosts: int = 3) -> World:
    """`a` controls and its checks all carry USE-CANDIDATE, as those of aioice and of old browsers do."""
    world = World(
        a=IceConfig(controlling=True, options=options), b=IceConfig(controlling=False), delay=20 * MILLISECOND
    )
    forging = False

    def forge(packet: Packet) -> bool:
        nonlocal forging
        message = packet.message
        if forging or packet.sender != "a" or message.cls is not Class.REQUEST or message.get(USE_CANDIDATE):
            return False
        attributes = {kind: message[kind] for kind in (USERNAME, PRIORITY, ICE_CONTROLLING)}  # type: ignore[index]
        key = world.a.agent.generation.credentials.remote_key
        made = Message.request(message.method, message.transaction_id, attributes | {USE_CANDIDATE: True})
        data = made.encode(integrity=key, fingerprint=True)
        moved = Packet(packet.at, packet.source, packet.destination, data, "a")
        world.later(world.delay + delays.get(packet.source, 0), lambda: world.arrive(moved))
        return True

    delays: dict[Address, int] = {}
    world.blocked = forge
    for n in range(hosts):
        flow = world.a.host(f"192.168.0.{10 + n}")
        delays[world.a.sockets[flow]] = (hosts - n) * 150 * MILLISECOND  # the best path is the slowest
    world.b.host("192.168.0.99")
    world.a.end()
    world.b.end()
    return world


def test_of_several_nominated_pairs_the_one_of_highest_priority_counts() -> None:
    world = aggressive()
    assert world.run(20, lambda: world.b.agent.state is AgentState.COMPLETED)
    world.run(10)
    nominated = [view for view in world.b.agent.pairs() if view.nominated]
    assert len(nominated) >= 2
    selected = world.b.agent.selected()
    assert selected is not None
    assert selected.remote_address.host == "192.168.0.10"
    assert selected.priority == max(view.priority for view in nominated)


def test_the_selected_pair_moves_up_as_better_ones_are_nominated() -> None:
    world = aggressive()
    world.run(20)
    chosen = [event.pair.priority for event in world.b.of(SelectedPairChanged) if event.pair and event.nominated]
    assert chosen == sorted(chosen) and len(chosen) >= 2


def test_an_agent_of_rfc_8445_means_its_latest_nomination() -> None:
    """It nominates one; another one is deliberate, whatever its priority."""
    world = aggressive(options=("ice2",))
    world.run(20)
    latest = max(world.b.agent.generation.checklists, key=lambda pair: pair.nominated_order)
    selected = world.b.agent.selected()
    assert selected is not None and selected.id == latest.id


def test_we_never_nominate_aggressively_ourselves() -> None:
    world = World(b=IceConfig(controlling=False, options=()))
    for n in range(3):
        world.a.host(f"192.168.0.{10 + n}")
    world.b.host("192.168.0.99")
    assert world.connect(10)
    assert len({p.message.transaction_id for p in world.packets if p.message.get(USE_CANDIDATE)}) == 1
