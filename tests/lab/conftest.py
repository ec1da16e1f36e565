"""Small machines that act as programs in tests of the virtual network."""

from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.flows import Flow, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Datagram, Input, IpFields, Open, Output, Send
from polynya.lab import Host, Network, Process


class Endpoint:
    """Opens one UDP socket, sends datagrams on request, keeps its inputs, and echoes datagrams with `echo`."""

    def __init__(self, flow: Flow, local: Address, *, echo: bool = False) -> None:
        self.flow = flow
        self.local: Address | None = None
        self.inputs: list[Input] = []
        self.echo = echo
        self._outputs: Queue[Output] = Queue()
        self.put(Open(flow=flow, transport=Transport.UDP, local=local))
        self._due: list[tuple[Instant, Send]] = []

    @property
    def received(self) -> list[tuple[Address, bytes]]:
        return [(i.remote, i.data) for i in self.inputs if isinstance(i, Datagram)]

    def heard(self, kind: type[Any]) -> list[Any]:
        return [i for i in self.inputs if isinstance(i, kind)]

    def put(self, output: Output, *, now: Instant | None = None) -> None:
        """Return `output` from the next `outputs()`."""
        self._outputs.append(output)

    def send(self, remote: Address, data: bytes, ip: IpFields | None = None, *, now: Instant) -> None:
        self._outputs.append(Send(self.flow, remote, data, ip))

    def send_at(self, when: Instant, remote: Address, data: bytes, *, now: Instant) -> None:
        self._due = sorted([*self._due, (when, Send(self.flow, remote, data))], key=lambda due: due[0])

    def receive(self, input: Input, *, now: Instant) -> None:
        self.inputs.append(input)
        if self.echo and isinstance(input, Datagram):
            self._outputs.append(Send(input.flow, input.remote, input.data))

    def tick(self, *, now: Instant) -> None:
        while self._due and self._due[0][0] <= now:
            self._outputs.append(self._due.pop(0)[1])

    def next_timer(self) -> Instant | None:
        return self._due[0][0] if self._due else None

    def outputs(self) -> list[Output]:
        return self._outputs.drain()

    def events(self) -> list[object]:
        return []


class Program:
    """An endpoint that runs on a host, with short calls for tests."""

    def __init__(self, net: Network, host: Host, port: int = 5000, local: str | None = None, *, echo: bool = False):
        where = local or host.interfaces[0].addresses[0]
        self.address = Address(where, port)
        self.machine = Endpoint(net.flow_ids.new(), self.address, echo=echo)
        self.host = host
        self.process: Process = host.run(self.machine)

    def send(self, remote: Address, data: bytes = b"x", ip: IpFields | None = None) -> None:
        self.process.call(self.machine.send, remote, data, ip)

    @property
    def received(self) -> list[tuple[Address, bytes]]:
        return self.machine.received


@pytest.fixture
def net() -> Network:
    return Network(seed=1)
