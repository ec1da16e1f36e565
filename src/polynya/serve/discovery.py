"""Behavior discovery (RFC 5780): its additional listeners, and the addresses that clients get for them.

An alternate ADDR:PORT belongs to the only listener of its family. An alternate with another address gives four
listeners, both ports on both addresses. An alternate with just another port gives two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Flow
from polynya.stun.origins import Origin, corners, origins


class Discovery:
    """The listeners that `alternates` require. Raises ConfigurationError for an alternate that cannot be used.

    `external` maps local addresses to external addresses, behind a NAT.
    """

    def __init__(self, listen: Sequence[Address], alternates: Sequence[Address], external: Mapping[str, str]) -> None:
        self._sets: list[tuple[Address, ...]] = []
        """Listeners that belong together. The first of each set is in `listen`."""
        self._external = external
        for other in alternates:
            self._sets.append(_set(listen, other))
        firsts = [first for first, *_ in self._sets]
        if len(dict.fromkeys(firsts)) < len(firsts):
            raise ConfigurationError(f"{firsts[0]} has two STUN alternates: remove one of them")
        hosts = {address.host: 0 for addresses in self._sets for address in addresses}
        for host, outside in external.items():
            if host not in hosts:
                raise ConfigurationError(
                    f"the external address {outside} is for {host}, where no listener with a STUN alternate is"
                )
            if self._external_address(Address(host, 0)).family != Address(host, 0).family:
                raise ConfigurationError(f"{host} and its external address {outside} must have the same IP version")

    @property
    def more(self) -> tuple[Address, ...]:
        """Additional UDP listeners."""
        return tuple(address for _, *rest in self._sets for address in rest)

    def origins(self, opened: Mapping[Flow, Address]) -> dict[Flow, Origin]:
        """Return the origin of each open listener, for the STUN server."""
        found: dict[Flow, Origin] = {}
        for addresses in self._sets:
            found |= origins(
                {flow: self._external_address(local) for flow, local in opened.items() if local in addresses}
            )
        return found

    def _external_address(self, local: Address) -> Address:
        try:
            return Address.of(self._external.get(local.host, local.host), local.port)
        except DecodeError as error:
            raise ConfigurationError(f"external address of a STUN alternate: {error}") from None


def _set(listen: Sequence[Address], other: Address) -> tuple[Address, ...]:
    fitting = [each for each in listen if each.family == other.family]
    if len(fitting) != 1:
        raise ConfigurationError(
            f"the STUN alternate {other} needs exactly one listener of its IP version, not {len(fitting)}"
        )
    [first] = fitting
    for each in (first, other):
        if scope(each.host) == "unspecified":
            raise ConfigurationError(
                f"{each} is a wildcard address: a listener with a STUN alternate needs a specific address"
            )
    try:
        return (first, *corners(first, other))
    except ValueError as error:
        raise ConfigurationError(f"the STUN alternate {other} cannot be used: {error}") from None
