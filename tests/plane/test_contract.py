"""The contract of every data plane (RFC 8656, sections 11 and 12; turn/server/plane.py)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.machine import Datagram, IcmpKind
from polynya.stun.attributes import DATA, DONT_FRAGMENT, XOR_PEER_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.server.commands import Done, PeerError, PeerForbidden, Refused, Relay, SetPolicy, Traffic
from polynya.turn.server.meters import SharedLimit
from polynya.turn.server.policy import PeerPolicy
from tests.plane.benches import LISTENER, LOOPBACK, STREAM, Bench, time_passes


class Scene:
    """A client with a relay, and a peer."""

    def __init__(self, bench: Any, **more: Any) -> None:
        self.client = bench.address()
        self.peer = bench.address()
        self.relay = bench.open(bench.free_port(), self.client, **more)


def send(peer: Address, data: bytes, **extra: Any) -> bytes:
    values = {XOR_PEER_ADDRESS: (peer,), DATA: data}
    if extra:
        values |= {DONT_FRAGMENT: True}
    return Message.indication(Method.SEND, bytes(range(12)), values).encode()


def channel(number: int, data: bytes) -> bytes:
    return number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def data_of(seen: list[tuple[Address, bytes]], to: Address) -> list[tuple[Address, bytes]]:
    """Return the Data indications that reached a client, as (peer, data)."""
    messages = [decode(data) for where, data in seen if where == to]
    assert all((m.method, m.cls) == (Method.DATA, Class.INDICATION) for m in messages)
    return [(m[XOR_PEER_ADDRESS][0], m[DATA]) for m in messages]


@pytest.fixture
def scene(bench: Bench) -> Scene:
    return Scene(bench)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 100, 1200, 9000])
@pytest.mark.parametrize("times", [1, 3], ids=["new route", "cached route"])
def test_a_channel_carries_bytes_both_ways(bench: Any, scene: Scene, size: int, times: int) -> None:
    data = bytes(index & 0xFF for index in range(size))
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    for _ in range(times):
        assert bench.say(scene.client, channel(0x4001, data)) == [(scene.peer, data)]
        assert bench.reply(scene.relay, scene.peer, data) == [(scene.client, channel(0x4001, data))]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 100, 1200])
def test_send_and_data_carry_bytes_both_ways(bench: Any, scene: Scene, size: int) -> None:
    bench.permit(scene.relay, LOOPBACK)
    for number in range(3):
        data = bytes((number,)) * size
        assert bench.say(scene.client, send(scene.peer, data)) == [(scene.peer, data)]
        assert data_of(bench.reply(scene.relay, scene.peer, data), scene.client) == [(scene.peer, data)]
    assert bench.say(scene.client, send(scene.peer, b"whole", dont_fragment=True)) == [(scene.peer, b"whole")]
    assert bench.say(scene.client, send(scene.peer, b"again")) == [(scene.peer, b"again")]


def test_data_indications_have_ids_that_differ(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    ids = {bench.reply(scene.relay, scene.peer, b"x")[0][1][8:20] for _ in range(600)}
    assert len(ids) == 600


@pytest.mark.parametrize("known", [False, True])
def test_without_a_permission_nothing_passes(bench: Any, scene: Scene, known: bool) -> None:
    bench.bind(scene.relay, 0x4001, scene.peer)
    if known:
        bench.permit(scene.relay, LOOPBACK)
        assert bench.say(scene.client, channel(0x4001, b"x")) and bench.reply(scene.relay, scene.peer, b"x")
        bench.unpermit(scene.relay, LOOPBACK)
    assert bench.say(scene.client, channel(0x4001, b"x")) == []
    assert bench.say(scene.client, send(scene.peer, b"x")) == []
    assert bench.reply(scene.relay, scene.peer, b"x") == []


@time_passes
def test_a_permission_expires_even_while_packets_flow(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK, until=300)
    bench.bind(scene.relay, 0x4001, scene.peer)
    directions = (
        lambda: bench.say(scene.client, channel(0x4001, b"x")),
        lambda: bench.say(scene.client, send(scene.peer, b"x")),
        lambda: bench.reply(scene.relay, scene.peer, b"x"),
    )
    assert all(relay() and relay() for relay in directions)
    bench.wait(299)
    assert all(relay() for relay in directions)
    bench.wait(2)
    assert not any(relay() for relay in directions)
    bench.permit(scene.relay, LOOPBACK, until=300)
    assert all(relay() for relay in directions)


@time_passes
def test_after_a_channel_expires_data_comes_by_data_indications(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK, until=1000)
    bench.bind(scene.relay, 0x4001, scene.peer, until=600)
    bench.expire(scene.relay, 5000)
    bench.say(scene.client, channel(0x4001, b"x"))
    bench.reply(scene.relay, scene.peer, b"x")
    bench.wait(601)
    assert bench.say(scene.client, channel(0x4001, b"x")) == []
    assert data_of(bench.reply(scene.relay, scene.peer, b"y"), scene.client) == [(scene.peer, b"y")]
    bench.bind(scene.relay, 0x4001, scene.peer, until=600)
    assert bench.say(scene.client, channel(0x4001, b"x")) == [(scene.peer, b"x")]


@time_passes
def test_an_allocation_expires_and_can_be_refreshed(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK, until=10_000)
    bench.bind(scene.relay, 0x4001, scene.peer, until=10_000)
    assert bench.say(scene.client, channel(0x4001, b"x")) and bench.reply(scene.relay, scene.peer, b"x")
    bench.wait(601)
    assert bench.say(scene.client, channel(0x4001, b"x")) == [] == bench.reply(scene.relay, scene.peer, b"x")
    assert isinstance(bench.expire(scene.relay, 100), Done)
    assert bench.say(scene.client, channel(0x4001, b"x")) and bench.reply(scene.relay, scene.peer, b"x")


def test_a_channel_can_be_unbound_and_bound_again(bench: Any, scene: Scene) -> None:
    other = bench.address()
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    bench.say(scene.client, channel(0x4001, b"x"))
    bench.unbind(scene.relay, 0x4001)
    assert bench.say(scene.client, channel(0x4001, b"x")) == []
    bench.bind(scene.relay, 0x4001, other)
    assert bench.say(scene.client, channel(0x4001, b"x")) == [(other, b"x")]
    assert data_of(bench.reply(scene.relay, scene.peer, b"y"), scene.client) == [(scene.peer, b"y")]


def test_the_permission_is_for_the_host_and_the_channel_for_the_port(bench: Any, scene: Scene) -> None:
    other = bench.address()
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    assert bench.say(scene.client, send(other, b"x")) == [(other, b"x")]
    assert data_of(bench.reply(scene.relay, other, b"y"), scene.client) == [(other, b"y")]
    assert bench.say(scene.client, send(scene.peer, b"by Send")) == [(scene.peer, b"by Send")]


def test_padding_is_ignored_and_a_short_frame_dropped(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    for _ in range(2):
        assert bench.say(scene.client, b"\x40\x01\x00\x01x\0\0\0") == [(scene.peer, b"x")]
        assert bench.say(scene.client, b"\x40\x01\x00\x05abcd") == []
        assert bench.say(scene.client, b"\x40\x01\x00") == []
        assert bench.say(scene.client, b"") == []


def test_a_send_that_differs_from_the_cached_form_is_parsed_in_full(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    good = send(scene.peer, b"abcd")
    assert bench.say(scene.client, good) == [(scene.peer, b"abcd")]
    assert bench.say(scene.client, good[:-1]) == []
    assert bench.say(scene.client, good[:4] + b"\0\0\0\0" + good[8:]) == []
    assert bench.say(scene.client, good[:35] + b"\x05" + good[36:]) == []
    longer = Message.indication(Method.SEND, bytes(12), {DATA: b"abcd", XOR_PEER_ADDRESS: (scene.peer,)}).encode()
    assert bench.say(scene.client, longer) == [(scene.peer, b"abcd")]
    fingerprinted = Message.indication(Method.SEND, bytes(12), {XOR_PEER_ADDRESS: (scene.peer,), DATA: b"fp"})
    assert bench.say(scene.client, fingerprinted.encode(fingerprint=True)) == [(scene.peer, b"fp")]


def test_a_packet_without_an_allocation_is_reported_unchanged(bench: Any, scene: Scene) -> None:
    unknown = bench.address()
    for data in (channel(0x4001, b"x"), send(scene.peer, b"x"), b"\x00\x03\x00\x00rest", b"hello"):
        assert bench.say(unknown, data) == []
        [report] = bench.reports()
        assert report == Datagram(LISTENER, unknown, data)
    request = Message.request(Method.REFRESH, bytes(12)).encode()
    bench.say(scene.client, request)
    assert bench.reports() == [Datagram(LISTENER, scene.client, request)]


def test_the_peer_policy_holds_in_both_directions_and_changes_take_effect_at_once(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    assert bench.say(scene.client, channel(0x4001, b"x")) and bench.reply(scene.relay, scene.peer, b"x")
    bench.do(SetPolicy, policy=PeerPolicy(allow=("127.0.0.0/8",), deny=(str(scene.peer),)))
    assert bench.say(scene.client, channel(0x4001, b"x")) == [] == bench.reply(scene.relay, scene.peer, b"x")
    assert bench.say(scene.client, send(scene.peer, b"x")) == []
    other = bench.address()
    assert bench.say(scene.client, send(other, b"x")) == [(other, b"x")]


def test_drops_are_counted_by_reason_and_a_denied_peer_is_reported_once_for_each_relay(
    bench: Any, scene: Scene
) -> None:
    bench.permit(scene.relay, LOOPBACK)
    bench.do(SetPolicy, policy=PeerPolicy(allow=("127.0.0.0/8",), deny=(str(scene.peer),)))
    bench.reports()
    assert bench.say(scene.client, send(scene.peer, b"x")) == []
    [forbidden] = [report for report in bench.reports() if isinstance(report, PeerForbidden)]
    assert (forbidden.relay, forbidden.peer) == (scene.relay, scene.peer)
    assert forbidden.rule == f"{scene.peer.host} port {scene.peer.port} is denied by a rule"
    assert bench.say(scene.client, send(scene.peer, b"x")) == [] == bench.reply(scene.relay, scene.peer, b"x")
    assert not [report for report in bench.reports() if isinstance(report, PeerForbidden)]
    assert bench.say(scene.client, send(Address("192.0.2.1", 5), b"x")) == []
    [traffic] = bench.traffic()
    assert traffic.dropped == 4 and traffic.reasons == {"peer denied by policy": 3, "no permission to peer": 1}


def test_a_live_relay_is_a_permitted_peer_with_its_external_address(bench: Any) -> None:
    bench.do(SetPolicy, policy=PeerPolicy())
    one, two = bench.address(), bench.address()
    here, there = bench.free_port(), bench.free_port()
    outside = Address("192.0.2.7", there.port)
    bench.open(here, one)
    bench.open(there, two, external=outside)
    bench.permit(Relay(here), "192.0.2.7")
    bench.permit(Relay(there), LOOPBACK)
    for _ in range(2):
        assert data_of(bench.say(one, send(outside, b"hello")), two) == [(here, b"hello")]
        assert data_of(bench.say(two, send(here, b"you")), one) == [(outside, b"you")]
    bench.bind(Relay(here), 0x4002, outside)
    assert bench.say(two, send(here, b"you")) == [(one, channel(0x4002, b"you"))]
    bench.free(Relay(there))
    assert bench.say(one, send(outside, b"x")) == [] == bench.say(one, channel(0x4002, b"x"))


def test_a_reserved_port_relays_nothing_until_it_is_assigned(bench: Any) -> None:
    client, peer = bench.address(), bench.address()
    relay = bench.open(bench.free_port(), None)
    bench.permit(relay, LOOPBACK)
    assert bench.reply(relay, peer, b"x") == []
    assert isinstance(bench.assign(relay, client), Done)
    assert data_of(bench.reply(relay, peer, b"x"), client) == [(peer, b"x")]
    assert bench.say(client, send(peer, b"y")) == [(peer, b"y")]


def test_freeing_a_relay_removes_all_its_state(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    bench.say(scene.client, channel(0x4001, b"12345"))
    bench.reply(scene.relay, scene.peer, b"123")
    assert isinstance(bench.free(scene.relay), Done)
    [traffic] = [report for report in bench.reports() if isinstance(report, Traffic)]
    assert (traffic.to_peers, traffic.bytes_to_peers, traffic.from_peers, traffic.bytes_from_peers) == (1, 5, 1, 3)
    assert bench.say(scene.client, channel(0x4001, b"x")) == [] == bench.reply(scene.relay, scene.peer, b"x")
    assert set(bench.size().values()) == {0}
    assert isinstance(bench.free(scene.relay), Done), "freeing twice is no error"


@pytest.mark.parametrize("command", ["permit", "unpermit", "bind", "unbind", "expire", "assign"])
def test_commands_about_an_unknown_relay_are_refused(bench: Any, command: str) -> None:
    relay = Relay(bench.free_port())
    report = {
        "permit": lambda: bench.permit(relay, LOOPBACK),
        "unpermit": lambda: bench.unpermit(relay, LOOPBACK),
        "bind": lambda: bench.bind(relay, 0x4000, relay),
        "unbind": lambda: bench.unbind(relay, 0x4000),
        "expire": lambda: bench.expire(relay, 1),
        "assign": lambda: bench.assign(relay, relay),
    }[command]()
    assert isinstance(report, Refused)


def test_opening_a_port_in_use_is_refused(bench: Any, scene: Scene) -> None:
    from polynya.turn.server.commands import OpenRelay

    fields = {"external": scene.relay, "client": None, "until": bench.in_seconds(1)}
    assert isinstance(bench.do(OpenRelay, relay=scene.relay, **fields), Refused)


def test_traffic_is_counted(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    for _ in range(3):
        bench.say(scene.client, channel(0x4001, b"1234"))
        bench.say(scene.client, send(scene.peer, b"12"))
        bench.reply(scene.relay, scene.peer, b"1")
    bench.unpermit(scene.relay, LOOPBACK)
    bench.reply(scene.relay, scene.peer, b"1")
    [traffic] = bench.traffic()
    assert traffic == Traffic(
        relay=scene.relay, to_peers=6, bytes_to_peers=18, from_peers=3, bytes_from_peers=3, dropped=1
    )


@time_passes
def test_a_rate_limit_holds_in_both_directions(bench: Any) -> None:
    scene = Scene(bench, bytes_per_second=10_000)
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    passed = sum(len(bench.say(scene.client, channel(0x4001, bytes(972)))) for _ in range(20))
    assert passed == 10
    assert bench.reply(scene.relay, scene.peer, bytes(972)) == []
    bench.wait(0.35)
    assert sum(len(bench.say(scene.client, send(scene.peer, bytes(972)))) for _ in range(2)) == 2
    assert sum(len(bench.reply(scene.relay, scene.peer, bytes(972))) for _ in range(3)) == 1


SHARED = SharedLimit("open-1", 10_000, 0)


def test_relays_of_one_account_share_its_limits(bench: Any) -> None:
    """With worker processes, each data plane has its part: less than the whole passes, never more."""
    one, two = Scene(bench, shared=SHARED), Scene(bench, shared=SHARED)
    other = Scene(bench, shared=replace(SHARED, account="open-2"))
    passed = {}
    for scene in (one, two, other):
        bench.permit(scene.relay, LOOPBACK)
        bench.bind(scene.relay, 0x4001, scene.peer)
        passed[scene] = sum(len(bench.say(scene.client, channel(0x4001, bytes(9972 // 4 - 28)))) for _ in range(5))
    assert 1 <= passed[one] + passed[two] <= 5
    assert passed[other] == passed[one]


def test_the_hour_of_an_account_outlives_its_relays(bench: Any) -> None:
    hourly = SharedLimit("open-3", 0, 8_000)
    carried = []
    for _ in range(3):
        scene = Scene(bench, shared=hourly)
        bench.permit(scene.relay, LOOPBACK)
        bench.bind(scene.relay, 0x4001, scene.peer)
        carried.append(sum(len(bench.say(scene.client, channel(0x4001, bytes(972)))) for _ in range(5)))
        bench.free(scene.relay)
    assert 1 <= sum(carried) <= 8 and carried[2] < 5


def test_empty_datagrams_count_towards_the_rate_limit(bench: Any) -> None:
    """A frame of four bytes on a stream becomes an IP packet."""
    scene = Scene(bench, bytes_per_second=2_800)
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    began = time.monotonic()
    passed = sum(len(bench.say(scene.client, channel(0x4001, b""))) for _ in range(1000))
    seconds = time.monotonic() - began
    assert 100 <= passed <= 100 * (1 + seconds) + 1, "a burst of one second, then 100 a second"


def test_a_client_on_a_stream_gets_padded_frames(bench: Any) -> None:
    client, peer = Address("192.0.2.1", 1000), bench.address()
    relay = bench.open(bench.free_port(), client, stream=True)
    bench.permit(relay, LOOPBACK)
    bench.bind(relay, 0x4001, peer)
    assert bench.forward(client, channel(0x4001, b"to")) == [(peer, b"to")]
    assert bench.forward(client, send(peer, b"too")) == [(peer, b"too")]
    assert bench.reply(relay, peer, b"back1") == [(client, channel(0x4001, b"back1") + bytes(3))]
    assert STREAM != LISTENER


def test_an_icmp_error_of_a_permitted_peer_is_reported(bench: Any, scene: Scene) -> None:
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer)
    bench.close_peer(scene.relay, scene.client, scene.peer, channel(0x4001, b"x"))
    [error] = [report for report in bench.reports() if isinstance(report, PeerError)]
    assert (error.client.remote, error.peer, error.kind) == (scene.client, scene.peer, IcmpKind.PORT_UNREACHABLE)
    other = bench.address()
    assert bench.say(scene.client, send(other, b"next")) == [(other, b"next")], "the error causes no loss"


@time_passes
def test_binding_a_number_in_the_other_family_removes_the_old_binding(bench: Any) -> None:
    """A dual allocation; found by random requests against a model of the RFC."""
    client, peer = bench.address(), bench.address()
    relay = bench.open(bench.free_port(), client)
    old = bench.open(Address("::1", 40123), client)
    bench.permit(relay, LOOPBACK)
    bench.bind(old, 0x4001, Address("::1", 9), until=10)
    bench.wait(11)
    bench.bind(relay, 0x4001, peer)
    assert bench.say(client, channel(0x4001, b"x")) == [(peer, b"x")]
    bench.free(old)


@time_passes
def test_a_peer_keeps_its_new_channel_when_its_old_number_is_bound_to_another_peer(bench: Any, scene: Scene) -> None:
    """Found by random requests against a model of the RFC."""
    other = bench.address()
    bench.permit(scene.relay, LOOPBACK)
    bench.bind(scene.relay, 0x4001, scene.peer, until=10)
    bench.wait(11)
    bench.bind(scene.relay, 0x4002, scene.peer)
    bench.bind(scene.relay, 0x4001, other)
    assert bench.reply(scene.relay, scene.peer, b"x") == [(scene.client, channel(0x4002, b"x"))]
    assert bench.reply(scene.relay, other, b"y") == [(scene.client, channel(0x4001, b"y"))]
    assert bench.say(scene.client, channel(0x4002, b"x")) == [(scene.peer, b"x")]


def test_packets_of_streams_leave_no_state(bench: Any) -> None:
    """Their routes are not cached: 30,000 datagrams to a relay of the same server took 1.7 ms of CPU time each."""
    one, two = bench.address(), bench.address()
    here, there = bench.free_port(), bench.free_port()
    peer = bench.address()
    bench.open(here, one, stream=True)
    bench.open(there, two)
    bench.permit(Relay(here), LOOPBACK)
    bench.permit(Relay(there), LOOPBACK)
    bench.bind(Relay(here), 0x4001, there)
    bench.bind(Relay(here), 0x4002, peer)

    def talk() -> None:
        for frame in (channel(0x4001, b"x"), send(there, b"x"), channel(0x4002, b"x"), send(peer, b"x")):
            assert len(bench.forward(one, frame)) == 1

    talk()
    before = bench.size()
    for _ in range(20):
        talk()
    assert bench.size() == before
