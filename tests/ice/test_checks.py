"""Messages of connectivity checks (RFC 8445, sections 7.1, 7.2.2, 7.2.4, 11 and 16.1)."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.ice import IceConfig, checks
from polynya.ice.candidates import PEER_REFLEXIVE, candidate_priority
from polynya.ice.checks import keepalive
from polynya.stun.attributes import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
)
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, Received, decode
from polynya.stun.registry import Class, Method
from tests.ice.harness import World, behind_nats, plain


def requests(world: World, sender: str) -> list[Message]:
    return [
        packet.message for packet in world.packets if packet.sender == sender and packet.message.cls is Class.REQUEST
    ]


@pytest.mark.parametrize("sender", ["a", "b"])
def test_a_request_says_what_the_rfc_asks_for_and_no_more(sender: str) -> None:
    """Sections 7.1.1, 7.1.3, 7.2.2 and 7.2.4: short-term credentials, PRIORITY of a peer-reflexive one, a role."""
    world = plain()
    assert world.connect(5)
    side, other = (world.a, world.b) if sender == "a" else (world.b, world.a)
    ours, theirs = side.agent.local_description, other.agent.local_description
    [local] = side.agent.local_candidates()
    request = requests(world, sender)[0]
    assert request[USERNAME] == f"{theirs.ufrag}:{ours.ufrag}"
    assert request.verify(IntegrityKey.short_term(theirs.password))
    assert request[PRIORITY] == candidate_priority(PEER_REFLEXIVE, local.preference, 1)
    assert request.has_fingerprint
    role = ICE_CONTROLLING if sender == "a" else ICE_CONTROLLED
    assert set(request.attributes) == {USERNAME, PRIORITY, role}


@pytest.mark.parametrize("seed", range(6))
def test_only_a_controlling_agent_says_use_candidate(seed: int) -> None:
    """Section 7.1.2, whatever becomes of the roles meanwhile."""
    world = behind_nats(seed, a=IceConfig(controlling=True), b=IceConfig(controlling=True))
    assert world.connect(10)
    world.a.agent.restart(now=world.now)
    world.run(20)
    for sender in ("a", "b"):
        assert all(ICE_CONTROLLING in request for request in requests(world, sender) if USE_CANDIDATE in request)
    assert any(USE_CANDIDATE in request for sender in ("a", "b") for request in requests(world, sender))


def test_one_tie_breaker_serves_all_requests_of_all_streams() -> None:
    """Section 16.1: it changes after a 487 only (`test_roles`)."""
    config = IceConfig(components=(2, 1))
    world = World(a=config, b=IceConfig(controlling=False, components=(2, 1)))
    for side, host in ((world.a, "192.168.0.1"), (world.b, "192.168.0.2")):
        for stream, component in ((0, 1), (0, 2), (1, 1)):
            side.host(host, 5000 + 10 * stream + component, stream=stream, component=component)
        side.end()
    assert world.connect(10)
    world.run(10)
    assert len({request[ICE_CONTROLLING] for request in requests(world, "a")}) == 1
    assert len({request[ICE_CONTROLLED] for request in requests(world, "b")}) == 1


def test_a_keepalive_is_an_indication_with_a_fingerprint_and_nothing_else() -> None:
    """Section 11: no authentication, and no other attribute."""
    message = decode(keepalive(bytes(12)))
    assert (message.method, message.cls) == (Method.BINDING, Class.INDICATION)
    assert message.has_fingerprint and not message.has_integrity
    assert list(message.attributes) == []


@pytest.mark.parametrize("mapped", ["0.0.0.0:0", "192.168.0.7:0", "224.0.0.1:5000", "[::1]:5000", "[2001:db8::7]:5000"])
def test_an_answer_with_an_impossible_mapped_address_makes_no_candidate(
    mapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 7.2.5.3.1: the check has succeeded, on a path that works."""

    def accept(received: Received, credentials: checks.Credentials) -> bytes:
        answer = Message.success(received.message, {XOR_MAPPED_ADDRESS: Address.parse(mapped)})
        return answer.encode(integrity=credentials.local_key, fingerprint=True)

    monkeypatch.setattr(checks, "accept", accept)
    world = plain()
    assert world.connect(5)
    assert [str(each.address) for each in world.a.agent.local_candidates()] == ["192.168.0.1:5000"]
    assert mapped not in world.a.path and "192.168.0.1:5000" in world.a.path
    assert world.a.agent.counters["impossible mapped addresses"]
