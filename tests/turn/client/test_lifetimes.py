"""Relays that live: an hour of virtual time, idle and busy, with everything going wrong that may go wrong."""

from __future__ import annotations

from random import Random

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Transport
from polynya.core.instants import SECOND
from polynya.stun.registry import Method
from polynya.turn.client import (
    ChannelFailed,
    ClientConfig,
    Lost,
    PermissionFailed,
    Permitted,
    RelayedData,
    State,
)
from polynya.turn.client.lifetimes import renewal
from tests.turn.client.relay import Relay, World

PEERS = [Address(f"192.0.2.{number}", 4000) for number in range(50, 55)]
BY_CHANNEL = PEERS[:2]


def standing(*relays: Relay, transport: Transport = Transport.UDP, seed: int = 1, **options: object) -> World:
    """A client with five permitted peers, two of them by channel."""
    world = World(*relays, transport=transport, seed=seed, **options)  # type: ignore[arg-type]
    world.run(2)
    world.do(world.client.permit, PEERS)
    for peer in BY_CHANNEL:
        world.do(world.client.bind, peer)
    world.run(10)
    return world


def assert_alive(world: World, also_channels: bool = True) -> None:
    assert world.client.state is State.ALLOCATED and not world.of(Lost)
    assert not world.of(PermissionFailed) and not world.of(ChannelFailed)
    world.lose = lambda data, outward: False
    world.run(1)
    world.relay.sent.clear()
    heard = len(world.of(RelayedData))
    for peer in PEERS:
        assert world.do(world.client.send, peer, b"still")
        world.from_peer(peer, b"there")
    world.run(1)
    assert [(peer, how) for peer, _, how in world.relay.sent] == [
        (peer, "channel" if peer in BY_CHANNEL else "send") for peer in PEERS
    ]
    assert len(world.of(RelayedData)) == heard + 5
    assert world.relay.dropped == []


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
@pytest.mark.parametrize("nonce_lifetime", [3600, 600, 60, 1])
def test_an_idle_relay_lives_an_hour(transport: Transport, nonce_lifetime: int) -> None:
    world = standing(Relay(nonce_lifetime=nonce_lifetime * SECOND), transport=transport)
    world.run(3600)
    assert_alive(world)
    asked = [message for _, message, error in world.relay.log if not error]
    assert len(asked) < 60  # three permissions' renewals and two channels' every ten minutes, one refresh


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_a_busy_relay_lives_an_hour_and_loses_nothing(transport: Transport) -> None:
    world = standing(Relay(nonce_lifetime=300 * SECOND), transport=transport)
    world.relay.sent.clear()
    for number in range(3600):
        for peer in PEERS:
            assert world.do(world.client.send, peer, b"%d" % number)
            world.from_peer(peer, b"%d" % number)
        world.run(1)
    assert len(world.relay.sent) == 5 * 3600 == len(world.of(RelayedData))
    assert_alive(world)


@pytest.mark.parametrize("method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_stale_nonce_at_each_renewal_with_its_answers_lost(method: Method, tries: int) -> None:
    """The worst moment: the renewal meets a stale nonce, and the answer to each try is lost at first."""
    world = standing(Relay(nonce_lifetime=10 * SECOND))
    lost: dict[bytes, int] = {}

    def lose(data: bytes, outward: bool) -> bool:
        if outward or data[0] >> 6 or int.from_bytes(data[:2], "big") & 0x3EEF & ~0x110 != method:
            return False
        lost[data[8:20]] = lost.get(data[8:20], 0) + 1
        return lost[data[8:20]] <= tries

    world.lose = lose
    world.run(3600)
    assert len(lost) >= 7
    assert_alive(world)


@pytest.mark.parametrize("seed", range(20))
def test_a_relay_lives_an_hour_with_a_fifth_of_all_packets_lost(seed: int) -> None:
    world, rng = standing(Relay(nonce_lifetime=200 * SECOND), seed=seed), Random(seed)
    world.lose = lambda data, outward: rng.random() < 0.2
    world.run(3600)
    assert_alive(world)


@pytest.mark.parametrize("at", [195, 203, 300, 395, 495, 503, 590])
def test_a_minute_without_a_server_costs_nothing_whenever_it_comes(at: int) -> None:
    world = standing(Relay(nonce_lifetime=100 * SECOND))
    world.run(at - 12)
    world.lose = lambda data, outward: True
    world.run(55)
    world.lose = lambda data, outward: False
    world.run(1200)
    assert_alive(world)


@pytest.mark.parametrize("lifetime", [10, 30, 60, 120, 300, 600, 1200, 3600, 2**32 - 1])
def test_whatever_lifetime_the_server_grants_is_kept(lifetime: int) -> None:
    world = standing(Relay(lifetime=lifetime))
    world.run(3700)
    assert_alive(world)


def test_a_longer_lifetime_is_asked_for_in_every_request() -> None:
    from polynya.stun.attributes import LIFETIME

    world = standing(config=ClientConfig(lifetime=1200 * SECOND))
    world.run(1200)
    asked = [m[LIFETIME] for m in world.relay.requests if m.method in (Method.ALLOCATE, Method.REFRESH)]
    assert len(asked) >= 3 and set(asked) == {1200}


def test_an_outage_that_is_too_long_loses_the_relay_and_says_why() -> None:
    world = standing()
    world.relay.trouble = lambda request, source: b""
    world.run(700)
    [lost] = world.of(Lost)
    assert "did not answer 7 sends" in lost.reason and world.client.next_timer() is None
    assert world.times[world.events.index(lost)] - 10**15 <= 601 * SECOND


def test_a_clock_that_jumps_past_the_end_finds_the_relay_lost() -> None:
    world = standing()
    world.now += 7200 * SECOND  # type: ignore[assignment]
    world.do(world.client.tick)
    assert world.of(Lost) and world.client.state is State.LOST


def test_a_clock_that_jumps_within_the_lifetime_renews_at_once() -> None:
    world = standing()
    world.now += 280 * SECOND  # type: ignore[assignment]
    world.do(world.client.tick)
    world.run(1)
    assert world.relay.log[-1][1].method == Method.CREATE_PERMISSION
    world.run(1200)
    assert_alive(world)


def test_a_tick_that_is_early_or_comes_twice_does_nothing() -> None:
    world = standing()
    sent = len(world.out)
    for _ in range(3):
        world.do(world.client.tick)
    assert len(world.out) == sent


def test_a_renewal_leaves_time_for_two_transactions_to_fail() -> None:
    for lifetime in (300, 600, 3600):
        assert lifetime * SECOND - renewal(lifetime * SECOND) >= 2 * 39.5 * SECOND
    assert renewal(3 * SECOND) == 2 * SECOND


def test_permissions_are_emitted_once_however_often_they_are_renewed() -> None:
    world = standing()
    emitted = len(world.of(Permitted))
    world.run(3600)
    assert len(world.of(Permitted)) == emitted
