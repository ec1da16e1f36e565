"""Stateless nonces (RFC 8489, section 9.2; security.md, line 4).

    obMatJos2 | 4 characters of features | base64 of 2 bytes of time and 6 bytes of MAC, without padding

The MAC covers the full time, the features and the client's address. So a nonce is valid for one client and for its
lifetime only, and a client that returns it has proven that it receives packets at its address.

The nonce is short because unauthenticated clients get it, and their source may be forged. An attacker must guess 48
bits within the lifetime, with one request for each guess, and then still has no password.

The MAC is keyed BLAKE2 (RFC 7693), which costs a third of HMAC; it is computed for every request.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from hashlib import blake2s
from hmac import compare_digest
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.stun.security import NONCE_COOKIE, SecurityFeature, nonce_with_features

KEY_BYTES: Final = 32
_TIME: Final = 2
_MAC: Final = 6
_HEAD: Final = len(NONCE_COOKIE) + 4
_TAIL: Final = 11
"""Characters of time and MAC."""
_WRAP: Final = 1 << 8 * _TIME
"""Seconds, more than any lifetime."""


class Nonces:
    """Makes and validates nonces with one key."""

    def __init__(self, key: bytes, features: SecurityFeature, lifetime: int) -> None:
        self._lifetime = lifetime // SECOND
        self._head = nonce_with_features(features, b"")
        self._mac = blake2s(self._head, key=key, digest_size=_MAC)

    def make(self, client: Address, *, now: Instant) -> bytes:
        """Make a nonce for this client, valid from now on."""
        return self._made(client, now // SECOND)

    def valid(self, nonce: bytes, client: Address, *, now: Instant) -> bool:
        """Whether this server made the nonce for this client within its lifetime."""
        if len(nonce) != _HEAD + _TAIL:
            return False
        try:
            time = int.from_bytes(a2b_base64(nonce[_HEAD:] + b"=", strict_mode=True)[:_TIME], "big")
        except ValueError:
            return False
        age = (now // SECOND - time) % _WRAP
        return age < self._lifetime and compare_digest(nonce, self._made(client, now // SECOND - age))

    def _made(self, client: Address, seconds: int) -> bytes:
        mac = self._mac.copy()
        mac.update(f"{seconds} {client.host} {client.port} {client.zone}".encode())
        tail = (seconds % _WRAP).to_bytes(_TIME, "big") + mac.digest()
        return self._head + b2a_base64(tail, newline=False)[:_TAIL]
