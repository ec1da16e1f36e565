"""Selection of the external address and port of a new mapping (RFC 4787, sections 4.1 and 4.2)."""

from __future__ import annotations

import random
from collections.abc import Callable

from .config import NatConfig, Pooling, PortAssignment

_DRAWS = 16
_WELL_KNOWN = range(1, 1024)


class AddressPool:
    """Selects an external address. With paired pooling, an inside host keeps its first one (RFC 4787, REQ-2)."""

    def __init__(self, config: NatConfig, external: tuple[str, ...], random: random.Random) -> None:
        self._config = config
        self._random = random
        self._hosts = {
            4: [host for host in external if ":" not in host],
            6: [host for host in external if ":" in host],
        }
        self._paired: dict[tuple[str, int], str] = {}

    def choose(self, inside: str, family: int) -> str | None:
        """Return an external address of the family for a mapping of the inside host; None if there is none."""
        hosts = self._hosts[family]
        if len(hosts) < 2:
            return hosts[0] if hosts else None
        if self._config.pooling is Pooling.ARBITRARY:
            return hosts[self._random.randrange(len(hosts))]
        paired = self._paired.get((inside, family))
        if paired is None:
            paired = self._paired[inside, family] = hosts[self._random.randrange(len(hosts))]
        return paired


class PortAllocator:
    """Selects external ports. The caller passes in which ports are taken, so there is no second table to differ."""

    def __init__(self, config: NatConfig, random: random.Random) -> None:
        self._config = config
        self._random = random
        self._range = range(config.port_range[0], config.port_range[1] + 1)
        self._next: dict[str, int] = {}

    def choose(self, internal: int, host: str, taken: Callable[[int], bool]) -> int | None:
        """Return a free port of the external `host` for the inside port `internal`; None if there is none."""
        config = self._config
        ports = self._range
        if config.ports is PortAssignment.PRESERVATION:
            if internal in _WELL_KNOWN and config.port_range[0] == 1024:
                ports = _WELL_KNOWN
            if internal in ports and not taken(internal):
                return internal
        step = 1
        if config.preserve_parity and len(ports) > 1:
            ports = ports[(ports[0] ^ internal) & 1 :: 2]
            step = 2
        if config.ports is PortAssignment.CONTIGUOUS:
            after = self._next.get(host, ports[0])
            port = self._scan(ports, (after - ports[0] + step - 1) // step, taken)
            if port is not None:
                self._next[host] = port + 1
            return port
        for _ in range(_DRAWS):
            port = ports[self._random.randrange(len(ports))]
            if not taken(port):
                return port
        return self._scan(ports, self._random.randrange(len(ports)), taken)

    @staticmethod
    def _scan(ports: range, start: int, taken: Callable[[int], bool]) -> int | None:
        for i in range(len(ports)):
            port = ports[(start + i) % len(ports)]
            if not taken(port):
                return port
        return None
