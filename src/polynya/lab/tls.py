"""TLS as the laboratory models it: a handshake of the right length that checks names and agrees on a protocol.

Nothing is encrypted and nothing is secret; packets of such a stream carry a flag. The messages are records with a real
record's header, so that a program which expects something else sees at once that this is not for it.

    client:  --hello (name, ALPN)-->  HELLO  <--certificate's names, ALPN--   DONE, --finished-->   (RFC 8446: one trip)
    server:  HELLO  <--hello--  --certificate's names, ALPN-->  ANSWERED  <--finished--  DONE
    any      a record that does not fit, a name that is not the certificate's: FAILED, after an alert
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
    """One side of a handshake. `feed` what arrives and send what `output` has, until it is done or has failed."""

    def __init__(self, *, client: bool, alpn: tuple[str, ...], names: tuple[str, ...]) -> None:
        self.state = TlsState.HELLO
        self.alpn: str | None = None
        """What both sides speak, the server's choice."""
        self.reason = ""
        """Why it failed, for people."""
        self.rest = b""
        """What came after the handshake: the stream's own bytes."""
        self._client = client
        self._alpn = alpn
        self._names = names
        self._buffer = b""
        self._output = b""
        if client:
            self._say(_HANDSHAKE, {"name": names[0], "alpn": alpn})

    def output(self) -> bytes:
        """What is to be sent; drained by the call."""
        drained, self._output = self._output, b""
        return drained

    def feed(self, data: bytes) -> None:
        """Bytes of the other side."""
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
            said = json.loads(record)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            self._fail("the other side does not speak this model's TLS")
        elif kind == _ALERT:
            self.state, self.reason = TlsState.FAILED, f"the other side ended the handshake: {said.get('alert')}"
        elif self._client:
            self._certificate(said)
        elif self.state is TlsState.HELLO:
            self.alpn = next((each for each in self._alpn if each in said.get("alpn", ())), None)
            self._say(_HANDSHAKE, {"names": self._names, "alpn": self.alpn})
            self.state = TlsState.ANSWERED
        else:
            self.state = TlsState.DONE

    def _certificate(self, said: dict[str, Any]) -> None:
        name, names = self._names[0], said.get("names")
        if names is None:
            self._fail("the other side answered as a client does")
            return
        if name not in names:
            self._fail(f"the certificate is for {', '.join(names) or 'nobody'}, not for {name}")
            return
        self.alpn = said.get("alpn")
        self._say(_HANDSHAKE, {"finished": True})
        self.state = TlsState.DONE

    def _fail(self, reason: str) -> None:
        self.state, self.reason = TlsState.FAILED, reason
        self._say(_ALERT, {"alert": reason})

    def _say(self, kind: int, what: dict[str, Any]) -> None:
        body = json.dumps(what, separators=(",", ":")).encode()
        self._output += _HEADER.pack(kind, _VERSION, len(body)) + body
