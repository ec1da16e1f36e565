"""New TURN credentials from a signaling server's list, for the `credentials` option of agents in its rooms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from polynya.core.errors import SignalingError
from polynya.stun.uris import TurnUri

from .servers import IceServer
from .signaling import Signaling, fetch_servers

RENEWAL: Final = 30.0
"""Seconds between two requests of a new server list, in case a TURN server refuses the new credentials, too."""


class ListedCredentials:
    """Requests new server lists, at most every RENEWAL seconds. All TURN servers get credentials from the same list.

    `lost` returns whether the signaling server is lost for good; then lists are requested without membership, with the
    room token.
    """

    def __init__(self, signaling: Signaling, *, token: str | None, lost: Callable[[], bool]) -> None:
        self._signaling = signaling
        self._token = token
        self._lost = lost
        self._renewing = asyncio.Lock()
        self._listed: tuple[IceServer, ...] = ()
        self._listed_at: float | None = None
        """The loop time at which the newest list was requested."""
        self._renewals: dict[str, float | None] = {}
        """By URI of a TURN server: `_listed_at` of the list with its newest credentials."""

    async def new(self, uri: str, _realm: str) -> tuple[str, str]:
        """Return new credentials of a TURN server. Raises SignalingError if the list no longer has it."""
        async with self._renewing:
            if self._renewals.get(uri) == self._listed_at:
                await self._request_list(uri)
            self._renewals[uri] = self._listed_at
        for server in self._listed:
            if server.username and str(TurnUri.parse(server.uri)) == uri:
                return server.username, server.password
        raise SignalingError(f"{self._signaling.url} no longer lists {uri}")

    async def _request_list(self, uri: str) -> None:
        loop = asyncio.get_running_loop()
        if self._listed_at is not None:
            await asyncio.sleep(self._listed_at + RENEWAL - loop.time())
        self._listed_at = self._renewals[uri] = loop.time()  # a request that fails counts, too
        if self._lost():  # the server may be back, without this member
            self._listed = (await fetch_servers(self._signaling.url, token=self._token)).servers
        else:
            self._listed = await self._signaling.refresh_servers()
