"""RFC 8656, section 12: channels."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.stun.attributes import CHANNEL_NUMBER, XOR_PEER_ADDRESS
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.turn.client import ChannelBound, ChannelFailed, PermissionFailed, Permitted, RelayedData
from polynya.turn.client.channels import Channels
from polynya.turn.client.requests import Answer
from tests.turn.client.relay import USER, Relay, World

PEER = Address("192.0.2.50", 4000)
SUCCESS = Message.success(Message.request(Method.CHANNEL_BIND, bytes(12)))


def binds(world: World) -> list[tuple[int, Address]]:
    return [
        (m[CHANNEL_NUMBER], m[XOR_PEER_ADDRESS][0]) for m in world.relay.requests if m.method == Method.CHANNEL_BIND
    ]


def allocated(*relays: Relay) -> World:
    world = World(*relays)
    world.run(1)
    return world


def test_each_peer_gets_a_number_of_its_own_from_the_rfcs_range() -> None:
    world = allocated()
    peers = [Address("192.0.2.50", port) for port in range(1, 21)]
    for peer in peers:
        world.do(world.client.bind, peer)
    world.run(1)
    assert binds(world) == [(0x4000 + index, peer) for index, peer in enumerate(peers)]
    assert world.of(ChannelBound) == [ChannelBound(peer=peer, number=0x4000 + i) for i, peer in enumerate(peers)]


def test_binding_twice_asks_once() -> None:
    world = allocated()
    world.do(world.client.bind, PEER)
    world.do(world.client.bind, PEER)
    world.run(1)
    world.do(world.client.bind, PEER)
    world.run(1)
    assert len(binds(world)) == 1 == len(world.of(ChannelBound))


def test_a_channel_brings_its_permission_and_both_are_renewed() -> None:
    world = allocated()
    world.do(world.client.bind, PEER)
    world.run(1)
    assert world.of(Permitted) == [Permitted(peers=(PEER,))] and world.client.permitted(PEER)
    world.run(3600)
    assert not world.of(ChannelFailed) and not world.of(PermissionFailed) and len(world.of(ChannelBound)) == 1
    assert world.client.wrap(PEER, b"x") == b"\x40\x00\x00\x01x"


def test_what_comes_on_a_channel_before_its_answer_is_taken() -> None:
    world = allocated()
    world.do(world.client.permit, [PEER])
    world.run(1)
    world.do(world.client.bind, PEER)
    world.lose = lambda data, outward: not outward and data[0] == 1  # its success response alone is lost
    world.run(0.03)
    world.from_peer(PEER, b"fast")
    world.run(0.1)
    assert world.of(RelayedData) == [RelayedData(PEER, b"fast")] and not world.of(ChannelBound)


def test_a_refused_channel_leaves_the_data_to_send_indications() -> None:
    world = allocated(Relay(forbidden=(PEER.host,)))
    world.do(world.client.bind, PEER)
    world.run(1)
    [failed] = world.of(ChannelFailed)
    assert failed.code == 403 and failed.peer == PEER and world.client.wrap(PEER, b"x") is None
    world.relay.forbidden = ()
    world.do(world.client.bind, PEER)
    world.run(1)
    assert binds(world) == [(0x4000, PEER)] * 2 and world.of(ChannelBound)


def test_a_number_rests_before_it_is_bound_to_another_peer() -> None:
    channels, now = Channels(), Instant(0)
    peers = [Address("192.0.2.51", port) for port in range(1, 4097)]
    for peer in peers:
        channels.bind(peer)

    def answer_all(*, now: Instant) -> list[tuple[int, Address]]:
        asks = channels.asks()
        for ask in asks:
            channels.answered(Answer(ask, SUCCESS, None, "", now), now=now)
        return [(ask.attributes[CHANNEL_NUMBER], ask.attributes[XOR_PEER_ADDRESS][0]) for ask in asks]

    assert answer_all(now=now) == list(zip(range(0x4000, 0x5000), peers, strict=True))
    channels.events()
    one_more = Address("192.0.2.52", 1)
    channels.bind(one_more)
    [failed] = channels.events()
    assert isinstance(failed, ChannelFailed) and failed.peer == one_more and "4096 channel numbers" in failed.reason
    channels.forget(peers[7], now=now)
    for seconds in (500, 899):  # the others are renewed meanwhile
        channels.tick(now=Instant(seconds * SECOND))
        channels.bind(one_more)
        assert one_more not in [peer for _, peer in answer_all(now=Instant(seconds * SECOND))]
    channels.tick(now=Instant(900 * SECOND))  # 600 s of life and 300 s of rest are over
    channels.bind(one_more)
    assert (0x4007, one_more) in answer_all(now=Instant(900 * SECOND))


def test_a_peer_comes_back_to_its_number_at_any_time() -> None:
    world = allocated()
    world.do(world.client.bind, PEER)
    world.run(1)
    world.do(world.client.forget, PEER)
    world.run(100)
    world.do(world.client.bind, PEER)
    world.run(1)
    assert binds(world) == [(0x4000, PEER)] * 2 and len(world.of(ChannelBound)) == 2
    world.run(1000)
    assert world.client.wrap(PEER, b"") is not None


def test_what_still_comes_on_a_channel_that_rests_is_taken() -> None:
    world = allocated()
    world.do(world.client.bind, PEER)
    world.run(1)
    world.relay.trouble = lambda request, source: (
        Message.error(request, 403).encode(integrity=world.relay.key(USER.username))
        if request.method == Method.CHANNEL_BIND
        else None
    )
    world.run(510)
    assert world.of(ChannelFailed)[0].code == 403 and world.client.wrap(PEER, b"x") is None
    world.from_peer(PEER, b"still")
    world.run(1)
    assert world.of(RelayedData) == [RelayedData(PEER, b"still")]


def test_a_channel_that_cannot_be_renewed_ends_when_the_servers_does() -> None:
    world = allocated()
    world.do(world.client.bind, PEER)
    world.run(1)
    world.relay.trouble = lambda request, source: b"" if request.method == Method.CHANNEL_BIND else None
    world.run(598)
    assert world.client.wrap(PEER, b"x") is not None
    world.run(2)
    assert world.client.wrap(PEER, b"x") is None and "could not be renewed in time" in world.of(ChannelFailed)[0].reason
    assert world.client.permitted(PEER) and world.do(world.client.send, PEER, b"by Send")
    world.run(1)
    assert world.relay.sent == [(PEER, b"by Send", "send")] and world.relay.dropped == []
