"""RFC 5780, section 6: which listeners serve behavior discovery together, and what each says of the others."""

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.stun.attributes import OTHER_ADDRESS, RESPONSE_ORIGIN, ChangeRequest
from polynya.stun.message import Message, decode
from polynya.stun.origins import corners, origins
from polynya.stun.registry import Method

A1P1, A2P2 = Address("192.0.2.1", 3478), Address("192.0.2.2", 3479)
A1P2, A2P1 = A1P1.with_port(3479), A2P2.with_port(3478)
V6 = Address("2001:db8::1", 3478), Address("2001:db8::2", 3479)


@pytest.mark.parametrize(("first", "other"), [(A1P1, A2P2), V6], ids=["IPv4", "IPv6"])
def test_two_addresses_make_four_listeners_with_the_same_ports(first: Address, other: Address) -> None:
    all_four = (first, *corners(first, other))
    flows = {Flow(number): address for number, address in enumerate(all_four)}
    found = origins(flows)
    for flow, here in flows.items():
        origin = found[flow]
        assert origin.address == here
        assert origin.other == flows[origin.elsewhere[ChangeRequest(address=True, port=True)]]
        assert flows[origin.elsewhere[ChangeRequest(address=True)]] == origin.other.with_port(here.port)
        assert flows[origin.elsewhere[ChangeRequest(port=True)]] == here.with_port(origin.other.port)
        assert len(origin.elsewhere) == 3


def test_one_address_has_no_other_and_another_port_only() -> None:
    found = origins({Flow(1): A1P1, Flow(2): A1P2})
    assert corners(A1P1, A1P2) == (A1P2,)
    assert found[Flow(1)].other is None
    assert found[Flow(1)].elsewhere == {ChangeRequest(port=True): Flow(2)}
    assert found[Flow(2)].elsewhere == {ChangeRequest(port=True): Flow(1)}


@pytest.mark.parametrize(
    ("first", "other", "problem"),
    [
        (A1P1, V6[1], "different IP versions"),
        (A1P1, A2P1, "needs another port"),
        (A1P1, A1P1, "needs another port"),
        (A1P1, A2P2.with_port(0), "fixed ports"),
        (A1P1.with_port(0), A2P2, "fixed ports"),
    ],
)
def test_what_cannot_serve_is_refused(first: Address, other: Address, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        corners(first, other)


@pytest.mark.parametrize("listeners", [(A1P1, *corners(A1P1, A2P2)), (A1P1, A1P2)], ids=["two addresses", "one"])
def test_the_attributes_of_every_response_are_encoded_once(listeners: tuple[Address, ...]) -> None:
    """A data plane adds these bytes as they are."""
    for origin in origins({Flow(number): address for number, address in enumerate(listeners)}).values():
        head = Message.success(Message.request(Method.BINDING, bytes(12)), {}).encode()
        answer = decode(head[:2] + len(origin.attributes).to_bytes(2, "big") + head[4:] + origin.attributes)
        assert answer[RESPONSE_ORIGIN] == origin.address
        assert answer.get(OTHER_ADDRESS) == origin.other
        assert len(answer.attributes) == (2 if origin.other else 1)
