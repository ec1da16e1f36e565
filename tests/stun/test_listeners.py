"""The Binding server on its listeners: what was asked for, what came of it, and answers by the flow of the request."""

from __future__ import annotations

from polynya.core.addresses import Address
from polynya.core.flows import FlowIds, Transport
from polynya.core.instants import Instant
from polynya.core.machine import Closed, Datagram, Open, Opened, Send
from polynya.stun.listeners import ListenerFailed, ListenerOpened, StunListeners
from polynya.stun.message import Message
from polynya.stun.registry import Method
from polynya.stun.server import BindingServer

ONE, TWO = Address("192.0.2.1", 0), Address("2001:db8::1", 3478)
CLIENT = Address("198.51.100.1", 4000)
NOW = Instant(0)


def test_each_address_is_opened_told_and_answered_by() -> None:
    listeners = StunListeners((ONE, TWO), FlowIds(), BindingServer())
    assert listeners.outputs() == []
    listeners.start(NOW)
    opens = listeners.outputs()
    assert [(each.transport, each.local) for each in opens if isinstance(each, Open)] == [
        (Transport.UDP, ONE),
        (Transport.UDP, TWO),
    ]
    one, two = (each.flow for each in opens if isinstance(each, Open))
    listeners.receive(Opened(flow=one, local=ONE.with_port(5000)), NOW)
    listeners.receive(Closed(flow=two, reason="address already in use"), NOW)
    assert listeners.events() == [
        ListenerOpened(asked=ONE, local=ONE.with_port(5000)),
        ListenerFailed(asked=TWO, reason="address already in use"),
    ]
    listeners.receive(Datagram(one, CLIENT, Message.request(Method.BINDING, bytes(12)).encode()), NOW)
    [answer] = listeners.outputs()
    assert isinstance(answer, Send)
    assert (answer.flow, answer.remote) == (one, CLIENT)
    assert listeners.next_timer() is None
