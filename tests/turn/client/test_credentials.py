"""RFC 8489, section 9.2: long-term credentials, as a TURN client meets them."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Transport
from polynya.core.instants import SECOND
from polynya.stun.attributes import NONCE, PASSWORD_ALGORITHM, PASSWORD_ALGORITHMS, REALM, USERHASH, USERNAME
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.stun.security import SecurityFeature, nonce_with_features
from polynya.turn.client import (
    Allocated,
    AllocationFailed,
    ChannelBound,
    Credentials,
    CredentialsNeeded,
    Lost,
    Permitted,
    State,
)
from tests.turn.client.relay import SERVER, USER, Relay, World

PEER = Address("192.0.2.50", 4000)


def test_nothing_is_signed_before_the_server_asks() -> None:
    world = World()
    world.run(1)
    first, second = world.relay.requests[:2]
    assert USERNAME not in first and not first.has_integrity
    assert second[USERNAME] == "alice" and second[REALM] == "example.org" and second.has_integrity


def test_a_server_that_asks_for_nothing_gets_nothing() -> None:
    world = World(Relay(authenticate=False))
    world.run(1)
    assert len(world.relay.requests) == 1 and world.of(Allocated)


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_a_stale_nonce_is_renewed_on_every_request(transport: Transport) -> None:
    world = World(Relay(nonce_lifetime=SECOND), transport=transport)
    world.run(3)
    world.do(world.client.permit, [PEER])
    world.run(3)
    world.do(world.client.bind, PEER)
    world.run(900)
    world.do(world.client.close)
    world.run(1)
    assert world.of(Permitted) and world.of(ChannelBound) and not world.of(Lost)
    stale = {message.method for _, message, error in world.relay.log if error == 438}
    assert stale == {Method.CREATE_PERMISSION, Method.CHANNEL_BIND, Method.REFRESH}
    assert world.relay.allocations == {}  # the last Refresh met a stale nonce, too


def test_a_server_whose_nonces_are_always_stale_is_not_asked_for_ever() -> None:
    world = World(Relay(nonce_lifetime=0))
    world.run(10)
    [failed] = world.of(AllocationFailed)
    assert failed.code == 438 and "its nonces expire at once" in failed.reason and len(world.relay.requests) == 6


def test_a_realm_that_changes_gets_a_key_of_its_own() -> None:
    world = World()
    world.run(1)
    world.relay.realm = "new.example"
    world.do(world.client.permit, [PEER])
    world.run(1)
    assert world.of(Permitted) and world.relay.requests[-1][REALM] == "new.example"
    assert not world.of(CredentialsNeeded)


# ------------------------------------------------------------------------------------------------------------- SHA-256


@pytest.mark.parametrize("anonymity", [False, True])
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_sha_256_is_used_when_it_is_offered(transport: Transport, anonymity: bool) -> None:
    world = World(Relay(sha256=True, anonymity=anonymity), transport=transport)
    world.run(1)
    assert world.of(Allocated)
    request = world.relay.requests[1]
    assert request.has_integrity_sha256 and not request.has_integrity
    assert (USERHASH in request, USERNAME in request) == (anonymity, not anonymity)
    assert request[PASSWORD_ALGORITHMS] == ((2, b""), (1, b""))


def test_sha_256_is_used_whatever_stands_before_it_in_the_offer() -> None:
    """RFC 8656, section 6, where RFC 8489 alone would take the server's first."""
    world = World(Relay(sha256=True, md5_first=True))
    world.run(1)
    assert world.of(Allocated)
    request = world.relay.requests[1]
    assert request[PASSWORD_ALGORITHMS] == ((1, b""), (2, b"")) and request[PASSWORD_ALGORITHM] == (2, b"")
    assert request.has_integrity_sha256 and not request.has_integrity


def test_an_offer_that_was_taken_out_on_the_way_is_not_answered() -> None:
    def trouble(request: Message, source: Address) -> bytes:
        nonce = nonce_with_features(SecurityFeature.PASSWORD_ALGORITHMS, b"x")
        return Message.error(request, 401, None, {REALM: "example.org", NONCE: nonce}).encode()

    world = World(Relay(trouble=trouble))
    world.run(1)
    [failed] = world.of(AllocationFailed)
    assert failed.code == 401 and "bid-down" in failed.reason and len(world.relay.requests) == 1


def test_an_offer_that_was_there_before_cannot_be_taken_back() -> None:
    world = World(Relay(sha256=True))
    world.run(1)

    def trouble(request: Message, source: Address) -> bytes:
        return Message.error(request, 438, None, {REALM: "example.org", NONCE: b"1-1"}).encode()

    world.relay.trouble = trouble
    asked = len(world.relay.requests)
    world.do(world.client.permit, [PEER])
    world.run(30)
    assert len(world.relay.requests) == asked + 1  # not asked again, and nothing signed with less
    assert "bid-down" in str(world.events[-1].reason)


def test_an_answer_signed_with_less_than_was_agreed_is_dropped() -> None:
    world = World(Relay(sha256=True))

    def trouble(request: Message, source: Address) -> bytes | None:
        if not request.has_integrity_sha256:
            return None
        return Message.success(request, {}).encode(integrity=world.relay.key("alice"))

    world.relay.trouble = trouble
    world.run(50)
    [failed] = world.of(AllocationFailed)
    assert (
        "without matching integrity" in failed.reason
        and world.client.counters["responses without matching integrity"] == 7
    )


# -------------------------------------------------------------------------------------------------- who answers really


def test_an_unsigned_answer_does_not_end_a_signed_request() -> None:
    world = World()
    real = world.relay

    def trouble(request: Message, source: Address) -> bytes | None:
        if request.has_integrity and not world.client.counters.get("responses without matching integrity"):
            world.inward(world.client.flow, SERVER, Message.error(request, 486).encode())  # type: ignore[arg-type]
        return None

    real.trouble = trouble
    world.run(1)
    assert world.of(Allocated) and world.client.counters["responses without matching integrity"] == 1


def test_an_answer_signed_with_another_key_is_none() -> None:
    world = World()

    def trouble(request: Message, source: Address) -> bytes | None:
        other = Relay(users={"alice": "guess"}).key("alice")
        return Message.success(request, {}).encode(integrity=other) if request.has_integrity else None

    world.relay.trouble = trouble
    world.run(50)
    assert "did not answer 7 sends; a response without matching integrity said success" in (
        world.of(AllocationFailed)[0].reason
    )


def test_on_a_stream_an_unsigned_answer_fails_the_request_at_once() -> None:
    def trouble(request: Message, source: Address) -> bytes | None:
        return Message.error(request, 486).encode() if request.has_integrity else None

    world = World(Relay(trouble=trouble), transport=Transport.TCP)
    world.run(1)
    [failed] = world.of(AllocationFailed)
    assert failed.code is None and "486" in failed.reason


# ------------------------------------------------------------------------------------------ credentials that come late


def test_a_client_without_credentials_asks_for_them_and_goes_on() -> None:
    world = World(credentials=None)
    world.run(100)
    [needed] = world.of(CredentialsNeeded)
    assert needed.realm == "example.org" and world.client.state is State.ALLOCATING
    world.do(world.client.set_credentials, USER)
    world.run(1)
    assert world.of(Allocated)


def test_credentials_that_are_refused_are_asked_for_once_and_replaced() -> None:
    world = World(credentials=Credentials("alice", "wrong"))
    world.run(100)
    [needed] = world.of(CredentialsNeeded)
    assert "refuses the credentials of 'alice'" in needed.reason and len(world.relay.requests) == 2
    world.do(world.client.set_credentials, Credentials("alice", "wrong again"))
    world.run(1)
    assert len(world.of(CredentialsNeeded)) == 2
    world.do(world.client.set_credentials, USER)
    world.run(1)
    assert world.of(Allocated)


def test_credentials_that_expire_are_renewed_without_losing_the_allocation() -> None:
    world = World(Relay(users={"1:alice": "one"}), credentials=Credentials("1:alice", "one"))
    world.run(1)
    world.do(world.client.permit, [PEER])
    world.run(1)
    world.relay.users = {"1:alice": "expired", "2:alice": "two"}
    for allocation in world.relay.allocations.values():
        allocation.username = "2:alice"  # this server lets the same user on
    world.run(210)
    [needed] = world.of(CredentialsNeeded)
    assert needed.realm == "example.org"
    world.do(world.client.set_credentials, Credentials("2:alice", "two"))
    world.run(900)
    assert not world.of(Lost) and len(world.of(CredentialsNeeded)) == 1 and len(world.of(Permitted)) == 1
    assert world.relay.requests[-1][USERNAME] == "2:alice"


def test_a_server_that_binds_an_allocation_to_its_user_gets_the_earlier_credentials() -> None:
    world = World(Relay(users={"1:alice": "one", "2:alice": "two"}), credentials=Credentials("1:alice", "one"))
    world.run(1)
    world.do(world.client.set_credentials, Credentials("2:alice", "two"))
    world.do(world.client.permit, [PEER])
    world.run(1)
    assert world.of(Permitted) and [error for _, _, error in world.relay.log] == [401, 0, 441, 0]
    world.run(1800)
    assert not world.of(Lost) and [error for _, _, error in world.relay.log].count(441) == 1


def test_an_allocation_whose_credentials_are_never_renewed_ends_at_its_time() -> None:
    world = World()
    world.run(1)
    world.relay.users = {}
    world.run(1200)
    assert len(world.of(CredentialsNeeded)) == 1
    [lost] = world.of(Lost)
    assert "could not be refreshed before its lifetime ended" in lost.reason
    assert "it refuses the credentials of 'alice' (401)" in lost.reason and lost.code == 401


@pytest.mark.parametrize("username", ["", "x" * 509, "a\x00b"])
def test_invalid_credentials_are_refused(username: str) -> None:
    with pytest.raises(ConfigurationError):
        Credentials(username, "password")


def test_a_password_is_never_shown() -> None:
    assert "sesame" not in repr(USER)
    world = World()
    world.run(1)
    assert "sesame" not in str(world.client.why()) and "sesame" not in repr(world.events)


@pytest.mark.parametrize("values", [{}, {REALM: "example.org"}, {NONCE: b"1-1"}, {REALM: "a\x00b", NONCE: b"1-1"}])
def test_a_challenge_that_lacks_something_fails_it(values: dict) -> None:
    world = World(Relay(trouble=lambda request, source: Message.error(request, 401, None, values).encode()))
    world.run(1)
    assert world.of(AllocationFailed)[0].code == 401
