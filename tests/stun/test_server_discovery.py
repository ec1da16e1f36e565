"""RFC 5780, section 6.1: the Binding server on two addresses, and on two ports of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, Opened, Send, StreamData
from polynya.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOURCE_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from polynya.stun.budget import Budget
from polynya.stun.message import Message, decode
from polynya.stun.origins import corners, origins
from polynya.stun.registry import Class, Method
from polynya.stun.server import BUDGET, MAX_PADDING, BindingServer

FIRST, OTHER = Address("192.0.2.1", 3478), Address("192.0.2.2", 3479)
FIRST6, OTHER6 = Address("2001:db8::1", 3478), Address("2001:db8::2", 3479)
CLIENT, CLIENT6 = Address("203.0.113.7", 40000), Address("2001:db8:7::7", 40000)
ELSEWHERE = [ChangeRequest(address, port) for address in (False, True) for port in (False, True)]
IP_UDP = {4: 28, 6: 48}


class Served:
    """A server with its listeners."""

    def __init__(self, *listeners: Address, budget: Budget | None = None) -> None:
        self.listeners = {Flow(number): address for number, address in enumerate(listeners)}
        self.server = BindingServer(budget=budget)
        self.server.origins = origins(self.listeners)
        self.now = Instant(0)

    def ask(
        self, attributes: Mapping[Any, Any], at: Address = FIRST, client: Address = CLIENT, *, id_bytes: int = 12
    ) -> tuple[Address, Address, Message] | None:
        """From where it is answered, where to, and what; None when it is not."""
        flow = next(flow for flow, local in self.listeners.items() if local == at)
        request = Message.request(Method.BINDING, bytes(range(1, 1 + id_bytes)), attributes).encode()
        self.server.receive(Datagram(flow, client, request), now=self.now)
        sent = self.server.outputs()
        if not sent:
            return None
        [send] = sent
        assert isinstance(send, Send)
        return self.listeners[send.flow], send.remote, decode(send.data, legacy=True)

    def answer(self, *args: Any, **options: Any) -> tuple[Address, Address, Message]:
        answered = self.ask(*args, **options)
        assert answered is not None
        return answered


@pytest.fixture
def two() -> Served:
    return Served(FIRST, *corners(FIRST, OTHER))


@pytest.fixture
def one() -> Served:
    return Served(FIRST, FIRST.with_port(OTHER.port))


@pytest.mark.parametrize("change", ELSEWHERE, ids=str)
def test_table_1_for_every_listener(two: Served, change: ChangeRequest) -> None:
    """Flags and the listener that is asked decide from where the answer comes; OTHER-ADDRESS is the listener's."""
    for here in two.listeners.values():
        there = OTHER if here.host == FIRST.host else FIRST
        port = OTHER.port if here.port == FIRST.port else FIRST.port
        source, to, answer = two.answer({CHANGE_REQUEST: change}, here)
        assert source == Address(there.host if change.address else here.host, port if change.port else here.port)
        assert to == CLIENT
        assert answer.attributes == {
            XOR_MAPPED_ADDRESS: CLIENT,
            MAPPED_ADDRESS: CLIENT,
            RESPONSE_ORIGIN: source,
            OTHER_ADDRESS: Address(there.host, port),
        }


def test_a_plain_request_gets_them_too(two: Served) -> None:
    _, _, answer = two.answer({})
    assert answer.attributes == two.answer({CHANGE_REQUEST: ChangeRequest()})[2].attributes


def test_one_address_answers_from_its_other_port_and_promises_no_more(one: Served) -> None:
    """Section 7.4: OTHER-ADDRESS must not be there without a second address."""
    source, _, answer = one.answer({CHANGE_REQUEST: ChangeRequest(port=True)})
    assert source == answer[RESPONSE_ORIGIN] == FIRST.with_port(OTHER.port)
    assert OTHER_ADDRESS not in answer
    for change in (ChangeRequest(address=True), ChangeRequest(address=True, port=True)):
        source, _, answer = one.answer({CHANGE_REQUEST: change})
        assert (source, answer[ERROR_CODE].code, answer[UNKNOWN_ATTRIBUTES]) == (FIRST, 420, (3,))


def test_an_answer_goes_to_another_port_of_the_host_that_asked_and_to_no_other_host(two: Served) -> None:
    """Section 7.5: with it a client finds out how long its NAT keeps a mapping."""
    _, to, answer = two.answer({RESPONSE_PORT: 5000})
    assert to == CLIENT.with_port(5000)
    assert answer[XOR_MAPPED_ADDRESS] == CLIENT
    _, to, answer = two.answer({RESPONSE_PORT: 0})
    assert (to, answer[ERROR_CODE].code) == (CLIENT, 400)


@pytest.mark.parametrize("size", [0, 4, 1000, 1500, 5000])
def test_padding_comes_back_no_larger_than_it_was(two: Served, size: int) -> None:
    """Section 6.1 leaves its length to the server: more than the request has would make the server an amplifier."""
    _, _, answer = two.answer({PADDING: bytes(size)})
    assert len(answer[PADDING]) == min(size, MAX_PADDING)


def test_padding_goes_nowhere_else(two: Served) -> None:
    """Section 6.1: 400, to the port that it came from."""
    _, to, answer = two.answer({PADDING: bytes(1000), RESPONSE_PORT: 5000})
    assert (to, answer[ERROR_CODE].code) == (CLIENT, 400)


def test_clients_of_rfc_3489_are_answered_in_their_own_terms(two: Served) -> None:
    source, _, answer = two.answer({CHANGE_REQUEST: ChangeRequest(True, True)}, id_bytes=16)
    assert answer.legacy and source == OTHER
    assert answer.attributes == {MAPPED_ADDRESS: CLIENT, SOURCE_ADDRESS: OTHER, CHANGED_ADDRESS: OTHER}


def test_a_response_address_of_rfc_3489_sends_nothing_to_others(two: Served) -> None:
    victim = bytes.fromhex("00020008 0001 0035 c6336401".replace(" ", ""))
    request = bytes.fromhex("0001000c") + bytes(range(1, 17)) + victim
    two.server.receive(Datagram(Flow(0), CLIENT, request), now=two.now)
    [send] = two.server.outputs()
    assert isinstance(send, Send) and send.remote == CLIENT
    assert decode(send.data, legacy=True)[UNKNOWN_ATTRIBUTES] == (2,)


@pytest.mark.parametrize(
    "attributes",
    [{CHANGE_REQUEST: ChangeRequest(port=True)}, {RESPONSE_PORT: 5000}, {PADDING: bytes(100)}],
    ids=["CHANGE-REQUEST", "RESPONSE-PORT", "PADDING"],
)
def test_what_is_asked_for_is_budgeted_for_each_source(attributes: dict[Any, Any]) -> None:
    """security.md, line 5."""
    two = Served(FIRST, *corners(FIRST, OTHER), budget=Budget(10, 20))
    assert sum(two.ask(attributes) is not None for _ in range(100)) == 20
    assert two.ask(attributes, client=Address("203.0.113.8", 1)) is not None, "another source has its own"
    assert two.ask({}) is not None, "plain requests are always answered"
    two.now = Instant(SECOND)
    assert sum(two.ask(attributes) is not None for _ in range(100)) == 10


def test_without_a_budget_of_an_owner_there_is_one_all_the_same(two: Served) -> None:
    assert sum(two.ask({RESPONSE_PORT: 5000}) is not None for _ in range(1000)) == BUDGET[1]


@pytest.mark.parametrize(
    ("first", "other", "client", "most"), [(FIRST, OTHER, CLIENT, 2.0), (FIRST6, OTHER6, CLIENT6, 2.5)]
)
def test_the_amplification_is_known(first: Address, other: Address, client: Address, most: float) -> None:
    """On the wire, of the smallest request: the attributes that RFC 5780 requires cost this, where it is served."""
    served = Served(first, *corners(first, other))
    request = Message.request(Method.BINDING, bytes(12)).encode()
    served.server.receive(Datagram(Flow(0), client, request), now=served.now)
    [send] = served.server.outputs()
    assert isinstance(send, Send)
    lower = IP_UDP[first.family]
    assert (len(send.data) + lower) / (len(request) + lower) <= most


def test_streams_take_no_part(two: Served) -> None:
    """An answer cannot leave by another stream."""
    two.server.receive(Opened(flow=Flow(9), local=FIRST, remote=CLIENT), now=two.now)
    request = Message.request(Method.BINDING, bytes(12), {CHANGE_REQUEST: ChangeRequest(port=True)})
    two.server.receive(StreamData(Flow(9), request.encode()), now=two.now)
    [send] = two.server.outputs()
    assert isinstance(send, Send)
    answer = decode(send.data)
    assert (answer.cls, answer[UNKNOWN_ATTRIBUTES]) == (Class.ERROR, (3,))
