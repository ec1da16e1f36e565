"""Two peers and the signaling between them. Each message arrives after a delay of virtual time.

Descriptions and candidates are signaled as text, as in real signaling, so every run formats and parses them. A peer is
a session that runs on a host, in a process with its own pacer.
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
    """A session that runs on a host."""

    def __init__(self, network: Network, host: Host, config: SessionConfig, pacer: Pacer | None = None) -> None:
        self.name = host.name
        self.host = host
        self.closed_at: Instant | None = None
        self.sent_before_close = 0
        self.received: list[bytes] = []
        """Received application data, oldest first."""
        self.signal: Callable[[Any], None] | None = None
        """Called with every event; `Exchange` signals those that concern the other side."""
        self.session = Session(
            config,
            random=network.chance_of(f"{host.name}/session"),
            pacer=pacer or Pacer(),
            flow_ids=network.flow_ids,
            trace=network.trace.at_node(host.name),
        )
        self.process: Process | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.name}: {self.state.value}, {len(self.received)} datagrams received>"

    def start(self) -> None:
        """Run the session on the host. It gathers candidates at once."""
        self.process = self.host.run(self.session, self._on_event)

    def call(self, method: Callable[..., R], *args: Any) -> R:
        """Call a method of the session, then drain the session."""
        if self.process is None:
            raise RuntimeError(f"{self.name} has not been started: call start() first")
        return self.process.call(method, *args)

    def send(self, data: bytes, stream: int = 0, component: int = 1) -> bool:
        """Send application data on the component's selected pair; False if there is none."""
        return self.call(lambda now: self.session.send(data, now=now, stream=stream, component=component))

    def close(self) -> None:
        """Close the session. It must send nothing after this call."""
        if self.closed_at is None and self.process is not None:
            self.call(self.session.close)
            self.closed_at = self.host.clock.now
            self.sent_before_close = self.process.sent

    @property
    def state(self) -> AgentState:
        return self.session.agent.state

    @property
    def settled(self) -> bool:
        """Whether the agent is completed, failed or closed."""
        return self.state in (AgentState.COMPLETED, AgentState.FAILED, AgentState.CLOSED)

    @property
    def selected(self) -> PairView | None:
        """The selected pair of the first component."""
        return self.selected_at(0, 1)

    @property
    def component_keys(self) -> list[tuple[int, int]]:
        """Stream and component number of every component."""
        counts = self.session.agent.components
        return [(stream, component + 1) for stream, count in enumerate(counts) for component in range(count)]

    def selected_at(self, stream: int, component: int) -> PairView | None:
        """Return the selected pair of a component."""
        return self.session.agent.selected(stream, component)

    def events(self, kind: type[R]) -> list[R]:
        """Return the logged events of one type, oldest first."""
        return self.process.events(kind) if self.process is not None else []

    def first(self, state: AgentState) -> Instant | None:
        """Return when the agent first entered a state."""
        log = self.process.log if self.process is not None else []
        return next((at for at, event in log if getattr(event, "new", None) is state), None)

    def _on_event(self, event: Any) -> None:
        if isinstance(event, DataReceived):
            self.received.append(event.data)
        elif self.signal is not None:
            self.signal(event)


class Exchange:
    """Signaling between two peers. Each message takes `delay` and a random addition of up to `jitter` nanoseconds.

    With jitter, messages can overtake each other, as on some signaling channels. Without `trickle`, each peer signals
    its description with all candidates when it has gathered them, and no candidate later.
    """

    def __init__(
        self,
        network: Network,
        one: Peer,
        other: Peer,
        *,
        delay: int = 20 * MILLISECOND,
        jitter: int = 0,
        trickle: bool = True,
    ) -> None:
        self.peers = (one, other)
        self._clock = network.clock
        self._delay = delay
        self._jitter = jitter
        self._chance = network.chance_of("signaling")
        self._held: dict[str, Instant] = {}
        """Until when a peer has no connection to the signaling server."""
        self._early: dict[str, list[_Message]] = {one.name: [], other.name: []}
        """Messages that arrived before their receiver was started."""
        self._trickle = trickle
        self._gathered: dict[str, list[_Message]] = {}
        """Without trickle: what each peer signals when it has gathered its candidates."""
        one.signal = lambda event: self._signal(one, other, event)
        other.signal = lambda event: self._signal(other, one, event)

    def start(self, later: int = 0) -> None:
        """Start both peers, the second one `later` nanoseconds after the first."""
        one, other = self.peers
        self._begin(one, other)
        if later:
            self._clock.after(later, self._begin, other, one)
        else:
            self._begin(other, one)

    def interrupt(self, peer: Peer, duration: int) -> None:
        """Hold messages from and to a peer, which connects to the signaling server again within `duration`."""
        self._held[peer.name] = Instant(self._clock.now + duration)

    def _begin(self, sender: Peer, receiver: Peer) -> None:
        sender.start()
        self._describe(sender, receiver)
        for message in self._early[sender.name]:
            self._deliver(sender, message)

    def _describe(self, sender: Peer, receiver: Peer) -> None:
        local = sender.session.agent.local_description
        if not self._trickle:
            self._gathered[sender.name] = []
        self._post(sender, receiver, _Text(local.to_sdp(), local.generation))

    def _signal(self, sender: Peer, receiver: Peer, event: Any) -> None:
        if isinstance(event, LocalCandidateAdded):
            self._post(sender, receiver, _Line(event.candidate.to_sdp(), event.local.stream))
        elif isinstance(event, LocalCandidatesEnded):
            self._post(sender, receiver, None)
        elif isinstance(event, Restarted):
            self._describe(sender, receiver)

    def _post(self, sender: Peer, receiver: Peer, message: _Message) -> None:
        """Send a message now, or without trickle with the end of candidates; candidates after the end are dropped."""
        if self._trickle:
            self._send(receiver, [message])
        elif (gathered := self._gathered.get(sender.name)) is not None:
            gathered.append(message)
            if message is None:
                self._send(receiver, self._gathered.pop(sender.name))

    def _send(self, receiver: Peer, messages: list[_Message]) -> None:
        delay = self._delay + (self._chance.randrange(self._jitter + 1) if self._jitter else 0)
        if self._held:
            delay += max(0, *(until - self._clock.now for until in self._held.values()))
        self._clock.after(delay, self._deliver_all, receiver, messages)

    def _deliver_all(self, receiver: Peer, messages: list[_Message]) -> None:
        for message in messages:
            self._deliver(receiver, message)

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
    """A signaled description."""

    sdp: str
    generation: int


class _Line(NamedTuple):
    """A signaled candidate."""

    sdp: str
    stream: int


_Message = _Text | _Line | None
"""None is the end of candidates."""
