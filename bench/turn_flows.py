"""Load for a TURN server: clients and peers on plain sockets, so that the server is the bottleneck.

A flow is a client's socket, its allocation with a channel, and a peer's socket. Each client has a loopback address of
its own, as the clients of a real server do. Only datagrams that reach the other end count.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from random import Random
from struct import Struct
from typing import Any

from bench.turn_servers import HOST, PASSWORD, REALM, USERS
from polynya.core.addresses import Address
from polynya.stun.attributes import (
    CHANNEL_NUMBER,
    ERROR_CODE,
    LIFETIME,
    NONCE,
    REQUESTED_TRANSPORT,
    USERNAME,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Attribute,
)
from polynya.stun.attributes import REALM as REALM_ATTRIBUTE
from polynya.stun.integrity import IntegrityKey
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.numbers import UDP

CHANNEL = 0x4000
WINDOW = 4
"""Datagrams of a flow in flight at saturation: two in each direction."""
SILENCE = 0.5
"""Seconds after which a datagram counts as lost."""

_random = Random(1)
_hosts = count(1)
_keys = {user: IntegrityKey.long_term(user, REALM, PASSWORD) for user in USERS}
_STAMP = Struct("!Q")


class Client:
    """A client's socket with its credentials and nonce."""

    def __init__(self, port: int, user: str) -> None:
        self.user = user
        self.nonce = b""
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        number = next(_hosts)
        self.sock.bind((f"127.1.{number >> 8 & 0xFF}.{number & 0xFF}", 0))
        self.sock.connect((HOST, port))

    def signed(self, method: Method, attributes: Mapping[Attribute[Any], Any]) -> bytes:
        """Build a request with credentials."""
        who: dict[Attribute[Any], Any] = {USERNAME: self.user, REALM_ATTRIBUTE: REALM, NONCE: self.nonce}
        request = Message.request(method, _random.randbytes(12), {**attributes, **who})
        return request.encode(integrity=_keys[self.user])

    def challenge(self) -> None:
        """Get a nonce by a request without credentials, as every client does first."""
        answer = self.ask(first_allocate())
        if answer.cls is not Class.ERROR or answer[ERROR_CODE].code != 401:
            raise RuntimeError(f"expected a challenge, not {answer!r}")
        self.nonce = answer[NONCE]

    def request(self, method: Method, attributes: Mapping[Attribute[Any], Any]) -> Message:
        """Send a request that must succeed."""
        answer = self.ask(self.signed(method, attributes))
        if answer.cls is not Class.SUCCESS:
            raise RuntimeError(f"{method.name} failed: {answer!r}")
        return answer

    def allocate(self) -> Address:
        """Make an allocation and return its relayed address."""
        self.challenge()
        relayed: Address = self.request(Method.ALLOCATE, {REQUESTED_TRANSPORT: UDP})[XOR_RELAYED_ADDRESS][0]
        return relayed

    def ask(self, request: bytes) -> Message:
        """Send a request until a response comes."""
        self.sock.settimeout(1)
        for _ in range(5):
            self.sock.send(request)
            try:
                data = self.sock.recv(2048)
                while data[8:20] != request[8:20]:
                    data = self.sock.recv(2048)
            except TimeoutError:
                continue
            return decode(data)
        raise RuntimeError("the server does not respond: is it running?")


def first_allocate() -> bytes:
    """Build the first Allocate of a client, without credentials."""
    return Message.request(Method.ALLOCATE, _random.randbytes(12), {REQUESTED_TRANSPORT: UDP}).encode()


ALLOCATE: Mapping[Attribute[Any], Any] = {REQUESTED_TRANSPORT: UDP}
FREE: Mapping[Attribute[Any], Any] = {LIFETIME: 0}


class RelayFlow:
    """A client with a channel to a peer."""

    def __init__(self, port: int, user: str) -> None:
        self.client = Client(port, user)
        relayed = self.client.allocate()
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind((HOST, 0))
        peer = Address(*self.peer.getsockname())
        self.client.request(Method.CREATE_PERMISSION, {XOR_PEER_ADDRESS: (peer,)})
        self.client.request(Method.CHANNEL_BIND, {CHANNEL_NUMBER: CHANNEL, XOR_PEER_ADDRESS: (peer,)})
        self.peer.connect((relayed.host, relayed.port))
        for sock in (self.client.sock, self.peer):
            sock.setblocking(False)


@dataclass(slots=True)
class Carried:
    """The result of a load."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Latency in seconds, of one datagram in each round."""


class Load:
    """Sends datagrams over many flows in both directions."""

    def __init__(self, port: int, flows: int, size: int) -> None:
        self.flows = [RelayFlow(port, USERS[number % len(USERS)]) for number in range(flows)]
        self.size = size
        self._header = CHANNEL.to_bytes(2, "big") + size.to_bytes(2, "big")
        self._receive = {sock.fileno(): sock.recv_into for flow in self.flows for sock in (flow.client.sock, flow.peer)}
        self._epoll = select.epoll()
        for descriptor in self._receive:
            self._epoll.register(descriptor, select.EPOLLIN)

    def saturate(self, packets: int) -> Carried:
        """Send at saturation, with `WINDOW` datagrams of each flow in flight."""
        frame, data = self._header + bytes(self.size), bytes(self.size)
        sends = [(flow.client.sock.send, flow.peer.send) for flow in self.flows]
        buffer, carried = bytearray(2048), Carried()
        poll, receive = self._epoll.poll, self._receive
        limit = WINDOW * len(sends)
        began = time.perf_counter()
        sent = received = lost = 0
        while received < packets:
            for to_peer, to_client in sends:
                to_peer(frame)
                to_client(data)
            sent += 2 * len(sends)
            heard = time.perf_counter()
            while True:
                events = poll(0)  # busy polling: on loopback the server would pay for the wake-up
                for descriptor, _ in events:
                    receive[descriptor](buffer)
                received += len(events)
                under_way = sent - received - lost
                if under_way <= limit - 2 * len(sends):
                    break
                if events:
                    heard = time.perf_counter()
                elif time.perf_counter() - heard > SILENCE:
                    lost += under_way
                    break
        carried.sent, carried.received, carried.lost = sent, received, lost
        carried.seconds = time.perf_counter() - began
        self._drain()
        return carried

    def pace(self, packets: int, per_second: int) -> Carried:
        """Send at a constant rate, one flow and one direction after the other."""
        header, clock = self._header, time.perf_counter_ns
        tail = bytes(self.size - _STAMP.size)
        sends = [send for flow in self.flows for send in (flow.client.sock.send, flow.peer.send)]
        heads = [header, b""] * len(self.flows)
        from_server = {flow.client.sock.fileno() for flow in self.flows}
        buffer, carried = bytearray(2048), Carried()
        poll, receive = self._epoll.poll, self._receive
        step = 1_000_000_000 // per_second
        began = due = clock()
        received = 0
        for number in range(packets):
            while (moment := clock()) < due:
                for descriptor, _ in poll(0, 16):
                    receive[descriptor](buffer)
                    (stamp,) = _STAMP.unpack_from(buffer, 4 if descriptor in from_server else 0)
                    carried.latencies.append((clock() - stamp) / 1e9)
                    received += 1
            index = number % len(sends)
            sends[index](heads[index] + _STAMP.pack(moment) + tail)
            due += step
        carried.seconds = (clock() - began) / 1e9
        received += self._drain()
        carried.sent, carried.received, carried.lost = packets, received, packets - received
        return carried

    def _drain(self) -> int:
        """Receive the datagrams in flight."""
        buffer, received = bytearray(2048), 0
        while events := self._epoll.poll(SILENCE):
            for descriptor, _ in events:
                self._receive[descriptor](buffer)
            received += len(events)
        return received


def idle(port: int, number: int) -> Client:
    """Make a client with an idle allocation."""
    client = Client(port, USERS[number % len(USERS)])
    client.allocate()
    return client
