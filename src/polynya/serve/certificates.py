"""The server's TLS: one context for all its listeners, whose certificate can be replaced while they serve."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from polynya.core.errors import ConfigurationError
from polynya.core.machine import Open

from .config import TlsFiles

ALPN: Final = ("stun.turn", "stun.nat-discovery")
"""RFC 7443."""


class Certificates:
    """The certificate that new connections get; those that stand keep the one they began with.

    A listener keeps the context that it was opened with, so that one only passes each handshake on to the context of
    the present certificate. Raises ConfigurationError when the files cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._current = _context(files)
        self._entrance = _context(files)
        self._entrance.sni_callback = self._pass_on

    def reload(self, files: TlsFiles) -> None:
        """Use what the files hold now. On ConfigurationError the old certificate stays."""
        self._current = _context(files)

    def __call__(self, request: Open) -> ssl.SSLContext:
        """The context of a listener, as a driver asks for it."""
        if request.remote is not None:
            raise ConfigurationError("the server opens no TLS connections of its own")
        return self._entrance

    def _pass_on(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _entrance: ssl.SSLContext) -> None:
        connection.context = self._current


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(ALPN))
    # A key with a passphrase would be asked for on a terminal.
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    except OSError as error:  # which SSLError is, too
        raise ConfigurationError(f"the certificate {_named(files)} cannot be used: {_reason(error)}") from None
    return context


def _no_passphrase() -> str:
    return ""


def _named(files: TlsFiles) -> str:
    return f"{files.certificate} with the key {files.key}"


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    missing = f": {Path(error.filename)}" if error.filename else ""
    return f"{error.strerror or error}{missing}"
