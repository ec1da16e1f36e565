"""Free ports for programs that need a port number before they bind it.

Another test may take a port that the system has assigned, as soon as it is closed. So these ports are below the range
from which the system assigns ports by itself.
"""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from typing import Final

PORTS: Final = range(10_240, 32_768)
"""Linux assigns ports from 32768 to 60999."""
_SOCKETS: Final = [
    (family, kind, host)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
]
_chance = random.SystemRandom()  # processes that run side by side draw others


def free_port() -> int:
    """A port that is free on loopback, for UDP and for TCP."""
    for _ in range(100):
        port = _chance.choice(PORTS)
        if _is_free(port):
            return port
    raise AssertionError(f"no port within {PORTS} is free for both UDP and TCP")


def _is_free(port: int) -> bool:
    with ExitStack() as stack:
        for family, kind, host in _SOCKETS:
            try:
                stack.enter_context(socket.socket(family, kind)).bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False  # any other error: this host has no such address
    return True
