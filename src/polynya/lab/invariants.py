"""What must hold in every run, whatever the network did.

    nominated pairs are valid                   RFC 8445, section 8.1
    both sides end on one pair                  what one calls local the other calls remote
    new transactions keep the pace              RFC 8445, section 14.2: 5 ms over a whole process
    transactions and timers end                 a closed session waits for nothing and holds no socket and no stream
    nothing leaves after close
    machines ask for nothing that makes no sense

That the same seed gives the same trace is for whoever can run twice: compare the bytes.
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
"""For how long the pace of a node is judged from when its agent came into a state."""


def violations(peers: Sequence[Peer], trace: Iterable[TraceEvent] = ()) -> list[str]:
    """Everything that did not hold, as sentences. Call it when the run is over and the peers are closed.

    Pacing is judged from the trace, so give the run's trace where it was written.
    """
    found = [line for peer in peers for line in _of_peer(peer)]
    return found + unpaced(trace)


def disagreement(one: Peer, other: Peer) -> str:
    """Why the two sides are not on one pair in some component; empty when they are. Ask while both are connected."""
    components = one.session.agent.config.components
    keys = [(stream, component + 1) for stream, count in enumerate(components) for component in range(count)]
    return next((why for stream, component in keys if (why := _apart(one, other, stream, component))), "")


def _apart(one: Peer, other: Peer, stream: int, component: int) -> str:
    mine, theirs = (peer.selected_at(stream, component) for peer in (one, other))
    if mine is None or theirs is None:
        nowhere = one.name if mine is None else other.name
        return f"{nowhere} has no selected pair, the other side has one" if mine is not theirs else ""
    if not mine.nominated or not theirs.nominated:
        return ""  # data may flow on different valid pairs until one is nominated
    if mine.local.address != theirs.remote_address or theirs.local.address != mine.remote_address:
        return f"{one.name} ended on {mine}, {other.name} on {theirs}"
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
        found.append(f"{peer.name}: {process.sent - peer.sent_before_close} datagrams left after close")
    due = peer.session.next_timer()
    if due is not None:
        found.append(f"{peer.name}: a closed session waits for {in_seconds(due):g} s")
    if process.sockets or process.streams:
        held = f"{len(process.sockets)} sockets and {len(process.streams)} streams"
        found.append(f"{peer.name}: a closed session holds {held}")
    if peer.state is not AgentState.CLOSED:
        found.append(f"{peer.name}: a closed session's agent is {peer.state.value}")
    return found


def unpaced(trace: Iterable[TraceEvent], interval: int = MINIMUM_INTERVAL) -> list[str]:
    """New transactions that began too soon after the last of the same node, one process being on each.

    Consent checks have a pace of their own (RFC 7675, section 5.1), and what is freed at the end waits for nothing: a
    node is judged until its agent has completed or is closed, or may begin to ask for consent.
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
