"""The result of the meeting, and the checks of that result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.core.packets import IpPacket
from polynya.core.trace import TraceEvent
from polynya.lab.invariants import unpaced
from polynya.stun.message import is_stun

from .recording import payloads_at
from .records import Outcome, PairRecord
from .watch import Times


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult:
    """The result of one peer."""

    name: str
    pid: int | None
    exit_code: int | None
    outcome: Outcome | None
    """None if the process ended without an outcome."""
    times: Times
    errors: str = ""
    """The end of its standard error."""

    @property
    def selected(self) -> PairRecord | None:
        """The selected pair at the end."""
        pairs = self.outcome.pairs if self.outcome is not None else []
        return next((pair for pair in pairs if pair.selected), None)

    def as_dict(self) -> dict[str, Any]:
        """Return a document for JSON."""
        outcome = {} if self.outcome is None else msgspec.to_builtins(self.outcome)
        selected = self.selected
        outcome.pop("record", None)
        return {
            "name": self.name,
            "pid": self.pid,
            "exit_code": self.exit_code,
            "connected": selected is not None,
            "selected": None if selected is None else msgspec.to_builtins(selected),
            "times": asdict(self.times),
            **outcome,
            "stderr": self.errors,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingResult:
    """The result of the meeting. `seconds` includes the start of the processes."""

    stun: tuple[str, ...]
    url: str
    peers: tuple[PeerResult, PeerResult]
    messages: int
    """Messages that each peer had to send."""
    seconds: float
    faults: tuple[str, ...]
    data_datagrams: int
    """Datagrams of application data between the peers."""
    server_datagrams: int
    """Datagrams between the peers and the STUN server. None of them may contain application data."""
    server_data_datagrams: int

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def same_pair(self) -> bool:
        """Whether both peers selected the same pair."""
        return _same_pair(self.peers)

    def as_dict(self) -> dict[str, Any]:
        """Return a document for JSON."""
        return {
            "server": {"stun": list(self.stun), "signaling": self.url},
            "peers": {peer.name: peer.as_dict() for peer in self.peers},
            "same_pair": self.same_pair,
            "messages_each_way": self.messages,
            "data_datagrams": self.data_datagrams,
            "server_datagrams": self.server_datagrams,
            "data_through_server": self.server_data_datagrams,
            "seconds": self.seconds,
            "faults": list(self.faults),
        }


def judge(peers: tuple[PeerResult, PeerResult], messages: int, events: Iterable[TraceEvent]) -> list[str]:
    """Return every fault of a meeting as a sentence."""
    faults = [fault for peer in peers for fault in _of_peer(peer, messages)]
    if all(peer.selected for peer in peers):
        if not _same_pair(peers):
            faults.append("the two peers selected different pairs")
        if [peer.outcome.controlling for peer in peers if peer.outcome].count(True) != 1:
            faults.append("not exactly one peer is controlling")
    return faults + unpaced(events)


def count_data(
    packets: Sequence[tuple[Instant, str, IpPacket]], peers: Iterable[PeerResult], server: Iterable[Address]
) -> tuple[int, int, int]:
    """Count data datagrams between the peers, datagrams to and from the server, and data datagrams among the latter.

    The first number counts sent datagrams. The others count both directions, as the peers captured them.
    """
    local = {pair.local_address: peer.name for peer in peers if peer.outcome is not None for pair in peer.outcome.pairs}
    data = sum(not is_stun(packet.payload) and local.get(str(packet.source)) == node for _, node, packet in packets)
    with_server = payloads_at(packets, server)
    return data, len(with_server), sum(not is_stun(payload) for payload in with_server)


def _of_peer(peer: PeerResult, messages: int) -> list[str]:
    outcome = peer.outcome
    if outcome is None:
        return [f"{peer.name} exited with code {peer.exit_code} without an outcome"]
    faults = [f"{peer.name}: {outcome.error}"] if outcome.error else []
    if peer.selected is None:
        return [*faults, f"{peer.name} has no selected pair"]
    if not peer.selected.nominated:
        faults.append(f"{peer.name}: {peer.selected.local} -> {peer.selected.remote} was not nominated")
    counts = outcome.messages
    if counts.received != messages:
        faults.append(f"{peer.name} received {counts.received} of {messages} messages")
    if counts.wrong:
        faults.append(f"{peer.name} received {counts.wrong} datagrams that are not messages of the other peer")
    if peer.exit_code != 0:
        faults.append(f"{peer.name} exited with code {peer.exit_code}")
    return faults


def _same_pair(peers: tuple[PeerResult, PeerResult]) -> bool:
    one, other = (peer.selected for peer in peers)
    if one is None or other is None:
        return False
    return (one.local_address, one.remote_address) == (other.remote_address, other.local_address)
