"""A TURN server to test clients against, strict about every lifetime, and a world with a virtual clock around both.

The server is a model, not a product: it shares nothing with the client but the codec, keeps what RFC 8656 says it must
keep, and lets a test say what goes wrong. What it relays to peers is in `sent`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import Close, Closed, Datagram, Input, Open, Opened, Send, StreamData
from polynya.stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_SERVER,
    CHANNEL_NUMBER,
    DATA,
    ICMP,
    LIFETIME,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    REQUESTED_ADDRESS_FAMILY,
    RESERVATION_TOKEN,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
    Attribute,
    IcmpValue,
    PasswordAlgorithm,
)
from polynya.stun.framing import StreamFramer, decode_channel_data, encode_channel_data
from polynya.stun.integrity import IntegrityKey, userhash
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.stun.security import SecurityFeature, nonce_with_features
from polynya.turn.client import ClientConfig, Credentials, ServerAddress, TurnClient

SERVER = Address("203.0.113.1", 3478)
USER = Credentials("alice", "open sesame")
EventT = TypeVar("EventT")


@dataclass
class Allocation:
    client: Address
    relayed: tuple[Address, ...]
    username: str
    ends: int
    permissions: dict[str, int] = field(default_factory=dict)
    channels: dict[int, tuple[Address, int]] = field(default_factory=dict)


@dataclass
class Relay:
    """The server. `trouble(request, source)` may answer in its stead: with bytes, with b"" for silence, None for no."""

    address: Address = SERVER
    users: dict[str, str] = field(default_factory=lambda: {USER.username: USER.password})
    realm: str = "example.org"
    authenticate: bool = True
    sha256: bool = False
    md5_first: bool = False
    """Whether MD5 stands before SHA-256 in the offer."""
    anonymity: bool = False
    nonce_lifetime: int = 3600 * SECOND
    lifetime: int = 600
    families: tuple[int, ...] = (4, 6)
    forbidden: tuple[str, ...] = ()
    stream: bool = False
    trouble: Callable[[Message, Address], bytes | None] | None = None
    allocations: dict[Address, Allocation] = field(default_factory=dict)
    requests: list[Message] = field(default_factory=list)
    log: list[tuple[int, Message, int]] = field(default_factory=list)
    """When, which request, which error (0 for success)."""
    sent: list[tuple[Address, bytes, str]] = field(default_factory=list)
    """Datagrams that were sent to peers, each with its way: `send` or `channel`."""
    dropped: list[str] = field(default_factory=list)
    answers: dict[tuple[Address, bytes], bytes] = field(default_factory=dict)
    nonces: int = 0
    ports: int = 49151

    # -------------------------------------------------------------------------------------------------- from clients

    def take(self, data: bytes, source: Address, *, now: int) -> bytes | None:
        for client, allocation in list(self.allocations.items()):
            if allocation.ends <= now:
                del self.allocations[client]
        if data[0] >> 6 == 1:
            self._channel_data(data, source, now=now)
            return None
        message = decode(data)
        if message.cls is Class.INDICATION:
            self._indication(message, source, now=now)
            return None
        again = self.answers.get((source, message.transaction_id))
        if again is None:
            again = self._request(message, source, now=now)
            self.answers[source, message.transaction_id] = again
        return again or None

    def _request(self, message: Message, source: Address, *, now: int) -> bytes:
        self.requests.append(message)
        if self.trouble is not None and (own := self.trouble(message, source)) is not None:
            return own
        key, error = self._authenticate(message, source, now=now)
        values: dict[Attribute[Any], Any] = {}
        if not error:
            error, values = self._perform(message, source, now=now)
        self.log.append((now, message, error))
        if error in (401, 438):
            values = self._challenge(now=now)
        answer = Message.error(message, error, None, values) if error else Message.success(message, values)
        return self.signed(answer, key)

    def signed(self, answer: Message, key: IntegrityKey | None) -> bytes:
        if self.sha256 and key is not None:
            return answer.encode(sha256=key)
        return answer.encode(integrity=key)

    def _challenge(self, *, now: int) -> dict[Attribute[Any], Any]:
        self.nonces += 1
        nonce = b"%d-%d" % (now, self.nonces)
        features = SecurityFeature.NONE
        if self.sha256:
            features |= SecurityFeature.PASSWORD_ALGORITHMS
        if self.anonymity:
            features |= SecurityFeature.USERNAME_ANONYMITY
        if features:
            nonce = nonce_with_features(features, nonce)
        values: dict[Attribute[Any], Any] = {REALM: self.realm, NONCE: nonce}
        if self.sha256:
            values[PASSWORD_ALGORITHMS] = tuple(map(PasswordAlgorithm, (1, 2) if self.md5_first else (2, 1)))
        return values

    def key(self, username: str) -> IntegrityKey:
        return IntegrityKey.long_term(username, self.realm, self.users[username], 2 if self.sha256 else 1)

    def _authenticate(self, message: Message, source: Address, *, now: int) -> tuple[IntegrityKey | None, int]:
        if not self.authenticate:
            return None, 0
        username = self.username(message)
        if username is None or not (message.has_integrity or message.has_integrity_sha256):
            return None, 401
        if username not in self.users or message.get(REALM) != self.realm:
            return None, 401
        if self.sha256 and (message.get(PASSWORD_ALGORITHM) != PasswordAlgorithm(2) or message.has_integrity):
            return None, 400
        key = self.key(username)
        if not message.verify(key):
            return None, 401
        nonce = message[NONCE].removeprefix(nonce_with_features(SecurityFeature.NONE, b"")[:9])
        made = int((nonce[4:] if nonce != message[NONCE] else nonce).split(b"-")[0])
        if now >= made + self.nonce_lifetime:
            return None, 438
        allocation = self.allocations.get(source)
        if allocation is not None and allocation.username != username:
            return key, 441
        return key, 0

    def username(self, message: Message) -> str | None:
        if self.anonymity:
            hashes = {userhash(name, self.realm): name for name in self.users}
            return hashes.get(message.get(USERHASH) or b"")
        return message.get(USERNAME)

    def _perform(self, message: Message, source: Address, *, now: int) -> tuple[int, dict[Attribute[Any], Any]]:
        allocation = self.allocations.get(source)
        if message.method == Method.ALLOCATE:
            return self._allocate(message, source, now=now) if allocation is None else (437, {})
        if allocation is None:
            return 437, {}
        if message.method == Method.REFRESH:
            asked = message.get(LIFETIME)
            if asked == 0:
                del self.allocations[source]
                return 0, {LIFETIME: 0}
            allocation.ends = now + self.lifetime * SECOND
            return 0, {LIFETIME: self.lifetime}
        peers = message[XOR_PEER_ADDRESS]
        if any(peer.family not in [address.family for address in allocation.relayed] for peer in peers):
            return 443, {}
        if any(peer.host in self.forbidden for peer in peers):
            return 403, {}
        if message.method == Method.CHANNEL_BIND:
            number, peer = message[CHANNEL_NUMBER], peers[0]
            for other, (bound, ends) in allocation.channels.items():
                if ends + 300 * SECOND > now and (other == number) != (bound == peer):
                    return 400, {}
            if not 0x4000 <= number <= 0x4FFF:
                return 400, {}
            allocation.channels[number] = (peer, now + 600 * SECOND)
        for peer in peers:
            allocation.permissions[peer.host] = now + 300 * SECOND
        return 0, {}

    def _allocate(self, message: Message, source: Address, *, now: int) -> tuple[int, dict[Attribute[Any], Any]]:
        wanted = [message.get(REQUESTED_ADDRESS_FAMILY) or 4]
        values: dict[Attribute[Any], Any] = {}
        if ADDITIONAL_ADDRESS_FAMILY in message:
            wanted.append(message[ADDITIONAL_ADDRESS_FAMILY])
        given = [family for family in wanted if family in self.families]
        if not given:
            return 440, {}
        if refused := [family for family in wanted if family not in given]:
            values[ADDRESS_ERROR_CODE] = AddressError(refused[0], 440, "not here")
        self.ports += 1
        hosts = {4: "198.51.100.7", 6: "2001:db8::7"}
        relayed = tuple(Address(hosts[family], self.ports) for family in given)
        self.allocations[source] = Allocation(
            source, relayed, self.username(message) or "", now + self.lifetime * SECOND
        )
        if message.attributes.get(Attribute) is None and any(one.name == "EVEN-PORT" for one in message.attributes):
            values[RESERVATION_TOKEN] = b"reserved"
        return 0, {XOR_RELAYED_ADDRESS: relayed, XOR_MAPPED_ADDRESS: source, LIFETIME: self.lifetime, **values}

    def _indication(self, message: Message, source: Address, *, now: int) -> None:
        if message.method == Method.SEND:
            self._relay(source, message[XOR_PEER_ADDRESS][0], message[DATA], "send", now=now)

    def _channel_data(self, data: bytes, source: Address, *, now: int) -> None:
        number, payload = decode_channel_data(data)
        allocation = self.allocations.get(source)
        peer, ends = allocation.channels.get(number, (None, 0)) if allocation else (None, 0)
        if peer is None or ends <= now:
            self.dropped.append(f"channel {number:#06x} is not bound")
            return
        self._relay(source, peer, payload, "channel", now=now)

    def _relay(self, source: Address, peer: Address, data: bytes, by: str, *, now: int) -> None:
        allocation = self.allocations.get(source)
        if allocation is None or allocation.permissions.get(peer.host, 0) <= now:
            self.dropped.append(f"{peer} is not permitted")
        else:
            self.sent.append((peer, data, by))

    # --------------------------------------------------------------------------------------------------- from peers

    def from_peer(self, client: Address, peer: Address, data: bytes, *, now: int) -> bytes | None:
        """The message that the client gets for a peer's datagram; None if the peer has no permission."""
        allocation = self.allocations.get(client)
        if allocation is None or allocation.permissions.get(peer.host, 0) <= now:
            self.dropped.append(f"from {peer}: not permitted")
            return None
        for number, (bound, ends) in allocation.channels.items():
            if bound == peer and ends > now:
                return encode_channel_data(number, data, pad=self.stream)
        return Message.indication(Method.DATA, bytes(12), {XOR_PEER_ADDRESS: (peer,), DATA: data}).encode()


def icmp_indication(peer: Address, type: int, code: int, data: bytes = bytes(4)) -> bytes:
    value = IcmpValue(type, code, data)
    return Message.indication(Method.DATA, bytes(12), {XOR_PEER_ADDRESS: (peer,), ICMP: value}).encode()


def alternate(request: Message, *servers: Address) -> bytes:
    return Message.error(request, 300, None, {ALTERNATE_SERVER: servers}).encode()


class World:
    """One client, its servers by address, FIFO links between them, and a clock that jumps."""

    def __init__(
        self,
        *relays: Relay,
        config: ClientConfig | None = None,
        credentials: Credentials | None = USER,
        transport: Transport = Transport.UDP,
        flow: bool = False,
        delay: int = 20 * MILLISECOND,
        seed: int = 1,
        start: bool = True,
        **options: Any,
    ) -> None:
        self.now = Instant(10**15)
        self.relays = {relay.address: relay for relay in relays or (Relay(),)}
        self.relay = next(iter(self.relays.values()))
        for relay in self.relays.values():
            relay.stream = transport.reliable
        self.delay = delay
        self.lose: Callable[[bytes, bool], bool] = lambda data, outward: False
        self.flow_ids = FlowIds()
        own = self.flow_ids.new() if flow else None
        self.locals: dict[Flow, Address] = {own: Address("192.0.2.9", 5000)} if own else {}
        self.client = TurnClient(
            ServerAddress(address=self.relay.address, transport=transport),
            config,
            random=Random(seed),
            flow_ids=self.flow_ids,
            flow=own,
            credentials=credentials,
            **options,
        )
        self.events: list[Any] = []
        self.times: list[int] = []
        """When each event came."""
        self.out: list[tuple[int, bytes]] = []
        self.opens: list[Open] = []
        self.closes: list[Flow] = []
        self._framers: dict[Flow, StreamFramer] = {}
        self._remotes: dict[Flow, Address] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        if start:
            self.do(self.client.start)

    def do(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = method(*args, now=self.now, **options)
        self._drain()
        return result

    def later(self, after: int, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._queue, (self.now + after, self._count, action))

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        until = self.now + round(seconds * SECOND)
        while True:
            due = self.client.next_timer()
            first = self._queue[0][0] if self._queue else until + 1
            at = min(first, until + 1 if due is None else max(due, self.now))
            if at > until:
                break
            self.now = Instant(at)
            if first <= at:
                heappop(self._queue)[2]()
            else:
                self.client.tick(now=self.now)
            self._drain()
        self.now = Instant(until)

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    def from_peer(self, peer: Address, data: bytes, flow: Flow | None = None) -> None:
        """A peer sends; the server passes it on, or not."""
        flow = flow or self.client.flow
        assert flow is not None
        frame = self.relay.from_peer(self.locals[flow], peer, data, now=self.now)
        if frame is not None:
            self.inward(flow, self.relay.address, frame)

    def inward(self, flow: Flow, remote: Address, data: bytes) -> None:
        """Bytes on their way to the client."""
        if self.lose(data, False):
            return
        stream = flow in self._framers
        event: Input = StreamData(flow, data) if stream else Datagram(flow, remote, data)
        self.later(self.delay, lambda: self.client.receive(event, now=self.now))

    def _drain(self) -> None:
        for output in self.client.outputs():
            if isinstance(output, Send):
                self._send(output)
            elif isinstance(output, Open):
                self._open(output)
            elif isinstance(output, Close):
                self.closes.append(output.flow)
        for event in self.client.events():
            self.events.append(event)
            self.times.append(self.now)

    def _open(self, request: Open) -> None:
        self.opens.append(request)
        if request.remote is not None and request.remote not in self.relays:
            gone = Closed(flow=request.flow, reason=f"{request.remote}: connection refused")
            self.later(self.delay, lambda: self.client.receive(gone, now=self.now))
            return
        local = self.locals[request.flow] = Address("192.0.2.9", 5000 + len(self.opens))
        if request.transport.reliable:
            assert request.remote is not None
            self._framers[request.flow] = StreamFramer()
            self._remotes[request.flow] = request.remote
        opened = Opened(flow=request.flow, local=local, remote=request.remote)
        self.later(2 * self.delay, lambda: self.client.receive(opened, now=self.now))

    def _send(self, output: Send) -> None:
        assert output.flow in self.locals and output.flow not in self.closes, f"sent by {output.flow}, not open"
        self.out.append((self.now, output.data))
        relay = self.relays.get(output.remote)
        if relay is None or self.lose(output.data, True):
            return
        flow, source = output.flow, self.locals[output.flow]

        def arrive() -> None:
            framer = self._framers.get(flow)
            for frame in framer.feed(output.data) if framer else [output.data]:
                answer = relay.take(frame, source, now=self.now)
                if answer is not None:
                    self.inward(flow, relay.address, answer)

        self.later(self.delay, arrive)
