"""RFC 8656, sections 9 to 12: permissions, channels, Send and Data indications, and ICMP errors."""

from __future__ import annotations

import pytest

from polynya.core.addresses import Address
from polynya.core.machine import Datagram, IcmpError, IcmpKind, Send
from polynya.stun import attributes as a
from polynya.stun.framing import encode_channel_data
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class, Method
from polynya.turn.server.commands import Done, Refused
from polynya.turn.server.config import ChannelRange
from tests.turn.server.harness import (
    CLIENT,
    LISTENER,
    OTHER,
    PEER,
    PEER6,
    Person,
    Table,
    code,
    config,
)


def test_a_permission_is_for_a_host_in_both_directions(table: Table, alice: Person) -> None:
    [relay] = alice.relayed
    assert alice.send(b"before") == [] and table.from_peer(relay, b"before") == []
    assert code(alice.permit(PEER)) == 0
    elsewhere = PEER.with_port(6000)
    assert [(each.remote, each.data) for each in alice.send(b"x", elsewhere)] == [(elsewhere, b"x")]
    [back] = table.from_peer(relay, b"y", elsewhere)
    message = decode(back.data)
    assert (message.method, message.cls) == (Method.DATA, Class.INDICATION)
    assert (message[a.XOR_PEER_ADDRESS], message[a.DATA]) == ((elsewhere,), b"y")
    assert (back.flow, back.remote) == (LISTENER, CLIENT)


def test_a_permission_lasts_300_seconds_and_data_does_not_renew_it(table: Table, alice: Person) -> None:
    [relay] = alice.relayed
    alice.permit(PEER)
    for _ in range(2):
        table.run_for(149)
        assert len(alice.send(b"x")) == 1
    table.run_for(3)
    assert alice.send(b"x") == [] and table.from_peer(relay, b"y") == []
    alice.permit(PEER)
    assert len(alice.send(b"x")) == 1


def test_a_permission_needs_a_peer(alice: Person) -> None:
    assert code(alice.ask(Method.CREATE_PERMISSION, {})) == 400


def test_peers_of_a_family_that_is_not_allocated_are_refused_with_443(alice: Person) -> None:
    assert code(alice.permit(PEER6)) == 443
    assert code(alice.permit(PEER, PEER6)) == 443
    assert code(alice.bind(0x4000, PEER6)) == 443
    assert alice.send(b"x") == [], "the permitted one of the two was not installed"


def test_channel_data_is_relayed_in_both_directions(table: Table, alice: Person) -> None:
    [relay] = alice.relayed
    assert code(alice.bind(0x4000)) == 0
    assert [(each.remote, each.data) for each in alice.channel(0x4000, b"to")] == [(PEER, b"to")]
    [back] = table.from_peer(relay, b"back")
    assert back.data == b"\x40\x00\x00\x04back"
    other_port = PEER.with_port(5001)
    [wrapped] = table.from_peer(relay, b"z", other_port)
    assert decode(wrapped.data)[a.XOR_PEER_ADDRESS] == (other_port,), "no channel, but the host has a permission"


def test_channel_data_may_be_padded_or_empty_but_not_short(table: Table, alice: Person) -> None:
    alice.bind(0x4000)
    assert [each.data for each in table.from_client(b"\x40\x00\x00\x01x\0\0\0")] == [b"x"]
    assert [each.data for each in table.from_client(b"\x40\x00\x00\x00")] == [b""]
    assert table.from_client(b"\x40\x00\x00\x05abcd") == []
    assert table.from_client(b"\x40\x01\x00\x01x") == []
    assert table.from_client(b"\x40\x00\x00\x01x", OTHER) == []


def test_a_channel_without_a_permission_relays_nothing(table: Table, alice: Person) -> None:
    alice.bind(0x4000)
    table.run_for(301)
    assert alice.channel(0x4000, b"x") == []
    alice.permit(PEER)
    assert len(alice.channel(0x4000, b"x")) == 1
    table.run_for(250)
    alice.permit(PEER)
    alice.refresh()
    table.run_for(60)
    assert alice.channel(0x4000, b"x") == [], "after 600 s"
    assert alice.bind(0x4000).cls is Class.SUCCESS
    assert len(alice.channel(0x4000, b"x")) == 1


def test_a_channel_expires_in_both_directions_after_600_seconds(table: Table, alice: Person) -> None:
    alice.bind(0x4000)
    table.run_for(299)
    alice.permit(PEER)
    table.run_for(299)
    alice.permit(PEER), alice.refresh()
    table.run_for(1)
    [relay] = alice.relayed
    [back] = table.from_peer(relay, b"x")
    assert len(alice.channel(0x4000, b"x")) == 1 and back.data[:2] == b"\x40\0", "599 s"
    table.run_for(1)
    [back] = table.from_peer(relay, b"x")
    assert alice.channel(0x4000, b"x") == [] and decode(back.data)[a.DATA] == b"x", "600 s"


def test_a_datagram_that_fits_no_message_is_dropped(table: Table, alice: Person) -> None:
    """The largest datagram of a peer with the header of a Data indication or of a channel."""
    alice.permit(PEER)
    [relay] = alice.relayed
    assert table.from_peer(relay, bytes(65_507)) == []
    [back] = table.from_peer(relay, bytes(65_000))
    assert len(decode(back.data)[a.DATA]) == 65_000
    alice.bind(0x4000)
    assert table.from_peer(relay, bytes(65_507)) == []
    assert table.server.plane.counters["too large for the client"] == 2


@pytest.mark.parametrize(("kind", "last"), [(ChannelRange.RFC8656, 0x4FFF), (ChannelRange.RFC5766, 0x7FFF)])
def test_the_range_of_channel_numbers(kind: ChannelRange, last: int) -> None:
    alice = Person(Table(config(channel_range=kind)))
    alice.allocate()
    assert code(alice.bind(last)) == 0
    for wrong in (0x3FFF, last + 1, 0, 0xFFFF):
        assert code(alice.bind(wrong, PEER.with_port(wrong or 1))) == 400


def test_old_clients_may_use_channels_of_rfc_5766_from_their_own_address_only(table: Table, alice: Person) -> None:
    for number in (0x5000, 0x7FFF):
        peer = PEER.with_port(number)
        assert code(alice.bind(number, peer)) == 0, "by default"
        frame = encode_channel_data(number, b"hello", pad=False)
        [sent] = table.from_client(frame)
        assert (sent.remote, sent.data) == (peer, b"hello")
        [answer] = table.from_peer(alice.relayed[0], b"hi", peer)
        assert answer.data == encode_channel_data(number, b"hi", pad=False)
        for other in (OTHER, CLIENT.with_port(CLIENT.port + 1)):
            assert table.from_client(frame, other) == []


def test_an_expired_channel_is_not_bound_to_another_peer_for_five_minutes(table: Table, alice: Person) -> None:
    second = PEER.with_port(7000)
    alice.bind(0x4000)
    assert code(alice.bind(0x4000, second)) == 400
    assert code(alice.bind(0x4001)) == 400
    for _ in range(2):
        table.run_for(449)
        alice.refresh(3600)
        assert code(alice.bind(0x4000, second)) == 400 and code(alice.bind(0x4001)) == 400
    table.run_for(3)
    assert code(alice.bind(0x4000, second)) == 0 and code(alice.bind(0x4001)) == 0


def test_a_channel_that_the_plane_refused_need_not_rest(table: Table, alice: Person) -> None:
    control = table.server.control
    control.receive(Datagram(LISTENER, CLIENT, alice.build(Method.CHANNEL_BIND, {
        a.CHANNEL_NUMBER: 0x4000, a.XOR_PEER_ADDRESS: (PEER,)
    })), now=table.now)  # fmt: skip
    [permit] = control.outputs()
    control.receive(Done(permit.number), now=table.now)  # type: ignore[union-attr]
    [bind] = control.outputs()
    control.receive(Refused(bind.number, "no memory"), now=table.now)  # type: ignore[union-attr]
    [answer] = control.outputs()
    assert isinstance(answer, Send) and code(decode(answer.data)) == 508
    second = PEER.with_port(7000)
    assert code(alice.bind(0x4000, second)) == 0 and code(alice.bind(0x4001)) == 0


@pytest.mark.parametrize("missing", [a.CHANNEL_NUMBER, a.XOR_PEER_ADDRESS])
def test_a_channel_needs_number_and_peer(alice: Person, missing: a.Attribute) -> None:
    values = {a.CHANNEL_NUMBER: 0x4000, a.XOR_PEER_ADDRESS: (PEER,)}
    del values[missing]
    assert code(alice.ask(Method.CHANNEL_BIND, values)) == 400


def test_reserved_channel_numbers_are_discarded(table: Table, alice: Person) -> None:
    """RFC 8656, section 12.6: 0x5000 to 0xFFFF are discarded, 0x0000 to 0x3FFF are no channels."""
    alice.bind(0x4000)
    for first in range(256):
        assert (table.from_client(bytes((first, 0)) + b"\0\x01x") != []) == (first == 0x40)


def test_a_send_needs_peer_and_data_and_no_unknown_required_attribute(table: Table, alice: Person) -> None:
    """RFC 8656, section 11.2. Data may be empty."""
    alice.permit(PEER)
    whole = {a.XOR_PEER_ADDRESS: (PEER,), a.DATA: b""}
    [sent] = table.from_client(Message.indication(Method.SEND, bytes(12), whole).encode())
    assert (sent.remote, sent.data) == (PEER, b"")
    for missing in whole:
        rest = {name: value for name, value in whole.items() if name is not missing}
        assert table.from_client(Message.indication(Method.SEND, bytes(12), rest).encode()) == []
    data = Message.indication(Method.SEND, bytes(12), whole).encode()
    for unknown in ("7ffe0000", "0012000400010000"):
        body = bytes.fromhex(unknown) + data[20:]
        assert table.from_client(data[:2] + len(body).to_bytes(2, "big") + data[4:20] + body) == []


def test_the_permissions_of_one_allocation_do_not_apply_to_another(table: Table, alice: Person) -> None:
    """RFC 8656, sections 9 and 12. The same holds for channels."""
    bob = Person(table, OTHER, "bob")
    bob.allocate()
    alice.bind(0x4000)
    assert table.from_peer(bob.relayed[0], b"x") == [] and bob.send(b"x") == [] and bob.channel(0x4000, b"x") == []
    assert code(bob.bind(0x4000, PEER.with_port(9))) == 0, "the same number for another peer"
    alice.refresh(0)
    assert len(bob.channel(0x4000, b"x")) == 1


def test_a_repeated_request_gets_the_same_response(table: Table, alice: Person) -> None:
    """RFC 8489, section 6.3.1: Refresh, CreatePermission and ChannelBind are idempotent."""
    for request in (
        alice.build(Method.REFRESH, {a.LIFETIME: 900}),
        alice.build(Method.CREATE_PERMISSION, {a.XOR_PEER_ADDRESS: (PEER,)}),
        alice.build(Method.CHANNEL_BIND, {a.CHANNEL_NUMBER: 0x4000, a.XOR_PEER_ADDRESS: (PEER,)}),
    ):
        answers = [[each.data for each in table.from_client(request)] for _ in range(3)]
        assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 1
    assert table.server.plane.size["channels"] == table.server.plane.size["permissions"] == 1


# --------------------------------------------------------------------------------------------------------------- ICMP


@pytest.mark.parametrize(
    ("peer", "kind", "expected"),
    [
        (PEER, IcmpKind.PORT_UNREACHABLE, (3, 3)),
        (PEER, IcmpKind.HOST_UNREACHABLE, (3, 1)),
        (PEER, IcmpKind.TTL_EXCEEDED, (11, 0)),
        (PEER6, IcmpKind.PORT_UNREACHABLE, (1, 4)),
        (PEER6, IcmpKind.TTL_EXCEEDED, (3, 0)),
    ],
)
@pytest.mark.parametrize("channel", [False, True])
def test_an_icmp_error_is_sent_in_a_data_indication(
    table: Table, peer: Address, kind: IcmpKind, expected: tuple[int, int], channel: bool
) -> None:
    """RFC 8656, sections 11.5 and 12.5: it names the peer and its port, also if a channel is bound."""
    alice = Person(table)
    alice.allocate({a.ADDITIONAL_ADDRESS_FAMILY: 6})
    assert code(alice.bind(0x4000, peer) if channel else alice.permit(peer)) == 0
    flow = next(flow for flow, local in table.flows.items() if local.family == peer.family)
    [sent] = table.give(IcmpError(flow=flow, remote=peer, kind=kind))
    message = decode(sent.data)
    assert (message.method, message.cls, sent.remote) == (Method.DATA, Class.INDICATION, CLIENT)
    assert message[a.XOR_PEER_ADDRESS] == (peer,) and a.DATA not in message
    assert (message[a.ICMP].type, message[a.ICMP].code, message[a.ICMP].data) == (*expected, bytes(4))


def test_an_icmp_error_about_a_too_big_packet_has_the_mtu(table: Table, alice: Person) -> None:
    """RFC 8656, section 18.13."""
    alice.permit(PEER)
    [flow] = table.flows
    [sent] = table.give(IcmpError(flow=flow, remote=PEER, kind=IcmpKind.TOO_BIG, mtu=1280))
    icmp = decode(sent.data)[a.ICMP]
    assert (icmp.type, icmp.code, icmp.data) == (3, 4, (1280).to_bytes(4, "big"))


def test_icmp_errors_about_peers_without_a_permission_are_dropped(table: Table, alice: Person) -> None:
    """RFC 8656, section 11.5: the destination of the datagram counts, not the sender of the error."""
    [flow] = table.flows
    assert table.give(IcmpError(flow=flow, remote=PEER, kind=IcmpKind.PORT_UNREACHABLE)) == [], "no permission"
    alice.permit(PEER)
    router = Address("192.0.2.254", 0)
    assert table.give(IcmpError(flow=flow, remote=router, kind=IcmpKind.PORT_UNREACHABLE)) == []
    assert len(table.give(IcmpError(flow=flow, remote=PEER, kind=IcmpKind.PORT_UNREACHABLE))) == 1
    assert table.give(IcmpError(flow=flow, remote=PEER, kind=IcmpKind.OTHER)) == [], "it has no ICMP type and code"
    table.run_for(301)
    assert table.give(IcmpError(flow=flow, remote=PEER, kind=IcmpKind.PORT_UNREACHABLE)) == [], "it has expired"


def test_dont_fragment_sets_df(table: Table) -> None:
    alice = Person(table)
    assert code(alice.allocate({a.DONT_FRAGMENT: True})) == 0, "section 7.2: the server understands DONT-FRAGMENT"
    alice.permit(PEER)
    [plain] = alice.send(b"x")
    [whole] = alice.send(b"x", extra={a.DONT_FRAGMENT: True})
    assert plain.ip is None and whole.ip is not None and whole.ip.dont_fragment is True
