"""NAT options: the behaviors that RFC 4787, 5382 and 5508 describe, with the defaults that they require.

Two more options, which no RFC names, decide hard cases. `filter_scope`: filtering uses the destinations of the inside
endpoint, or those of the mapping alone. `inbound_sessions`: an accepted inbound packet creates a session, so that
replies leave by the same mapping, as in Linux's conntrack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from polynya.core.behavior import Behavior
from polynya.core.instants import SECOND


class FilterScope(Enum):
    """Which outbound packets create the permission for an inbound packet."""

    ENDPOINT = "inside endpoint"
    """All packets of the inside endpoint, by any of its mappings, as RFC 4787 words it."""
    MAPPING = "mapping"
    """Only packets sent by the mapping that the inbound packet arrives at."""


class PortAssignment(Enum):
    """Selection of an external port (RFC 4787, section 4.2.1)."""

    PRESERVATION = "preservation"
    """The inside port if it is free, otherwise a random port."""
    RANDOM = "random"
    CONTIGUOUS = "contiguous"
    """The next free port after the last assigned one."""


class Pooling(Enum):
    """Selection of one of several external addresses (RFC 4787, section 4.1)."""

    PAIRED = "paired"
    """All mappings of an inside host use the same external address."""
    ARBITRARY = "arbitrary"


class Hairpinning(Enum):
    """Whether two inside hosts can reach each other by their external endpoints (RFC 4787, section 6)."""

    NONE = "none"
    INTERNAL_SOURCE = "internal source"
    """They can, and the receiver sees the sender's inside address."""
    EXTERNAL_SOURCE = "external source"


class UnsolicitedSyn(Enum):
    """Response to an inbound TCP SYN that has no mapping or permission (RFC 5382, REQ-4)."""

    WAIT_THEN_ICMP = "silence, then ICMP"
    SILENCE = "silence"
    RESET = "reset"
    """Not compliant: a reset aborts the TCP simultaneous open that hole punching needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatConfig:
    """Options of a NAT. Durations are nanoseconds."""

    mapping: Behavior = Behavior.EI
    filtering: Behavior = Behavior.APD
    filter_scope: FilterScope = FilterScope.ENDPOINT
    inbound_sessions: bool = False
    """Whether an accepted inbound packet binds its source to the mapping that it arrived at."""

    ports: PortAssignment = PortAssignment.PRESERVATION
    port_range: tuple[int, int] = (1024, 65535)
    """Lowest and highest external port. With preservation, ports below 1024 stay below 1024 (RFC 4787, REQ-3)."""
    preserve_parity: bool = False
    """Whether an even inside port gets an even external port, and an odd one an odd one (RFC 4787, REQ-4)."""
    pooling: Pooling = Pooling.PAIRED
    hairpinning: Hairpinning = Hairpinning.EXTERNAL_SOURCE

    udp_timeout: int = 120 * SECOND
    """At least two minutes (RFC 4787, REQ-5)."""
    outbound_refresh: bool = True
    """Whether an outbound packet renews the mapping. RFC 4787, REQ-6 requires it."""
    inbound_refresh: bool = False
    """Whether an accepted inbound packet renews the mapping, too. RFC 4787 allows it."""
    icmp_timeout: int = 60 * SECOND
    """At least 60 seconds (RFC 5508, REQ-2)."""
    tcp_established: int = 7440 * SECOND
    """At least 2 hours 4 minutes (RFC 5382, REQ-5)."""
    tcp_transitory: int = 240 * SECOND
    """For connections that open or close: at least 4 minutes (RFC 5382, REQ-5)."""
    unsolicited_syn: UnsolicitedSyn = UnsolicitedSyn.WAIT_THEN_ICMP
    syn_wait: int = 6 * SECOND

    max_mappings: int | None = None
    max_mappings_per_host: int | None = None
    fragments: bool = True
    """Whether fragments are reassembled and translated (RFC 4787, REQ-14) or dropped."""

    def __post_init__(self) -> None:
        low, high = self.port_range
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"port_range lies within 1..65535, not {low}..{high}")
        for name in ("udp_timeout", "icmp_timeout", "tcp_established", "tcp_transitory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is a positive number of nanoseconds, not {getattr(self, name)}")
        for name in ("max_mappings", "max_mappings_per_host"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is at least 1, or None for no limit, not {limit}")

    @property
    def label(self) -> str:
        """Mapping and filtering behavior, such as `EI/APD`."""
        return f"{self.mapping.name}/{self.filtering.name}"


def full_cone(**options: Any) -> NatConfig:
    """Return a full-cone NAT (RFC 3489): endpoint-independent mapping and filtering."""
    return NatConfig(mapping=Behavior.EI, filtering=Behavior.EI, **options)


def restricted_cone(**options: Any) -> NatConfig:
    """Return a restricted-cone NAT (RFC 3489): endpoint-independent mapping, address-dependent filtering."""
    return NatConfig(mapping=Behavior.EI, filtering=Behavior.AD, **options)


def port_restricted_cone(**options: Any) -> NatConfig:
    """Return a port-restricted-cone NAT (RFC 3489).

    Its mapping is endpoint-independent, its filtering address-and-port-dependent.
    """
    return NatConfig(mapping=Behavior.EI, filtering=Behavior.APD, **options)


def symmetric(**options: Any) -> NatConfig:
    """Return a symmetric NAT (RFC 3489): address-and-port-dependent mapping and filtering, random ports."""
    options.setdefault("ports", PortAssignment.RANDOM)
    return NatConfig(mapping=Behavior.APD, filtering=Behavior.APD, **options)


PRESETS: Final[Mapping[str, NatConfig]] = {
    "full cone": full_cone(),
    "restricted cone": restricted_cone(),
    "port-restricted cone": port_restricted_cone(),
    "symmetric": symmetric(),
}
"""The four types that RFC 3489 defines."""


def every_class(base: NatConfig | None = None) -> Iterator[NatConfig]:
    """Yield all nine combinations of mapping and filtering; the other options are those of `base`."""
    base = base or NatConfig()
    for mapping in Behavior:
        for filtering in Behavior:
            yield replace(base, mapping=mapping, filtering=filtering)
