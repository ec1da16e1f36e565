"""Candidates of sockets, mappings and relays under a policy (RFC 8445, section 5.1.1; RFC 8828, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.flows import Transport
from polynya.ice.candidates import CandidateType, Gathered

from .events import RelayFound
from .options import Base, Policy

UNSPECIFIED: Final = {IPV4: Address("0.0.0.0", 9), IPV6: Address("::", 9)}  # noqa: S104  # signaled, never bound
"""The related address that reveals nothing (RFC 8839, section 5.1)."""

RELAY_PREFERENCE: Final = {Transport.UDP: 3 << 13, Transport.TCP: 1 << 13, Transport.TLS: 0}
"""Local preference of a relayed candidate, by the transport to its server: UDP before TCP before TLS."""


def of_socket(base: Base, policy: Policy, external: Mapping[str, str]) -> list[Gathered]:
    """Return the host candidate of a socket, and the server-reflexive one of a configured 1:1 NAT."""
    if policy is Policy.RELAY:
        return []
    host = Gathered(
        type=CandidateType.HOST,
        address=base.local,
        flow=base.flow,
        stream=base.stream,
        component=base.component,
        interface=base.host.interface,
        preference=base.host.preference,
        advertise=policy is Policy.ALL,
    )
    outside = external.get(base.local.host)
    if outside is None:
        return [host]
    return [host, _reflexive(base, Address(outside, base.local.port), "nat-1to1", "", policy)]


def of_mapping(base: Base, mapped: Address, server: Address, policy: Policy) -> list[Gathered]:
    """Return the server-reflexive candidate of a mapping that a STUN server reported."""
    return [] if policy is Policy.RELAY else [_reflexive(base, mapped, str(server), f"stun:{server}", policy)]


def of_relay(found: RelayFound, policy: Policy) -> list[Gathered]:
    """Return the server-reflexive candidate that comes with an allocation, and the relayed one (section 5.1.1.2)."""
    base, server = found.base, found.server
    related = found.related if policy is Policy.ALL else None
    relayed = Gathered(
        type=CandidateType.RELAYED,
        address=found.relayed,
        flow=found.flow,
        stream=base.stream,
        component=base.component,
        server=str(server),
        url=server.uri,
        related=related or UNSPECIFIED[found.relayed.family],
        interface=base.host.interface,
        preference=RELAY_PREFERENCE[server.transport],
        gated=True,
    )
    if found.mapped is None or policy is Policy.RELAY:
        return [relayed]
    return [_reflexive(base, found.mapped, str(server.address), server.uri, policy), relayed]


def _reflexive(base: Base, mapped: Address, server: str, url: str, policy: Policy) -> Gathered:
    return Gathered(
        type=CandidateType.SERVER_REFLEXIVE,
        address=mapped,
        flow=base.flow,
        base=base.local,
        stream=base.stream,
        component=base.component,
        server=server,
        url=url,
        related=UNSPECIFIED[base.local.family] if policy is Policy.NO_HOST else None,
        interface=base.host.interface,
    )
