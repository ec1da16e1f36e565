"""The list of STUN and TURN servers that signaling sends to each client, with time-limited credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from hmac import digest
from time import time
from typing import Final

from polynya.core.addresses import Address
from polynya.core.errors import DecodeError
from polynya.signaling.messages import IceServer
from polynya.stun.budget import source_of
from polynya.turn.server.users import time_limited_password

from .config import TlsFiles, TurnOptions
from .reach import hosts_for, is_literal, uri

_OWNER_BYTES: Final = 9


class Offers:
    """Makes the server list for each client from the listeners of this process.

    The list has TURN servers once `take` has set a shared secret. `unix_time` is the time of day, for the expiry of
    credentials.
    """

    def __init__(
        self,
        stun: Sequence[Address] = (),
        turn: Sequence[Address] = (),
        tls: Sequence[Address] = (),
        *,
        unix_time: Callable[[], float] = time,
    ) -> None:
        self.turn_is_offered = True
        self._secret = ""
        self._lifetime = 0
        self._tls_name = ""
        self._stun = tuple(stun)
        self._turn = tuple(turn)
        self._tls = tuple(tls)
        self._unix_time = unix_time

    def take(self, options: TurnOptions, tls: TlsFiles | None) -> None:
        """Use these options for all later lists."""
        self._secret = options.shared_secrets[0] if options.shared_secrets else ""
        self._lifetime = options.credential_lifetime
        self._tls_name = tls.server_name if tls is not None else ""

    def servers(self, reached: str | None, local: str, remote: str) -> tuple[IceServer, ...]:
        """Return the list for a client at `remote`.

        `reached` is the host in the client's HTTP request and `local` the address at which that request arrived.
        """
        offered = []
        stun = tuple(dict.fromkeys(uri("stun", each) for each in hosts_for(self._stun, reached, local, remote)))
        if stun:
            offered.append(IceServer(uris=stun))
        if self._secret and self.turn_is_offered:
            relays = tuple(dict.fromkeys(self._turn_uris(reached, local, remote)))
            if relays:
                name, password = self._credentials(remote)
                offered.append(IceServer(uris=relays, username=name, credential=password, lifetime=self._lifetime))
        return tuple(offered)

    def _turn_uris(self, reached: str | None, local: str, remote: str) -> Iterator[str]:
        for each in hosts_for(self._turn, reached, local, remote):
            yield uri("turn", each) + "?transport=udp"
        for each in hosts_for(self._turn, reached, local, remote):
            yield uri("turn", each) + "?transport=tcp"
        name = self._tls_name or reached
        if name is None or is_literal(name):
            return  # the client would refuse the certificate, which is for a name
        for _, port in hosts_for(self._tls, reached, local, remote):
            yield uri("turns", (name, port)) + "?transport=tcp"

    def _credentials(self, remote: str) -> tuple[str, str]:
        """Return user name and password of a client. The user is the same at each request, and so has one quota."""
        secret = self._secret.encode()
        try:
            source = source_of(remote)
        except DecodeError:
            source = remote  # not an IP address: a Unix socket, for example
        owner = digest(secret, f"client {source}".encode(), sha256)[:_OWNER_BYTES].hex()
        name = f"{int(self._unix_time()) + self._lifetime}:{owner}"
        return name, time_limited_password(name, secret)
