"""Nonces that the server need not remember (RFC 8489, section 9.2; security.md, line 4).

    obMatJos2 | 4 characters of features | base64 of 2 bytes of time and 6 bytes of MAC, without padding

The MAC covers the whole time, the features and the client's address, so a nonce is good for whom it was made and no
longer than its lifetime: who answers with it has proven that it receives what is sent to that address. It is as short
as that allows, for strangers are sent it: 48 bits are to be guessed within the lifetime, one request for each guess, by
somebody who then still has no password.

The MAC is keyed BLAKE2 (RFC 7693), a MAC by itself at a third of what HMAC costs; and every request is checked.
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
    """Makes and checks nonces with one key."""

    def __init__(self, key: bytes, features: SecurityFeature, lifetime: int) -> None:
        self._lifetime = lifetime // SECOND
        self._head = nonce_with_features(features, b"")
        self._mac = blake2s(self._head, key=key, digest_size=_MAC)

    def make(self, client: Address, *, now: Instant) -> bytes:
        """A nonce for this client, from now on."""
        return self._made(client, now // SECOND)

    def valid(self, nonce: bytes, client: Address, *, now: Instant) -> bool:
        """Whether we made this nonce for this client, not too long ago."""
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
        said = (seconds % _WRAP).to_bytes(_TIME, "big") + mac.digest()
        return self._head + b2a_base64(said, newline=False)[:_TAIL]
