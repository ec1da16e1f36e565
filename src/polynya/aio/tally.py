"""What the sockets of one driver count together, also those that are closed."""

from __future__ import annotations

from dataclasses import dataclass

from .sockets import errno_name


@dataclass(slots=True)
class Tally:
    """Sums over all flows since the start. Failed sends are counted by the system's name for the error."""

    datagrams_in: int = 0
    bytes_in: int = 0
    datagrams_out: int = 0
    bytes_out: int = 0
    kernel_drops: int = 0
    """Of closed sockets; open ones are asked when somebody wants to know."""
    handshakes_refused: int = 0
    """TLS connections that were one too many, in all or from one address."""
    handshakes_failed: int = 0
    """TLS connections that came to nothing, in time or by an error."""
    failures: dict[str, int] | None = None
    """None while nothing was refused, as it is for most."""

    def failed(self, number: int) -> None:
        """The system refused to send something."""
        if self.failures is None:
            self.failures = {}
        name = errno_name(number)
        self.failures[name] = self.failures.get(name, 0) + 1
