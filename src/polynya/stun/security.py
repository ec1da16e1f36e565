"""What protects the long-term credential mechanism from being bid down (RFC 8489, sections 9.2, 9.2.1 and 18.1).

A server that speaks RFC 8489 begins its nonces with a cookie and four base64 characters of 24 feature bits. A client
that sees a feature announced there, but not the attribute that comes with it, knows that somebody took it out.

Bit 0 is the *least* significant one: the RFC's text had it the other way round, erratum 6290 (verified) corrects it,
and the nonce of appendix B.1 and libjuice agree with the erratum.
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
    """The features a nonce can announce. Bits that are not known are kept as they are."""

    NONE = 0
    PASSWORD_ALGORITHMS = 1 << 0
    USERNAME_ANONYMITY = 1 << 1


def nonce_with_features(features: SecurityFeature, rest: bytes) -> bytes:
    """A nonce: cookie, features, and `rest`, which makes it one that nobody else can make."""
    return NONCE_COOKIE + base64.b64encode(int(features).to_bytes(3, "big")) + rest


def features_of(nonce: bytes) -> SecurityFeature | None:
    """The features that a nonce announces, or None when it has no cookie: then its server is of RFC 5389."""
    if not nonce.startswith(NONCE_COOKIE):
        return None
    try:
        bits = base64.b64decode(nonce[len(NONCE_COOKIE) : _FEATURES_END], validate=True)
    except (binascii.Error, ValueError):
        return None
    return SecurityFeature(int.from_bytes(bits, "big")) if len(bits) == 3 else None


def bid_down(nonce: bytes, algorithms: tuple[PasswordAlgorithm, ...] | None) -> bool:
    """Whether PASSWORD-ALGORITHMS was taken out of a challenge: then the client must not answer it (9.2.5.1)."""
    features = features_of(nonce)
    return features is not None and bool(features & SecurityFeature.PASSWORD_ALGORITHMS) and not algorithms


def choose_algorithm(offered: tuple[PasswordAlgorithm, ...]) -> PasswordAlgorithm | None:
    """The first that we know in the server's order of preference (9.2.5.1); None when we know none."""
    known = (PasswordAlgorithmNumber.MD5, PasswordAlgorithmNumber.SHA256)
    return next((algorithm for algorithm in offered if algorithm.number in known and not algorithm.parameters), None)
