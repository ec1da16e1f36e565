"""Mappings between inside and external endpoints (RFC 4787, section 4).

An outbound packet selects a mapping by its inside endpoint and the part of the remote endpoint that the behavior uses:

    endpoint-independent             (inside)
    address-dependent                (inside, remote host)
    address-and-port-dependent       (inside, remote host, remote port)

An inbound packet selects a mapping by the external endpoint alone. Filtering decides which remote endpoints may use it.
"""

from __future__ import annotations

from collections.abc import Iterator

from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.instants import Instant
from polynya.core.packets import Protocol, TcpFlags
from polynya.core.trace import Json

from .config import NatConfig
from .tcp import Connection

RemoteKey = tuple[()] | tuple[str] | tuple[str, int]


def remote_key(behavior: Behavior, remote: Address) -> RemoteKey:
    """Return the part of a remote endpoint that the behavior uses."""
    if behavior is Behavior.EI:
        return ()
    if behavior is Behavior.AD:
        return (remote.host,)
    return (remote.host, remote.port)


def key_text(key: RemoteKey) -> str:
    """Format a key for people: `any`, `203.0.113.1` or `203.0.113.1:3478`."""
    if len(key) == 2:
        return str(Address(key[0], key[1]))
    return key[0] if key else "any"


class Mapping:
    """A mapping of one inside endpoint to one external endpoint. For ICMP echo the port is the identifier."""

    __slots__ = ("connections", "expires", "external", "internal", "keys", "number", "protocol")

    def __init__(self, number: int, protocol: Protocol, internal: Address, external: Address) -> None:
        self.number = number
        self.protocol = protocol
        self.internal = internal
        self.external = external
        self.expires = Instant(0)
        self.keys: list[RemoteKey] = []
        """Keys that select this mapping: the one it was created for, then those that inbound sessions added."""
        self.connections: dict[Address, Connection] = {}
        """TCP connections by remote endpoint; empty for other protocols."""

    def __repr__(self) -> str:
        keys = ", ".join(map(key_text, self.keys))
        return f"<Mapping {self.protocol.name} {self.internal} as {self.external} for {keys}>"

    def until(self, remote: Address) -> Instant:
        """Return when the permission for `remote` expires."""
        connection = self.connections.get(remote)
        return self.expires if connection is None else connection.expires

    def connected(self, remote: Address, *, now: Instant) -> bool:
        """Whether a TCP connection with `remote` is tracked, open or not."""
        connection = self.connections.get(remote)
        return connection is not None and connection.expires > now

    def segment(self, remote: Address, flags: TcpFlags, direction: int, config: NatConfig, *, now: Instant) -> None:
        """Track a TCP segment. The mapping expires with the last of its connections."""
        connection = self.connections.get(remote)
        if connection is None:
            for old in [r for r, c in self.connections.items() if c.expires <= now]:
                del self.connections[old]
            connection = self.connections[remote] = Connection()
        connection.segment(flags, direction)
        before, connection.expires = connection.expires, Instant(now + connection.lifetime(config))
        if connection.expires >= before:
            self.expires = max(self.expires, connection.expires)
        else:
            self.expires = max(c.expires for c in self.connections.values())

    def row(self, key: RemoteKey) -> dict[str, Json]:
        """Return the mapping for one key as the trace shows it."""
        return {
            "entry": "mapping",
            "protocol": self.protocol.name.lower(),
            "internal": str(self.internal),
            "external": str(self.external),
            "remote": key_text(key),
        }


class MappingTable:
    """All mappings of a NAT. Its owner removes those that have expired."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior
        self._by_key: dict[tuple[Protocol, Address, RemoteKey], Mapping] = {}
        self._by_external: dict[tuple[Protocol, Address], Mapping] = {}
        self._by_host: dict[str, int] = {}
        self._by_number: dict[int, Mapping] = {}
        self._last = 0

    def outbound(self, protocol: Protocol, internal: Address, remote: Address) -> Mapping | None:
        """Return the mapping for an outbound packet to `remote`."""
        return self._by_key.get((protocol, internal, remote_key(self._behavior, remote)))

    def inbound(self, protocol: Protocol, external: Address) -> Mapping | None:
        """Return the mapping of an external endpoint."""
        return self._by_external.get((protocol, external))

    def of_endpoint(self, protocol: Protocol, internal: Address) -> list[Mapping]:
        """Return every mapping of an inside endpoint, oldest first."""
        return [m for m in self._by_number.values() if m.internal == internal and m.protocol is protocol]

    def numbered(self, number: int) -> Mapping | None:
        return self._by_number.get(number)

    def add(self, protocol: Protocol, internal: Address, remote: Address, external: Address) -> Mapping:
        """Add a mapping for packets to `remote`."""
        self._last += 1
        mapping = Mapping(self._last, protocol, internal, external)
        self._by_external[protocol, external] = mapping
        self._by_number[mapping.number] = mapping
        self._by_host[internal.host] = self._by_host.get(internal.host, 0) + 1
        self.bind(mapping, remote)
        return mapping

    def bind(self, mapping: Mapping, remote: Address) -> RemoteKey | None:
        """Select `mapping` for packets to `remote`, unless another is selected. Return the new key, else None."""
        key = remote_key(self._behavior, remote)
        full = (mapping.protocol, mapping.internal, key)
        if full in self._by_key:
            return None
        self._by_key[full] = mapping
        mapping.keys.append(key)
        return key

    def remove(self, mapping: Mapping) -> None:
        for key in mapping.keys:
            del self._by_key[mapping.protocol, mapping.internal, key]
        del self._by_external[mapping.protocol, mapping.external]
        del self._by_number[mapping.number]
        left = self._by_host.pop(mapping.internal.host) - 1
        if left:
            self._by_host[mapping.internal.host] = left

    def count(self, host: str) -> int:
        """Return the number of mappings of an inside host."""
        return self._by_host.get(host, 0)

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._by_number.values())
