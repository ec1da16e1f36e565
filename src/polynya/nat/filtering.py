"""Filtering: who may send in by a mapping that exists (RFC 4787, section 5).

    endpoint-independent             whoever finds the external endpoint
    address-dependent                whoever has the host that was sent to
    address-and-port-dependent       whoever has the host and port that was sent to

"Was sent to" is remembered for the inside endpoint or for the mapping alone (`FilterScope`), as permissions that end
with the same timer as mappings.
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
        """Something was sent to `remote` by `mapping`. The key when that made a new permission.

        It holds for as long as the mapping, or of TCP the connection, does. Without `renew` one that holds keeps its
        time.
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
        """A packet from `remote` was let in and renews what let it in."""
        held = self._permissions.get(self._scope(mapping), {})
        key = remote_key(self._behavior, remote)
        if key in held:
            held[key] = mapping.until(remote)

    def allows(self, mapping: Mapping, remote: Address, *, now: Instant) -> bool:
        """Whether a packet from `remote` may come in by `mapping`."""
        if self._behavior is Behavior.EI:
            return True
        held = self._permissions.get(self._scope(mapping))
        return held is not None and held.get(remote_key(self._behavior, remote), now) > now

    def why_not(self, mapping: Mapping, remote: Address, *, now: Instant) -> str:
        """For people: why a packet from `remote` is not let in."""
        key = remote_key(self._behavior, remote)
        by = f" by way of {mapping.external}" if self._per_mapping else ""
        ended = self._permissions.get(self._scope(mapping), {}).get(key)
        what = f"{_NAMES[self._behavior]} filtering: "
        if ended is None:
            return f"{what}nothing was sent to {key_text(key)} from {mapping.internal}{by}"
        ago = (now - ended) / SECOND
        return f"{what}what was sent to {key_text(key)} from {mapping.internal}{by} stopped counting {ago:g} s ago"

    def expire(self, *, now: Instant) -> Iterator[dict[str, Json]]:
        """Drop what has ended; the rows that left the table."""
        for scope in list(self._permissions):
            held = self._permissions[scope]
            for key in [key for key, expires in held.items() if expires <= now]:
                del held[key]
                yield self._row(scope, key)
            if not held:
                del self._permissions[scope]

    def forget(self, mapping: Mapping) -> Iterator[dict[str, Json]]:
        """A mapping is gone, and with it what was remembered for it alone; the rows that left the table."""
        if self._per_mapping:
            scope = self._scope(mapping)
            for key in self._permissions.pop(scope, {}):
                yield self._row(scope, key)

    def next_expiry(self) -> Instant | None:
        """When the first permission ends."""
        return min((at for held in self._permissions.values() for at in held.values()), default=None)

    def rows(self) -> list[dict[str, Json]]:
        return [self._row(scope, key) for scope, held in self._permissions.items() for key in held]

    def row(self, mapping: Mapping, key: RemoteKey) -> dict[str, Json]:
        """A line of the NAT's table, as the trace shows it."""
        return self._row(self._scope(mapping), key)

    def _scope(self, mapping: Mapping) -> Scope:
        return mapping.protocol, mapping.external if self._per_mapping else mapping.internal

    def _row(self, scope: Scope, key: RemoteKey) -> dict[str, Json]:
        protocol, endpoint = scope
        side = "external" if self._per_mapping else "internal"
        row: dict[str, Json] = {"entry": "permission", "protocol": protocol.name.lower()}
        return row | {side: str(endpoint), "remote": key_text(key)}
