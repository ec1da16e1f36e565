"""The reference data plane: relays between clients and peers as a machine (RFC 8656, sections 11 and 12).

The lab runs it, and every faster data plane is compared with it byte for byte.

    client --ChannelData, Send--> [channel or permission, peer policy, rate limit] --datagram--> peer
    client <--ChannelData, Data-- [permission, peer policy, rate limit] <--datagram-- peer

- A peer that is a live relayed address of this server gets the data inside: no packet leaves, and the permissions of
  the receiving relay apply.
- A relay, permission or channel is valid while the clock is below its `until`.
- Packets that are neither ChannelData nor Send from a client with an allocation are reported to the control plane.
"""

from __future__ import annotations

import random
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import (
    Close,
    Closed,
    Counters,
    Datagram,
    IcmpError,
    IpFields,
    Open,
    Opened,
    Send,
    SendFailed,
)
from polynya.stun.framing import encode_channel_data

from .commands import (
    AssignRelay,
    BindChannel,
    Client,
    Command,
    Done,
    Forward,
    FreeRelay,
    OpenRelay,
    Peer,
    PeerError,
    PeerForbidden,
    Permit,
    Refused,
    Relay,
    RelayLost,
    Report,
    SetExpiry,
    SetPolicy,
    Traffic,
    Unpermit,
)
from .frames import HEADERS, MAX_DATAGRAM, SEND_TYPE, data_indication, parse_send
from .meters import Meter, Meters
from .policy import PeerPolicy

_DONT_FRAGMENT: Final = IpFields(dont_fragment=True)


class _Port:
    """A relay port with its permissions, channels and traffic."""

    __slots__ = (
        "channels", "client", "external", "flow", "forbidden_reported", "full_again", "interval", "meter", "peers",
        "permissions", "relay", "stream", "traffic", "until",
    )  # fmt: skip

    def __init__(self, flow: Flow, command: OpenRelay, meter: Meter | None) -> None:
        self.flow = flow
        self.relay = command.relay
        self.external = Peer(command.external)
        self.client = command.client
        self.stream = command.stream
        self.until = command.until
        self.permissions: dict[str, Instant] = {}
        self.channels: dict[int, tuple[Peer, Instant]] = {}
        self.peers: dict[Peer, int] = {}
        """Channel numbers by peer."""
        self.traffic = Traffic(relay=command.relay)
        self.forbidden_reported = False
        self.full_again = 0
        self.interval = 0
        self.meter: Meter | None = None
        self.limit(command.bytes_per_second, meter)

    def limit(self, bytes_per_second: int, meter: Meter | None) -> None:
        self.interval = SECOND // bytes_per_second if bytes_per_second else 0
        self.meter = meter

    def within_rate(self, size: int, *, now: Instant) -> bool:
        """Whether `size` bytes are within the rate limit, which allows bursts of one second, and within the meter."""
        if self.interval:
            full_again = max(self.full_again, now) + (size + HEADERS) * self.interval
            if full_again - now > SECOND:
                return False
            self.full_again = full_again
        return self.meter is None or self.meter.take(size + HEADERS, now)


class Forwarder:
    """The reference data plane. `random` makes the transaction ids of Data indications."""

    def __init__(self, flow_ids: FlowIds, *, random: random.Random) -> None:
        self._flow_ids = flow_ids
        self._random = random
        self._policy: PeerPolicy | None = None
        self._meters = Meters()
        self._opening: dict[Flow, OpenRelay] = {}
        self._ports: dict[Relay, _Port] = {}
        self._by_flow: dict[Flow, _Port] = {}
        self._inside: dict[Address, _Port] = {}
        """Ports by bound and by external address."""
        self._by_client: dict[Client, dict[int, _Port]] = {}
        """The ports of a client by address family."""
        self._outputs: Queue[Send | Open | Close] = Queue()
        self._reports: Queue[Report] = Queue()
        self._counters: dict[str, int] = {}

    # -------------------------------------------------------------------------------------------------------- commands

    def execute(self, command: Command | Forward, *, now: Instant) -> None:
        """Carry out a command; a report acknowledges it, at once or when the system has opened the port."""
        if isinstance(command, Forward):
            self._from_client(command.client, command.data, now=now)
            return
        number = command.number
        if isinstance(command, OpenRelay):
            self._open(command)
            return
        if isinstance(command, SetPolicy):
            self._policy = command.policy
            self._reports.append(Done(number))
            return
        port = self._ports.get(command.relay)
        if isinstance(command, FreeRelay):
            for flow, opening in list(self._opening.items()):
                if opening.relay == command.relay:
                    del self._opening[flow]
                    self._outputs.append(Close(flow=flow))
            if port is not None:
                self._forget(port)
                self._outputs.append(Close(flow=port.flow))
                self._reports.append(port.traffic)
        elif port is None:
            self._reports.append(Refused(number, "there is no such relay"))
            return
        elif isinstance(command, AssignRelay):
            port.client, port.stream, port.until = command.client, command.stream, command.until
            port.limit(command.bytes_per_second, self._meters.of(command.shared))
            self._by_client.setdefault(command.client, {})[port.relay.family] = port
        elif isinstance(command, SetExpiry):
            port.until = command.until
        elif isinstance(command, Permit):
            for host in command.hosts:
                port.permissions[host] = command.until
        elif isinstance(command, Unpermit):
            for host in command.hosts:
                port.permissions.pop(host, None)
        elif isinstance(command, BindChannel):
            for each in self._by_client.get(port.client, {}).values() if port.client is not None else ():
                self._unbind(each, command.channel)  # a number is bound to one peer, of either family
            self._unbind(port, port.peers.get(command.peer, 0))
            port.channels[command.channel] = command.peer, command.until
            port.peers[command.peer] = command.channel
        else:
            self._unbind(port, command.channel)
        self._reports.append(Done(number))

    def _open(self, command: OpenRelay) -> None:
        if command.relay in self._ports or any(each.relay == command.relay for each in self._opening.values()):
            self._reports.append(Refused(command.number, "the relay is open already"))
            return
        flow = self._flow_ids.new()
        self._opening[flow] = command
        self._outputs.append(Open(flow=flow, transport=Transport.UDP, local=Address(*command.relay)))

    def _opened(self, command: OpenRelay, flow: Flow) -> None:
        port = _Port(flow, command, self._meters.of(command.shared))
        self._ports[command.relay] = self._by_flow[flow] = port
        self._inside[command.relay] = self._inside[command.external] = port
        if command.client is not None:
            self._by_client.setdefault(command.client, {})[command.relay.family] = port
        self._reports.append(Done(command.number))

    def _forget(self, port: _Port) -> None:
        del self._ports[port.relay], self._by_flow[port.flow]
        self._inside.pop(port.relay, None)
        self._inside.pop(port.external, None)
        ports = self._by_client.get(port.client) if port.client is not None else None
        if ports is not None and port.client is not None and ports.get(port.relay.family) is port:
            del ports[port.relay.family]
            if not ports:
                del self._by_client[port.client]

    def _unbind(self, port: _Port, channel: int) -> None:
        bound = port.channels.pop(channel, None)
        if bound is not None and port.peers.get(bound[0]) == channel:  # the peer may be bound to another number since
            del port.peers[bound[0]]

    # --------------------------------------------------------------------------------------------------------- machine

    def receive(self, input: object, *, now: Instant) -> bool:
        """Relay or report a packet, or handle an event of a relay port; False for anything else."""
        if isinstance(input, Datagram):
            port = self._by_flow.get(input.flow)
            if port is not None:
                self._from_peer(port, Peer(input.remote), input.data, now=now)
            elif not self._from_client(Client(input.flow, input.remote), input.data, now=now):
                self._reports.append(input)
            return True
        if not isinstance(input, (Opened, Closed, IcmpError, SendFailed)):
            return False
        if input.flow not in self._by_flow and input.flow not in self._opening:
            return False
        if isinstance(input, Opened):
            command = self._opening.pop(input.flow, None)
            if command is not None:
                self._opened(command, input.flow)
        elif isinstance(input, Closed):
            self._closed(input)
        elif isinstance(input, IcmpError):
            self._peer_error(input, now=now)
        else:
            self._count("sends refused by the system")
        return True

    def send(self, answer: Send) -> bool:  # noqa: ARG002
        """Return False: all sockets are the driver's."""
        return False

    def outputs(self) -> list[Send | Open | Close]:
        return self._outputs.drain()

    def reports(self) -> list[Report]:
        """Return the reports for the control plane, oldest first; drained by the call."""
        return self._reports.drain()

    @property
    def counters(self) -> Counters:
        """Datagrams that were not forwarded, by reason."""
        return self._counters

    def traffic(self) -> list[Traffic]:
        """Return the traffic of each open relay."""
        return [port.traffic for port in self._ports.values()]

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table, to show leaks."""
        return {
            "relays": len(self._ports) + len(self._opening),
            "clients": len(self._by_client),
            "names": len(self._inside),
            "permissions": sum(len(port.permissions) for port in self._ports.values()),
            "channels": sum(len(port.channels) for port in self._ports.values()),
        }

    def _closed(self, closed: Closed) -> None:
        command = self._opening.pop(closed.flow, None)
        if command is not None:
            self._reports.append(Refused(command.number, closed.reason, closed.errno))
            return
        port = self._by_flow.get(closed.flow)
        if port is not None:
            self._forget(port)
            self._reports.append(port.traffic)
            self._reports.append(RelayLost(port.relay, closed.reason))

    def _peer_error(self, error: IcmpError, *, now: Instant) -> None:
        port = self._by_flow.get(error.flow)
        if port is None or port.client is None or now >= port.until:
            return
        if port.permissions.get(error.remote.host, now) > now:
            report = PeerError(client=port.client, peer=Peer(error.remote), kind=error.kind, mtu=error.mtu)
            self._reports.append(report)

    # ------------------------------------------------------------------------------------------------------ to the peer

    def _from_client(self, client: Client, data: bytes, *, now: Instant) -> bool:
        """Relay ChannelData or a Send indication of a client; False for any other packet."""
        ports = self._by_client.get(client)
        if ports is None:
            return False
        if len(data) >= 4 and data[0] >> 6 == 1:
            self._channel_data(ports, data, now=now)
            return True
        if data[:2] != SEND_TYPE:
            return False
        sending = parse_send(data)
        if sending is None:
            self._count("malformed Send indication")
            return True
        peer = Peer(sending.peer)
        port = ports.get(peer.family)
        if port is None:
            self._count("no relayed address of the peer's family")
        else:
            self._to_peer(port, peer, sending.data, now=now, dont_fragment=sending.dont_fragment)
        return True

    def _channel_data(self, ports: dict[int, _Port], data: bytes, *, now: Instant) -> None:
        channel, size = data[0] << 8 | data[1], data[2] << 8 | data[3]
        for port in ports.values():
            bound = port.channels.get(channel)
            if bound is not None:
                peer, until = bound
                if size > len(data) - 4:
                    self._drop(port, "truncated ChannelData")
                elif now >= until:
                    self._drop(port, "channel expired")
                else:
                    self._to_peer(port, peer, data[4 : 4 + size], now=now)
                return
        self._count("channel not bound")

    def _to_peer(self, port: _Port, peer: Peer, data: bytes, *, now: Instant, dont_fragment: bool = False) -> None:
        if now >= port.until:
            self._drop(port, "allocation expired")
        elif port.permissions.get(peer.host, now) <= now:
            self._drop(port, "no permission to peer")
        elif not port.within_rate(len(data), now=now):
            self._drop(port, "rate limit exceeded")
        else:
            inside = self._inside.get(peer)
            if inside is None and (rule := self._forbidden(peer)):
                self._forbid(port, peer, rule)
                return
            port.traffic.to_peers += 1
            port.traffic.bytes_to_peers += len(data)
            if inside is not None:
                self._from_peer(inside, port.external, data, now=now)
            else:
                self._outputs.append(Send(port.flow, peer, data, _DONT_FRAGMENT if dont_fragment else None))

    # ---------------------------------------------------------------------------------------------------- to the client

    def _from_peer(self, port: _Port, peer: Peer, data: bytes, *, now: Instant) -> None:
        client = port.client
        if client is None or now >= port.until:
            self._drop(port, "no allocation")
        elif port.permissions.get(peer.host, now) <= now:
            self._drop(port, "no permission from peer")
        elif peer not in self._inside and self._forbidden(peer):
            self._drop(port, "peer denied by policy")
        elif not port.within_rate(len(data), now=now):
            self._drop(port, "rate limit exceeded")
        else:
            frame = self._frame(port, peer, data, now=now)
            if frame is None:
                self._drop(port, "too large for the client")
                return
            port.traffic.from_peers += 1
            port.traffic.bytes_from_peers += len(data)
            self._outputs.append(Send(client.flow, client.remote, frame))

    def _frame(self, port: _Port, peer: Peer, data: bytes, *, now: Instant) -> bytes | None:
        channel = port.peers.get(peer)
        if channel is not None and now < port.channels[channel][1]:
            frame = encode_channel_data(channel, data, pad=port.stream)
        else:
            try:
                frame = data_indication(self._random.randbytes(12), peer, data)
            except ValueError:
                return None
        return frame if port.stream or len(frame) <= MAX_DATAGRAM else None

    def _forbidden(self, peer: Peer) -> str:
        """Return why the peer policy denies a peer, or ""."""
        return self._policy.judge(peer) if self._policy is not None else "no peer policy is set"

    def _drop(self, port: _Port, reason: str) -> None:
        port.traffic.drop(reason)
        self._count(reason)

    def _forbid(self, port: _Port, peer: Peer, rule: str) -> None:
        """Drop a datagram that the peer policy denies, and report the first of each relay."""
        self._drop(port, "peer denied by policy")
        if not port.forbidden_reported:
            port.forbidden_reported = True
            self._reports.append(PeerForbidden(relay=port.relay, peer=peer, rule=rule))

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1
