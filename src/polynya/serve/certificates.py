"""TLS of the server: one context for all listeners, whose certificate can be replaced while they serve."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final

from polynya.core.errors import ConfigurationError
from polynya.core.machine import Open

from .config import TlsFiles

logger: Final = logging.getLogger("polynya.serve")

ALPN: Final = ("stun.turn", "stun.nat-discovery")
"""RFC 7443."""
_FLIGHTS: Final = 4
"""More than a handshake takes."""


class Certificates:
    """Provides the certificate for new connections. Existing connections keep the one they started with.

    A listener keeps the context that it was opened with. That context switches each handshake to the context of the
    current certificate, with the callback for server names. Raises ConfigurationError if the files cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._current = _context(files)
        self._listener = _context(files)
        self._listener.sni_callback = self._switch
        _warn(files)

    def reload(self, files: TlsFiles) -> None:
        """Read the files again. If they raise ConfigurationError, the old certificate stays in use."""
        self._current = _context(files)
        _warn(files)

    def __call__(self, request: Open) -> ssl.SSLContext:
        """Return the TLS context for a listener; a driver calls this."""
        if request.remote is not None:
            raise ConfigurationError("a server has no TLS context for connections to other hosts")
        return self._listener

    def _switch(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _listener: ssl.SSLContext) -> None:
        connection.context = self._current


def fault_of(files: TlsFiles) -> str:
    """Return why clients will refuse the certificate although it can be used; empty if they will not.

    A handshake in memory checks the dates, the purpose and, if one is set, the server's name.
    """
    server = _context(files)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = bool(files.server_name)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client.load_verify_locations(files.certificate)  # trusts it: whether others do cannot be known here
        ends = (
            client.wrap_bio(to_client, to_server, server_hostname=files.server_name or None),
            server.wrap_bio(to_server, to_client, server_side=True),
        )
        for _ in range(_FLIGHTS):
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return f"clients will refuse the certificate {files.certificate}: {error.verify_message}"
    except (OSError, ValueError) as error:  # SSLError is a subclass
        return f"clients may refuse the certificate {files.certificate}: {error}"
    return ""


def _warn(files: TlsFiles) -> None:
    if fault := fault_of(files):
        logger.warning("%s", fault)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(ALPN))
    # without a password callback OpenSSL prompts for a passphrase on the terminal
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    except OSError as error:  # SSLError is a subclass
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
