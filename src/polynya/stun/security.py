"""Bid-down protection of long-term credentials (RFC 8489, sections 9.2, 9.2.1 and 18.1).

A server of RFC 8489 begins its nonces with a cookie and four base64 characters of 24 feature bits. If a feature is
announced there but its attribute is missing, an attacker has removed the attribute.

Bit 0 is the *least* significant one. The RFC's text says the opposite; erratum 6290 (verified) corrects it, and the
nonce of appendix B.1 and libjuice agree with the erratum.
"""

from __future__ import annotations

import base64
import binascii
from enum import IntFlag
from typing import Final

from .attributes import PasswordAlgorithm
from .registry import PasswordAlgorithmNumber

NONCE_COOKIE: Final = b"obMatJos2"
_FEATURES_END: Final = len(NONCE_COOKIE) + 4


class SecurityFeature(IntFlag):
    """Features that a nonce announces. Unknown bits are kept."""

    NONE = 0
    PASSWORD_ALGORITHMS = 1 << 0
    USERNAME_ANONYMITY = 1 << 1


def nonce_with_features(features: SecurityFeature, rest: bytes) -> bytes:
    """Return a nonce of the cookie, the features and `rest`, which must be unforgeable."""
    return NONCE_COOKIE + base64.b64encode(int(features).to_bytes(3, "big")) + rest


def features_of(nonce: bytes) -> SecurityFeature | None:
    """Return the features that a nonce announces; None without a cookie, from a server of RFC 5389."""
    if not nonce.startswith(NONCE_COOKIE):
        return None
    try:
        bits = base64.b64decode(nonce[len(NONCE_COOKIE) : _FEATURES_END], validate=True)
    except (binascii.Error, ValueError):
        return None
    return SecurityFeature(int.from_bytes(bits, "big")) if len(bits) == 3 else None


def bid_down(nonce: bytes, algorithms: tuple[PasswordAlgorithm, ...] | None) -> bool:
    """Whether PASSWORD-ALGORITHMS was removed from a challenge, which the client must not answer (9.2.5.1)."""
    features = features_of(nonce)
    return features is not None and bool(features & SecurityFeature.PASSWORD_ALGORITHMS) and not algorithms


def choose_algorithm(offered: tuple[PasswordAlgorithm, ...]) -> PasswordAlgorithm | None:
    """Return the first known algorithm in the server's order of preference (9.2.5.1); None if none is known."""
    known = (PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA256)
    return next((algorithm for algorithm in offered if algorithm.number in known and not algorithm.parameters), None)
