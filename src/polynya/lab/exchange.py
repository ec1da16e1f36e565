"""Two agents that signal through the virtual network's own post: what one has to say arrives after a delay.

Descriptions and candidates travel as the text that real signaling carries, so they are formatted and parsed in every
run. Each side is a peer: a session that runs on a host, as a process with a pacer of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from polynya.core.instants import MILLISECOND, Instant
from polynya.core.pacer import Pacer
from polynya.ice.candidates import Candidate
from polynya.ice.description import Description
from polynya.ice.events import AgentState, LocalCandidateAdded, LocalCandidatesEnded, Restarted
from polynya.ice.pairs import PairView
from polynya.session.options import SessionConfig
from polynya.session.session import DataReceived, Session

from .hosts import Host
from .network import Network
from .processes import Process

R = TypeVar("R")


class Peer:
    """One side: a session on a host."""

    def __init__(self, network: Network, host: Host, config: SessionConfig, pacer: Pacer | None = None) -> None:
        self.name = host.name
        self.host = host
        self.closed_at: Instant | None = None
        self.sent_before_close = 0
        self.received: list[bytes] = []
        """Application data that came, oldest first."""
        self.signal: Callable[[Any], None] | None = None
        """Is told of every event, to pass on what is for the other side."""
        self.session = Session(
            config,
            random=network.chance_of(f"{host.name}/session"),
            pacer=pacer or Pacer(),
            flow_ids=network.flow_ids,
            trace=network.trace.at_node(host.name),
        )
        self.process: Process | None = None

    def start(self) -> None:
        """Run the session: it hears of the host's interfaces and gathers."""
        self.process = self.host.run(self.session, self._on_event)

    def call(self, method: Callable[..., R], *args: Any) -> R:
        """Call a method of the session now; it is drained afterwards."""
        if self.process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self.process.call(method, *args)

    def send(self, data: bytes, stream: int = 0, component: int = 1) -> bool:
        """Send application data on the component's selected pair; False while there is none."""
        return self.call(lambda now: self.session.send(data, now=now, stream=stream, component=component))

    def close(self) -> None:
        """Close the session. Nothing may leave after this call."""
        if self.closed_at is None and self.process is not None:
            self.call(self.session.close)
            self.closed_at = self.host.clock.now
            self.sent_before_close = self.process.sent

    @property
    def state(self) -> AgentState:
        return self.session.agent.state

    @property
    def settled(self) -> bool:
        """Whether a pair is nominated, or all hope is gone."""
        return self.state in (AgentState.COMPLETED, AgentState.FAILED, AgentState.CLOSED)

    @property
    def selected(self) -> PairView | None:
        """Where data of the first component goes now."""
        return self.selected_at(0, 1)

    def selected_at(self, stream: int, component: int) -> PairView | None:
        """Where data of a component goes now."""
        return self.session.agent.selected(stream, component)

    def events(self, kind: type[R]) -> list[R]:
        """Logged events of one kind, oldest first."""
        return self.process.events(kind) if self.process is not None else []

    def first(self, state: AgentState) -> Instant | None:
        """When the agent first came into a state."""
        log = self.process.log if self.process is not None else []
        return next((at for at, event in log if getattr(event, "new", None) is state), None)

    def _on_event(self, event: Any) -> None:
        if isinstance(event, DataReceived):
            self.received.append(event.data)
        elif self.signal is not None:
            self.signal(event)


class Exchange:
    """The signaling between two peers. `delay` is what each message takes, up to `jitter` more by chance.

    With jitter messages may overtake each other, as they do over some channels.
    """

    def __init__(
        self, network: Network, one: Peer, other: Peer, *, delay: int = 20 * MILLISECOND, jitter: int = 0
    ) -> None:
        self.peers = (one, other)
        self._clock = network.clock
        self._delay = delay
        self._jitter = jitter
        self._chance = network.chance_of("signaling")
        self._early: dict[str, list[_Message]] = {one.name: [], other.name: []}
        """What arrived before its receiver was started."""
        one.signal = lambda event: self._signal(one, other, event)
        other.signal = lambda event: self._signal(other, one, event)

    def start(self, later: int = 0) -> None:
        """Start both sides, the second one `later`."""
        one, other = self.peers
        self._begin(one, other)
        if later:
            self._clock.after(later, self._begin, other, one)
        else:
            self._begin(other, one)

    def _begin(self, sender: Peer, receiver: Peer) -> None:
        sender.start()
        self._describe(sender, receiver)
        for message in self._early[sender.name]:
            self._deliver(sender, message)

    def _describe(self, sender: Peer, receiver: Peer) -> None:
        local = sender.session.agent.local_description
        self._post(receiver, _Text(local.to_sdp(), local.generation))

    def _signal(self, sender: Peer, receiver: Peer, event: Any) -> None:
        if isinstance(event, LocalCandidateAdded):
            self._post(receiver, _Line(event.candidate.to_sdp(), event.local.stream))
        elif isinstance(event, LocalCandidatesEnded):
            self._post(receiver, None)
        elif isinstance(event, Restarted):
            self._describe(sender, receiver)

    def _post(self, receiver: Peer, message: _Message) -> None:
        delay = self._delay + (self._chance.randrange(self._jitter + 1) if self._jitter else 0)
        self._clock.after(delay, self._deliver, receiver, message)

    def _deliver(self, receiver: Peer, message: _Message) -> None:
        if receiver.process is None:
            self._early[receiver.name].append(message)
        elif receiver.closed_at is not None:
            return
        elif isinstance(message, _Text):
            description = Description.parse(message.sdp, message.generation)
            receiver.call(receiver.session.set_remote, description)
        elif message is None:
            receiver.call(receiver.session.add_remote, None)
        else:
            receiver.call(receiver.session.add_remote, Candidate.parse(message.sdp), message.stream)


class _Text(NamedTuple):
    """A description on its way."""

    sdp: str
    generation: int


class _Line(NamedTuple):
    """A candidate on its way."""

    sdp: str
    stream: int


_Message = _Text | _Line | None
"""None: no more candidates."""
