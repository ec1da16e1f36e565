"""RFC 8656, sections 11 and 12: the data, and that nothing is lost, reordered or let in that should not be."""

from __future__ import annotations

from random import Random

import pytest

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.flows import Flow, Transport
from polynya.core.instants import MILLISECOND
from polynya.core.machine import Datagram, IcmpKind, StreamData
from polynya.stun.attributes import DATA, DONT_FRAGMENT, XOR_PEER_ADDRESS, IcmpValue
from polynya.stun.framing import encode_channel_data
from polynya.stun.message import Message, Received, decode
from polynya.stun.registry import Method
from polynya.turn.client import ChannelBound, ClientConfig, PeerUnreachable, Permitted, RelayedData
from polynya.turn.client.indications import MAX_DATA, SEND_HEADER, unreachable
from tests.turn.client.relay import SERVER, World, icmp_indication

PEER = Address("192.0.2.50", 4000)
OTHER = Address("192.0.2.51", 4001)


def permitted(transport: Transport = Transport.UDP, **options: object) -> World:
    world = World(transport=transport, **options)  # type: ignore[arg-type]
    world.run(3)
    world.do(world.client.permit, [PEER, OTHER])
    world.run(3)
    assert world.of(Permitted)
    return world


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP, Transport.TLS])
@pytest.mark.parametrize("seed", range(5))
def test_the_switch_to_a_channel_loses_and_reorders_nothing(transport: Transport, seed: int) -> None:
    """A datagram each way every few milliseconds, while the channel is bound and for as long before and after."""
    world, rng = permitted(transport, seed=seed), Random(seed)
    outward, inward = [], []
    for number in range(300):
        data = rng.randbytes(rng.randrange(0, 50)) + b"%d" % number
        if number == 100:
            world.do(world.client.bind, PEER)
        assert world.do(world.client.send, PEER, data)
        world.from_peer(PEER, data)
        outward.append(data)
        inward.append(data)
        world.run(rng.random() * 0.005)
    world.run(1)
    assert world.of(ChannelBound)
    assert [data for _, data, _ in world.relay.sent] == outward and world.relay.dropped == []
    assert [event.data for event in world.of(RelayedData)] == inward
    by = [how for _, _, how in world.relay.sent]
    assert by.count("channel") > 150 and by == sorted(by, reverse=True)  # send, then channel, never back


def test_a_frame_is_padded_on_a_stream_and_only_there() -> None:
    for transport, frame in ((Transport.UDP, b"\x40\0\0\x05hello"), (Transport.TCP, b"\x40\0\0\x05hello\0\0\0")):
        world = permitted(transport)
        world.do(world.client.bind, PEER)
        world.run(1)
        world.do(world.client.send, PEER, b"hello")
        assert world.out[-1][1] == frame == world.client.wrap(PEER, b"hello")


@pytest.mark.parametrize("size", [0, 1, 1200, MAX_DATA])
def test_datagrams_of_any_size_go_through_by_either_way(size: int) -> None:
    world = permitted()
    assert world.do(world.client.send, PEER, bytes(size))
    world.do(world.client.bind, PEER)
    world.run(1)
    assert world.do(world.client.send, PEER, bytes(size))
    world.run(1)
    assert world.relay.sent == [(PEER, bytes(size), "send"), (PEER, bytes(size), "channel")]


def test_what_cannot_be_sent_is_refused_and_counted() -> None:
    world = permitted()
    assert not world.do(world.client.send, Address("192.0.2.99", 1), b"x")
    assert not world.do(world.client.send, PEER, bytes(65536))
    assert world.client.counters["not sent: no permission"] == 1 == world.client.counters["not sent: too long"]


def test_the_df_bit_is_asked_for_by_a_send_indication() -> None:
    world = permitted()
    world.do(world.client.bind, PEER)
    world.run(1)
    world.do(world.client.send, PEER, b"whole", dont_fragment=True)
    message = decode(world.out[-1][1])
    assert message.method == Method.SEND and message[DONT_FRAGMENT] and message[DATA] == b"whole"


# ------------------------------------------------------------------------------------------------------------- inward


def inject(world: World, data: bytes, flow: Flow | None = None, remote: Address = SERVER) -> None:
    world.do(world.client.receive, Datagram(flow or world.client.flow, remote, data))  # type: ignore[arg-type]


def data_indication(peer: Address, data: bytes = b"x") -> bytes:
    return Message.indication(Method.DATA, bytes(12), {XOR_PEER_ADDRESS: (peer,), DATA: data}).encode()


def test_only_the_server_can_bring_data() -> None:
    world = permitted()
    inject(world, data_indication(PEER), remote=Address("203.0.113.1", 3479))
    inject(world, data_indication(PEER), flow=Flow(99))
    assert world.of(RelayedData) == [] and world.client.counters["not from the server"] == 2
    inject(world, data_indication(PEER))
    assert world.of(RelayedData) == [RelayedData(PEER, b"x")]


def test_a_message_that_was_decoded_already_is_taken() -> None:
    world = permitted()
    data = data_indication(PEER, b"once")
    assert world.client.flow is not None
    world.do(world.client.receive, Received(world.client.flow, SERVER, decode(data), data, 7))
    assert world.of(RelayedData) == [RelayedData(PEER, b"once", 7)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x40",
        b"\x40\x00\x00",
        b"\x40\x00\x00\x05abc",
        b"\x4f\xff\x00\x01x",
        b"Hello, this is not a channel",
        b"\x16\xfe\xfd",
        data_indication(Address("192.0.2.99", 1)),
        Message.indication(Method.DATA, bytes(12), {XOR_PEER_ADDRESS: (PEER,)}).encode(),
        Message.indication(Method.DATA, bytes(12), {DATA: b"x"}).encode(),
        Message.request(Method.BINDING, bytes(12)).encode(),
        Message.indication(Method.BINDING, bytes(12)).encode(),
        Message.success(Message.request(Method.REFRESH, bytes(12))).encode(),
    ],
)
def test_what_is_not_data_of_a_permitted_peer_is_dropped(data: bytes) -> None:
    world = permitted()
    world.do(world.client.bind, PEER)
    world.run(1)
    emitted = len(world.events)
    inject(world, data)
    assert len(world.events) == emitted and not world.client.outputs()


def test_padding_after_channel_data_is_no_data() -> None:
    world = permitted()
    world.do(world.client.bind, PEER)
    world.run(1)
    inject(world, encode_channel_data(0x4000, b"abc", pad=True))
    assert world.of(RelayedData) == [RelayedData(PEER, b"abc")]


@pytest.mark.parametrize(
    ("type", "code", "data", "kind", "mtu"),
    [
        (3, 3, bytes(4), IcmpKind.PORT_UNREACHABLE, None),
        (3, 4, b"\0\0\x05\x00", IcmpKind.TOO_BIG, 1280),
        (11, 0, bytes(4), IcmpKind.TTL_EXCEEDED, None),
        (5, 1, bytes(4), IcmpKind.OTHER, None),
    ],
)
def test_an_icmp_error_at_the_relay_is_reported(
    type: int, code: int, data: bytes, kind: IcmpKind, mtu: int | None
) -> None:
    world = permitted()
    inject(world, icmp_indication(PEER, type, code, data))
    assert world.of(PeerUnreachable) == [PeerUnreachable(peer=PEER, kind=kind, type=type, code=code, mtu=mtu)]


def test_an_icmpv6_error_has_its_own_numbers() -> None:
    peer = Address("2001:db8::1", 1)
    assert unreachable(peer, IcmpValue(1, 4)).kind is IcmpKind.PORT_UNREACHABLE
    assert unreachable(peer, IcmpValue(2, 0, b"\0\0\x05\0")).mtu == 1280


def test_nothing_that_is_received_raises() -> None:
    """Everything the server can say, with bits flipped, cut and repeated, in datagrams and on a stream."""
    rng = Random(5)
    for transport in (Transport.UDP, Transport.TCP):
        world = permitted(transport)
        world.do(world.client.bind, PEER)
        world.run(1)
        seeds = [
            data_indication(PEER, b"data"),
            icmp_indication(PEER, 3, 3),
            encode_channel_data(0x4000, b"data", pad=True),
            *world.relay.answers.values(),
        ]
        for _ in range(3000):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            cut = bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.2 else bytes(data)
            flow = world.client.flow
            assert flow is not None
            event = StreamData(flow, cut) if transport.reliable else Datagram(flow, SERVER, cut)
            world.do(world.client.receive, event)
            if transport.reliable and world.client.next_timer() is None:  # out of step: start again
                world = permitted(transport)
                world.do(world.client.bind, PEER)
                world.run(1)


# --------------------------------------------------------------------------------------------------------- keepalives


def test_a_silent_udp_path_is_kept_open_and_a_busy_one_left_alone() -> None:
    world = permitted()
    world.run(60)
    quiet = [data for _, data in world.out if decode(data).method == Method.BINDING]
    assert 3 <= len(quiet) <= 4
    sent = len(world.out)
    for _ in range(60):
        world.do(world.client.send, PEER, b"x")
        world.run(1)
    assert len(world.out) - sent == 60


def test_keeping_the_path_open_can_be_left_to_others() -> None:
    world = World(config=ClientConfig(keepalive=0))
    world.run(590)
    assert not [data for _, data in world.out if data[:2] == b"\x00\x11"]


def test_a_stream_is_not_kept_open_by_indications() -> None:
    world = permitted(Transport.TCP)
    sent = len(world.out)
    world.run(60)
    assert len(world.out) == sent


def test_delay_does_not_matter_to_data() -> None:
    world = permitted(delay=400 * MILLISECOND)
    world.do(world.client.send, PEER, b"x")
    world.run(0.5)
    assert world.relay.sent == [(PEER, b"x", "send")]


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_the_overhead_of_a_channel_and_of_a_send_indication_is_as_on_the_wire(transport: Transport) -> None:
    world = permitted(transport)
    for channel in (False, True):
        if channel:
            world.do(world.client.bind, PEER)
            world.run(1)
        overhead = world.client.overhead(PEER)
        assert (overhead.family, overhead.transport, overhead.channel) == (4, transport, channel)
        for size in (8, 9):
            world.do(world.client.send, PEER, bytes(size))
            padding = -size % 4 if overhead.padded else 0
            assert len(world.out[-1][1]) == overhead.header + size + padding


def test_a_send_indication_to_an_ipv6_peer_has_twelve_bytes_more() -> None:
    assert SEND_HEADER[IPV6] - SEND_HEADER[IPV4] == 12
