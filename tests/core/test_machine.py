"""The inputs and outputs of the machine contract."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from polynya.core import machine
from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.machine import (
    Close,
    Closed,
    Datagram,
    Ecn,
    IcmpError,
    IcmpKind,
    Input,
    IpFields,
    Output,
    RecordType,
    Resolve,
    Resolved,
    Send,
    SendFailed,
)

SERVER = Address("192.0.2.1", 3478)
PER_PACKET = {Datagram, Send, machine.StreamData}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dscp": 64}, "DSCP"),
        ({"dscp": -1}, "DSCP"),
        ({"segment_size": 0}, "segment"),
        ({"ttl": 0}, "TTL"),
        ({"ttl": 256}, "TTL"),
    ],
)
def test_ip_fields_that_do_not_fit_the_header_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IpFields(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{}, {"dscp": 0}, {"dscp": 63}, {"segment_size": 1}, {"ttl": 1}, {"ttl": 255}])
def test_ip_fields_at_their_bounds_are_accepted(fields: dict[str, int]) -> None:
    made = IpFields(**fields)  # type: ignore[arg-type]
    assert {name: value for name, value in dataclasses.asdict(made).items() if value is not None} == fields


def test_ecn_is_the_two_bits_of_the_header() -> None:
    assert [Ecn(bits).name for bits in range(4)] == ["NOT_ECT", "ECT_1", "ECT_0", "CE"]


@pytest.mark.parametrize("kind", [*typing.get_args(Input), *typing.get_args(Output)], ids=lambda kind: kind.__name__)
def test_inputs_and_outputs_are_frozen_except_those_of_each_packet(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen is (kind not in PER_PACKET)  # type: ignore[attr-defined]
    assert "__slots__" in vars(kind)


def test_the_contract_names_every_input_and_output_of_the_design() -> None:
    assert {kind.__name__ for kind in typing.get_args(Input)} >= {
        "Datagram", "Opened", "StreamData", "Closed", "SendFailed", "IcmpError", "Resolved", "InterfacesChanged",
    }  # fmt: skip
    assert {kind.__name__ for kind in typing.get_args(Output)} == {"Send", "Open", "Close", "Resolve"}


def test_equal_events_are_equal_and_can_be_asserted_as_lists() -> None:
    assert Send(Flow(1), SERVER, b"x") == Send(Flow(1), SERVER, b"x") != Send(Flow(2), SERVER, b"x")
    assert Datagram(Flow(1), SERVER, b"x") == Datagram(Flow(1), SERVER, b"x")
    assert SendFailed(flow=Flow(1), remote=SERVER, errno=1) == SendFailed(flow=Flow(1), remote=SERVER, errno=1)
    assert Closed(flow=Flow(1), reason="a") != Closed(flow=Flow(1), reason="b")
    assert Close(flow=Flow(1)) == Close(flow=Flow(1))


def test_packets_have_no_trace_id_by_default() -> None:
    assert (Datagram(Flow(1), SERVER, b"").packet, Send(Flow(1), SERVER, b"").packet) == (0, 0)


def test_an_answer_carries_the_query_it_belongs_to() -> None:
    query = Resolve(name="stun.example.org", token=2)
    assert query.record is RecordType.ADDRESS
    assert Resolved(query=query, hosts=("192.0.2.1",)).query == query != Resolve(name="stun.example.org", token=3)


def test_icmp_kinds_say_which_of_them_end_a_transaction() -> None:
    hard = {kind for kind in IcmpKind if kind.hard}
    assert IcmpKind.PORT_UNREACHABLE in hard
    assert hard != set(IcmpKind)


def test_an_icmp_error_names_the_flow_and_remote_address() -> None:
    fields = {field.name for field in dataclasses.fields(IcmpError)}
    assert {"flow", "remote", "kind"} <= fields
