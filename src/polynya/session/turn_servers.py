"""The TURN servers of a session: what its URIs stand for (RFC 5928), and the credentials for each.

A name that is still looked up when gathering stops to wait is late: it is looked up to the end all the same.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterator
from typing import Final

from polynya.core.instants import Instant
from polynya.core.machine import Input, Output
from polynya.stun.uris import TurnUri
from polynya.turn.client.events import ServerAddress
from polynya.turn.discovery import Discovered, Discovery

from .options import TurnCredentials

FIRST_TOKEN: Final = 1 << 16
"""Names of TURN servers are looked up with tokens of their own, so that no answer meets another's question."""


class TurnServers:
    """A machine: `Resolved` in, `Resolve` out, and for each URI once what was found."""

    __slots__ = ("_discoveries", "_events", "_found", "_outputs", "_random", "_servers", "late")

    def __init__(self, servers: tuple[TurnCredentials, ...], random: random_module.Random) -> None:
        self.late = False
        """Nobody waits any more for the names that are still looked up."""
        self._servers = servers
        self._random = random
        self._discoveries: dict[int, Discovery] = {}
        self._found: dict[int, tuple[ServerAddress, ...]] = {}
        self._outputs: list[Output] = []
        self._events: list[tuple[TurnCredentials, Discovered]] = []

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, *, now: Instant) -> None:
        """Look all of them up."""
        for index, server in enumerate(self._servers):
            discovery = Discovery(server.uri, random=self._random, token=FIRST_TOKEN + index)
            self._discoveries[index] = discovery
            discovery.start(now=now)
            self._collect(index)

    def set_credentials(self, server: TurnCredentials) -> None:
        """Use these for the URI from now on."""
        self._servers = tuple(server if each.uri == server.uri else each for each in self._servers)

    def known(self) -> Iterator[tuple[TurnCredentials, tuple[ServerAddress, ...]]]:
        """The URIs that were looked up, each with its servers, best first."""
        return ((self._servers[index], servers) for index, servers in self._found.items())

    def of(self, uri: TurnUri) -> tuple[TurnCredentials, tuple[ServerAddress, ...]] | None:
        """One of them, if it was looked up."""
        return next((known for known in self.known() if known[0].uri == uri), None)

    def clear(self) -> None:
        """Look nothing up any more."""
        self._discoveries.clear()

    @property
    def pending(self) -> bool:
        """Whether a name is waited for."""
        return bool(self._discoveries) and not self.late

    def __bool__(self) -> bool:
        return bool(self._servers)

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Input, *, now: Instant) -> None:
        for index, discovery in list(self._discoveries.items()):
            discovery.receive(input, now=now)
            self._collect(index)

    def outputs(self) -> list[Output]:
        drained, self._outputs = self._outputs, []
        return drained

    def events(self) -> list[tuple[TurnCredentials, Discovered]]:
        drained, self._events = self._events, []
        return drained

    def _collect(self, index: int) -> None:
        discovery = self._discoveries[index]
        self._outputs += discovery.outputs()
        for found in discovery.events():
            del self._discoveries[index]
            self._found[index] = found.servers
            self._events.append((self._servers[index], found))
