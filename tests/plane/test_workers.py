"""The portable plane in several worker processes: assignment of clients, and the death of a worker."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from polynya.aio.icmp import read_errors
from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, IcmpKind, Send
from polynya.plane.portable import now
from polynya.plane.sockets import bind_listeners
from polynya.plane.workers import LOCAL, WorkerPlane
from polynya.turn.server.commands import (
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
    Permit,
    Refused,
    Relay,
    Report,
    SetPolicy,
    Traffic,
)
from polynya.turn.server.policy import PeerPolicy
from tests.free_ports import free_port
from tests.plane.benches import LOOPBACK

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the system must spread datagrams over sockets"
)

LISTENER, STREAM = Flow(901), Flow(902)
FRAME = b"\x40\x01\x00\x04data"


class Rig:
    """A worker plane on the loopback interface."""

    def __init__(self, workers: int = 2) -> None:
        self.listeners = bind_listeners(Address(LOOPBACK, 0), workers)
        self.address = self.listeners[0].getsockname()
        self.plane = WorkerPlane(
            {LISTENER: self.listeners}, workers, errors="polynya.aio.icmp:read_errors", read_errors=read_errors
        )
        self.made: list[socket.socket] = []
        self.reports: list[Report] = []
        self.outputs: list[Send] = []
        self.number = 0
        try:
            self.do(SetPolicy, policy=PeerPolicy(allow=("127.0.0.0/8",)))
        except BaseException:
            self.close()
            raise

    def socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((LOOPBACK, 0))
        sock.setblocking(False)
        self.made.append(sock)
        return sock

    def wait(self, done: Callable[[], Any], seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := done()):
            assert time.monotonic() < end, "the condition did not hold in time"
            self.plane.run(0.02)
            self.reports += self.plane.reports()
            self.outputs += self.plane.outputs()
        return found

    def do(self, kind: Callable[..., Command], **fields: Any) -> Report:
        self.number += 1
        number = self.number
        self.plane.execute(partial(kind, **fields)(number=number), now=now())
        return self.wait(lambda: self.taken(lambda r: isinstance(r, (Done, Refused)) and r.number == number))

    def taken(self, wanted: Callable[[Report], bool]) -> Report | None:
        found = next((report for report in self.reports if wanted(report)), None)
        if found is not None:
            self.reports.remove(found)
        return found

    def until(self, seconds: float = 600) -> Instant:
        return Instant(now() + round(seconds * SECOND))

    def close(self) -> None:
        self.plane.close()
        for sock in (*self.made, *self.listeners):
            sock.close()


class Talk:
    """A client with a relay and a channel to a peer."""

    def __init__(self, rig: Rig, *, arrive: bool = True) -> None:
        self.rig = rig
        self.client, self.peer = rig.socket(), rig.socket()
        self.address = Address(*self.client.getsockname())
        if arrive:  # an unknown packet first, like the Allocate request of a client
            self.client.sendto(b"\x00\x03 allocate", rig.address)
            rig.wait(lambda: rig.taken(lambda r: isinstance(r, Datagram) and r.remote == self.address))
        self.relay = Relay(Address(LOOPBACK, free_port()))
        report = rig.do(
            OpenRelay, relay=self.relay, external=self.relay, client=Client(LISTENER, self.address), until=rig.until()
        )
        assert isinstance(report, Done)
        rig.do(Permit, relay=self.relay, hosts=(LOOPBACK,), until=rig.until())
        self.bind()

    def bind(self) -> None:
        peer = Peer(Address(*self.peer.getsockname()))
        self.rig.do(BindChannel, relay=self.relay, channel=0x4001, peer=peer, until=self.rig.until())

    @property
    def worker(self) -> int:
        return self.rig.plane.worker_of(self.relay)

    def works(self, tries: int = 1, pause: float = 5.0) -> bool:
        """Whether data passes in both directions within `tries`."""
        for _ in range(tries):
            self.client.sendto(FRAME, self.rig.address)
            if receive(self.peer, pause) == b"data":
                self.peer.sendto(b"back", (self.relay.host, self.relay.port))
                return receive(self.client, pause) == b"\x40\x01\x00\x04back"
        return False


def receive(sock: socket.socket, seconds: float) -> bytes | None:
    sock.settimeout(seconds)
    try:
        return sock.recv(2000)
    except TimeoutError:
        return None
    finally:
        sock.setblocking(False)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def on_each(rig: Rig) -> list[Talk]:
    """Return one talk for each worker."""
    found: dict[int, Talk] = {}
    for _ in range(100):
        talk = Talk(rig)
        found.setdefault(talk.worker, talk)
        if len(found) == 2:
            return [found[0], found[1]]
    raise AssertionError("the system sends all clients to one worker")


def test_the_worker_that_receives_a_clients_packets_serves_its_relay(rig: Rig) -> None:
    talks = [Talk(rig) for _ in range(20)]
    assert {talk.worker for talk in talks} == {0, 1}
    assert all(talk.works() and talk.works() for talk in talks)
    assert not any(isinstance(report, Datagram) for report in rig.reports), "the control process relays nothing"
    rig.plane.request_counts()
    rig.wait(lambda: len([r for r in rig.reports if isinstance(r, Traffic)]) == 20)
    assert {(r.to_peers, r.from_peers) for r in rig.reports if isinstance(r, Traffic)} == {(2, 2)}


def test_the_flows_of_a_dead_worker_continue_and_those_of_others_are_not_affected(rig: Rig) -> None:
    """Under load, clients of the other worker lose nothing; those of the dead one keep their relays."""
    mine, other = on_each(rig)
    assert mine.works() and other.works()
    rig.wait(lambda: rig.plane.age(0) > SECOND)
    before = rig.plane.processes
    os.kill(before[0], signal.SIGKILL)
    lost = sent = 0
    end = time.monotonic() + 20
    while rig.plane.restarts == 0 or sent < 300:
        assert time.monotonic() < end
        other.client.sendto(FRAME, rig.address)
        sent += 1
        lost += receive(other.peer, 5) != b"data"
        rig.plane.run(0)
    assert lost == 0
    assert mine.works(tries=20, pause=0.5), "its successor has the relay, permission and channel"
    assert other.works()
    assert rig.plane.processes[0] != before[0] and rig.plane.processes[1] == before[1]
    assert (mine.worker, other.worker) == (0, 1)


def test_under_load_the_death_of_a_worker_loses_no_packet_of_the_others() -> None:
    """Traffic in both directions through three workers without a pause; one of them is killed.

    All traffic of the others arrives in order. The flows of the dead worker pause until its successor has their state,
    then continue with the same relayed addresses, permissions and channels.
    """
    rig = Rig(3)
    try:
        loads = [Load(Talk(rig)) for _ in range(12)]
        victim = loads[0].talk.worker
        others = [each for each in loads if each.talk.worker != victim]
        assert others, "the system sends all clients to one worker"
        rig.wait(lambda: rig.plane.age(victim) > SECOND)
        for _ in range(20):
            for load in loads:
                load.send()
            rig.wait(lambda: not [load for load in loads if not load.arrived()])
        os.kill(rig.plane.processes[victim], signal.SIGKILL)
        rounds = 0
        while rig.plane.restarts == 0 or rounds < 100:
            for load in loads:
                load.send()
            rig.wait(lambda: not [load for load in others if not load.arrived()])  # lost datagrams are not sent again
            rounds += 1
        rig.wait(lambda: not [load for load in loads if not load.resumed()])
        assert [load.lost for load in others] == [0] * len(others)
        assert {load.talk.worker for load in others} == {load.worker for load in others}, "their relays have not moved"
    finally:
        rig.close()


class Load:
    """Numbered datagrams in both directions of a talk."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.worker = talk.worker
        self.lost = 0
        self._sent = 0
        self._at_peer = self._at_client = 0

    def send(self) -> None:
        talk = self.talk
        self._sent += 1
        number = self._sent.to_bytes(4, "big")
        talk.client.sendto(b"\x40\x01\x00\x04" + number, talk.rig.address)
        talk.peer.sendto(number, (talk.relay.host, talk.relay.port))

    def arrived(self) -> bool:
        """Whether all datagrams have arrived; those out of order count as lost."""
        for number in _all(self.talk.peer, b""):
            self.lost += number != self._at_peer + 1
            self._at_peer = number
        for number in _all(self.talk.client, b"\x40\x01\x00\x04"):
            self.lost += number != self._at_client + 1
            self._at_client = number
        return self._at_peer == self._at_client == self._sent

    def resumed(self) -> bool:
        """Whether data passes again; if not, send once more."""
        if self.arrived():
            return True
        self.send()
        return False


def _all(sock: socket.socket, head: bytes) -> Iterator[int]:
    while True:
        try:
            data = sock.recv(2000)
        except BlockingIOError:
            return
        assert data.startswith(head)
        yield int.from_bytes(data[len(head) :], "big")


def test_counts_of_a_dead_worker_are_kept(rig: Rig) -> None:
    mine, _ = on_each(rig)

    def carried(number: int) -> bool:
        rig.plane.request_counts()
        traffic = next(each for each in rig.plane.traffic() if each.relay == mine.relay)
        return (traffic.to_peers, traffic.bytes_from_peers) == (number, 4 * number)

    assert all(mine.works() for _ in range(3))
    mine.client.sendto(b"\x40\x02\x00\x01x", rig.address)  # no such channel
    rig.wait(lambda: carried(3) and rig.plane.counters.get("channel not bound") == 1)
    rig.wait(lambda: rig.plane.age(mine.worker) > SECOND)
    os.kill(rig.plane.processes[mine.worker], signal.SIGKILL)
    rig.wait(lambda: rig.plane.restarts == 1)
    assert mine.works(pause=20)
    rig.wait(lambda: carried(4))
    assert rig.plane.counters["channel not bound"] == 1


def test_pending_commands_of_a_dead_worker_are_acknowledged_and_take_effect(rig: Rig) -> None:
    mine, _ = on_each(rig)
    rig.wait(lambda: rig.plane.age(0) > SECOND)
    os.kill(rig.plane.processes[0], signal.SIGSTOP)
    rig.number += 1
    second = rig.socket()
    peer = Peer(Address(*second.getsockname()))
    rig.plane.execute(
        BindChannel(number=rig.number, relay=mine.relay, channel=0x4002, peer=peer, until=rig.until()), now=now()
    )
    os.kill(rig.plane.processes[0], signal.SIGKILL)
    rig.wait(lambda: rig.taken(lambda r: r == Done(rig.number)))
    mine.client.sendto(b"\x40\x02\x00\x01x", rig.address)
    assert receive(second, 5) == b"x"


def test_a_relay_moves_to_the_worker_that_receives_its_clients_packets(rig: Rig) -> None:
    talks = [Talk(rig, arrive=False) for _ in range(12)]
    placed = [talk.worker for talk in talks]

    def all_work() -> bool:
        return all(receive_all(talk) for talk in talks)

    def receive_all(talk: Talk) -> bool:
        talk.client.sendto(FRAME, rig.address)
        rig.plane.run(0.01)
        return receive(talk.peer, 0.3) == b"data"

    rig.wait(all_work)
    assert [talk.worker for talk in talks] != placed, "some relays were opened in the wrong worker"
    assert all(talk.works() for talk in talks)
    for talk in talks:
        assert isinstance(rig.do(FreeRelay, relay=talk.relay), Done)
    assert rig.plane.size["records"] == rig.plane.size["clients of records"] == 0


def test_relays_of_different_workers_reach_each_other_inside(rig: Rig) -> None:
    one, two = on_each(rig)
    rig.do(SetPolicy, policy=PeerPolicy())
    rig.do(BindChannel, relay=one.relay, channel=0x4005, peer=Peer(two.relay), until=rig.until())
    rig.do(BindChannel, relay=two.relay, channel=0x4006, peer=Peer(one.relay), until=rig.until())
    one.client.sendto(b"\x40\x05\x00\x05hello", rig.address)
    assert receive(two.client, 5) == b"\x40\x06\x00\x05hello"
    rig.do(FreeRelay, relay=two.relay)
    one.client.sendto(b"\x40\x05\x00\x05hello", rig.address)
    assert receive(two.client, 0.2) is None


def test_clients_on_streams_are_served_by_the_control_process(rig: Rig) -> None:
    peer = rig.socket()
    relay = Relay(Address(LOOPBACK, free_port()))
    client = Client(STREAM, Address("192.0.2.1", 1))
    rig.do(OpenRelay, relay=relay, external=relay, client=client, stream=True, until=rig.until())
    rig.do(Permit, relay=relay, hosts=(LOOPBACK,), until=rig.until())
    peer_address = Peer(Address(*peer.getsockname()))
    rig.do(BindChannel, relay=relay, channel=0x4001, peer=peer_address, until=rig.until())
    assert rig.plane.worker_of(relay) == LOCAL
    rig.plane.execute(Forward(client, FRAME), now=now())
    assert receive(peer, 5) == b"data"
    peer.sendto(b"bak", (relay.host, relay.port))
    [sent] = rig.wait(lambda: rig.outputs)
    assert (sent.flow, sent.data) == (STREAM, b"\x40\x01\x00\x03bak\0")
    assert isinstance(rig.do(FreeRelay, relay=relay), Done)
    assert rig.plane.size["records"] == 0


def test_datagrams_to_a_reserved_port_are_dropped_when_it_is_assigned(rig: Rig) -> None:
    talk = Talk(rig)
    relay = Relay(Address(LOOPBACK, free_port()))
    rig.do(OpenRelay, relay=relay, external=relay, client=None, until=rig.until())
    talk.peer.sendto(b"early", (relay.host, relay.port))
    second = rig.socket()
    client = Client(LISTENER, Address(*second.getsockname()))
    rig.do(AssignRelay, relay=relay, client=client, until=rig.until())
    rig.do(Permit, relay=relay, hosts=(LOOPBACK,), until=rig.until())
    peer_address = Peer(Address(*talk.peer.getsockname()))
    rig.do(BindChannel, relay=relay, channel=0x4001, peer=peer_address, until=rig.until())
    talk.peer.sendto(b"late", (relay.host, relay.port))
    assert receive(second, 5) == b"\x40\x01\x00\x04late"


def test_a_worker_reports_icmp_errors(rig: Rig) -> None:
    talk = Talk(rig)
    address = Address(*talk.peer.getsockname())
    talk.peer.close()
    talk.client.sendto(FRAME, rig.address)
    error = rig.wait(lambda: rig.taken(lambda r: isinstance(r, PeerError)))
    assert (error.peer, error.kind, error.client.remote) == (address, IcmpKind.PORT_UNREACHABLE, talk.address)


def test_the_traffic_of_a_freed_relay_is_reported_before_done(rig: Rig) -> None:
    talk = Talk(rig)
    assert talk.works()
    rig.do(FreeRelay, relay=talk.relay)
    traffic = rig.taken(lambda r: isinstance(r, Traffic))
    assert isinstance(traffic, Traffic) and (traffic.to_peers, traffic.bytes_from_peers) == (1, 4)
    assert rig.do(Permit, relay=talk.relay, hosts=(LOOPBACK,), until=rig.until()) == Refused(
        rig.number, "there is no such relay"
    )


def test_closing_the_plane_ends_the_workers() -> None:
    rig = Rig()
    processes = rig.plane.processes
    rig.close()
    assert rig.plane.exit_codes == (0, 0)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
