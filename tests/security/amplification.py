"""Measures the responses to unauthenticated packets, for the tables of docs/explanation/security.md.

`python -m tests.security.amplification` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.stun import attributes as a
from polynya.stun.framing import encode_channel_data
from polynya.stun.message import Message, decode
from polynya.stun.origins import corners, origins
from polynya.stun.registry import Class, Method
from tests.turn.server.harness import CLIENT, LISTENER, PEER, Person, Table, config

UDP_IP = {4: 28, 6: 48}
"""Bytes of the IP and UDP headers of a packet."""
CLIENT6 = Address("2001:db8:7::1", 40000)
ALLOCATE = {a.REQUESTED_TRANSPORT: 17}
GUESSED = b"obMatJos2AAADAAAAAAAAAAA"
"""A nonce in the right form from another server."""


class Row(NamedTuple):
    request: str
    sent: int
    """Bytes of UDP payload."""
    answer: str
    answered: int
    family: int = 4

    @property
    def bare(self) -> float:
        return self.answered / self.sent

    @property
    def on_the_wire(self) -> float:
        headers = UDP_IP[self.family]
        return (self.answered + headers) / (self.sent + headers) if self.answered else 0.0


def unauthenticated() -> Person:
    """A client with a user name and without the password."""
    person = Person(Table(config()), CLIENT, "alice", "a guess")
    person.nonce = GUESSED
    return person


def requests() -> Iterator[tuple[str, bytes, Address]]:
    """Yield all packets that need no password: the shortest form of each, and the form that clients usually send."""
    number = iter(range(100))

    def request(method: Method, attributes: dict | None = None, **options: bool) -> bytes:
        return Message.request(method, next(number).to_bytes(12, "big"), attributes or {}).encode(**options)

    person = unauthenticated()
    yield "Binding", request(Method.BINDING), CLIENT
    yield "Binding with FINGERPRINT", request(Method.BINDING, fingerprint=True), CLIENT
    yield "Binding of RFC 3489", bytes.fromhex("00010000") + bytes(16), CLIENT
    yield "Binding with an unknown attribute", bytes.fromhex("000100042112a442") + bytes(12) + b"\x7f\xfe\0\0", CLIENT
    yield "Allocate, usual form", request(Method.ALLOCATE, ALLOCATE), CLIENT
    for method in (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND):
        name = "".join(word.title() for word in method.name.split("_"))
        yield f"{name}, the shortest", request(method), CLIENT
    yield (
        "Allocate, signed, without credentials",
        Message.request(Method.ALLOCATE, bytes(12)).encode(integrity=person.key),
        CLIENT,
    )
    yield "Allocate, signed, foreign nonce", person.build(Method.ALLOCATE, ALLOCATE), CLIENT
    yield "Binding over IPv6", request(Method.BINDING), CLIENT6
    for kind in (Class.INDICATION, Class.SUCCESS, Class.ERROR):
        data = bytearray(request(Method.ALLOCATE))
        data[0] |= (kind.value & 2) >> 1
        data[1] |= (kind.value & 1) << 4
        yield f"any {kind.name.lower()}", bytes(data), CLIENT
    send = {a.XOR_PEER_ADDRESS: (PEER,), a.DATA: b"data"}
    yield "Send without an allocation", Message.indication(Method.SEND, bytes(12), send).encode(), CLIENT
    yield "ChannelData without an allocation", encode_channel_data(0x4000, b"data", pad=False), CLIENT
    yield "an unsupported method", request(Method.CONNECT), CLIENT
    yield "not STUN", b"\0\1" + bytes(26), CLIENT


def discovery() -> Iterator[tuple[str, bytes, Address]]:
    """Yield the Binding requests for a server with behavior discovery."""

    def request(attributes: dict | None = None) -> bytes:
        return Message.request(Method.BINDING, bytes(12), attributes or {}).encode()

    yield "Binding", request(), CLIENT
    yield "Binding of RFC 3489", bytes.fromhex("00010000") + bytes(16), CLIENT
    yield "Binding with CHANGE-REQUEST", request({a.CHANGE_REQUEST: a.ChangeRequest(port=True)}), CLIENT
    yield "Binding with RESPONSE-PORT", request({a.RESPONSE_PORT: 5000}), CLIENT
    yield "Binding with 1,200 bytes of PADDING", request({a.PADDING: bytes(1200)}), CLIENT
    yield "Binding over IPv6", request(), CLIENT6


def discovering(family: int) -> Table:
    """Make a server with behavior discovery on two addresses of a family."""
    hosts = {4: ("192.0.2.15", "192.0.2.16"), 6: ("2001:db8::15", "2001:db8::16")}
    first, other = (Address(host, 3478 + number) for number, host in enumerate(hosts[family]))
    places = (first, *corners(first, other))
    flows = {Flow(LISTENER.id + 10 * number): each for number, each in enumerate(places)}
    table = Table(config())
    table.server.control.set_origins(origins(flows), now=table.now)
    return table


def measure() -> list[Row]:
    """Measure each packet at a new server with the realm `example.org`."""
    return [_row(Table(config()), *each) for each in requests()]


def measure_discovery() -> list[Row]:
    """Measure each request at a new server with behavior discovery."""
    return [_row(discovering(client.family), name, data, client) for name, data, client in discovery()]


def _row(table: Table, name: str, data: bytes, client: Address) -> Row:
    sent = table.from_client(data, client)
    assert all(each.remote.host == client.host for each in sent)
    answer = "nothing"
    if sent:
        message = decode(sent[0].data, legacy=True)
        answer = "success" if message.cls is Class.SUCCESS else str(int(message[a.ERROR_CODE].code))
    return Row(name, len(data), answer, sum(len(each.data) for each in sent), client.family)


def table(rows: Sequence[Row]) -> str:
    """Format the rows as Markdown; packets without a response share one row."""
    lines = [
        "| request | bytes | response | bytes | payload ratio | ratio with IP and UDP headers |",
        "|---|---|---|---|---|---|",
    ]
    silent = []
    for row in rows:
        if row.answered:
            factors = f"{row.bare:.2f} : 1 | {row.on_the_wire:.2f} : 1"
            lines.append(f"| {row.request} | {row.sent} | {row.answer} | {row.answered} | {factors} |")
        else:
            silent.append(row.request)
    if silent:
        lines.append(f"| {', '.join(silent)} | | nothing | 0 | 0 | 0 |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure()), table(measure_discovery()), sep="\n\n")
