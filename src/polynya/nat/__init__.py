"""Network address translation as a machine: mapping, filtering, ports, hairpinning, timers (RFC 4787, 5382, 5508)."""

from polynya.core.behavior import Behavior

from .config import (
    PRESETS,
    FilterScope,
    Hairpinning,
    NatConfig,
    Pooling,
    PortAssignment,
    UnsolicitedSyn,
    every_class,
    full_cone,
    port_restricted_cone,
    restricted_cone,
    symmetric,
)
from .nat import Action, Nat, Verdict

__all__ = [
    "PRESETS",
    "Action",
    "Behavior",
    "FilterScope",
    "Hairpinning",
    "Nat",
    "NatConfig",
    "Pooling",
    "PortAssignment",
    "UnsolicitedSyn",
    "Verdict",
    "every_class",
    "full_cone",
    "port_restricted_cone",
    "restricted_cone",
    "symmetric",
]
