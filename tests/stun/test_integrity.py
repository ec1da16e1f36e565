"""RFC 8489, sections 9.1.1, 9.2.2 and 14.4: keys, and the HMAC made with them."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polynya.core.errors import ConfigurationError
from polynya.stun.integrity import IntegrityKey, long_term_key, userhash
from polynya.stun.registry import PasswordAlgorithmNumber


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_the_hmac_is_the_standard_librarys(key: bytes, data: bytes) -> None:
    made = IntegrityKey(key)
    for _ in range(2):  # a kept state is not used up
        assert made.sha1(data) == hmac.digest(key, data, hashlib.sha1)
        assert made.sha256(data) == hmac.digest(key, data, hashlib.sha256)


def test_rfc_2202_and_4231_vectors() -> None:
    for key, data, sha1 in [
        (b"Jefe", b"what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        (
            b"\xaa" * 80,
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "aa4ae5e15272d00e95705637ce8a3b55ed402112",
        ),
    ]:
        assert IntegrityKey(key).sha1(data).hex() == sha1
    assert IntegrityKey(b"Jefe").sha256(b"what do ya want for nothing?").hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_a_long_term_key_is_a_hash_of_user_realm_and_password() -> None:
    """RFC 8489, section 9.2.2 has this example."""
    assert long_term_key("user", "realm", "pass").hex() == "8493fbc53ba582fb4c044c456bdc40eb"
    assert long_term_key("user", "realm", "pass", PasswordAlgorithmNumber.SHA256) == (
        hashlib.sha256(b"user:realm:pass").digest()
    )
    with pytest.raises(ValueError, match="algorithm 3"):
        long_term_key("user", "realm", "pass", 3)


def test_names_and_passwords_are_prepared() -> None:
    assert long_term_key("u\u0065\u0301", "r", "p\u00a0w") == long_term_key("u\u00e9", "r", "p w")
    assert userhash("u\u0065\u0301", "r") == userhash("u\u00e9", "r")
    with pytest.raises(ConfigurationError):
        IntegrityKey.short_term("tab\t")


def test_a_key_never_shows_itself_and_compares_by_value() -> None:
    key = IntegrityKey.short_term("hunter2")
    assert "hunter2" not in repr(key)
    assert key == IntegrityKey.short_term("hunter2")
    assert key != IntegrityKey.short_term("hunter3")
    assert hash(key) == hash(IntegrityKey.short_term("hunter2"))
