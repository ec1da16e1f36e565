"""The server process: STUN over UDP and signaling over WebSocket, in one event loop.

    async with polynya.serve.Server(ServerConfig(listen=(...,), http=(...,))) as server:
        server.stun_uris, server.url

Needs the extra `polynya[serve]`.
"""

from .config import ServerConfig
from .server import Server

__all__ = ["Server", "ServerConfig"]
