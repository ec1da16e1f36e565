"""RFC 8656, sections 9 and 10: who may send to the relayed address."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import SECOND
from polynya.core.pacer import Pacer
from polynya.stun.attributes import XOR_PEER_ADDRESS
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.turn.client import Allocated, ClientConfig, PermissionFailed, Permitted
from tests.turn.client.relay import SERVER, USER, Relay, World

PEERS = [Address(f"192.0.2.{number}", 4000) for number in range(50, 90)]


def permissions(world: World) -> list[tuple[Address, ...]]:
    return [m[XOR_PEER_ADDRESS] for m in world.relay.requests if m.method == Method.CREATE_PERMISSION]


def test_many_peers_go_into_one_request_and_what_is_too_many_into_the_next() -> None:
    world = World()
    world.run(1)
    world.do(world.client.permit, PEERS)
    world.run(1)
    assert [len(peers) for peers in permissions(world)] == [16, 16, 8]
    assert [peer for event in world.of(Permitted) for peer in event.peers] == PEERS
    assert max(len(data) for _, data in world.out) < 1200


def test_what_is_wanted_while_a_request_waits_for_its_slot_goes_along() -> None:
    """As candidates come one by one, faster than transactions may begin."""
    world = World(pacer=Pacer(SECOND // 10))
    world.run(1)
    for peer in PEERS[:20]:
        world.do(world.client.permit, [peer])
    world.run(1)
    assert permissions(world) == [(PEERS[0],), tuple(PEERS[1:17]), tuple(PEERS[17:20])]
    assert [peer for event in world.of(Permitted) for peer in event.peers] == PEERS[:20]
    world.do(world.client.permit, [PEERS[20]])
    world.run(1)
    assert permissions(world)[3:] == [(PEERS[20],)], "what was sent is sent"


def test_before_there_is_an_allocation_all_are_gathered_in_one() -> None:
    world = World()
    for peer in PEERS[:5]:
        world.do(world.client.permit, [peer])
    world.run(1)
    assert permissions(world) == [tuple(PEERS[:5])]


def test_what_was_refused_together_is_asked_for_alone_and_nothing_joins_it() -> None:
    world = World(Relay(forbidden=("192.0.2.51",)), pacer=Pacer(SECOND // 10))
    world.run(1)
    world.do(world.client.permit, PEERS[:3])
    world.run(0.09)  # refused, and two of the three wait for their slots
    world.do(world.client.permit, PEERS[3:5])
    world.run(2)
    assert permissions(world) == [tuple(PEERS[:3]), *((peer,) for peer in PEERS[:3]), tuple(PEERS[3:5])]
    assert [event.peers for event in world.of(PermissionFailed)] == [(PEERS[1],)]


def test_a_host_is_asked_for_once_whatever_its_ports() -> None:
    world = World()
    world.run(1)
    first, second = Address("192.0.2.50", 1), Address("192.0.2.50", 2)
    world.do(world.client.permit, [first, second])
    world.run(1)
    assert permissions(world) == [(first,)] and world.of(Permitted) == [Permitted(peers=(first, second))]
    third = Address("192.0.2.50", 3)
    world.do(world.client.permit, [third])
    assert world.events[-1] == Permitted(peers=(third,)) and len(permissions(world)) == 1


def test_what_is_permitted_before_there_is_an_allocation_is_asked_for_then() -> None:
    world = World()
    world.do(world.client.permit, PEERS[:2])
    world.run(1)
    kinds = [type(event) for event in world.events]
    assert kinds.index(Allocated) < kinds.index(Permitted)


def test_one_forbidden_peer_does_not_keep_the_others_out() -> None:
    world = World(Relay(forbidden=("192.0.2.51",)))
    world.run(1)
    world.do(world.client.permit, PEERS[:3])
    world.run(1)
    assert [event.peers for event in world.of(Permitted)] == [(PEERS[0],), (PEERS[2],)]
    [failed] = world.of(PermissionFailed)
    assert failed.peers == (PEERS[1],) and failed.code == 403 and "its rules forbid this" in failed.reason
    assert not world.client.permitted(PEERS[1]) and world.client.permitted(PEERS[2])


def test_a_peer_of_another_family_is_explained() -> None:
    world = World()
    world.run(1)
    peer = Address("2001:db8::50", 1)
    world.do(world.client.permit, [PEERS[0], peer])
    world.run(1)
    [failed] = world.of(PermissionFailed)
    assert failed.code == 443 and failed.peers == (peer,) and "allocate one of the peer's family" in failed.reason


def test_both_families_are_permitted_together_on_a_dual_allocation() -> None:
    world = World(config=ClientConfig(families=(4, 6)))
    world.run(1)
    peers = [PEERS[0], Address("2001:db8::50", 1)]
    world.do(world.client.permit, peers)
    world.run(1)
    assert world.of(Permitted) == [Permitted(peers=tuple(peers))]


def test_a_server_that_is_silent_fails_a_new_permission_after_the_schedule() -> None:
    world = World()
    world.run(1)
    world.lose = lambda data, outward: True
    world.do(world.client.permit, PEERS[:2])
    world.run(40)
    [failed] = world.of(PermissionFailed)[:1]
    assert failed.code is None and "did not answer" in failed.reason


def test_renewals_that_are_due_soon_travel_together() -> None:
    world = World()
    world.run(1)
    for peer in PEERS[:10]:
        world.do(world.client.permit, [peer])
        world.run(2)
    asked = len(permissions(world))
    assert asked == 10
    world.run(600)
    assert [len(peers) for peers in permissions(world)[asked:]] == [10, 10, 10]


def test_a_permission_that_is_forgotten_is_not_renewed_and_lets_nothing_in() -> None:
    world = World()
    world.run(1)
    world.do(world.client.permit, PEERS[:2])
    world.run(1)
    world.do(world.client.forget, PEERS[0])
    world.from_peer(PEERS[0], b"late")
    world.run(300)
    assert permissions(world)[1:] == [(PEERS[1],)]
    assert world.client.counters["from a peer without a permission"] == 1
    assert not world.client.permitted(PEERS[0])


def failing(code: int, world: World, count: int):
    left = [count]

    def trouble(request: Message, source: Address) -> bytes | None:
        if request.method != Method.CREATE_PERMISSION or not left[0]:
            return None
        left[0] -= 1
        return Message.error(request, code).encode(integrity=world.relay.key(USER.username))

    return trouble


def test_a_renewal_that_the_server_cannot_do_now_is_tried_again() -> None:
    world = World()
    world.run(1)
    world.do(world.client.permit, PEERS[:1])
    world.run(1)
    world.relay.trouble = failing(508, world, 5)
    world.run(300)
    assert not world.of(PermissionFailed) and world.client.permitted(PEERS[0])
    times = [(at - 10**15) // SECOND for at, m, _ in world.relay.log if m.method == Method.CREATE_PERMISSION]
    assert times == [1, 226]  # asked at 201, then every five seconds


def test_a_renewal_that_is_forbidden_ends_the_permission() -> None:
    world = World()
    world.run(1)
    world.do(world.client.permit, PEERS[:2])
    world.run(1)
    world.relay.forbidden = (PEERS[0].host,)
    world.run(210)
    assert world.of(PermissionFailed)[0].peers == (PEERS[0],) and world.client.permitted(PEERS[1])


def test_a_permission_that_cannot_be_renewed_ends_when_the_servers_does() -> None:
    world = World()
    world.run(1)
    world.do(world.client.permit, PEERS[:1])
    world.run(1)
    world.relay.trouble = lambda request, source: b""
    world.run(298.9)
    assert world.client.permitted(PEERS[0])
    world.run(0.2)
    assert "could not be renewed in time" in world.of(PermissionFailed)[0].reason


@pytest.mark.parametrize("code", [400, 403, 443])
def test_a_refused_group_is_asked_for_one_by_one_and_no_more(code: int) -> None:
    world = World()
    world.run(1)
    world.relay.trouble = failing(code, world, 99)
    world.do(world.client.permit, PEERS[:3])
    world.run(60)
    assert len(permissions(world)) == 4 and len(world.of(PermissionFailed)) == 3
    assert str(SERVER) in world.of(PermissionFailed)[0].reason
