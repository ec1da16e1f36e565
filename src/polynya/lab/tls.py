"""A model of TLS: a handshake of realistic length that checks certificate names and negotiates ALPN.

Nothing is encrypted; packets of such a stream carry a flag. Messages have the header of a TLS record, so that a program
that expects another protocol rejects them at once.

    client:  --hello (name, ALPN)-->  HELLO  <--certificate's names, ALPN--   DONE, --finished-->   (RFC 8446: one trip)
    server:  HELLO  <--hello--  --certificate's names, ALPN-->  ANSWERED  <--finished--  DONE
    any      an unexpected record, or a name that is not in the certificate: FAILED, after an alert
"""

from __future__ import annotations

import json
from enum import Enum
from struct import Struct
from typing import Any, Final

_HEADER: Final = Struct("!BHH")
_VERSION: Final = 0x0303
_HANDSHAKE: Final = 22
_ALERT: Final = 21
_LONGEST: Final = 1 << 14


class TlsState(Enum):
    HELLO = "hello"
    ANSWERED = "answered"
    DONE = "done"
    FAILED = "failed"


class Handshake:
    """One side of a handshake. The owner feeds received bytes and sends `output()` until it is done or has failed."""

    def __init__(self, *, client: bool, alpn: tuple[str, ...], names: tuple[str, ...]) -> None:
        self.state = TlsState.HELLO
        self.alpn: str | None = None
        """The protocol that the server selected; None without one."""
        self.reason = ""
        """Why the handshake failed, for people."""
        self.rest = b""
        """Bytes after the handshake: data of the stream."""
        self._client = client
        self._alpn = alpn
        self._names = names
        self._buffer = b""
        self._output = b""
        if client:
            self._write(_HANDSHAKE, {"name": names[0], "alpn": alpn})

    def output(self) -> bytes:
        """Remove and return the bytes to send."""
        drained, self._output = self._output, b""
        return drained

    def feed(self, data: bytes) -> None:
        """Process bytes from the other side."""
        self._buffer += data
        while self.state in (TlsState.HELLO, TlsState.ANSWERED) and len(self._buffer) >= _HEADER.size:
            kind, version, length = _HEADER.unpack_from(self._buffer)
            if kind not in (_HANDSHAKE, _ALERT) or version != _VERSION or length > _LONGEST:
                self._fail("the other side does not speak TLS")
                return
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            record, self._buffer = self._buffer[_HEADER.size : end], self._buffer[end:]
            self._record(kind, record)
        if self.state is TlsState.DONE:
            self.rest, self._buffer = self._buffer, b""

    def _record(self, kind: int, record: bytes) -> None:
        try:
            message = json.loads(record)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._fail("the other side does not speak the laboratory's TLS")
        elif kind == _ALERT:
            self.state, self.reason = TlsState.FAILED, f"the other side ended the handshake: {message.get('alert')}"
        elif self._client:
            self._certificate(message)
        elif self.state is TlsState.HELLO:
            self.alpn = next((each for each in self._alpn if each in message.get("alpn", ())), None)
            self._write(_HANDSHAKE, {"names": self._names, "alpn": self.alpn})
            self.state = TlsState.ANSWERED
        else:
            self.state = TlsState.DONE

    def _certificate(self, message: dict[str, Any]) -> None:
        name, names = self._names[0], message.get("names")
        if names is None:
            self._fail("the other side answered as a client, not as a server")
            return
        if name not in names:
            self._fail(f"the certificate is for {', '.join(names) or 'no name'}, not for {name}")
            return
        self.alpn = message.get("alpn")
        self._write(_HANDSHAKE, {"finished": True})
        self.state = TlsState.DONE

    def _fail(self, reason: str) -> None:
        self.state, self.reason = TlsState.FAILED, reason
        self._write(_ALERT, {"alert": reason})

    def _write(self, kind: int, message: dict[str, Any]) -> None:
        body = json.dumps(message, separators=(",", ":")).encode()
        self._output += _HEADER.pack(kind, _VERSION, len(body)) + body
