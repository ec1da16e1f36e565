"""What kind of NAT it is: every choice that RFC 4787, 5382 and 5508 speak of, with the defaults that they ask for.

Two more axes, which no RFC names, decide hard cases: whether filtering remembers where the *inside endpoint* has sent
to or where *this mapping* has, and whether an inbound packet that was let in makes a session, so that what is sent back
leaves by the mapping that it came in by (Linux's conntrack does that).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from polynya.core.behavior import Behavior
from polynya.core.instants import SECOND


class FilterScope(Enum):
    """Whose sending lets the answer in."""

    ENDPOINT = "inside endpoint"
    """Whatever the inside endpoint has sent, by any of its mappings: RFC 4787's own words."""
    MAPPING = "mapping"
    """Only what was sent by the mapping that the packet comes in by."""


class PortAssignment(Enum):
    """How an external port is chosen (RFC 4787, section 4.2.1)."""

    PRESERVATION = "preservation"
    """The inside port where it is free, any other where it is not."""
    RANDOM = "random"
    CONTIGUOUS = "contiguous"
    """The next free one after the last."""


class Pooling(Enum):
    """Which of several external addresses a mapping gets (RFC 4787, section 4.1)."""

    PAIRED = "paired"
    """All mappings of an inside host get the same one."""
    ARBITRARY = "arbitrary"


class Hairpinning(Enum):
    """Whether two inside hosts can reach each other by their external endpoints (RFC 4787, section 6)."""

    NONE = "none"
    INTERNAL_SOURCE = "internal source"
    """They can, but the receiver sees the inside address of the sender."""
    EXTERNAL_SOURCE = "external source"


class UnsolicitedSyn(Enum):
    """What meets a TCP SYN that no inside host asked for (RFC 5382, REQ-4)."""

    WAIT_THEN_ICMP = "silence, then ICMP"
    SILENCE = "silence"
    RESET = "reset"
    """Not compliant: it ends the simultaneous opens that hole punching lives on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatConfig:
    """One kind of NAT. Durations are nanoseconds."""

    mapping: Behavior = Behavior.EI
    filtering: Behavior = Behavior.APD
    filter_scope: FilterScope = FilterScope.ENDPOINT
    inbound_sessions: bool = False
    """An inbound packet that was let in binds its sender to the mapping it came in by."""

    ports: PortAssignment = PortAssignment.PRESERVATION
    port_range: tuple[int, int] = (1024, 65535)
    """Lowest and highest external port. With preservation, ports below 1024 stay below 1024 (RFC 4787, REQ-3)."""
    preserve_parity: bool = False
    """Even ports for even, odd for odd (RFC 4787, REQ-4)."""
    pooling: Pooling = Pooling.PAIRED
    hairpinning: Hairpinning = Hairpinning.EXTERNAL_SOURCE

    udp_timeout: int = 120 * SECOND
    """RFC 4787, REQ-5: not below two minutes."""
    outbound_refresh: bool = True
    """RFC 4787, REQ-6: a packet from inside renews the mapping; a NAT without that breaks the rule."""
    inbound_refresh: bool = False
    """A packet from outside that was let in renews it too: allowed, and a way to keep it open from outside."""
    icmp_timeout: int = 60 * SECOND
    """RFC 5508, REQ-2."""
    tcp_established: int = 7440 * SECOND
    """RFC 5382, REQ-5: not below 2 hours 4 minutes."""
    tcp_transitory: int = 240 * SECOND
    """RFC 5382, REQ-5: connections that open or close, not below 4 minutes."""
    unsolicited_syn: UnsolicitedSyn = UnsolicitedSyn.WAIT_THEN_ICMP
    syn_wait: int = 6 * SECOND

    max_mappings: int | None = None
    max_mappings_per_host: int | None = None
    fragments: bool = True
    """Fragments are put together before they are translated (RFC 4787, REQ-14); without it they are dropped."""

    def __post_init__(self) -> None:
        low, high = self.port_range
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"a port range lies within 1..65535, not {low}..{high}")
        for name in ("udp_timeout", "icmp_timeout", "tcp_established", "tcp_transitory"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is a positive number of nanoseconds")
        for name in ("max_mappings", "max_mappings_per_host"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is at least 1, or None for no limit")

    @property
    def label(self) -> str:
        """`EI/APD`: mapping, then filtering."""
        return f"{self.mapping.name}/{self.filtering.name}"


def full_cone(**options: Any) -> NatConfig:
    """Endpoint-independent mapping and filtering, in the words of RFC 3489."""
    return NatConfig(mapping=Behavior.EI, filtering=Behavior.EI, **options)


def restricted_cone(**options: Any) -> NatConfig:
    """Endpoint-independent mapping, address-dependent filtering."""
    return NatConfig(mapping=Behavior.EI, filtering=Behavior.AD, **options)


def port_restricted_cone(**options: Any) -> NatConfig:
    """Endpoint-independent mapping, address-and-port-dependent filtering."""
    return NatConfig(mapping=Behavior.EI, filtering=Behavior.APD, **options)


def symmetric(**options: Any) -> NatConfig:
    """Mapping and filtering both address-and-port-dependent, ports at random."""
    options.setdefault("ports", PortAssignment.RANDOM)
    return NatConfig(mapping=Behavior.APD, filtering=Behavior.APD, **options)


PRESETS: Final[Mapping[str, NatConfig]] = {
    "full cone": full_cone(),
    "restricted cone": restricted_cone(),
    "port-restricted cone": port_restricted_cone(),
    "symmetric": symmetric(),
}
"""The four kinds that RFC 3489 named."""


def every_class(base: NatConfig | None = None) -> Iterator[NatConfig]:
    """All nine classes of mapping and filtering, the rest as in `base`."""
    base = base or NatConfig()
    for mapping in Behavior:
        for filtering in Behavior:
            yield replace(base, mapping=mapping, filtering=filtering)
