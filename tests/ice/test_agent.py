"""Two agents connect: the usual way, trickle, learned candidates, streams, lite (RFC 8445, RFC 8838)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError, UsageError
from polynya.core.flows import Flow
from polynya.core.instants import MILLISECOND, SECOND
from polynya.ice import (
    AgentState,
    AgentStateChanged,
    Candidate,
    CandidateType,
    Gathered,
    IceConfig,
    LocalCandidateAdded,
    LocalCandidatesEnded,
    PairState,
    RemoteAuthenticated,
    SelectedPairChanged,
)
from polynya.stun.attributes import USE_CANDIDATE
from polynya.stun.registry import Class
from tests.ice.harness import Nat, Packet, Side, World, behind_nats, plain
from tests.reports import flat


def states(side: Side) -> list[AgentState]:
    return [event.new for event in side.of(AgentStateChanged)]


# ---------------------------------------------------------------------------------------------------- the straight road


def test_two_hosts_on_a_lan_connect() -> None:
    world = plain()
    assert world.connect(5), world.a.agent.why()
    assert world.a.path == "host 192.168.0.1:5000 -> host 192.168.0.2:5000"
    assert world.b.path == "host 192.168.0.2:5000 -> host 192.168.0.1:5000"
    assert world.same_path()
    expected = [AgentState.CHECKING, AgentState.CONNECTED, AgentState.COMPLETED]
    assert states(world.a) == states(world.b) == expected


def test_two_hosts_behind_port_restricted_nats_connect() -> None:
    world = behind_nats()
    assert world.connect(10), world.a.agent.why()
    assert world.a.path == "srflx 198.51.100.1:40001 -> srflx 198.51.100.2:40001"
    assert world.same_path()


def test_a_symmetric_nat_reaches_a_public_host_by_a_peer_reflexive_candidate() -> None:
    """RFC 8445, sections 7.2.5.3.1 and 7.3.1.3: both sides learn a mapping that was not signaled."""
    world = World(nat_a=Nat("198.51.100.1", symmetric=True))
    world.a.reflexive(world.a.host("10.1.0.2"))
    world.b.host("203.0.113.2")
    world.a.end()
    world.b.end()
    assert world.connect(10)
    mine, theirs = world.a.agent.selected(), world.b.agent.selected()
    assert mine is not None and theirs is not None
    assert mine.local.type is theirs.remote.type is CandidateType.PEER_REFLEXIVE
    assert mine.local.address == theirs.remote.address == Address("198.51.100.1", 40002)
    assert mine.priority == theirs.priority or theirs.remote.priority == mine.local.priority
    assert world.same_path()


def test_ipv6_is_preferred_and_ipv4_is_there_when_it_fails() -> None:
    """RFC 8421; schollz/croc#104: everything was relayed, even between two public IPv6 hosts."""
    for broken in (False, True):
        world = World()
        world.blocked = lambda packet, broken=broken: broken and ":" in packet.source.host  # type: ignore[misc]
        for side, n in ((world.a, 1), (world.b, 2)):
            side.host(f"192.0.2.{n}")
            side.host(f"2001:db8::{n}")
            side.end()
        assert world.connect(10)
        assert ("2001:db8" in world.a.path) is not broken


def test_the_first_check_goes_out_in_the_moment_both_sides_are_known() -> None:
    world = plain(signaling=0)
    world.connect(5)
    assert world.packets[0].at == world.started


def test_data_may_flow_on_the_first_valid_pair_before_it_is_nominated() -> None:
    """RFC 8445, section 12.1."""
    world = plain()
    world.connect(5)
    for side in (world.a, world.b):
        first, *_, last = side.of(SelectedPairChanged)
        assert (first.nominated, last.nominated) == (False, True)
        assert first.reason == "the first valid pair" and last.reason == "it was nominated"
    for side in (world.a, world.b):
        other = world.other(side)
        sends_from = side.when(SelectedPairChanged)
        assert other.when(RemoteAuthenticated) <= sends_from


def test_nomination_is_regular() -> None:
    """pion/ice#28: aggressive nomination left the two sides on different pairs. RFC 8445, section 8.1.1."""
    world = behind_nats()
    world.connect(10)
    nominating = {p.message.transaction_id for p in world.packets if p.message.get(USE_CANDIDATE)}
    assert len(nominating) == 1
    assert not any(p.message.get(USE_CANDIDATE) for p in world.packets if p.sender == "b")


# -------------------------------------------------------------------------------------------------------------- trickle


def test_candidates_are_checked_as_they_come() -> None:
    """aiortc/aioice#4: connect while gathering goes on. RFC 8838."""
    world = World()
    world.a.host("192.168.0.1")
    world.b.host("10.9.9.9")
    world.run(3)
    assert world.a.agent.state is AgentState.CHECKING
    world.b.host("192.168.0.2")
    world.run(1)
    assert world.a.agent.state is AgentState.COMPLETED
    assert not world.a.of(LocalCandidatesEnded)


def test_candidates_may_come_before_the_description_twice_and_in_any_order() -> None:
    world = World(signal=False)
    for side in (world.a, world.b):
        side.trickle = False
    world.a.host("192.168.0.1")
    world.b.host("192.168.0.2")
    for side in (world.a, world.b):
        for event in world.other(side).of(LocalCandidateAdded) * 2:
            side.agent.add_remote(event.candidate, now=world.now)
    assert world.a.agent.pairs() == []
    world.describe(world.b)
    world.later(400 * MILLISECOND, lambda: world.describe(world.a))
    assert world.connect(10)
    assert len(world.a.agent.pairs()) == 1
    assert world.elapsed() < 1.0


def test_a_candidate_of_another_generation_is_not_used() -> None:
    world = World()
    world.a.host("192.168.0.1")
    world.run(1)
    candidate = Candidate.parse("candidate:1 1 udp 1 192.168.0.7 5000 typ host ufrag other")
    world.a.agent.add_remote(candidate, now=world.now)
    assert world.a.agent.pairs() == []
    world.a.agent.add_remote(replace(candidate, extensions=()), now=world.now)
    assert len(world.a.agent.pairs()) == 1


def test_signaled_candidates_carry_their_generation() -> None:
    world = plain()
    [event] = world.a.of(LocalCandidateAdded)
    assert event.candidate.extensions == (("ufrag", world.a.agent.local_description.ufrag),)
    assert [ended.generation for ended in world.a.of(LocalCandidatesEnded)] == [0]


def test_a_base_that_is_not_advertised_is_used_all_the_same() -> None:
    world = World()
    world.a.host("192.168.0.1", advertise=False)
    world.b.host("192.168.0.2")
    assert world.connect(5)
    assert not world.a.of(LocalCandidateAdded)
    assert "prflx 192.168.0.1:5000" in world.b.path


def test_redundant_candidates_are_not_signaled() -> None:
    world = World()
    flow = world.a.host("192.0.2.1")
    world.a.reflexive(flow)
    assert [str(event.candidate.address) for event in world.a.of(LocalCandidateAdded)] == ["192.0.2.1:5000"]


def test_a_check_that_met_a_closed_filter_is_repeated_when_the_other_sides_check_arrives() -> None:
    """RFC 8445, section 7.3.1.4: not only when its retransmission is due, half a second later."""
    world = behind_nats(signaling=0, delay=20 * MILLISECOND, signal=False)
    world.describe(world.b)
    world.later(100 * MILLISECOND, lambda: world.b.agent.set_remote(world.a.agent.local_description, now=world.now))
    assert world.connect(5)
    assert [why for _, why in world.dropped].count("filtered") >= 1
    assert world.elapsed() < 0.35


# -------------------------------------------------------------------------------------------- streams, components, lite


def test_several_streams_and_components_connect_each() -> None:
    components = (2, 1)
    world = World(
        a=IceConfig(controlling=True, components=components), b=IceConfig(controlling=False, components=components)
    )
    port = 5000
    for stream, count in enumerate(components):
        for component in range(1, count + 1):
            port += 1
            world.a.host("192.168.0.1", port, stream=stream, component=component)
            world.b.host("192.168.0.2", port, stream=stream, component=component)
    world.a.end()
    world.b.end()
    assert world.connect(10)
    for stream, count in enumerate(components):
        for component in range(1, count + 1):
            selected = world.a.agent.selected(stream, component)
            assert selected is not None and selected.nominated
    assert len(world.a.agent.pairs()) == 3


def test_one_component_that_fails_fails_the_agent_and_is_named() -> None:
    world = World(
        a=IceConfig(controlling=True, components=(2,)), b=IceConfig(controlling=False, components=(2,))
    )  # fmt: skip
    world.blocked = lambda packet: 5002 in (packet.source.port, packet.destination.port)
    for side, host in ((world.a, "192.168.0.1"), (world.b, "192.168.0.2")):
        side.host(host, 5001)
        side.host(host, 5002, component=2)
        side.end()
    world.run(100)
    assert world.a.agent.state is AgentState.FAILED
    assert world.a.agent.reason == "stream 0 component 2: its only pair failed"


def test_a_lite_agent_answers_and_is_nominated_to() -> None:
    """RFC 8445, sections 2.5 and 7.3.2; the full agent controls, whatever its options say (section 6.1.1)."""
    world = plain(a=IceConfig(controlling=False, lite=True), b=IceConfig(controlling=False))
    assert world.connect(10)
    assert world.b.agent.controlling
    assert world.same_path()
    assert not [p for p in world.packets if p.sender == "a" and p.message.cls is Class.REQUEST]


# ---------------------------------------------------------------------------------------------------------------- usage


def test_a_closed_agent_does_nothing_and_says_so() -> None:
    world = plain()
    world.connect(5)
    world.a.agent.close(now=world.now)
    world.a.agent.close(now=world.now)
    world.drain()
    sent = len(world.packets)
    assert world.a.agent.next_timer() is None
    assert world.a.accepted == {}
    world.run(100)
    assert not [packet for packet in world.packets[sent:] if packet.sender == "a"]
    assert states(world.a)[-1] is AgentState.CLOSED
    with pytest.raises(UsageError, match="this agent is closed; make a new one"):
        world.a.agent.restart(now=world.now)


def test_wrong_options_and_calls_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="ufrag and password together"):
        IceConfig(ufrag="abcd")
    with pytest.raises(ConfigurationError, match="at most 32 characters"):  # RFC 8839, section 5.4
        IceConfig(ufrag="a" * 33, password="a" * 22)
    with pytest.raises(ConfigurationError, match="components"):
        IceConfig(components=())
    world = World()
    with pytest.raises(UsageError, match="no stream 3"):
        world.a.agent.add_local(
            Gathered(type=CandidateType.HOST, address=Address("192.0.2.1", 1), flow=Flow(1), stream=3), now=world.now
        )


def test_why_has_every_transition_with_its_reason() -> None:
    world = behind_nats()
    world.connect(10)
    report = world.a.agent.why()
    assert report.data["state"] == "completed"
    [selected] = [pair for pair in report.data["pairs"] if pair["selected"]]
    assert [step["new"] for step in selected["transitions"]][-1] == "succeeded"
    assert selected["rtt"] == pytest.approx(0.040)
    text = flat(report)
    assert "completed: every component has a nominated pair (controlling, generation 0)" in text
    assert "srflx 198.51.100.1:40001 -> srflx 198.51.100.2:40001" in text
    assert world.a.agent.local_description.password not in text


def test_one_pair_has_a_report_also_after_a_restart() -> None:
    world = plain()
    world.connect(5)
    world.run(2)
    view = world.a.agent.selected()
    assert view is not None
    story = world.a.agent.why_pair(view.id)
    assert story is not None
    assert story.data in world.a.agent.why().data["pairs"]
    assert str(story) in str(world.a.agent.why()) and str(story).startswith(f"pair {view.id}: {view}")
    world.a.agent.restart(now=world.now)
    assert str(world.a.agent.why_pair(view.id)) == str(story), "it carries the data yet"
    world.run(5)
    assert world.a.agent.why_pair(view.id) is None


def test_pairs_are_counted_in_the_terms_of_webrtc_stats() -> None:
    world = plain()
    world.connect(5)
    world.run(61)
    statistics = world.a.agent.stats()
    [stats] = [members for members in statistics.values() if members["type"] == "candidate-pair"]
    assert stats["state"] == "succeeded" and stats["nominated"] and stats["selected"]
    assert stats["requestsSent"] in (2, 3) and 10 <= stats["consentRequestsSent"] <= 16
    assert stats["responsesReceived"] == stats["requestsSent"] + stats["consentRequestsSent"]
    assert stats["currentRoundTripTime"] == 0.04
    assert stats["totalRoundTripTime"] == pytest.approx(0.04 * stats["responsesReceived"])
    assert stats["requestsReceived"] >= 11 and stats["responsesSent"] == stats["requestsReceived"]


def test_candidates_and_transports_are_told_in_the_terms_of_webrtc_stats() -> None:
    """RTCIceCandidateStats, RTCTransportStats; ids lead from the transport to its pair, and from that to both ends."""
    world = plain()
    world.connect(5)
    world.run(2)
    statistics = world.a.agent.stats()
    transport = statistics["transport-0-1"]
    assert (transport["iceRole"], transport["iceState"]) == ("controlling", "completed")
    assert transport["iceLocalUsernameFragment"] == world.a.agent.local_description.ufrag
    pair = statistics[transport["selectedCandidatePairId"]]
    assert pair["transportId"] == "transport-0-1" and pair["selected"]
    local, remote = statistics[pair["localCandidateId"]], statistics[pair["remoteCandidateId"]]
    assert (local["type"], remote["type"]) == ("local-candidate", "remote-candidate")
    view = world.a.agent.selected()
    assert view is not None
    for members, candidate, ufrag in (
        (local, view.local, world.a.agent.local_description.ufrag),
        (remote, view.remote, world.b.agent.local_description.ufrag),
    ):
        assert (members["address"], members["port"]) == candidate.address[:2]
        assert (members["protocol"], members["candidateType"]) == ("udp", candidate.type.value)
        assert (members["priority"], members["foundation"]) == (candidate.priority, candidate.foundation)
        assert members["usernameFragment"] == ufrag
        assert members.get("relatedPort") == (candidate.related.port if candidate.related else None)


def test_after_a_restart_the_statistics_have_the_old_pair_for_as_long_as_it_carries_data() -> None:
    world = plain()
    world.connect(5)
    world.run(2)
    old = world.a.agent.stats()["transport-0-1"]["selectedCandidatePairId"]
    world.a.agent.restart(now=world.now)
    statistics = world.a.agent.stats()
    assert statistics["transport-0-1"]["selectedCandidatePairId"] == old and statistics[old]["selected"]
    assert statistics["transport-0-1"]["iceLocalUsernameFragment"] == world.a.agent.local_description.ufrag


def test_the_timer_is_pure_and_ticks_are_safe_at_any_time() -> None:
    world = plain()
    for _ in range(50):
        before = [side.agent.next_timer() for side in (world.a, world.b)]
        assert before == [side.agent.next_timer() for side in (world.a, world.b)]
        for side in (world.a, world.b):
            side.agent.tick(now=world.now)
            side.agent.tick(now=world.now)
        world.run(0.01)
    assert world.a.agent.state is AgentState.COMPLETED


def test_answers_come_from_where_the_check_went_or_fail_the_pair() -> None:
    """RFC 8445, section 7.2.5.2.1: a path that is not symmetric is not used."""
    world = plain()

    def elsewhere(packet: Packet) -> bool:
        if packet.sender == "b" and packet.message.cls is Class.SUCCESS:
            moved = Packet(packet.at, packet.source.with_port(7777), packet.destination, packet.data, "b")
            world.later(world.delay, lambda: world.arrive(moved))
            return True
        return packet.sender == "b"

    world.blocked = elsewhere
    world.run(1)
    [view] = world.a.agent.pairs()
    assert view.state is PairState.FAILED
    assert view.reason == "it was answered from 192.168.0.2:7777"
    world.blocked = lambda packet: packet.sender == "b" and packet.message.cls is not Class.REQUEST
    sent = len([packet for packet in world.packets if packet.sender == "a" and packet.message.cls is Class.REQUEST])
    world.run(10)
    assert world.a.agent.counters["checks received"] >= 2
    assert world.a.agent.pairs()[0].state is PairState.FAILED  # nor do checks that come by it revive it
    assert len([p for p in world.packets if p.sender == "a" and p.message.cls is Class.REQUEST]) == sent


def test_a_spoofed_answer_without_integrity_is_dropped_and_the_check_goes_on() -> None:
    """security.md, 12."""
    world = plain()

    def spoofing(packet: Packet) -> bool:
        if packet.sender == "a" and packet.message.cls is Class.REQUEST:
            from polynya.stun.attributes import XOR_MAPPED_ADDRESS
            from polynya.stun.message import Message

            answer = Message.success(packet.message, {XOR_MAPPED_ADDRESS: Address("6.6.6.6", 6)}).encode(
                fingerprint=True
            )
            world.later(1, lambda: world.arrive(Packet(world.now, packet.destination, packet.source, answer, "b")))
        return False

    world.blocked = spoofing
    assert world.connect(5)
    assert "6.6.6.6" not in flat(world.a.agent.why())
    assert world.a.agent.counters["messages dropped"] >= 1


def test_close_to_the_limit_of_signaled_candidates_nothing_breaks() -> None:
    world = World()
    world.a.host("192.168.0.1")
    world.run(1)
    for number in range(1000):
        host = f"192.168.{1 + number // 250}.{1 + number % 250}"
        world.a.agent.add_remote(
            Candidate(foundation=str(number), component=1, priority=number + 1, address=Address(host, 5000),
                      type=CandidateType.HOST), now=world.now,
        )  # fmt: skip
    assert len(world.a.agent.pairs()) == 100
    assert world.run(2) and world.now > world.started + SECOND


def test_ignored_lines_of_the_remote_description_are_in_the_report() -> None:
    world = plain()
    odd = replace(world.b.agent.local_description, ignored=("line 7: ice-pacing 'fast' is not a number",))
    world.a.agent.set_remote(odd, now=world.now)
    report = world.a.agent.why()
    assert report.data["ignored_lines"] == list(odd.ignored)
    assert "ignored in the remote description, line 7: ice-pacing 'fast'" in flat(report)
    assert report.data["counters"]["remote lines ignored"] == 1


# ----------------------------------------------------------------------------------------------------- its own signals


def test_an_agent_refuses_its_own_description_and_candidates() -> None:
    world = plain()
    agent = world.a.agent
    own = agent.local_description
    (candidate,) = [event.candidate for event in world.a.of(LocalCandidateAdded)]
    with pytest.raises(UsageError, match=f"ufrag {own.ufrag} is this agent's own: pass the signals"):
        agent.set_remote(replace(own, options=(), pacing=None, generation=3), now=world.now)
    with pytest.raises(UsageError, match=r"the candidate host 192\.168\.0\.1:5000 is this agent's own"):
        agent.add_remote(candidate, now=world.now)
    assert agent.remote_description is None and agent.remote_candidates() == []
    assert "ignored" in flat(agent.why()) and "is this agent's own" in flat(agent.why())
    assert world.connect(5) and world.same_path()


def test_own_signals_of_earlier_generations_are_refused_too() -> None:
    world = plain()
    assert world.connect(5)
    agent = world.a.agent
    own = [agent.local_description]
    candidates = [event.candidate for event in world.a.of(LocalCandidateAdded)]
    for _ in range(2):
        own.append(agent.restart(now=world.now))
        assert world.run(5, until=lambda: agent.state is AgentState.COMPLETED)
        candidates = [event.candidate for event in world.a.of(LocalCandidateAdded)]
    assert len(candidates) == 3
    for description in own:
        with pytest.raises(UsageError, match="is this agent's own"):
            agent.set_remote(description, now=world.now)
    for candidate in candidates:
        with pytest.raises(UsageError, match="is this agent's own"):
            agent.add_remote(candidate, now=world.now)
    assert agent.state is AgentState.COMPLETED and world.same_path()


def test_a_peer_with_our_ufrag_but_another_password_is_no_echo() -> None:
    world = World(
        a=IceConfig(ufrag="same", password="a" * 22, controlling=True),
        b=IceConfig(ufrag="same", password="b" * 22, controlling=False),
    )
    for side, n in ((world.a, 1), (world.b, 2)):
        side.host(f"192.168.0.{n}")
        side.end()
    assert world.connect(5) and world.same_path()


def test_configured_credentials_that_both_sides_share_do_not_let_an_agent_connect_to_itself() -> None:
    """Equal credentials are usual in libp2p's WebRTC Direct: only candidates and tie-breakers tell both sides apart."""
    shared = {"ufrag": "same", "password": "a" * 22}
    world = World(a=IceConfig(**shared, controlling=True), signal=False)
    agent = world.a.agent
    world.a.host("192.168.0.1")
    world.a.end()
    world.drain()
    (candidate,) = [event.candidate for event in world.a.of(LocalCandidateAdded)]
    with pytest.raises(UsageError, match="is this agent's own"):
        agent.refuse_own(agent.local_description, [candidate], now=world.now)
    agent.set_remote(agent.local_description, now=world.now)
    with pytest.raises(UsageError, match="is this agent's own"):
        agent.add_remote(candidate, now=world.now)
    agent.add_remote(replace(candidate, extensions=()), now=world.now)
    agent.end_of_remote_candidates(now=world.now)
    world.echoes = True
    assert world.run(60, until=lambda: agent.state is AgentState.FAILED)
    assert "our own check came back" in flat(agent.why())


def test_two_agents_with_the_same_configured_credentials_connect() -> None:
    shared = {"ufrag": "same", "password": "a" * 22}
    world = plain(a=IceConfig(**shared, controlling=True), b=IceConfig(**shared, controlling=False))
    assert world.connect(5) and world.same_path()


# ------------------------------------------------------------------------------------------------------------- relays


def test_a_path_through_our_relay_is_relayed_whatever_the_other_side_sees() -> None:
    """The TURN server is behind a NAT, so that its relayed address is not the one that the other side sees."""
    world = World(nat_a=Nat("198.51.100.1", filtering=False))
    world.a.relay("10.1.0.9", 49152)
    world.b.host("203.0.113.2")
    world.a.end()
    world.b.end()
    assert world.connect(10)
    mine, theirs = world.a.agent.selected(), world.b.agent.selected()
    assert mine is not None and theirs is not None
    assert mine.local.type is CandidateType.PEER_REFLEXIVE and mine.relayed
    assert [pair.relayed for pair in world.a.agent.pairs() if pair.selected] == [True]
    assert not theirs.relayed, "it cannot know"


def test_a_path_between_hosts_and_mappings_is_not_relayed() -> None:
    world = World(nat_a=Nat("198.51.100.1", symmetric=True))
    world.a.host("10.1.0.2")
    world.a.relay("203.0.113.9", 49152)
    world.b.host("203.0.113.2")
    world.a.end()
    world.b.end()
    assert world.connect(10)
    pairs = world.a.agent.pairs()
    assert {pair.relayed for pair in pairs} == {True, False}
    for pair in pairs:
        assert pair.relayed is (pair.base.host == "203.0.113.9")
    selected = world.a.agent.selected()
    assert selected is not None and not selected.relayed and selected.local.type is CandidateType.PEER_REFLEXIVE
