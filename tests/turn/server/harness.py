"""A TURN server under test: clients and peers made by hand, a clock that jumps, and a list of all packets."""

from __future__ import annotations

import random
from typing import Any

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Close, Closed, Datagram, Open, Opened, Send, StreamData
from polynya.stun import attributes as a
from polynya.stun.framing import encode_channel_data
from polynya.stun.integrity import IntegrityKey, userhash
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.server import TurnServer
from polynya.turn.server.users import StaticUsers, User

REALM = "example.org"
LISTENER = Flow(900)
STREAMS = Flow(901)
HOST, HOST6 = "192.0.2.15", "2001:db8::15"
CLIENT = Address("198.51.100.1", 40000)
OTHER = Address("198.51.100.2", 41000)
PEER = Address("203.0.113.9", 5000)
PEER6 = Address("2001:db8:9::9", 5000)
ALLOW = ("203.0.113.0/24", "2001:db8:9::/48")
PASSWORDS = {"alice": "wonder", "bob": "builder"}


def config(**changes: Any) -> ServerConfig:
    values: dict[str, Any] = {
        "realm": REALM,
        "relays": (RelayHost(host=HOST), RelayHost(host=HOST6)),
        "policy": PeerPolicy(allow=ALLOW),
        "ports": (50000, 50099),
    }
    return ServerConfig(**(values | changes))


def users() -> StaticUsers:
    return StaticUsers(REALM, [User.with_password(name, REALM, word) for name, word in PASSWORDS.items()])


class Table:
    """The server with its network. Relay ports open as the server asks, unless they are in `taken`."""

    def __init__(self, config: ServerConfig, directory: Any = None, seed: int = 1) -> None:
        self.now = Instant(1000 * SECOND)
        chance = random.Random(seed)
        plane = Forwarder(FlowIds(), random=chance)
        self.server = TurnServer(config, directory or users(), plane, random=chance)
        self.flows: dict[Flow, Address] = {}
        self.taken: dict[Address, int] = {}
        """Ports that other programs use, with the errno of an attempt to open them."""
        self.sent: list[Send] = []
        self.closed: list[Flow] = []
        self.log: list[Any] = []

    # ------------------------------------------------------------------------------------------------------ drive

    def give(self, input: Any) -> list[Send]:
        """Pass an input to the server; returns the packets that it sends."""
        self.server.receive(input, now=self.now)
        return self.drain()

    def drain(self) -> list[Send]:
        sent: list[Send] = []
        while True:
            outputs = self.server.outputs()
            self.log += self.server.events()
            if not outputs:
                break
            for output in outputs:
                if isinstance(output, Send):
                    sent.append(output)
                elif isinstance(output, Open):
                    assert output.local is not None
                    number = self.taken.get(output.local)
                    if number is not None:
                        self.server.receive(Closed(flow=output.flow, reason="in use", errno=number), now=self.now)
                    else:
                        assert output.local not in self.flows.values(), "bound twice"
                        self.flows[output.flow] = output.local
                        self.server.receive(Opened(flow=output.flow, local=output.local), now=self.now)
                elif isinstance(output, Close):
                    self.flows.pop(output.flow, None)
                    self.closed.append(output.flow)
        self.sent += sent
        return sent

    def run_for(self, seconds: float) -> list[Send]:
        """Advance the clock from timer to timer; returns the packets that the server sends."""
        end = Instant(self.now + round(seconds * SECOND))
        sent = self.drain()
        while (due := self.server.next_timer()) is not None and due <= end:
            self.now = max(due, self.now)
            self.server.tick(now=self.now)
            sent += self.drain()
        self.now = end
        return sent

    def events(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.log if isinstance(event, kind)]

    # ----------------------------------------------------------------------------------------------------- network

    def from_client(self, data: bytes, client: Address = CLIENT) -> list[Send]:
        return self.give(Datagram(LISTENER, client, data))

    def from_peer(self, relay: Address, data: bytes, peer: Address = PEER) -> list[Send]:
        """Deliver a datagram of a peer to a relay port; it is lost if the port is not open."""
        flow = next((flow for flow, local in self.flows.items() if local == relay), None)
        return self.give(Datagram(flow, peer, data)) if flow is not None else []

    def open_stream(self, flow: Flow, client: Address = CLIENT) -> None:
        self.give(Opened(flow=flow, local=Address(HOST, 3478), remote=client, listener=STREAMS))


class Person:
    """A client of one user, made by hand: it keeps the nonce and algorithms of the last challenge."""

    def __init__(
        self,
        table: Table,
        address: Address = CLIENT,
        name: str = "alice",
        password: str | None = None,
        *,
        algorithm: int | None = 2,
        stream: Flow | None = None,
        by_hash: bool = False,
    ) -> None:
        self.table = table
        self.address = address
        self.name = name
        self.algorithm = algorithm
        self.stream = stream
        self.by_hash = by_hash
        self.nonce = b""
        self.offered: Any = None
        self.key = IntegrityKey.long_term(name, REALM, password or PASSWORDS.get(name, "?"), algorithm or 1)
        self._ids = random.Random(f"{address}/{name}")
        self.relayed: tuple[Address, ...] = ()

    def transaction_id(self) -> bytes:
        return self._ids.randbytes(12)

    def build(
        self, method: Method, attributes: dict[Any, Any] | None = None, transaction_id: bytes | None = None
    ) -> bytes:
        """Build a signed request; unsigned until a challenge has come."""
        values = dict(attributes or {})
        request = Message.request(method, transaction_id or self.transaction_id(), values)
        if not self.nonce:
            return request.encode()
        who = {a.USERHASH: userhash(self.name, REALM)} if self.by_hash else {a.USERNAME: self.name}
        request.attributes |= who | {a.REALM: REALM, a.NONCE: self.nonce}
        if self.algorithm is not None and self.offered is not None:
            request.attributes |= {
                a.PASSWORD_ALGORITHMS: self.offered,
                a.PASSWORD_ALGORITHM: a.PasswordAlgorithm(self.algorithm),
            }
            return request.encode(sha256=self.key)
        return request.encode(integrity=self.key)

    def build_raw(self, method: Method, attributes: str) -> bytes:
        """Build a signed request that starts with these attributes, in hex."""
        signed = self.build(method)
        size = 36 if decode(signed).has_integrity_sha256 else 24
        data = signed[:20] + bytes.fromhex(attributes) + signed[20:-size]
        data = data[:2] + (len(data) - 20 + size).to_bytes(2, "big") + data[4:]
        head = signed[-size : 4 - size]
        return data + head + (self.key.sha256(data) if size == 36 else self.key.sha1(data))

    def say(self, data: bytes) -> Message | None:
        """Send a packet; returns the response to it, None if there is none."""
        if self.stream is not None:
            sent = self.table.give(StreamData(self.stream, data))
        else:
            sent = self.table.from_client(data, self.address)
        flow = self.stream or LISTENER
        answers = [decode(each.data) for each in sent if (each.flow, each.remote) == (flow, self.address)
                   and each.data[0] >> 6 == 0]  # fmt: skip
        answers = [each for each in answers if each.transaction_id == data[8:20]]
        assert len(answers) <= 1
        return answers[0] if answers else None

    def learn(self, answer: Message | None) -> bool:
        """Keep the challenge of a 401 or 438; False if there is none."""
        if answer is None or answer.get(a.NONCE) is None:
            return False
        self.nonce = answer[a.NONCE]
        self.offered = answer.get(a.PASSWORD_ALGORITHMS)
        return True

    def ask(self, method: Method, attributes: dict[Any, Any] | None = None) -> Message:
        """Send a request and return its response; a challenge is answered once."""
        answer = self.say(self.build(method, attributes))
        if code(answer) in (401, 438) and self.learn(answer):
            answer = self.say(self.build(method, attributes))
        assert answer is not None, "no response"
        return answer

    def allocate(self, attributes: dict[Any, Any] | None = None) -> Message:
        answer = self.ask(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17, **(attributes or {})})
        if answer.cls is Class.SUCCESS:
            self.relayed = answer[a.XOR_RELAYED_ADDRESS]
        return answer

    def refresh(self, lifetime: int | None = None, attributes: dict[Any, Any] | None = None) -> Message:
        values = {} if lifetime is None else {a.LIFETIME: lifetime}
        return self.ask(Method.REFRESH, values | (attributes or {}))

    def permit(self, *peers: Address) -> Message:
        return self.ask(Method.CREATE_PERMISSION, {a.XOR_PEER_ADDRESS: peers})

    def bind(self, channel: int, peer: Address = PEER) -> Message:
        return self.ask(Method.CHANNEL_BIND, {a.CHANNEL_NUMBER: channel, a.XOR_PEER_ADDRESS: (peer,)})

    def send(self, data: bytes, peer: Address = PEER, extra: dict[Any, Any] | None = None) -> list[Send]:
        values = {a.XOR_PEER_ADDRESS: (peer,), a.DATA: data, **(extra or {})}
        return self._push(Message.indication(Method.SEND, self.transaction_id(), values).encode())

    def channel(self, number: int, data: bytes) -> list[Send]:
        return self._push(encode_channel_data(number, data, pad=self.stream is not None))

    def _push(self, frame: bytes) -> list[Send]:
        if self.stream is not None:
            return self.table.give(StreamData(self.stream, frame))
        return self.table.from_client(frame, self.address)


def code(answer: Message | None) -> int:
    """Return the error code of a response, 0 for a success, -1 for no response."""
    if answer is None:
        return -1
    return answer[a.ERROR_CODE].code if answer.cls is Class.ERROR else 0


def payloads(sent: list[Send], peer: Address = PEER) -> list[bytes]:
    """Return the payloads that were sent to a peer."""
    return [each.data for each in sent if each.remote == peer]
