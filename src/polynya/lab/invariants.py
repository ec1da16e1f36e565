"""Invariants of every run, whatever the network did.

    nominated pairs are valid                   RFC 8445, section 8.1
    both sides select the same pair             the local address of one is the remote address of the other
    new transactions are paced                  RFC 8445, section 14.2: 5 ms between them in each process
    transactions and timers end                 a closed session has no timer, no socket and no stream
    nothing is sent after close
    machines send no senseless output           such as a Send on a closed flow

One more needs two runs: the same seed gives the same trace, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polynya.core.instants import MILLISECOND, Instant, in_seconds
from polynya.core.pacer import MINIMUM_INTERVAL
from polynya.core.trace import TraceEvent
from polynya.ice.consent import INTERVAL, SPREAD
from polynya.ice.events import AgentState, PairChanged

from .exchange import Peer

_FIRST_CONSENT = round(INTERVAL * (1 - SPREAD))
_JUDGED_FOR = {state.value: 1 << 62 for state in AgentState} | {
    AgentState.CONNECTED.value: _FIRST_CONSENT,
    AgentState.COMPLETED.value: -1,
    AgentState.CLOSED.value: -1,
}
"""How long the pacing of a node is checked after its agent entered a state, in nanoseconds."""


def violations(peers: Sequence[Peer], trace: Iterable[TraceEvent] = ()) -> list[str]:
    """Return every violated invariant as a sentence. Call this after the run, when the peers are closed.

    Pacing is checked in `trace`, the events of the run.
    """
    found = [line for peer in peers for line in _of_peer(peer)]
    return found + unpaced(trace)


def disagreement(one: Peer, other: Peer) -> str:
    """Return how the selected pairs of two connected peers differ; empty if they are the same in every component."""
    return next(
        (why for stream, component in one.component_keys if (why := _difference(one, other, stream, component))), ""
    )


def _difference(one: Peer, other: Peer, stream: int, component: int) -> str:
    first, second = (peer.selected_at(stream, component) for peer in (one, other))
    if first is None or second is None:
        without = one.name if first is None else other.name
        return f"{without} has no selected pair, the other side has one" if first is not second else ""
    if not first.nominated or not second.nominated:
        return ""  # before nomination the two sides may send on different valid pairs
    if first.local.address != second.remote_address or second.local.address != first.remote_address:
        return f"{one.name} selected {first}, {other.name} selected {second}"
    return ""


def _of_peer(peer: Peer) -> list[str]:
    found: list[str] = []
    process = peer.process
    if process is None:
        return found
    for at, event in process.log:
        if isinstance(event, PairChanged) and event.pair.nominated and not event.pair.valid:
            found.append(f"{peer.name}: {event.pair} was nominated at {in_seconds(at):g} s and is not valid")
    found += [f"{peer.name}: {misuse}" for misuse in process.misuses]
    if peer.closed_at is None:
        return found
    if process.sent != peer.sent_before_close:
        found.append(f"{peer.name}: {process.sent - peer.sent_before_close} datagrams were sent after close")
    due = peer.session.next_timer()
    if due is not None:
        found.append(f"{peer.name}: a closed session has a timer at {in_seconds(due):g} s")
    if process.sockets or process.streams:
        held = f"{len(process.sockets)} sockets and {len(process.streams)} streams"
        found.append(f"{peer.name}: a closed session still has {held}")
    if peer.state is not AgentState.CLOSED:
        found.append(f"{peer.name}: the agent of a closed session is {peer.state.value}")
    return found


def unpaced(trace: Iterable[TraceEvent], interval: int = MINIMUM_INTERVAL) -> list[str]:
    """Return the new transactions that started too soon after the previous one of the same node.

    The check assumes one process on each node. It ends when the agent completes, closes or may send consent checks:
    consent checks have their own pace (RFC 7675, section 5.1), and closing sends without pacing.
    """
    last: dict[str, Instant] = {}
    until: dict[str, int] = {}
    found = []
    for event in trace:
        if event.kind == "agent":
            until[event.node] = event.at + _JUDGED_FOR[str(event.fields["new"])]
        if event.kind != "transaction" or event.fields.get("sends") != 1 or event.fields["state"] != "sent":
            continue
        if event.at > until.get(event.node, event.at):
            continue
        before = last.get(event.node)
        if before is not None and event.at - before < interval:
            gap = (event.at - before) / MILLISECOND
            found.append(f"{event.node}: two transactions within {gap:g} ms at {in_seconds(event.at):g} s")
        last[event.node] = event.at
    return found
