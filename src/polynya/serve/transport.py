"""Transport of an HTTP connection or WebSocket: limits the bytes that wait to be written, and the time of a close.

uvicorn calls `close`, which waits until a client has read everything; this transport aborts the connection after
`CLOSE_TIME`. Reading pauses while one or more holders need it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

WRITE_BYTES: Final = 1 << 19
"""Bytes that may wait to be written: more than any message or page of the server. A connection with more is aborted."""
CLOSE_TIME: Final = 3.0
"""Seconds from the close of a connection until it is aborted: its client may not read."""


class Receiver(Protocol):
    """The protocol of the event loop's transport, which passes its calls to an exchangeable protocol."""

    protocol: asyncio.Protocol


class GuardedTransport(asyncio.Transport):
    """Passes all calls to the transport of the event loop, with limits."""

    def __init__(
        self,
        raw: asyncio.Transport,
        receiver: Receiver,
        *,
        write_bytes: int = WRITE_BYTES,
        close_time: float = CLOSE_TIME,
    ) -> None:
        super().__init__()
        self._raw = raw
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._write_bytes = write_bytes
        self._close_time = close_time
        self._holders: set[str] = set()
        self._abort: asyncio.TimerHandle | None = None
        self._lost = False

    def lost(self) -> None:
        """Cancel the timer. The receiver calls it when the connection is gone."""
        self._lost = True
        if self._abort is not None:
            self._abort.cancel()

    # ----------------------------------------------------------------------------------------- output

    def write(self, data: Any) -> None:
        self._raw.write(data)
        if self._raw.get_write_buffer_size() > self._write_bytes:
            self._raw.abort()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Write the buffered data, then close. Aborts the connection after `close_time` seconds."""
        if self._abort is None and not self._lost:
            self._abort = self._loop.call_later(self._close_time, self._raw.abort)
        if not self._raw.is_closing():
            self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def can_write_eof(self) -> bool:
        return self._raw.can_write_eof()

    def write_eof(self) -> None:
        self._raw.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    # ------------------------------------------------------------------------------------------ input

    def pause_reading(self) -> None:
        self.hold("protocol")

    def resume_reading(self) -> None:
        self.release("protocol")

    def hold(self, holder: str) -> None:
        """Pause reading until every holder has called `release`. Safe to call repeatedly."""
        if not self._holders and not self._raw.is_closing():
            self._raw.pause_reading()
        self._holders.add(holder)

    def release(self, holder: str) -> None:
        """Resume reading unless there is another holder. Safe to call repeatedly."""
        if holder not in self._holders:
            return
        self._holders.remove(holder)
        if not self._holders and not self._raw.is_closing():
            self._raw.resume_reading()

    def is_reading(self) -> bool:
        return self._raw.is_reading()

    # ------------------------------------------------------------------------------------------ other

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that receives the input from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._receiver.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._receiver.protocol
