"""The server process: STUN and TURN over UDP, TCP and TLS, and signaling over WebSocket, in one event loop.

    async with polynya.serve.Server(ServeConfig(listen=(...,), http=(...,))) as server:
        server.stun_uris, server.url

Needs the extra `polynya[serve]`.
"""

from .config import ServeConfig, TlsFiles, TurnOptions
from .server import Server

__all__ = ["ServeConfig", "Server", "TlsFiles", "TurnOptions"]
