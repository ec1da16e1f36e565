"""Mutated requests and ChannelData against a whole server. `scripts/fuzz.py turn` runs them without end.

Each case is a valid packet of a client with or without an allocation, after a few mutations. Some cases are signed
again, so that they pass authentication. After each round all allocations end: then the server holds no state, and the
process has no more objects than after its caches were full.
"""

from __future__ import annotations

import gc
import random
import struct
from collections.abc import Callable
from typing import Final
from zlib import crc32

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.machine import Closed, StreamData
from polynya.stun import attributes as a
from polynya.stun.framing import encode_channel_data
from polynya.stun.message import Message
from polynya.stun.origins import origins
from polynya.stun.registry import FINGERPRINT_XOR, Method
from tests.turn.server.harness import CLIENT, HOST, LISTENER, PEER, PEER6, Person, Table, config

PEERS = (PEER, PEER6, Address("10.0.0.1", 1), Address("::ffff:127.0.0.1", 80), Address("203.0.113.10", 0))
ROUND: Final = 2000
"""Cases of a round, after which all allocations end and leaks are searched."""
WARM: Final = 100
"""Rounds after which every cache is full."""
MORE: Final = 1000
"""Objects that may be added after the warm rounds: less than one for a hundred cases."""


class Assault:
    """Runs cases; the same seed gives the same cases."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.table = Table(config(ports=(50000, 50031)))
        served = {LISTENER: Address(HOST, 3478), Flow(910): Address(HOST, 3479)}
        self.table.server.control.set_origins(origins(served), now=self.table.now)
        self.people: list[Person] = []
        self.cases = 0
        self.objects: list[int] = []
        """Number of objects in the process after each round."""
        self.flow = 1000

    def run(self, count: int) -> None:
        """Run a number of cases in rounds; after each round the server must be empty."""
        while self.cases < count:
            self.arrive()
            for _ in range(min(ROUND, count - self.cases)):
                self._case()
                self.cases += 1
            self.leave()

    # ------------------------------------------------------------------------------------------------------------ cases

    def arrive(self) -> None:
        self.people = []
        for number in range(6):
            address = Address(CLIENT.host, 1000 + number)
            stream = None
            if number >= 4:
                self.flow += 1
                stream = Flow(self.flow)
                self.table.open_stream(stream, address)
            person = Person(self.table, address, "alice" if number % 2 else "bob", stream=stream,
                            algorithm=(2, 1, None)[number % 3])  # fmt: skip
            person.learn(person.say(person.build(Method.ALLOCATE, {a.REQUESTED_TRANSPORT: 17})))
            if number % 3:
                person.allocate()
                person.permit(PEER)
                person.bind(0x4000)
            self.people.append(person)
        intruder = Person(self.table, self.people[1].address, "bob")
        intruder.learn(intruder.say(intruder.build(Method.REFRESH)))
        self.people.append(intruder)

    def leave(self) -> None:
        """End all allocations and check that the server holds no state."""
        table = self.table
        for person in self.people:
            if person.stream is not None:
                table.give(Closed(flow=person.stream, reason="gone"))
        table.run_for(7200)
        control = table.server.control
        assert control.allocations.free_ports(now=table.now) == 2 * 32, "a relay port has leaked"
        left = {
            "relay ports": len(table.flows),
            "timers": 0 if control.next_timer() is None else 1,
            **{f"control: {name}": held for name, held in control.size.items()},
            **{f"plane: {name}": held for name, held in table.server.plane.size.items()},
        }
        assert not any(left.values()), f"after {self.cases} cases: {left}"
        assert len(control.counters) < 200
        table.sent.clear()
        table.log.clear()
        table.closed.clear()
        gc.collect()
        self.objects.append(len(gc.get_objects()))
        if len(self.objects) > WARM:
            more = self.objects[-1] - self.objects[WARM]
            assert more < MORE, f"after {self.cases} cases: {more} more objects than after {WARM} rounds"

    def _case(self) -> None:
        chance = self.random
        person = chance.choice(self.people)
        if chance.random() < 0.02:
            self.table.run_for(chance.choice((0.1, 1, 31, 299, 601)))
        if chance.random() < 0.1:  # nonces expire
            person.nonce = b""
            person.learn(person.say(person.build(Method.REFRESH)))
        data = bytearray(self._packet(person))
        for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
            self._mutate(data)
        if chance.random() < 0.8:
            self._repair(data, person)
        if person.stream is None:
            self.table.from_client(bytes(data), person.address)
        else:
            self.table.give(StreamData(person.stream, bytes(data)))
            if not self.table.server.control.has_stream(person.stream):
                self.flow += 1
                person.stream = Flow(self.flow)
                self.table.open_stream(person.stream, person.address)
        if person.relayed and chance.random() < 0.05:
            self.table.from_peer(person.relayed[0], bytes(data), chance.choice(PEERS))

    def _packet(self, person: Person) -> bytes:
        chance = self.random
        peers = tuple(chance.choice(PEERS) for _ in range(chance.choice((0, 1, 1, 2, 9))))
        makers: list[Callable[[], bytes]] = [
            lambda: person.build(Method.ALLOCATE, self._requested()),
            lambda: person.build(Method.REFRESH, chance.choice(({}, {a.LIFETIME: 0}, {a.LIFETIME: 2**32 - 1}))),
            lambda: person.build(Method.CREATE_PERMISSION, {a.XOR_PEER_ADDRESS: peers}),
            lambda: person.build(
                Method.CHANNEL_BIND, {a.CHANNEL_NUMBER: 0x4000 + chance.randrange(4), a.XOR_PEER_ADDRESS: peers}
            ),
            lambda: encode_channel_data(0x4000, chance.randbytes(chance.choice((0, 1, 50, 1500))), pad=True),
            lambda: Message.indication(
                Method.SEND, bytes(12), {a.XOR_PEER_ADDRESS: peers, a.DATA: chance.randbytes(20)}
            ).encode(),
            lambda: Message.request(Method.BINDING, chance.randbytes(12), {a.SOFTWARE: "x"}).encode(fingerprint=True),
            lambda: Message.request(Method.BINDING, chance.randbytes(12), self._discovery()).encode(),
            lambda: chance.randbytes(chance.choice((0, 1, 4, 20, 200))),
        ]
        return chance.choice(makers)()

    def _discovery(self) -> dict:
        """Attributes of RFC 5780; the server's listener serves them."""
        chance = self.random
        attributes = {
            a.CHANGE_REQUEST: a.ChangeRequest(address=chance.random() < 0.5, port=chance.random() < 0.5),
            a.RESPONSE_PORT: chance.choice((0, 1, 5000, 65535)),
            a.PADDING: bytes(chance.choice((0, 3, 1500, 9000))),
        }
        return {attribute: value for attribute, value in attributes.items() if chance.random() < 0.5}

    def _requested(self) -> dict:
        chance = self.random
        requested: dict = {a.REQUESTED_TRANSPORT: chance.choice((17, 17, 17, 6, 0))}
        for attribute, values in (
            (a.REQUESTED_ADDRESS_FAMILY, (4, 6)),
            (a.ADDITIONAL_ADDRESS_FAMILY, (6, 4)),
            (a.EVEN_PORT, (True, False)),
            (a.RESERVATION_TOKEN, (bytes(8), *self.table.server.control.allocations.reservations)),
            (a.LIFETIME, (0, 1, 700, 2**32 - 1)),
            (a.DONT_FRAGMENT, (True,)),
        ):
            if chance.random() < 0.25:
                requested[attribute] = chance.choice(values)
        return requested

    def _mutate(self, data: bytearray) -> None:
        chance = self.random
        if not data:
            data += chance.randbytes(4)
            return
        where = chance.randrange(len(data))
        match chance.randrange(6):
            case 0:
                data[where] ^= 1 << chance.randrange(8)
            case 1:
                data[where] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del data[where:]
            case 3:
                data[where:where] = chance.randbytes(chance.choice((1, 4, 8)))
            case 4:
                start = chance.randrange(len(data))
                data[where:where] = data[start : start + 24]
            case 5 if len(data) >= 24:
                data[20 + (where & ~3) % max(len(data) - 20, 4) : 22] = chance.choice(
                    (b"\0\x12", b"\0\x0d", b"\x7f\xff")
                )

    def _repair(self, data: bytearray, person: Person) -> None:
        """Correct length, signature and FINGERPRINT, so that the server parses the packet further."""
        if len(data) < 20 or data[0] >> 6:
            return
        del data[len(data) & ~3 :]
        data[4:8] = b"\x21\x12\xa4\x42"
        strong = person.algorithm is not None
        head, size = (b"\0\x1c\0\x20", 36) if strong else (b"\0\x08\0\x14", 24)
        position = data.find(head, 20)
        if position >= 0 and self.random.random() < 0.8:
            del data[position:]
            data[2:4] = struct.pack("!H", min(len(data) - 20 + size, 0xFFFF))
            signature = person.key.sha256(bytes(data)) if strong else person.key.sha1(bytes(data))
            data += head + signature
        data[2:4] = struct.pack("!H", min(len(data) - 20, 0xFFFF))
        if data[-8:-4] == b"\x80\x28\0\4":
            data[-4:] = struct.pack("!I", crc32(bytes(data[:-8])) ^ FINGERPRINT_XOR)
