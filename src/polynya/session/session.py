"""The session: one ICE agent with what gathers for it, and the data that flows over its pairs.

The one machine a packet belongs to is found by key, and the packet is decoded once:

    not STUN                          data: accepted from remotes whose check was authenticated, else dropped
    response, transaction id known    the agent's check
    response, flow and server known   a question of gathering
    from a TURN server, by its flow   its client; what comes out of a relay is found a machine like any packet
    request, indication               the agent, which checks the ufrag and the password

What gathering finds becomes the agent's local candidates; what the agent wants signaled comes out as its events.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from polynya.core.addresses import Address
from polynya.core.empty import NOTHING
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant, earliest
from polynya.core.machine import (
    Closed,
    Datagram,
    IcmpError,
    Input,
    InterfacesChanged,
    Opened,
    Output,
    Resolved,
    Send,
    SendFailed,
    StreamData,
)
from polynya.core.pacer import Pacer
from polynya.core.trace import NO_TRACE, Tracer
from polynya.ice.agent import IceAgent
from polynya.ice.candidates import Candidate, Gathered
from polynya.ice.config import check_components
from polynya.ice.description import Description
from polynya.ice.events import (
    AgentState,
    AgentStateChanged,
    ConsentLost,
    IceEvent,
    PathWanted,
    Restarted,
    SelectedPairChanged,
)
from polynya.stun.message import Received, decode, is_stun
from polynya.stun.registry import Class, Method
from polynya.turn.client.report import RelayOverhead

from .gathering import Gathering
from .gathering_events import BaseOpened, GatheringState, GatheringStateChanged, MappingFound
from .local_candidates import of_mapping, of_relay, of_socket
from .options import SessionConfig, TurnCredentials
from .relay_events import CredentialsWanted, PathReady, PathRefused, RelayFound, RelayLost
from .report import SessionReport, session_report


@dataclass(slots=True)
class DataReceived:
    """Application data from the other side."""

    stream: int
    component: int
    data: bytes


SessionEvent = IceEvent | GatheringStateChanged | CredentialsWanted | DataReceived


class Session:
    """A machine: feed it the host's interfaces, the other side's description and candidates, and packets."""

    __slots__ = ("_events", "_outputs", "_trace", "agent", "config", "counters", "gathering")

    def __init__(
        self,
        config: SessionConfig,
        *,
        random: random_module.Random,
        pacer: Pacer,
        flow_ids: FlowIds,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.config = config
        self.counters: Mapping[str, int] = NOTHING
        self.agent = IceAgent(config.ice, random=random, pacer=pacer, trace=trace.of("ice"))
        self.gathering = Gathering(config, random=random, pacer=pacer, flow_ids=flow_ids, trace=trace.of("gathering"))
        self._trace = trace.of("session")
        self._outputs: tuple[Output, ...] = ()
        self._events: tuple[SessionEvent, ...] = ()

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, interfaces: InterfacesChanged, *, now: Instant) -> None:
        """Begin to gather on these interfaces."""
        self.gathering.start(interfaces, now=now)
        self._collect(now=now)

    def set_remote(
        self, description: Description, components: tuple[int, ...] | None = None, *, now: Instant
    ) -> None:  # fmt: skip
        """What the other side signaled: its credentials and options.

        `components` says how many each stream has from now on, where that was agreed on with the description.
        """
        self.agent.set_remote(description, now=now, components=components)
        if components is not None:
            self.gathering.set_components(self.agent.components, now=now)
        self._collect(now=now)

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None:
        """A candidate of the other side, or None: there are no more of this generation, for any stream."""
        if candidate is None:
            self.agent.end_of_remote_candidates(now=now)
        else:
            self.agent.add_remote(candidate, now=now, stream=stream)
        self._collect(now=now)

    def set_controlling(self, controlling: bool, *, now: Instant) -> None:
        self.agent.set_controlling(controlling, now=now)
        self._collect(now=now)

    def set_credentials(self, server: TurnCredentials, *, now: Instant) -> None:
        """Use these for the TURN server of the same URI: the answer to `CredentialsWanted`, or before it is asked."""
        self.gathering.set_credentials(server, now=now)
        self._collect(now=now)

    def no_credentials(self, wanted: CredentialsWanted, *, now: Instant) -> None:
        """The answer where there are no others: gathering goes on without this server, at once."""
        self.gathering.no_credentials(wanted, now=now)
        self._collect(now=now)

    def restart(self, components: tuple[int, ...] | None = None, *, now: Instant) -> Description:
        """Begin a new generation with the candidates there are (RFC 8445, section 9); signal what is returned.

        `components` adds and removes streams, as the agent's `restart` does, with their sockets.
        """
        if components is not None:
            check_components(components)
        more = components is not None and self.gathering.set_components(components, now=now)
        description = self.agent.restart(now=now, more_to_come=more, components=components)
        self._collect(now=now)
        return description

    def interfaces_changed(self, interfaces: InterfacesChanged, *, now: Instant) -> bool:
        """The host's interfaces are others now: gather anew and restart; False where no address in use changed.

        The restart is told as `Restarted`; its description and candidates are to be signaled like the first ones.
        """
        gone = self.gathering.update(interfaces, now=now)
        if gone is None:
            return False
        for flow in gone:
            self.agent.receive(Closed(flow=flow, reason="its address is gone from this host"), now=now)
        self.agent.restart(now=now, more_to_come=True)
        self._collect(now=now)
        return True

    def send(self, data: bytes, stream: int = 0, component: int = 1, *, now: Instant) -> bool:
        """Send application data on the component's selected pair; False while there is none."""
        target = self.agent.path(stream, component)
        if target is None:
            return False
        flow, remote = target
        if self._trace.enabled:
            self._trace.data("sent", now=now, flow=flow.id, remote=str(remote), length=len(data))
        output = Send(flow, remote, data)
        if self.gathering.relays.owns(flow):
            self.gathering.relays.send(output, now=now)
            self._outputs += tuple(self.gathering.outputs())
        else:
            self._outputs += (output,)
        return True

    def close(self, *, now: Instant) -> None:
        """End the agent and close every flow. Nothing leaves after the outputs of this call."""
        self.agent.close(now=now)
        self._collect(now=now)
        self._outputs = tuple(output for output in self._outputs if not isinstance(output, Send))
        self.gathering.close(now=now)
        self._collect(now=now)

    def relay_overhead(self, flow: Flow, peer: Address) -> RelayOverhead | None:
        """Return how datagrams on a relayed flow are carried to the TURN server; None for any other flow.

        `flow` is that of the selected pair and `peer` its remote address. The answer changes when a channel is bound
        or lost.
        """
        client = self.gathering.relays.client(flow)
        return None if client is None else client.overhead(peer)

    def why(self) -> SessionReport:
        """What was gathered and what was not, every pair, and every transition with its reason."""
        return session_report(self.gathering, self.agent)

    # ------------------------------------------------------------------------------------------------------ machine

    def receive(self, input: Input, *, now: Instant) -> None:
        match input:
            case Datagram():
                self._datagram(input, now=now)
            case IcmpError() | SendFailed():
                if self.gathering.expects(input.flow, input.remote):
                    self.gathering.receive(input, now=now)
                self.agent.receive(input, now=now)
            case Closed():
                self.gathering.receive(input, now=now)
                self.agent.receive(input, now=now)
            case StreamData():
                self.gathering.receive(input, now=now)
            case Resolved() if self.agent.expects(input.query):
                self.agent.receive(input, now=now)
            case Opened() | Resolved() | InterfacesChanged():
                self.gathering.receive(input, now=now)
        self._collect(now=now)

    def tick(self, *, now: Instant) -> None:
        self.gathering.tick(now=now)
        self.agent.tick(now=now)
        self._collect(now=now)

    def next_timer(self) -> Instant | None:
        return earliest(self.gathering.next_timer(), self.agent.next_timer())

    def outputs(self) -> list[Output]:
        drained, self._outputs = list(self._outputs), ()
        return drained

    def events(self) -> list[SessionEvent]:
        drained, self._events = list(self._events), ()
        return drained

    # ------------------------------------------------------------------------------------------------------ packets

    def _datagram(self, datagram: Datagram, *, now: Instant) -> None:
        from_turn = self.gathering.relays.expects(datagram.flow, datagram.remote)
        if not is_stun(datagram.data):
            if from_turn:
                self.gathering.receive(datagram, now=now)
            else:
                self._data(datagram, now=now)
            return
        try:
            message = decode(datagram.data)
        except DecodeError as error:
            self._drop("malformed", datagram, str(error), now=now)
            return
        received = Received(datagram.flow, datagram.remote, message, datagram.data, datagram.packet)
        if from_turn and message.method != Method.BINDING:
            self.gathering.receive(received, now=now)
            return
        response = message.cls is Class.SUCCESS or message.cls is Class.ERROR
        if response and not self.agent.owns_transaction(message.transaction_id):
            if self.gathering.expects(datagram.flow, datagram.remote):
                self.gathering.receive(received, now=now)
            else:
                self._drop("unexpected", datagram, "an answer to nothing that was asked", now=now)
            return
        self.agent.receive(received, now=now)

    def _data(self, datagram: Datagram, *, now: Instant) -> None:
        place = self.agent.accepts(datagram.flow, datagram.remote)
        if place is None:
            self._drop("unauthenticated", datagram, "data from where no authenticated check came", now=now)
            return
        if self._trace.enabled:
            remote = str(datagram.remote)
            self._trace.data("received", now=now, flow=datagram.flow.id, remote=remote, length=len(datagram.data))
        self._events += (DataReceived(*place, datagram.data),)

    def _drop(self, count: str, datagram: Datagram, reason: str, *, now: Instant) -> None:
        self.counters = {**self.counters, count: self.counters.get(count, 0) + 1}
        if self._trace.enabled:
            self._trace.message_dropped(reason, now=now, remote=str(datagram.remote), packet=datagram.packet)

    # ----------------------------------------------------------------------------------------------------- children

    def _collect(self, *, now: Instant) -> None:
        """Drain the children until all is quiet: what gathering found makes the agent act, and want more."""
        self._drain(now=now)
        while (arrived := self.gathering.relays.inputs()) or self.gathering.has_events:
            for packet in arrived:  # to a relay: the agent's, like what comes to a socket
                if isinstance(packet, Datagram):
                    self._datagram(packet, now=now)
                else:
                    self.agent.receive(packet, now=now)
            self._drain(now=now)

    def _drain(self, *, now: Instant) -> None:
        policy = self.config.policy
        for found in self.gathering.events():
            match found:
                case BaseOpened():
                    self._add_all(of_socket(found.base, policy, self.config.external), now=now)
                case MappingFound():
                    if (base := self.gathering.base(found.flow)) is not None:
                        self._add_all(of_mapping(base, found.mapped, found.server, policy), now=now)
                case RelayFound():
                    self._add_all(of_relay(found, policy), now=now)
                case RelayLost():
                    self.agent.receive(Closed(flow=found.flow, reason=found.reason), now=now)
                case PathReady():
                    self.agent.path_ready(found.flow, found.host, now=now)
                case PathRefused():
                    self.agent.path_refused(found.flow, found.host, found.reason, now=now)
                case CredentialsWanted():
                    self._events += (found,)
                case GatheringStateChanged():
                    self._events += (found,)
                    if found.new is GatheringState.COMPLETE:
                        self.agent.end_of_local_candidates(now=now)
        told = self.agent.events()
        for event in told:
            self._note(event, now=now)
        self._events += tuple(told)
        for output in self.agent.outputs():
            if isinstance(output, Send) and self.gathering.relays.owns(output.flow):
                self.gathering.relays.send(output, now=now)
            else:
                self._outputs += (output,)
        self._outputs += tuple(self.gathering.outputs())

    def _add_all(self, gathered: Iterable[Gathered], *, now: Instant) -> None:
        for each in gathered:
            self.agent.add_local(each, now=now)

    def _note(self, event: IceEvent, *, now: Instant) -> None:
        match event:
            case SelectedPairChanged() if event.pair is not None and event.nominated:
                self.gathering.bind(event.pair.flow, event.pair.remote_address, now=now)
            case PathWanted():
                self.gathering.want(event.flow, event.remote, now=now)
            case ConsentLost() | Restarted():
                self.gathering.verify_relays(now=now)
            case AgentStateChanged(new=AgentState.COMPLETED | AgentState.FAILED | AgentState.CLOSED):
                self.gathering.stop_keepalives()
            case _:
                pass
