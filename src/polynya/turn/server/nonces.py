"""Nonces that the server need not remember (RFC 8489, section 9.2; security.md, line 4).

    obMatJos2 | 4 characters of features | base64 of 3 bytes of time and 9 bytes of MAC

The MAC covers the time, the features and the client's address, so a nonce is good for whom it was made and no longer
than its lifetime: who answers with it has proven that it receives what is sent to that address.
"""

from __future__ import annotations

import base64
import binascii
from hmac import compare_digest, digest
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.stun.security import NONCE_COOKIE, SecurityFeature, nonce_with_features

KEY_BYTES: Final = 32
_TIME: Final = 3
_MAC: Final = 9
_HEAD: Final = len(NONCE_COOKIE) + 4
_SIZE: Final = _HEAD + (_TIME + _MAC) * 4 // 3
_WRAP: Final = 1 << 8 * _TIME


class Nonces:
    """Makes and checks nonces with one key."""

    def __init__(self, key: bytes, features: SecurityFeature, lifetime: int) -> None:
        self._key = key
        self._lifetime = lifetime // SECOND
        self._head = nonce_with_features(features, b"")

    def make(self, client: Address, now: Instant) -> bytes:
        """A nonce for this client, from now on."""
        time = (now // SECOND % _WRAP).to_bytes(_TIME, "big")
        return self._head + base64.b64encode(time + self._mac(time, client))

    def valid(self, nonce: bytes, client: Address, now: Instant) -> bool:
        """Whether we made this nonce for this client, not too long ago."""
        if len(nonce) != _SIZE or not nonce.startswith(self._head):
            return False
        try:
            rest = base64.b64decode(nonce[_HEAD:], validate=True)
        except (binascii.Error, ValueError):
            return False
        time = rest[:_TIME]
        if not compare_digest(rest[_TIME:], self._mac(time, client)):
            return False
        return (now // SECOND - int.from_bytes(time, "big")) % _WRAP < self._lifetime

    def _mac(self, time: bytes, client: Address) -> bytes:
        return digest(self._key, time + self._head + str(client).encode(), "sha256")[:_MAC]
