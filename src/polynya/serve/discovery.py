"""Behavior discovery (RFC 5780): the listeners that it takes beside the usual ones, and what clients are told of them.

An alternate ADDR:PORT belongs to the one listener of its family. With another address there are four listeners then,
both ports on both addresses; with another port alone there are two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError, DecodeError
from polynya.core.flows import Flow
from polynya.stun.origins import Origin, corners, origins


class Discovery:
    """What `alternates` make of the listeners. ConfigurationError where one cannot serve.

    `external` are the names outside a NAT of addresses that are listened on.
    """

    def __init__(self, listen: Sequence[Address], alternates: Sequence[Address], external: Mapping[str, str]) -> None:
        self._sets: list[tuple[Address, ...]] = []
        """The listeners that belong together; the first is one that there is anyway."""
        self._external = external
        for other in alternates:
            self._sets.append(_set(listen, other))
        firsts = [first for first, *_ in self._sets]
        if len(dict.fromkeys(firsts)) < len(firsts):
            raise ConfigurationError(f"{firsts[0]} has two STUN alternates: it can have one")
        hosts = {address.host: 0 for addresses in self._sets for address in addresses}
        for host, outside in external.items():
            if host not in hosts:
                raise ConfigurationError(f"an external address is given for {host}, where no STUN alternate listens")
            if self._told(Address(host, 0)).family != Address(host, 0).family:
                raise ConfigurationError(f"{host} and its external address {outside} are of two families")

    @property
    def more(self) -> tuple[Address, ...]:
        """Where to listen over UDP besides."""
        return tuple(address for _, *rest in self._sets for address in rest)

    def origins(self, opened: Mapping[Flow, Address]) -> dict[Flow, Origin]:
        """What the machine is to know of the listeners, now that they are open."""
        found: dict[Flow, Origin] = {}
        for addresses in self._sets:
            found |= origins({flow: self._told(local) for flow, local in opened.items() if local in addresses})
        return found

    def _told(self, local: Address) -> Address:
        try:
            return Address.of(self._external.get(local.host, local.host), local.port)
        except DecodeError as error:
            raise ConfigurationError(f"an external address for STUN alternates: {error}") from None


def _set(listen: Sequence[Address], other: Address) -> tuple[Address, ...]:
    fitting = [each for each in listen if each.family == other.family]
    if len(fitting) != 1:
        raise ConfigurationError(
            f"the STUN alternate {other} needs just one listener of its family, not {len(fitting)}"
        )
    [first] = fitting
    for each in (first, other):
        if scope(each.host) == "unspecified":
            raise ConfigurationError(f"{each} is no certain address, which a listener with a STUN alternate needs")
    try:
        return (first, *corners(first, other))
    except ValueError as error:
        raise ConfigurationError(f"the STUN alternate {other} cannot serve: {error}") from None
