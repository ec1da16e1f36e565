"""RFC 8489, sections 6.3.1 and 12: the Binding server."""

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Datagram, Opened, Send, StreamData
from polynya.core.trace import TraceEvent, Tracer
from polynya.stun.attributes import (
    CHANGE_REQUEST,
    ERROR_CODE,
    MAPPED_ADDRESS,
    PADDING,
    RESPONSE_PORT,
    TRANSACTION_TRANSMIT_COUNTER,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    TransmitCounter,
)
from polynya.stun.message import Message, Received, decode
from polynya.stun.registry import Class, Method
from polynya.stun.server import BindingServer

FLOW = Flow(1)
CLIENT = Address("203.0.113.7", 40000)
CLIENT6 = Address("2001:db8::7", 40000)
NOW = Instant(0)
ID = bytes(range(12))


def request(attributes: dict | None = None, transaction_id: bytes = ID, method: Method = Method.BINDING) -> Message:
    return Message.request(method, transaction_id, attributes)


def ask(data: bytes, remote: Address = CLIENT, server: BindingServer | None = None) -> Message | None:
    server = server or BindingServer()
    server.receive(Datagram(FLOW, remote, data), now=NOW)
    outputs = server.outputs()
    if not outputs:
        return None
    [send] = outputs
    assert isinstance(send, Send)
    assert (send.flow, send.remote) == (FLOW, remote)
    return decode(send.data, legacy=True)


@pytest.mark.parametrize("remote", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
def test_a_client_gets_its_source_address(remote: Address) -> None:
    answer = ask(request().encode(), remote)
    assert answer is not None
    assert (answer.cls, answer.transaction_id) == (Class.SUCCESS, ID)
    assert answer.attributes == {XOR_MAPPED_ADDRESS: remote}


def test_a_fingerprint_is_answered_with_one() -> None:
    assert ask(request().encode(fingerprint=True)).has_fingerprint  # type: ignore[union-attr]
    assert not ask(request().encode()).has_fingerprint  # type: ignore[union-attr]


def test_a_request_of_rfc_3489_is_answered_with_mapped_address_and_all_16_bytes_of_its_id() -> None:
    """libnice's discovery sends such requests."""
    long_id = bytes(range(100, 116))
    answer = ask(request(transaction_id=long_id, attributes={CHANGE_REQUEST: ChangeRequest()}).encode())
    assert answer is not None
    assert (answer.legacy, answer.transaction_id) == (True, long_id)
    assert answer.attributes == {MAPPED_ADDRESS: CLIENT}


def test_unknown_required_attributes_are_answered_with_420_and_named() -> None:
    data = (
        bytes.fromhex("000100182112a442") + ID + bytes.fromhex("7ffe0000 7ffd0004aabbccdd 7ffe0000 c0de0004 00000000")
    )
    answer = ask(data)
    assert answer is not None
    assert answer.cls is Class.ERROR
    assert answer[ERROR_CODE].code == 420
    assert answer[UNKNOWN_ATTRIBUTES] == (0x7FFE, 0x7FFD)


def test_an_answer_to_unknown_attributes_does_not_outgrow_its_use() -> None:
    types = b"".join(number.to_bytes(2, "big") + b"\0\0" for number in range(0x7000, 0x7100))
    answer = ask(bytes.fromhex("0001") + len(types).to_bytes(2, "big") + bytes.fromhex("2112a442") + ID + types)
    assert answer is not None
    assert len(answer[UNKNOWN_ATTRIBUTES]) == 16


@pytest.mark.parametrize(
    ("attributes", "number"),
    [
        ({CHANGE_REQUEST: ChangeRequest(port=True)}, 3),
        ({RESPONSE_PORT: 4000}, 0x27),
        ({PADDING: bytes(8)}, 0x26),
    ],
    ids=["CHANGE-REQUEST", "RESPONSE-PORT", "PADDING"],
)
def test_a_test_that_one_address_cannot_serve_is_refused(attributes: dict, number: int) -> None:
    """An answer from the same address would tell the client of a NAT that is not there."""
    answer = ask(request(attributes).encode())
    assert answer is not None
    assert answer[UNKNOWN_ATTRIBUTES] == (number,)


def test_the_transmit_counter_of_a_request_comes_back() -> None:
    answer = ask(request({TRANSACTION_TRANSMIT_COUNTER: TransmitCounter(3)}).encode())
    assert answer is not None
    assert answer[TRANSACTION_TRANSMIT_COUNTER].request == 3


def test_no_answer_is_larger_than_twice_a_bare_request() -> None:
    """security.md 5: a forged source gets little."""
    server = BindingServer()
    server.receive(Datagram(FLOW, CLIENT6, request().encode()), now=NOW)
    [send] = server.outputs()
    assert isinstance(send, Send)
    assert len(send.data) == 44  # 20 bytes of header and an IPv6 address


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(20),
        Message.indication(Method.BINDING, ID).encode(),
        Message.success(request(), {MAPPED_ADDRESS: CLIENT}).encode(),
        Message.error(request(), 400).encode(),
        request(method=Method.ALLOCATE).encode(),
        request().encode(fingerprint=True)[:-1] + b"\0",
    ],
)
def test_what_is_not_a_binding_request_is_dropped_counted_and_explained(data: bytes) -> None:
    events: list[TraceEvent] = []
    server = BindingServer(trace=Tracer(events.append, "server", "stun"))
    assert ask(data, server=server) is None
    assert server.counters == {"dropped": 1}
    assert [(event.kind, bool(event.reason)) for event in events] == [("message-dropped", True)]


def test_a_request_that_was_decoded_already_is_answered() -> None:
    server = BindingServer()
    data = request().encode()
    server.receive(Received(FLOW, CLIENT, decode(data), data), now=NOW)
    assert len(server.outputs()) == 1


def test_a_stream_is_answered_however_its_bytes_arrive() -> None:
    server = BindingServer()
    flow = Flow(2)
    server.receive(Opened(flow=flow, local=Address("192.0.2.1", 3478), remote=CLIENT, listener=FLOW), now=NOW)
    data = request().encode() * 2
    for byte in data:
        server.receive(StreamData(flow, bytes((byte,))), now=NOW)
    outputs = server.outputs()
    assert [decode(send.data)[XOR_MAPPED_ADDRESS] for send in outputs if isinstance(send, Send)] == [CLIENT, CLIENT]
    server.receive(Closed(flow=flow, reason="end of stream"), now=NOW)
    server.receive(StreamData(flow, data), now=NOW)
    assert server.outputs() == []


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\x40\0\0\0", bytes.fromhex("000120002112a442")])
def test_a_stream_that_sends_something_else_is_closed(garbage: bytes) -> None:
    server = BindingServer()
    server.receive(Opened(flow=FLOW, local=Address("192.0.2.1", 3478), remote=CLIENT), now=NOW)
    server.receive(StreamData(FLOW, request().encode() + garbage), now=NOW)
    answer, close = server.outputs()
    assert isinstance(answer, Send)
    assert close == Close(flow=FLOW)


def test_streams_beyond_the_cap_are_closed() -> None:
    server = BindingServer(max_streams=1)
    for number in (1, 2):
        server.receive(Opened(flow=Flow(number), local=Address("192.0.2.1", 3478), remote=CLIENT), now=NOW)
    assert server.outputs() == [Close(flow=Flow(2))]
