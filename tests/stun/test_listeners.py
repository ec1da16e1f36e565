"""The listeners before a machine: what is asked for, what comes of it, and what is the machine's."""

from __future__ import annotations

import errno

from polynya.core.addresses import Address
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Close, Closed, Datagram, Open, Opened, Send, StreamData
from polynya.stun.listeners import TRIES, ListenerFailed, ListenerOpened, Listeners, Place
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.stun.server import BindingServer

ANY, FIXED = Address("192.0.2.1", 0), Address("2001:db8::1", 3478)
UDP, TCP = Transport.UDP, Transport.TCP
CLIENT = Address("198.51.100.1", 4000)
NOW = Instant(0)
REQUEST = Message.request(Method.BINDING, bytes(12)).encode()


def listening(*places: Place) -> Listeners:
    listeners = Listeners(places, FlowIds(), BindingServer())
    assert listeners.outputs() == []
    listeners.start(now=NOW)
    return listeners


def opens(listeners: Listeners) -> list[Open]:
    found = [each for each in listeners.outputs() if isinstance(each, Open)]
    assert all(each.remote is None for each in found)
    return found


def test_each_place_is_opened_reported_and_used() -> None:
    listeners = listening(Place(ANY, (UDP,)), Place(FIXED, (UDP,)))
    one, two = opens(listeners)
    assert [(each.transport, each.local) for each in (one, two)] == [(UDP, ANY), (UDP, FIXED)]
    listeners.receive(Opened(flow=one.flow, local=ANY.with_port(5000)), now=NOW)
    listeners.receive(Closed(flow=two.flow, reason="no such address", errno=errno.EADDRNOTAVAIL), now=NOW)
    assert listeners.events() == [
        ListenerOpened(place=0, local=ANY.with_port(5000), flows=(one.flow,)),
        ListenerFailed(place=1, transport=UDP, reason="no such address"),
    ]
    listeners.receive(Datagram(one.flow, CLIENT, REQUEST), now=NOW)
    [answer] = listeners.outputs()
    assert isinstance(answer, Send)
    assert (answer.flow, answer.remote) == (one.flow, CLIENT)
    assert listeners.next_timer() is None


def test_transports_of_a_place_share_the_port_that_the_first_one_got() -> None:
    listeners = listening(Place(ANY, (UDP, TCP)))
    [udp] = opens(listeners)
    listeners.receive(Opened(flow=udp.flow, local=ANY.with_port(5000)), now=NOW)
    [tcp] = opens(listeners)
    assert (tcp.transport, tcp.local) == (TCP, ANY.with_port(5000))
    assert listeners.events() == [], "not before both accept"
    listeners.receive(Opened(flow=tcp.flow, local=ANY.with_port(5000)), now=NOW)
    assert listeners.events() == [ListenerOpened(place=0, local=ANY.with_port(5000), flows=(udp.flow, tcp.flow))]


def test_a_stream_that_was_accepted_is_the_machines() -> None:
    listeners = listening(Place(FIXED, (TCP,)))
    [tcp] = opens(listeners)
    listeners.receive(Opened(flow=tcp.flow, local=FIXED), now=NOW)
    stream = Flow(tcp.flow.id + 1)
    listeners.receive(Opened(flow=stream, local=FIXED, remote=CLIENT, listener=tcp.flow), now=NOW)
    listeners.receive(StreamData(stream, REQUEST), now=NOW)
    [answer] = listeners.outputs()
    assert isinstance(answer, Send) and answer.flow == stream
    listeners.receive(Closed(flow=stream, reason="closed"), now=NOW)
    assert listeners.events() == [ListenerOpened(place=0, local=FIXED, flows=(tcp.flow,))], "the listener stays"


def test_where_any_port_will_do_another_is_tried_when_one_transport_finds_it_taken() -> None:
    listeners = listening(Place(ANY, (UDP, TCP)))
    [udp] = opens(listeners)
    listeners.receive(Opened(flow=udp.flow, local=ANY.with_port(5000)), now=NOW)
    [tcp] = opens(listeners)
    listeners.receive(Closed(flow=tcp.flow, reason="taken", errno=errno.EADDRINUSE), now=NOW)
    close, again = listeners.outputs()
    assert close == Close(flow=udp.flow)
    assert isinstance(again, Open) and (again.transport, again.local) == (UDP, ANY)
    assert listeners.events() == []


def test_it_is_not_tried_for_ever_and_not_at_all_on_a_port_that_was_asked_for() -> None:
    listeners, tries = listening(Place(ANY, (UDP, TCP))), 0
    while asked := [each for each in listeners.outputs() if isinstance(each, Open)]:
        if asked[0].transport is UDP:
            tries += 1
            listeners.receive(Opened(flow=asked[0].flow, local=ANY.with_port(5000 + tries)), now=NOW)
        else:
            listeners.receive(Closed(flow=asked[0].flow, reason="taken", errno=errno.EADDRINUSE), now=NOW)
    assert tries == TRIES + 1
    assert listeners.events() == [ListenerFailed(place=0, transport=TCP, reason="taken")]

    listeners = listening(Place(FIXED, (UDP, TCP)))
    [udp] = opens(listeners)
    listeners.receive(Opened(flow=udp.flow, local=FIXED), now=NOW)
    [tcp] = opens(listeners)
    listeners.receive(Closed(flow=tcp.flow, reason="taken", errno=errno.EADDRINUSE), now=NOW)
    assert listeners.outputs() == [Close(flow=udp.flow)]
    assert listeners.events() == [ListenerFailed(place=0, transport=TCP, reason="taken")]


def test_a_place_that_loses_a_listener_is_reported_as_failed() -> None:
    listeners = listening(Place(ANY, (UDP, TCP)))
    [udp] = opens(listeners)
    listeners.receive(Opened(flow=udp.flow, local=ANY.with_port(5000)), now=NOW)
    [tcp] = opens(listeners)
    listeners.receive(Opened(flow=tcp.flow, local=ANY.with_port(5000)), now=NOW)
    listeners.events()
    listeners.receive(Closed(flow=udp.flow, reason="the network is gone", errno=errno.ENETDOWN), now=NOW)
    assert listeners.outputs() == [Close(flow=tcp.flow)]
    assert listeners.events() == [ListenerFailed(place=0, transport=UDP, reason="the network is gone")]
