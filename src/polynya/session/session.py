"""Session: one ICE agent with its gathering, and the application data on its pairs.

Each packet is decoded once, and its machine is found by key:

    not STUN                            data, if it comes from a remote address with an authenticated check
    response to the agent's request     the agent, by transaction id
    response on a known flow and server gathering
    from a TURN server's address        its TURN client; a relayed packet is dispatched again like any other
    request, indication                 the agent, which verifies ufrag and integrity

Addresses from gathering become local candidates of the agent; the agent's events name the candidates to signal.
Outputs of all parts wait in one queue.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Iterable
from dataclasses import dataclass, replace

from polynya.core.addresses import Address, scope
from polynya.core.compact import NO_COUNTS, Queue, count
from polynya.core.errors import DecodeError
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import Instant, earliest
from polynya.core.machine import (
    Closed,
    Counters,
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
    InternalEvent,
    PathWanted,
    Restarted,
    SelectedPairChanged,
)
from polynya.stun.message import Received, decode, is_stun
from polynya.stun.registry import Class, Method
from polynya.turn.client.client import TurnClient
from polynya.turn.client.report import RelayOverhead

from .events import (
    BaseOpened,
    CredentialsWanted,
    GatheringState,
    GatheringStateChanged,
    MappingFound,
    PathReady,
    PathRefused,
    RelayFound,
    RelayLost,
)
from .gathering import Gathering
from .local_candidates import of_mapping, of_relay, of_socket
from .options import Policy, SessionConfig, TurnCredentials
from .report import SessionReport, session_report


@dataclass(slots=True)
class DataReceived:
    """Application data from the peer."""

    stream: int
    component: int
    data: bytes


SessionEvent = IceEvent | InternalEvent | GatheringStateChanged | CredentialsWanted | DataReceived


class Session:
    """Machine of one ICE session: interfaces, the peer's description and candidates, and packets in."""

    __slots__ = ("_events", "_outbox", "_trace", "agent", "config", "counters", "gathering")

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
        self.counters: Counters = NO_COUNTS
        """Dropped packets, by reason."""
        self._outbox: Queue[Output] = Queue()
        self._events: Queue[SessionEvent] = Queue()
        self._trace = trace.of("session")
        ice = config.ice
        if config.policy is Policy.RELAY and ice.mdns:  # a relay is not on the peer's local network
            ice = replace(ice, mdns=False)
        self.agent = IceAgent(ice, random=random, pacer=pacer, trace=trace.of("ice"))
        self.gathering = Gathering(
            config,
            random=random,
            pacer=pacer,
            flow_ids=flow_ids,
            outbox=self._outbox,
            trace=trace.of("gathering"),
        )

    # -------------------------------------------------------------------------------------------------------- calls

    def start(self, interfaces: InterfacesChanged, *, now: Instant) -> None:
        """Begin to gather on these interfaces."""
        self.gathering.start(interfaces, now=now)
        self._collect(now=now)

    def set_remote(
        self, description: Description, components: tuple[int, ...] | None = None, *, now: Instant
    ) -> None:  # fmt: skip
        """Set the peer's description: its credentials and options.

        `components` is the number of components of each stream, if it was negotiated with the description.
        """
        self.agent.set_remote(description, now=now, components=components)
        if components is not None:
            self.gathering.set_components(self.agent.components, now=now)
        self._collect(now=now)

    def add_remote(self, candidate: Candidate | None, stream: int = 0, *, now: Instant) -> None:
        """Add a candidate of the peer; None ends the candidates of this generation, for all streams."""
        if candidate is None:
            self.agent.end_of_remote_candidates(now=now)
        else:
            self.agent.add_remote(candidate, now=now, stream=stream)
        self._collect(now=now)

    def set_controlling(self, controlling: bool, *, now: Instant) -> None:
        """Set the role of the agent."""
        self.agent.set_controlling(controlling, now=now)
        self._collect(now=now)

    def set_credentials(self, server: TurnCredentials, *, now: Instant) -> None:
        """Use these credentials for the TURN server of the same URI, after `CredentialsWanted` or before."""
        self.gathering.set_credentials(server, now=now)
        self._collect(now=now)

    def no_credentials(self, wanted: CredentialsWanted, reason: str = "", *, now: Instant) -> None:
        """Answer `CredentialsWanted` if there are no other credentials: gathering continues without the server.

        With a `reason`, they could not be had now: `CredentialsWanted` follows again, with a backoff.
        """
        self.gathering.no_credentials(wanted, reason, now=now)
        self._collect(now=now)

    def restart(self, components: tuple[int, ...] | None = None, *, now: Instant) -> Description:
        """Restart ICE with the present candidates (RFC 8445, section 9); signal the description that is returned.

        `components` adds and removes streams, as the agent's `restart` does, with their sockets.
        """
        if components is not None:
            check_components(components)
        more = components is not None and self.gathering.set_components(components, now=now)
        description = self.agent.restart(now=now, more_to_come=more, components=components)
        self._collect(now=now)
        return description

    def interfaces_changed(self, interfaces: InterfacesChanged, *, now: Instant) -> bool:
        """Gather on changed interfaces and restart ICE; return False if no address in use changed.

        A `Restarted` event follows: signal its description and the candidates like the first ones.
        """
        gone = self.gathering.update(interfaces, now=now)
        if gone is not None:
            self._move(gone, restart=True, now=now)
        return gone is not None

    def follow(self, interfaces: InterfacesChanged, *, now: Instant) -> bool:
        """Gather on changed interfaces, and restart ICE only if the connection needs it; return whether it did.

        It needs a restart if a selected pair has lost its address. A new address becomes a candidate of the present
        generation. If the other side would not check it any more, because a pair is nominated, a restart follows, too;
        not for a link-local address, which each new container or virtual machine on this host brings.
        """
        used = [path[0] for key in self.agent.generation.keys if (path := self.agent.path(*key)) is not None]
        relayed = [flow for flow in used if self.relay_client(flow) is not None]
        gone = self.gathering.update(interfaces, now=now)
        if gone is None:
            return False
        cut = any(flow in gone for flow in used) or any(self.relay_client(flow) is None for flow in relayed)
        settled = self.agent.state is AgentState.COMPLETED and not self.agent.generation.checklists.renomination
        restart = cut or (settled and any(scope(host.address.host) != "link-local" for host in self.gathering.opening))
        self._move(gone, restart=restart, now=now)
        return restart

    def _move(self, gone: list[Flow], *, restart: bool, now: Instant) -> None:
        """Inform the agent of lost addresses, together with the restart if there is one."""
        closed = [Closed(flow=flow, reason="its address is gone from this host") for flow in gone]
        if restart:
            self.agent.restart(now=now, more_to_come=True, gone=closed)
        else:
            for each in closed:
                self.agent.receive(each, now=now)
        self._collect(now=now)

    def routes_changed(self, *, now: Instant) -> None:
        """Try again what could not be reached, if a component has no path: there are new routes."""
        if all(self.agent.path(*key) is not None for key in self.agent.generation.keys):
            return
        self.gathering.ask_again(now=now)
        self.agent.check_again("there are new routes", now=now)
        self._collect(now=now)

    def send(self, data: bytes, stream: int = 0, component: int = 1, *, now: Instant) -> bool:
        """Send application data on the component's selected pair; return False if there is none."""
        target = self.agent.path(stream, component)
        if target is None:
            return False
        flow, remote = target
        self._trace.data("sent", now=now, flow=flow.id, remote=remote, length=len(data))
        self._send(Send(flow, remote, data), now=now)
        return True

    def close(self, *, now: Instant) -> None:
        """Close the agent and every flow. Pending packets are dropped.

        The last packets notify the other side and free the allocations.
        """
        self._outbox.extend([output for output in self._outbox.drain() if not isinstance(output, Send)])
        self.agent.close(now=now)
        self._collect(now=now)
        self.gathering.close(now=now)
        self._collect(now=now)

    def peer_left(self, reason: str, *, now: Instant) -> None:
        """Handle the report of signaling that the other side has closed its agent."""
        self.agent.peer_left(reason, now=now)
        self._collect(now=now)

    def ask_consent(self, *, now: Instant) -> None:
        """Find out within two seconds whether the other side is still there."""
        self.agent.ask_consent(now=now)
        self._collect(now=now)

    def stop_asking(self, *, now: Instant) -> None:
        """End what `ask_consent` began: the other side is there again."""
        self.agent.stop_asking(now=now)
        self._collect(now=now)

    def relay_client(self, flow: Flow) -> TurnClient | None:
        """Return the TURN client of a relayed flow; None for any other flow."""
        relays = self.gathering.relays
        return None if relays is None else relays.client(flow)

    def relay_overhead(self, flow: Flow, peer: Address) -> RelayOverhead | None:
        """Return how datagrams on a relayed flow are carried to the TURN server; None for any other flow.

        `flow` is that of the selected pair and `peer` its remote address. The answer changes when a channel is bound
        or lost.
        """
        client = self.relay_client(flow)
        return None if client is None else client.overhead(peer)

    def why(self) -> SessionReport:
        """Return the report of gathering, every pair, and every transition with its reason."""
        gathering = self.gathering
        return session_report(
            self.agent,
            state=gathering.state,
            bases=gathering.bases,
            refused=gathering.refused,
            answers=gathering.answers.all,
        )

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
            case Resolved():
                if not self.agent.receive(input, now=now):
                    self.gathering.receive(input, now=now)
            case InterfacesChanged() if self.gathering.state is not GatheringState.NEW:
                self.follow(input, now=now)
            case Opened() | InterfacesChanged():
                self.gathering.receive(input, now=now)
        self._collect(now=now)

    def tick(self, *, now: Instant) -> None:
        self.gathering.tick(now=now)
        self.agent.tick(now=now)
        self._collect(now=now)

    def next_timer(self) -> Instant | None:
        return earliest(self.gathering.next_timer(), self.agent.next_timer())

    def outputs(self) -> list[Output]:
        return self._outbox.drain()

    def events(self) -> list[SessionEvent]:
        return self._events.drain()

    # ------------------------------------------------------------------------------------------------------ packets

    def _datagram(self, datagram: Datagram, *, now: Instant) -> None:
        relays = self.gathering.relays
        from_turn = relays is not None and relays.expects(datagram.flow, datagram.remote)
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
        if self.agent.receive(received, now=now):
            return
        if message.cls is Class.SUCCESS or message.cls is Class.ERROR:
            if self.gathering.expects(datagram.flow, datagram.remote):
                self.gathering.receive(received, now=now)
            else:
                self._drop("unexpected", datagram, "a response to no pending request", now=now)

    def _data(self, datagram: Datagram, *, now: Instant) -> None:
        component = self.agent.accepts(datagram.flow, datagram.remote)
        if component is None:
            self._drop("unauthenticated", datagram, "data from an address without an authenticated check", now=now)
            return
        self._trace.data(
            "received", now=now, flow=datagram.flow.id, remote=datagram.remote, length=len(datagram.data)
        )  # fmt: skip
        self._events.append(DataReceived(*component, datagram.data))

    def _drop(self, name: str, datagram: Datagram, reason: str, *, now: Instant) -> None:
        self.counters = count(self.counters, name)
        self._trace.message_dropped(reason, now=now, remote=datagram.remote, packet=datagram.packet)

    def _send(self, send: Send, *, now: Instant) -> None:
        """Send a packet of the agent: through its relay, or on its base."""
        relays = self.gathering.relays
        if relays is not None and relays.owns(send.flow):
            relays.send(send, now=now)
        else:
            self._outbox.append(send)

    # ----------------------------------------------------------------------------------------------------- children

    def _collect(self, *, now: Instant) -> None:
        """Drain gathering and the agent until neither has events: what one finds makes the other act."""
        self._drain(now=now)
        relays = self.gathering.relays
        while (arrived := [] if relays is None else relays.inputs()) or self.gathering.has_events:
            for packet in arrived:
                if isinstance(packet, Datagram):
                    self._datagram(packet, now=now)
                else:
                    self.agent.receive(packet, now=now)
            self._drain(now=now)

    def _drain(self, *, now: Instant) -> None:
        lost = self._drain_gathering(now=now)
        for event in self.agent.events():
            self._note(event, now=now)
            self._events.append(event)
        for output in self.agent.outputs():
            if isinstance(output, Send):
                self._send(output, now=now)
            else:
                self._outbox.append(output)
        if self.gathering.relays is not None:
            for flow in lost:  # the agent, which knows it now, has sent the last packet on it
                self.gathering.relays.forget(flow)

    def _drain_gathering(self, *, now: Instant) -> list[Flow]:
        """Pass the events of gathering to the agent; return the relayed flows that are lost."""
        policy = self.config.policy
        lost = []
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
                    lost.append(found.flow)
                case PathReady():
                    self.agent.path_ready(found.flow, found.host, now=now)
                case PathRefused():
                    self.agent.path_refused(found.flow, found.host, found.reason, now=now)
                case CredentialsWanted():
                    self._events.append(found)
                case GatheringStateChanged():
                    self._events.append(found)
                    if found.new is GatheringState.COMPLETE:
                        self.agent.end_of_local_candidates(now=now)
        return lost

    def _add_all(self, gathered: Iterable[Gathered], *, now: Instant) -> None:
        for each in gathered:
            self.agent.add_local(each, now=now)

    def _note(self, event: IceEvent | InternalEvent, *, now: Instant) -> None:
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
