"""TURN servers that crash, restart without state, or refuse expired credentials: every failure is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from polynya.core.instants import MILLISECOND, SECOND, Instant, in_seconds
from polynya.ice.events import AgentState, AgentStateChanged, ConsentLost
from polynya.lab.exchange import Peer
from polynya.lab.relaying import expiring_users, relay, time_limited, turn_server
from polynya.session.demands import MAX_DEMANDS
from polynya.session.events import CredentialsWanted, GatheringState
from polynya.session.options import Policy, TurnCredentials
from tests.reports import flat
from tests.scenarios.relays import CLOSED, OPEN, SECOND_SERVER, TCP, TLS, UDP, Scene, nats

pytestmark = pytest.mark.slow

FAR = "turn:203.0.113.10"


def states(peer: Peer, since: Instant) -> list[AgentState]:
    """Return the states of the agent after `since`."""
    assert peer.process is not None
    return [event.new for at, event in peer.process.log if at > since and isinstance(event, AgentStateChanged)]


def with_second_server(scene_uri: str = UDP) -> Scene:
    made = nats(CLOSED, CLOSED)
    turn_server(made.network, made.internet, name="turn-two", addresses=SECOND_SERVER, delay=20 * MILLISECOND)
    return Scene(made, servers=[scene_uri, FAR])


@pytest.mark.parametrize("silently", [False, True], ids=["crash", "power cut"])
@pytest.mark.parametrize("uri", [UDP, TCP, TLS])
def test_a_direct_connection_survives_the_death_of_the_server(uri: str, silently: bool) -> None:
    scene = Scene(nats(OPEN, OPEN), servers=[uri])
    assert scene.start()
    since = scene.net.now
    scene.turn.stop(silently=silently)
    assert scene.talk(120) == (120, 120)
    assert all(states(peer, since) == [] for peer in scene.peers)
    assert scene.end() == []


@pytest.mark.parametrize("silently", [False, True], ids=["crash", "power cut"])
@pytest.mark.parametrize("uri", [UDP, TCP, TLS])
def test_a_relayed_connection_continues_through_the_second_server(uri: str, silently: bool) -> None:
    scene = with_second_server(uri)
    assert scene.start()
    since = scene.net.now
    scene.turn.stop(silently=silently)
    scene.talk(40)
    assert scene.talk(60) == (60, 60)
    for peer in scene.peers:
        assert AgentState.FAILED not in states(peer, since)
        pair = peer.selected
        assert pair is not None
        assert pair.nominated
        relayed = [each.address.host for each in (pair.local, pair.remote) if each.type.value == "relay"]
        assert relayed and set(relayed) <= set(SECOND_SERVER)
    assert scene.end() == []


def test_without_another_path_it_fails_when_consent_expires_with_the_reason() -> None:
    """RFC 7675: 30 s after the last response no data may be sent."""
    scene = Scene(nats(CLOSED, CLOSED))
    assert scene.start()
    since = scene.net.now
    scene.turn.stop()
    for peer in scene.peers:
        scene.net.run_until(lambda peer=peer: peer.state is AgentState.FAILED, Instant(since + 60 * SECOND))
        assert peer.state is AgentState.FAILED
        assert peer.events(ConsentLost)
        assert not peer.send(b"to nowhere")
        assert "no answer to a consent check for 30 s" in flat(peer.session.why())
    assert scene.net.now < since + 36 * SECOND
    assert scene.end() == []


@pytest.mark.parametrize("silently", [False, True], ids=["crash", "power cut"])
@pytest.mark.parametrize("uri", [UDP, TCP, TLS])
def test_an_ice_restart_connects_again_through_a_restarted_server(uri: str, silently: bool) -> None:
    """The server has lost its allocations: the client detects it and makes a new one."""
    scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY, servers=[uri])
    assert scene.start()
    old = {str(local.candidate.address) for local in scene.one.session.agent.local_candidates()}
    scene.turn.stop(silently=silently)
    scene.net.run_for(3 * SECOND)
    scene.turn.start()
    scene.net.run_for(60 * SECOND)
    scene.one.call(scene.one.session.restart)
    scene.net.run_for(5 * SECOND)
    assert scene.one.state is scene.other.state is AgentState.COMPLETED
    assert scene.talk(60) == (60, 60)
    for peer in scene.peers:
        pair = peer.selected
        assert pair is not None
        assert str(pair.local.address) not in old
        assert " is lost (" in flat(peer.session.why())
    assert scene.end() == []
    assert scene.turn.allocations == 0


def test_lost_allocations_are_requested_again_with_backoff() -> None:
    scene = Scene(nats(OPEN, OPEN), servers=[TCP])
    assert scene.start()
    scene.turn.stop()
    scene.net.run_for(600 * SECOND)
    for host in ("198.51.100.1", "198.51.100.2"):
        tries = [
            drop.at
            for drop in scene.net.drops
            if drop.node == "turn" and drop.source.host == host and drop.destination.port == 3478
        ]
        gaps = [(after - before) / SECOND for before, after in pairwise(tries)]
        assert 10 <= len(tries) <= 20, "in ten minutes"
        assert gaps[0] <= 1.1
        assert max(gaps) <= 64.1
    scene.turn.start()
    scene.net.run_for(65 * SECOND)
    assert scene.turn.allocations == 2
    assert scene.end() == []


def test_allocations_that_the_server_has_freed_are_detected_when_consent_is_lost() -> None:
    """The operator's `close_all`, a lost relay port: over UDP the client gets no message."""
    scene = Scene(nats(CLOSED, CLOSED), policy=Policy.RELAY)
    assert scene.start()
    machine = scene.turn.machine
    assert machine is not None
    assert scene.turn.process is not None
    machine.control.close_all("maintenance", now=scene.net.now)
    machine.settle(now=scene.net.now)
    scene.turn.process.drain()
    scene.net.run_for(60 * SECOND)
    assert scene.turn.allocations == 2, "new ones were made"
    for peer in scene.peers:
        assert "437" in flat(peer.session.why())
    scene.one.call(scene.one.session.restart)
    scene.net.run_for(5 * SECOND)
    assert scene.talk(30) == (30, 30)
    assert scene.end() == []


# ----------------------------------------------------------------------------------------------------- credentials


def expiring(seconds: int, *, refuse: bool = True) -> Scene:
    """Give both agents credentials with these lifetimes; with `refuse` the server refuses to refresh expired ones."""
    made = nats(CLOSED, CLOSED)
    turn = turn_server(made.network, made.internet, directory=expiring_users())
    turn.stop()
    turn.config = replace(turn.config, refuse_expired_refresh=refuse)
    turn.start()
    servers = [relay(UDP, time_limited(made.network, seconds))]
    return Scene(made, policy=Policy.RELAY, servers=servers, turn=turn)


def renew(scene: Scene, peer: Peer, seconds: int) -> None:
    name, password = time_limited(scene.net, seconds)
    [known] = peer.session.config.turn_servers
    peer.call(peer.session.set_credentials, TurnCredentials(known.uri, name, password))


def test_expired_credentials_are_requested_and_renewed_ones_keep_the_relay() -> None:
    scene = expiring(700)
    assert scene.start()
    for peer in scene.peers:
        on_event = peer.signal
        assert on_event is not None

        def answer(event: object, peer: Peer = peer, on_event: object = on_event) -> None:
            on_event(event)  # type: ignore[operator]
            if isinstance(event, CredentialsWanted):
                scene.net.clock.after(SECOND, renew, scene, peer, 700)  # an application fetches new credentials first

        peer.signal = answer
    since = scene.net.now
    assert scene.talk(3600, every=10 * SECOND) == (360, 360)
    for peer in scene.peers:
        assert states(peer, since) == []
        assert len(peer.events(CredentialsWanted)) == 3
    assert scene.end() == []
    assert scene.turn.allocations == 0


def test_credentials_that_are_renewed_in_time_are_not_requested() -> None:
    scene = expiring(700)
    assert scene.start()
    for _ in range(6):
        assert scene.talk(600, every=10 * SECOND) == (60, 60)
        for peer in scene.peers:
            renew(scene, peer, 700)
    assert all(peer.events(CredentialsWanted) == [] for peer in scene.peers)
    assert scene.end() == []


def test_credentials_that_are_not_renewed_end_the_relay_with_the_reason() -> None:
    scene = expiring(700)
    assert scene.start()
    since = scene.net.now
    scene.talk(3600, every=10 * SECOND)
    for peer in scene.peers:
        assert peer.events(CredentialsWanted)
        assert peer.state is AgentState.FAILED
        assert AgentState.FAILED in states(peer, since)
        report = flat(peer.session.why())
        assert "turn:203.0.113.9: no answer (" in report
        assert "could not be refreshed before its lifetime ended" in report
    assert scene.turn.allocations == 0
    for peer in scene.peers:
        renew(scene, peer, 10_000)
    scene.net.run_for(70 * SECOND)
    scene.one.call(scene.one.session.restart)
    scene.net.run_for(5 * SECOND)
    assert scene.talk(30) == (30, 30), "with new credentials it works again"
    assert scene.end() == []


def test_a_server_that_accepts_a_refresh_with_expired_credentials_keeps_the_relay() -> None:
    scene = expiring(700, refuse=False)
    assert scene.start()
    assert scene.talk(3600, every=10 * SECOND) == (360, 360)
    assert scene.end() == []


def test_wrong_credentials_cost_the_relay_only() -> None:
    scene = Scene(nats(OPEN, OPEN), servers=[relay(UDP, ("lab", "a wrong password"))])
    assert scene.start()
    assert not scene.relayed
    assert scene.turn.allocations == 0
    for peer in scene.peers:
        [wanted] = peer.events(CredentialsWanted)
        assert wanted.server.uri.host == "203.0.113.9"
    assert scene.end() == []


@pytest.mark.parametrize("uri", [UDP, TCP, TLS])
def test_gathering_does_not_wait_for_a_server_that_has_refused_the_credentials(uri: str) -> None:
    """A wrong password is reported when the server refuses it, not after the gathering timeout."""
    scene = Scene(nats(OPEN, OPEN), servers=[relay(uri, ("lab", "a wrong password"))], policy=Policy.RELAY)
    for peer in scene.peers:
        on_event = peer.signal
        assert on_event is not None

        def answer(event: object, peer: Peer = peer, on_event: object = on_event) -> None:
            on_event(event)  # type: ignore[operator]
            if isinstance(event, CredentialsWanted):
                peer.call(peer.session.no_credentials, event)

        peer.signal = answer
    scene.exchange.start()
    scene.net.run_for(SECOND)
    for peer in scene.peers:
        assert peer.session.gathering.state is GatheringState.COMPLETE
        assert flat(peer.session.why()).count("refuses the credentials of 'lab'") == 1
    assert scene.turn.allocations == 0
    assert scene.end() == []


def test_late_credentials_still_give_a_relay() -> None:
    scene = Scene(nats(CLOSED, CLOSED), servers=[relay(UDP, ("", ""))])
    scene.exchange.start()
    scene.net.run_for(2 * SECOND)
    assert scene.turn.allocations == 0
    for peer in scene.peers:
        assert peer.events(CredentialsWanted)
        peer.call(peer.session.set_credentials, relay(UDP))
    scene.net.run_until(lambda: scene.one.settled and scene.other.settled, Instant(30 * SECOND))
    assert scene.relayed
    assert scene.talk(30) == (30, 30)
    assert scene.end() == []


# ------------------------------------------------------------------------------- credentials that cannot be had now


def answering(scene: Scene, answer: Callable[[Peer, CredentialsWanted, int], None]) -> None:
    """Call `answer(peer, wanted, number)` for each request for credentials of each peer."""
    for peer in scene.peers:
        on_event = peer.signal
        assert on_event is not None
        count = [0]

        def handle(event: object, peer: Peer = peer, on_event: object = on_event, count: list[int] = count) -> None:
            on_event(event)  # type: ignore[operator]
            if isinstance(event, CredentialsWanted):
                count[0] += 1
                answer(peer, event, count[0])

        peer.signal = handle


def wanted_at(peer: Peer) -> list[float]:
    assert peer.process is not None
    return [in_seconds(at) for at, event in peer.process.log if isinstance(event, CredentialsWanted)]


def test_credentials_are_asked_for_again_with_a_backoff_until_they_are_there() -> None:
    """Issue E, line 16: a callback that raised was never called again, and the refresh was parked for ever."""
    scene = expiring(700)

    def answer(peer: Peer, wanted: CredentialsWanted, number: int) -> None:
        if number < 6:
            peer.call(peer.session.no_credentials, wanted, "credentials() raised LookupError")
        else:
            renew(scene, peer, 700)

    answering(scene, answer)
    assert scene.start()
    since = scene.net.now
    assert scene.talk(1200, every=10 * SECOND) == (120, 120)
    for peer in scene.peers:
        assert states(peer, since) == []
        times = wanted_at(peer)[:6]
        assert [round(after - before, 2) for before, after in pairwise(times)] == [1, 2, 4, 8, 16]
        report = str(peer.session.why())
        assert report.count("credentials() raised LookupError") == 1, "each reason once"
    assert scene.end() == []


def test_credentials_that_never_come_end_the_relay_with_the_true_reason() -> None:
    scene = expiring(700)
    answering(scene, lambda peer, wanted, _: peer.call(peer.session.no_credentials, wanted, "it raised"))
    assert scene.start()
    scene.talk(3600, every=10 * SECOND)
    for peer in scene.peers:
        assert peer.state is AgentState.FAILED
        report = str(peer.session.why())
        assert "could not be refreshed before its lifetime ended" in report and "(401)" in report
        times = wanted_at(peer)
        assert len(times) > 8 and max(after - before for before, after in pairwise(times)) <= 200
    assert scene.turn.allocations == 0
    assert scene.end() == []


def test_the_same_credentials_again_are_tried_again_but_not_without_a_pause() -> None:
    """A callback may return stale credentials for a while, or the server may refuse right ones for a while."""
    scene = expiring(700)
    stale = [peer.session.config.turn_servers[0] for peer in scene.peers]

    def answer(peer: Peer, wanted: CredentialsWanted, number: int) -> None:
        if number < 5:
            peer.call(peer.session.set_credentials, stale[scene.peers.index(peer)])
        else:
            renew(scene, peer, 700)

    answering(scene, answer)
    assert scene.start()
    since = scene.net.now
    assert scene.talk(1200, every=10 * SECOND) == (120, 120)
    for peer in scene.peers:
        assert states(peer, since) == []
        times = wanted_at(peer)[:5]
        assert [round(after - before) for before, after in pairwise(times)] == [1, 2, 4, 8]
    assert scene.end() == []


def test_a_relay_that_lacks_credentials_at_the_start_comes_later_and_gathering_does_not_wait() -> None:
    scene = Scene(nats(CLOSED, CLOSED), servers=[relay(UDP, ("", ""))])

    def answer(peer: Peer, wanted: CredentialsWanted, number: int) -> None:
        if number < 3:
            peer.call(peer.session.no_credentials, wanted, "it raised")
        else:
            peer.call(peer.session.set_credentials, relay(UDP))

    answering(scene, answer)
    scene.exchange.start()
    scene.net.run_for(500 * MILLISECOND)
    assert all(peer.session.gathering.state is GatheringState.COMPLETE for peer in scene.peers)
    scene.net.run_until(lambda: scene.one.settled and scene.other.settled, Instant(30 * SECOND))
    assert scene.relayed
    assert scene.end() == []


def test_a_relay_that_was_never_allocated_is_given_up_after_ten_minutes() -> None:
    scene = Scene(nats(OPEN, OPEN), servers=[relay(UDP, ("", ""))])
    answering(scene, lambda peer, wanted, _: peer.call(peer.session.no_credentials, wanted, "it raised"))
    assert scene.start()
    scene.talk(1200, every=10 * SECOND)
    for peer in scene.peers:
        assert len(wanted_at(peer)) == MAX_DEMANDS and 400 < wanted_at(peer)[-1] < 700
    assert scene.end() == []
