"""The laboratory: a virtual network with a virtual clock and a seed, in which machines run on hosts."""

from .clock import Clock
from .firewall import OPEN, UDP_BLOCKED, Firewall, Refusal, Rule
from .gateways import FirewallRouter, NatRouter
from .hosts import Host
from .links import NetworkInterface, Profile
from .network import Drop, Network
from .nodes import Node
from .processes import LabError, Process

__all__ = [
    "OPEN",
    "UDP_BLOCKED",
    "Clock",
    "Drop",
    "Firewall",
    "FirewallRouter",
    "Host",
    "LabError",
    "NatRouter",
    "Network",
    "NetworkInterface",
    "Node",
    "Process",
    "Profile",
    "Refusal",
    "Rule",
]
