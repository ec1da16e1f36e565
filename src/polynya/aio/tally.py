"""The counters of all sockets of one driver, closed ones included."""

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
    """Of closed sockets; `Hub.counters` adds those of open ones."""
    handshakes_refused: int = 0
    """TLS connections over the limit, in all or of one address."""
    handshakes_failed: int = 0
    """TLS handshakes that timed out or failed."""
    failures: dict[str, int] | None = None
    """None until the system refuses a datagram, which it rarely does."""

    @property
    def refused(self) -> int:
        """All datagrams that the system refused."""
        return 0 if self.failures is None else sum(self.failures.values())

    def failed(self, number: int) -> None:
        """Counts a datagram that the system refused, by the error number."""
        if self.failures is None:
            self.failures = {}
        name = errno_name(number)
        self.failures[name] = self.failures.get(name, 0) + 1
