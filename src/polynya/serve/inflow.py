"""Input of an HTTP connection or WebSocket: one small piece in each turn of the event loop.

uvicorn parses everything that a connection has sent before other connections get their turn. These pieces bound that
time (`aio/turns.py`).
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from polynya.aio.turns import turns

from .census import Census
from .transport import GuardedTransport

PIECE_BYTES: Final = 512
"""Bytes of one piece; that many can be 85 WebSocket frames."""


class Inflow(asyncio.BufferedProtocol):
    """Passes the calls of the event loop's transport to an HTTP or WebSocket protocol, its input in pieces."""

    def __init__(self, protocol: asyncio.Protocol, census: Census) -> None:
        self.protocol = protocol
        """The protocol that receives the input; `GuardedTransport.set_protocol` replaces it."""
        self._census = census
        self._host = ""
        self._transport: GuardedTransport | None = None
        self._turns = turns(asyncio.get_running_loop())
        self._last_turn = 0
        self._waiting = b""
        self._buffer = bytearray(PIECE_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast("asyncio.Transport", transport)
        self._host = (raw.get_extra_info("peername") or ("",))[0]
        if not self._census.enter(self._host):
            raw.abort()
            return
        self._transport = GuardedTransport(raw, self)
        self.protocol.connection_made(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return  # it was refused
        self._census.leave(self._host)
        self._transport.lost()
        self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def eof_received(self) -> bool | None:
        return self.protocol.eof_received()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the system's hint is more than a piece
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._waiting += self._buffer[:nbytes]
        if self._turns.take(self._last_turn):
            self.go_on()
            return
        self._turns.wait(self)
        if self._transport is not None:
            self._transport.hold("budget")

    def go_on(self) -> None:
        """Pass on the piece that waits; called once in a turn."""
        self._last_turn = self._turns.number
        piece, self._waiting = self._waiting, b""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.release("budget")
        self.protocol.data_received(piece)
