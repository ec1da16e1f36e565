"""The list of STUN and TURN servers that signaling sends to each client, with time-limited credentials.

Credentials are for clients with a room token. Without room tokens any visitor would get them: then there are none,
unless the operator has opened TURN or its listeners are all on loopback. Credentials of open TURN last for an hour, and
their user names begin with `OPEN`, by which the TURN server limits their traffic.
"""

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
from polynya.turn.server.users import OPEN, time_limited_password

from .config import TlsFiles, TurnOptions
from .reach import hosts_for, is_literal, is_loopback, uri

_OWNER_BYTES: Final = 9
OPEN_LIFETIME: Final = 3600
"""Seconds until credentials expire that any visitor can get."""

NO_TURN: Final = "this server has no TURN; its operator can start it with --shared-secret"
NOT_ISSUED: Final = "this server makes no TURN credentials; its operator can start it with --shared-secret"
NOT_OPEN: Final = "this server gives TURN credentials only with --room-token or --open-turn, which its operator can set"
DRAINING: Final = "this server is stopping and gives no TURN credentials"


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
        self.open = False
        """Whether any visitor gets credentials."""
        self._guarded = False
        self._enabled = False
        self._secret = ""
        self._lifetime = 0
        self._tls_name = ""
        self._stun = tuple(stun)
        self._turn = tuple(turn)
        self._tls = tuple(tls)
        self._unix_time = unix_time

    def take(
        self, options: TurnOptions, tls: TlsFiles | None, *, room_tokens: Sequence[str] = (), open_turn: bool = False
    ) -> None:
        """Use these options for all later lists."""
        self._enabled = True
        self._guarded = bool(room_tokens)
        local = all(is_loopback(each.host) for each in (*self._turn, *self._tls))
        self.open = not self._guarded and (open_turn or local)
        self._secret = options.shared_secrets[0] if options.shared_secrets else ""
        self._lifetime = min(options.credential_lifetime, OPEN_LIFETIME) if self.open else options.credential_lifetime
        self._tls_name = tls.server_name if tls is not None else ""

    @property
    def no_relay(self) -> str:
        """The reason why no list has a TURN server, for people; empty if they have one."""
        if not self._enabled:
            return NO_TURN
        if not self._secret:
            return NOT_ISSUED
        if not (self._guarded or self.open):
            return NOT_OPEN
        return "" if self.turn_is_offered else DRAINING

    def servers(self, reached: str | None, local: str, remote: str) -> tuple[IceServer, ...]:
        """Return the list for a client at `remote`.

        `reached` is the host in the client's HTTP request and `local` the address at which that request arrived.
        """
        offered = []
        stun = tuple(dict.fromkeys(uri("stun", each) for each in hosts_for(self._stun, reached, local, remote)))
        if stun:
            offered.append(IceServer(uris=stun))
        if not self.no_relay:
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
        if self.open:
            owner = OPEN + owner
        name = f"{int(self._unix_time()) + self._lifetime}:{owner}"
        return name, time_limited_password(name, secret)
