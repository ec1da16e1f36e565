"""`why()` of a TURN client: its history, the server's answers and its present state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polynya.core.errors import Attempt
from polynya.core.flows import Transport
from polynya.core.instants import Instant, in_seconds
from polynya.core.wrapping import wrapped

from .allocation import Allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOverhead:
    """How a TURN client carries datagrams to one peer, between the client and the server."""

    family: int
    """IP version of the path to the server."""
    transport: Transport
    """Transport of the path to the server."""
    channel: bool
    """Whether a channel is bound to the peer; otherwise each datagram travels in a Send indication."""
    header: int
    """Bytes that are added to each datagram. Up to three bytes of padding follow the data, except in ChannelData over
    UDP."""

    @property
    def padded(self) -> bool:
        """Whether the data is padded to a multiple of four bytes."""
        return not self.channel or self.transport.reliable


@dataclass(frozen=True, slots=True)
class TurnReport:
    """Report of a TURN client: `data` can be written as JSON, `str()` is for people. Times are seconds."""

    data: dict[str, Any]

    def __str__(self) -> str:
        return wrapped(_lines(self.data))


def turn_report(
    allocation: Allocation, *, permissions: Mapping[str, str], channels: Mapping[str, str], counters: Mapping[str, int]
) -> TurnReport:
    """Return the report of a client. Times are seconds since its start."""
    history = allocation.history
    since = history[0][0] if history else Instant(0)
    return TurnReport(
        {
            "state": allocation.state.value,
            "server": str(allocation.server),
            "flow": None if allocation.flow is None else str(allocation.flow),
            "relayed": [str(address) for address in allocation.relayed],
            "mapped": None if allocation.mapped is None else str(allocation.mapped),
            "history": [
                {"at": in_seconds(at - since), "state": state.value, "reason": reason} for at, state, reason in history
            ],
            "failures": _attempts(allocation.attempts),
            "permissions": dict(permissions),
            "channels": dict(channels),
            "counters": dict(counters),
        }
    )


def _attempts(attempts: Iterable[Attempt]) -> list[dict[str, str]]:
    return [{"what": attempt.what, "reason": attempt.reason} for attempt in attempts]


def _lines(data: dict[str, Any]) -> list[str]:
    relayed = f", relayed at {', '.join(data['relayed'])}" if data["relayed"] else ""
    lines = [f"{data['state']}: {data['server']}{relayed}"]
    lines += [f"  {step['at']:8.3f} s  {step['state']}: {step['reason']}" for step in data["history"]]
    lines += [f"  failed: {attempt['reason']}" for attempt in data["failures"]]
    lines += [f"  permission for {host}: {state}" for host, state in data["permissions"].items()]
    lines += [f"  channel to {peer}: {state}" for peer, state in data["channels"].items()]
    return lines
