"""RFC 8489, section 9.2: nonces that say what their server can, and what is made of a challenge."""

import pytest

from polynya.stun.attributes import PasswordAlgorithm
from polynya.stun.registry import PasswordAlgorithmNumber
from polynya.stun.security import SecurityFeature, bid_down, choose_algorithm, features_of, nonce_with_features
from tests.vectors import rfc5769, rfc8489

MD5, SHA256 = (PasswordAlgorithm(number) for number in PasswordAlgorithmNumber)
BOTH = SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERNAME_ANONYMITY


def test_the_nonce_of_appendix_b_announces_username_anonymity() -> None:
    """With bit 0 the least significant one, as erratum 6290 has it."""
    assert features_of(rfc8489.NONCE) is SecurityFeature.USERNAME_ANONYMITY


@pytest.mark.parametrize("features", [SecurityFeature.NONE, SecurityFeature.PASSWORD_ALGORITHMS, BOTH])
def test_features_are_read_as_they_were_announced(features: SecurityFeature) -> None:
    nonce = nonce_with_features(features, b"rest")
    assert len(nonce) == 9 + 4 + 4
    assert features_of(nonce) == features


def test_features_that_are_not_known_are_kept() -> None:
    assert features_of(b"obMatJos2" + b"gAAB") == 0x800001


@pytest.mark.parametrize("nonce", [rfc5769.LONG_TERM_NONCE, b"", b"obMatJos2", b"obMatJos2AA", b"obMatJos2A?\xff="])
def test_a_nonce_without_cookie_is_one_of_rfc_5389(nonce: bytes) -> None:
    assert features_of(nonce) is None


def test_a_challenge_that_lost_its_algorithms_was_tampered_with() -> None:
    announced = nonce_with_features(SecurityFeature.PASSWORD_ALGORITHMS, b"x")
    assert bid_down(announced, None)
    assert bid_down(announced, ())
    assert not bid_down(announced, (SHA256,))
    assert not bid_down(nonce_with_features(SecurityFeature.USERNAME_ANONYMITY, b"x"), None)
    assert not bid_down(b"old", None)


def test_the_first_known_algorithm_is_chosen() -> None:
    assert choose_algorithm((PasswordAlgorithm(9), SHA256, MD5)) == SHA256
    assert choose_algorithm((MD5, SHA256)) == MD5
    assert choose_algorithm((PasswordAlgorithm(2, b"parameter"), PasswordAlgorithm(77))) is None
