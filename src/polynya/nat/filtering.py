"""Filtering: which remote endpoints may send to an existing mapping (RFC 4787, section 5).

    endpoint-independent             every remote endpoint
    address-dependent                every port of a host that received an outbound packet
    address-and-port-dependent       an endpoint that received an outbound packet

An outbound packet creates a permission, for the inside endpoint or for the mapping alone (`FilterScope`). Permissions
expire by the same timers as mappings.
"""

from __future__ import annotations

from collections.abc import Iterator

from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.instants import SECOND, Instant
from polynya.core.packets import Protocol
from polynya.core.trace import Json

from .config import FilterScope
from .mapping import Mapping, RemoteKey, key_text, remote_key

Scope = tuple[Protocol, Address]
"""The inside endpoint, or the external endpoint of a mapping."""
_NAMES = {Behavior.AD: "address-restricted", Behavior.APD: "port-restricted"}


class Filter:
    """The permissions of a NAT's inside endpoints."""

    def __init__(self, behavior: Behavior, scope: FilterScope) -> None:
        self._behavior = behavior
        self._per_mapping = scope is FilterScope.MAPPING
        self._permissions: dict[Scope, dict[RemoteKey, Instant]] = {}

    def permit(self, mapping: Mapping, remote: Address, *, now: Instant, renew: bool = True) -> RemoteKey | None:
        """Permit `remote` after an outbound packet from `mapping`. Return the key of a new permission, else None.

        A permission expires with the mapping, or for TCP with the connection. Without `renew` an existing permission
        keeps its expiry.
        """
        if self._behavior is Behavior.EI:
            return None
        key = remote_key(self._behavior, remote)
        held = self._permissions.setdefault(self._scope(mapping), {})
        known = held.get(key, now) > now
        if renew or not known:
            held[key] = mapping.until(remote)
        return None if known else key

    def renew(self, mapping: Mapping, remote: Address) -> None:
        """Renew the permission of `remote` after an accepted inbound packet."""
        held = self._permissions.get(self._scope(mapping), {})
        key = remote_key(self._behavior, remote)
        if key in held:
            held[key] = mapping.until(remote)

    def allows(self, mapping: Mapping, remote: Address, *, now: Instant) -> bool:
        """Whether a packet from `remote` to `mapping` is accepted."""
        if self._behavior is Behavior.EI:
            return True
        held = self._permissions.get(self._scope(mapping))
        return held is not None and held.get(remote_key(self._behavior, remote), now) > now

    def why_not(self, mapping: Mapping, remote: Address, *, now: Instant) -> str:
        """Return why a packet from `remote` is not accepted, for people."""
        key = remote_key(self._behavior, remote)
        by = f" through {mapping.external}" if self._per_mapping else ""
        ended = self._permissions.get(self._scope(mapping), {}).get(key)
        rule = f"{_NAMES[self._behavior]} filtering: "
        if ended is None:
            return f"{rule}nothing was sent to {key_text(key)} from {mapping.internal}{by}"
        ago = (now - ended) / SECOND
        return f"{rule}the permission for {key_text(key)} at {mapping.internal}{by} expired {ago:g} s ago"

    def expire(self, *, now: Instant) -> Iterator[dict[str, Json]]:
        """Remove expired permissions and yield their rows."""
        for scope in list(self._permissions):
            held = self._permissions[scope]
            for key in [key for key, expires in held.items() if expires <= now]:
                del held[key]
                yield self._row(scope, key)
            if not held:
                del self._permissions[scope]

    def forget(self, mapping: Mapping) -> Iterator[dict[str, Json]]:
        """Remove the permissions of a mapping that was removed, and yield their rows."""
        if self._per_mapping:
            scope = self._scope(mapping)
            for key in self._permissions.pop(scope, {}):
                yield self._row(scope, key)

    def next_expiry(self) -> Instant | None:
        """Return when the first permission expires."""
        return min((at for held in self._permissions.values() for at in held.values()), default=None)

    def rows(self) -> list[dict[str, Json]]:
        """Return the permissions as the trace shows them."""
        return [row for row, _ in self.expiries()]

    def expiries(self) -> list[tuple[dict[str, Json], Instant]]:
        """Return the permissions with the time at which each expires."""
        return [(self._row(scope, key), at) for scope, held in self._permissions.items() for key, at in held.items()]

    def row(self, mapping: Mapping, key: RemoteKey) -> dict[str, Json]:
        """Return a permission as the trace shows it."""
        return self._row(self._scope(mapping), key)

    def _scope(self, mapping: Mapping) -> Scope:
        return mapping.protocol, mapping.external if self._per_mapping else mapping.internal

    def _row(self, scope: Scope, key: RemoteKey) -> dict[str, Json]:
        protocol, endpoint = scope
        side = "external" if self._per_mapping else "internal"
        row: dict[str, Json] = {"entry": "permission", "protocol": protocol.name.lower()}
        return row | {side: str(endpoint), "remote": key_text(key)}
