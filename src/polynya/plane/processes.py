"""A worker process, as the control process sees it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence

from polynya.core.flows import Flow
from polynya.turn.server.commands import Command

from .messages import Channel, Setup
from .portable import now


class WorkerProcess:
    """A worker process and what it was asked and has not acknowledged."""

    def __init__(self, index: int, listeners: Sequence[tuple[Flow, socket.socket]], setup: Setup) -> None:
        self.index = index
        self.asked: dict[int, Command] = {}
        self.started = now()
        self.watched = False
        """Whether it is waited for that more can be sent."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = [sock.fileno() for _, sock in listeners]
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "polynya.plane.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *inherited),
            )
        self.channel = Channel(ours)
        self.channel.send([setup])

    def stop(self) -> None:
        """Let the process go: it ends when its channel does."""
        self.channel.close()

    def wait(self) -> None:
        """Until it has gone, which is soon; or make it go."""
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
