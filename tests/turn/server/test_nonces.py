"""RFC 8489, section 9.2: stateless nonces."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.stun.security import SecurityFeature, features_of
from polynya.turn.server.nonces import Nonces

KEY = bytes(32)
CLIENT = Address("198.51.100.1", 4000)
START = Instant(123_456 * SECOND)


def nonces(lifetime: int = 600) -> Nonces:
    return Nonces(KEY, SecurityFeature.PASSWORD_ALGORITHMS, lifetime * SECOND)


def test_a_nonce_is_short_and_printable_and_has_the_features() -> None:
    """At most 127 characters of a quoted string; it has 24, so that unauthenticated responses are short."""
    made = nonces().make(CLIENT, now=START)
    assert len(made) == 24 and made.isascii() and not set(made) & set(b'"\\')
    assert features_of(made) == SecurityFeature.PASSWORD_ALGORITHMS


@pytest.mark.parametrize("age", [0, 1, 599])
def test_a_nonce_is_valid_for_its_lifetime(age: int) -> None:
    one = nonces()
    assert one.valid(one.make(CLIENT, now=START), CLIENT, now=Instant(START + age * SECOND))


@pytest.mark.parametrize("age", [600, 601, 65_535, 65_536, 65_537, 65_536 * 3, 2**24, 2**32])
def test_an_expired_nonce_stays_invalid_when_its_two_bytes_of_time_wrap(age: int) -> None:
    one = nonces()
    assert not one.valid(one.make(CLIENT, now=START), CLIENT, now=Instant(START + age * SECOND))


def test_a_nonce_from_the_future_is_invalid() -> None:
    one = nonces()
    assert not one.valid(one.make(CLIENT, now=Instant(START + 5 * SECOND)), CLIENT, now=START)


@pytest.mark.parametrize("other", [CLIENT.with_port(4001), Address("198.51.100.2", 4000), Address("2001:db8::1", 4000)])
def test_a_nonce_is_valid_for_its_client_only(other: Address) -> None:
    one = nonces()
    assert not one.valid(one.make(CLIENT, now=START), other, now=START)


def test_another_key_or_other_features_make_another_nonce() -> None:
    made = nonces().make(CLIENT, now=START)
    assert not Nonces(b"k" * 32, SecurityFeature.PASSWORD_ALGORITHMS, 600 * SECOND).valid(made, CLIENT, now=START)
    assert not Nonces(KEY, SecurityFeature.NONE, 600 * SECOND).valid(made, CLIENT, now=START)


def test_a_nonce_with_a_changed_character_is_invalid() -> None:
    """Base64 has several encodings of the same eight bytes; only one of them is valid."""
    one = nonces()
    made = one.make(CLIENT, now=START)
    for position in range(len(made)):
        for byte in range(256):
            changed = made[:position] + bytes((byte,)) + made[position + 1 :]
            assert one.valid(changed, CLIENT, now=START) == (changed == made)
    for odd in (b"", made[:-1], made + b"=", made + b"A", made[:-1] + b"=", made * 2):
        assert not one.valid(odd, CLIENT, now=START)
