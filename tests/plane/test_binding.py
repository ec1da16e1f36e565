"""The plane answers plain Binding requests itself, with the answer of the control plane's Binding server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.core.instants import Instant
from polynya.core.machine import Datagram, Send
from polynya.plane.portable import PortablePlane
from polynya.plane.sockets import address_of, bind_listeners, name_of
from polynya.stun.attributes import CHANGE_REQUEST, ChangeRequest
from polynya.stun.message import Message, decode
from polynya.stun.origins import Origin, corners, origins
from polynya.stun.registry import Method
from polynya.stun.server import BindingServer

FLOW = Flow(1)
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
OTHER = {4: "192.0.2.2", 6: "2001:db8::2"}


@contextmanager
def asking(family: int, *, discovery: bool) -> Iterator[tuple[PortablePlane, BindingServer, socket.socket, Address]]:
    """Make a plane with a listener, a Binding server and a client."""
    [listener] = bind_listeners(Address(LOOPBACK[family], 0), 1)
    here = address_of(listener.getsockname())
    found: dict[Flow, Origin] = {}
    if discovery:
        places = (here, *corners(here, Address(OTHER[family], here.port % 65535 + 1)))
        found = origins({Flow(number): place for number, place in enumerate(places, start=FLOW.id)})
    server = BindingServer()
    server.origins = found
    encoded = {FLOW: found[FLOW].attributes} if discovery else {}
    plane = PortablePlane({FLOW: listener}, origins=encoded)
    with listener, socket.socket(listener.family, socket.SOCK_DGRAM) as client:
        client.bind((LOOPBACK[family], 0))
        client.settimeout(5)
        try:
            yield plane, server, client, here
        finally:
            plane.close()


@pytest.mark.parametrize("family", LOOPBACK)
@pytest.mark.parametrize("discovery", [False, True], ids=["plain", "behavior discovery"])
def test_the_planes_answers_equal_those_of_the_binding_server(family: int, discovery: bool) -> None:
    """RFC 8489, section 14.2; RFC 5780, section 6.1: RESPONSE-ORIGIN and OTHER-ADDRESS are in every answer."""
    request = Message.request(Method.BINDING, bytes(range(12))).encode()
    with asking(family, discovery=discovery) as (plane, server, client, here):
        client.sendto(request, name_of(here))
        plane.run(5)
        answer = decode(client.recv(2048))
        assert plane.reports() == [] and plane.counters == {"Binding responses": 1}
        server.receive(Datagram(FLOW, address_of(client.getsockname()), request), now=Instant(0))
    [send] = server.outputs()
    assert isinstance(send, Send)
    assert (answer.cls, answer.transaction_id) == (decode(send.data).cls, bytes(range(12)))
    assert answer.attributes == decode(send.data).attributes
    assert len(answer.attributes) == (4 if discovery else 1)


@pytest.mark.parametrize("discovery", [False, True], ids=["plain", "behavior discovery"])
def test_a_request_with_attributes_is_reported(discovery: bool) -> None:
    """Only the control plane can answer from another flow than that of the request."""
    request = Message.request(Method.BINDING, bytes(12), {CHANGE_REQUEST: ChangeRequest(port=True)}).encode()
    with asking(4, discovery=discovery) as (plane, _, client, here):
        client.sendto(request, name_of(here))
        plane.run(5)
        [report] = plane.reports()
        assert report == Datagram(FLOW, address_of(client.getsockname()), request)
