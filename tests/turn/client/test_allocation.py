"""RFC 8656, sections 7 and 8: an allocation from the first request to its end."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.instants import MILLISECOND, SECOND
from polynya.core.machine import Closed, IcmpError, IcmpKind
from polynya.core.pacer import Pacer
from polynya.stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    DONT_FRAGMENT,
    EVEN_PORT,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
)
from polynya.stun.message import Message, decode
from polynya.stun.registry import Method
from polynya.turn.client import (
    Allocated,
    AllocationFailed,
    ClientConfig,
    Lost,
    Released,
    ServerAddress,
    ServerChosen,
    State,
    TurnClient,
)
from tests.reports import flat
from tests.turn.client.relay import SERVER, USER, Relay, World, alternate

OTHER = Address("203.0.113.2", 3478)
THIRD = Address("203.0.113.3", 3479)
OTHER6 = Address("2001:db8:1::2", 3478)


def refusing(code: int, method: Method = Method.ALLOCATE, times: int = 99):
    """Trouble that answers a signed request of a method with an error."""
    left = [times]

    def trouble(request: Message, source: Address) -> bytes | None:
        if request.method != method or not request.has_integrity or not left[0]:
            return None
        left[0] -= 1
        key = Relay().key(USER.username)
        return Message.error(request, code).encode(integrity=key)

    return trouble


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP, Transport.TLS])
def test_an_allocation_is_made_used_and_freed(transport: Transport) -> None:
    world = World(transport=transport)
    world.run(1)
    [chosen] = world.of(ServerChosen)
    [allocated] = world.of(Allocated)
    assert allocated.relayed == (Address("198.51.100.7", 49152),) == world.client.relayed
    assert allocated.mapped == Address("192.0.2.9", 5001) and allocated.lifetime == 600
    assert allocated.flow == chosen.flow == world.client.flow
    [opened] = world.opens
    assert opened.transport is transport and opened.remote == (None if transport is Transport.UDP else SERVER)
    world.do(world.client.close)
    assert world.client.state is State.CLOSING
    world.run(1)
    assert world.of(Released) == [Released(reason="the server has freed it")]
    assert world.relay.allocations == {} and world.closes == [allocated.flow]
    assert world.client.next_timer() is None


def test_tls_is_opened_for_the_servers_name() -> None:
    server = ServerAddress(address=SERVER, transport=Transport.TLS, name="turn.example.org")
    client = TurnClient(server, random=Random(1), flow_ids=FlowIds())
    client.start(now=World().now)
    [request] = client.outputs()
    assert request.server_name == "turn.example.org" and request.alpn == ("stun.turn",)


def test_a_flow_that_is_given_is_used_and_never_closed() -> None:
    world = World(flow=True)
    world.run(1)
    assert world.opens == [] and world.of(Allocated)[0].mapped == Address("192.0.2.9", 5000)
    world.do(world.client.close)
    world.run(1)
    assert world.closes == [] and world.relay.allocations == {}


def test_a_stream_cannot_be_given() -> None:
    with pytest.raises(ValueError, match="omit `flow`"):
        World(flow=True, transport=Transport.TCP)


def test_what_is_asked_for_by_default_is_little() -> None:
    world = World()
    world.run(1)
    assert list(world.relay.requests[0].attributes) == [REQUESTED_TRANSPORT]


def test_a_server_that_does_not_answer_fails_it_after_the_schedule() -> None:
    world = World()
    world.lose = lambda data, outward: True
    world.run(60)
    [failed] = world.of(AllocationFailed)
    assert failed.code is None and "did not answer 7 sends" in failed.reason
    assert world.times[-1] - 10**15 == pytest.approx(39.54 * SECOND)
    assert world.closes == [world.client.flow] and world.client.state is State.FAILED


def test_a_hard_icmp_error_fails_it_at_once() -> None:
    world = World(flow=True)
    assert world.client.flow is not None
    error = IcmpError(flow=world.client.flow, remote=SERVER, kind=IcmpKind.PORT_UNREACHABLE)
    world.do(world.client.receive, error)
    assert world.of(AllocationFailed)[0].reason == "203.0.113.1:3478 is unreachable: port unreachable"


def test_a_stream_that_cannot_be_opened_fails_it() -> None:
    world = World(Relay(), transport=Transport.TCP, start=False)
    world.relays.clear()
    world.do(world.client.start)
    world.run(1)
    assert world.of(AllocationFailed)[0].reason == "203.0.113.1:3478: connection refused"


@pytest.mark.parametrize(
    ("code", "explained"),
    [
        (440, "no relayed addresses of this IP version"),
        (442, "does not relay this transport protocol"),
        (486, "as many allocations as the server allows"),
        (508, "no free port"),
        (403, "its rules forbid this"),
        (441, "another user name"),
    ],
)
def test_each_refusal_is_explained(code: int, explained: str) -> None:
    world = World(Relay(trouble=refusing(code)))
    world.run(1)
    [failed] = world.of(AllocationFailed)
    assert failed.code == code and explained in failed.reason and str(SERVER) in failed.reason
    assert explained in flat(world.client.why())


# ------------------------------------------------------------------------------------------------------- 437: the port


@pytest.mark.parametrize("flow", [True, False])
def test_a_port_that_is_in_use_is_left_for_another(flow: bool) -> None:
    world = World(Relay(trouble=refusing(437, times=1)), flow=flow)
    first = world.client.flow
    world.run(2)
    [allocated] = world.of(Allocated)
    assert allocated.flow not in (None, first)
    assert [chosen.flow for chosen in world.of(ServerChosen)][-1] == allocated.flow
    assert world.closes == ([] if flow else [first])  # the owner's flow stays the owner's
    world.do(world.client.close)
    world.run(1)
    assert world.closes[-1] == allocated.flow


def test_ports_are_not_tried_without_end() -> None:
    world = World(Relay(trouble=refusing(437)))
    world.run(10)
    assert world.of(AllocationFailed)[0].code == 437 and len(world.opens) == 4


# -------------------------------------------------------------------------------------------------- 300: other servers


def redirecting(*servers: Address):
    return lambda request, source: alternate(request, *servers) if request.method == Method.ALLOCATE else None


def test_a_server_that_sends_us_on_is_followed_by_the_same_udp_flow() -> None:
    world = World(Relay(trouble=redirecting(OTHER)), Relay(OTHER, realm="other.example"))
    world.run(1)
    [allocated] = world.of(Allocated)
    assert allocated.server.address == OTHER == world.client.server.address and len(world.opens) == 1
    assert [chosen.server.address for chosen in world.of(ServerChosen)] == [SERVER, OTHER]
    assert "redirected the client" in flat(world.client.why())


def test_a_stream_is_opened_to_where_we_are_sent() -> None:
    world = World(Relay(trouble=redirecting(OTHER)), Relay(OTHER), transport=Transport.TCP)
    world.run(1)
    assert [request.remote for request in world.opens] == [SERVER, OTHER]
    assert world.of(Allocated)[0].server.address == OTHER and len(world.closes) == 1


def test_a_server_of_the_other_family_gets_a_flow_of_its_own() -> None:
    world = World(Relay(trouble=redirecting(OTHER6)), Relay(OTHER6))
    world.run(1)
    assert world.opens[-1].local == Address("::", 0) and world.of(Allocated)[0].server.address == OTHER6


def test_servers_that_send_us_round_are_not_asked_twice() -> None:
    world = World(Relay(trouble=redirecting(OTHER)), Relay(OTHER, trouble=redirecting(SERVER)))
    world.run(1)
    [failed] = world.of(AllocationFailed)
    assert failed.code == 300 and "no server that was not tried before" in failed.reason


def test_servers_that_send_us_on_and_on_are_left() -> None:
    hosts = [Address(f"203.0.113.{number}", 3478) for number in range(1, 9)]
    relays = [Relay(host, trouble=redirecting(after)) for host, after in pairwise(hosts)]
    world = World(*relays)
    world.run(5)
    assert world.of(AllocationFailed)[0].code == 300
    assert sum(len(relay.requests) for relay in relays) == 4


# ------------------------------------------------------------------------------------------------ families and options


def test_one_allocation_can_have_both_families() -> None:
    world = World(config=ClientConfig(families=(6, 4)))
    world.run(1)
    request = world.relay.requests[0]
    assert request[ADDITIONAL_ADDRESS_FAMILY] == 6 and REQUESTED_ADDRESS_FAMILY not in request
    [allocated] = world.of(Allocated)
    assert [address.family for address in allocated.relayed] == [6, 4] and allocated.refused == ()


def test_a_refused_family_is_reported_with_the_reason() -> None:
    world = World(Relay(families=(4,)), config=ClientConfig(families=(4, 6)))
    world.run(1)
    [allocated] = world.of(Allocated)
    assert [address.family for address in allocated.relayed] == [4]
    [refused] = allocated.refused
    assert (refused.family, refused.code, refused.reason) == (6, 440, "not here")


def test_ipv6_alone_is_asked_for_by_its_own_attribute() -> None:
    world = World(config=ClientConfig(families=(6,)))
    world.run(1)
    assert world.relay.requests[0][REQUESTED_ADDRESS_FAMILY] == 6
    assert [address.family for address in world.client.relayed] == [6]


def test_a_family_that_was_not_asked_for_is_no_success() -> None:
    world = World(Relay(authenticate=False, trouble=lambda request, source: wrong_family(request)))
    world.run(1)
    assert "no relayed address of a requested family" in world.of(AllocationFailed)[0].reason
    freed = decode(world.out[-1][1])
    assert freed.method == Method.REFRESH and freed[LIFETIME] == 0, "section 7.3: it is given back"
    assert world.closes == [world.client.flow]


def wrong_family(request: Message) -> bytes:
    return Message.success(request, {XOR_RELAYED_ADDRESS: (Address("2001:db8::7", 1),), LIFETIME: 600}).encode()


def test_a_pair_of_ports_is_reserved_and_the_second_taken() -> None:
    world = World(config=ClientConfig(even_port=True))
    world.run(1)
    assert world.relay.requests[0][EVEN_PORT] is True
    token = world.of(Allocated)[0].reservation_token
    assert token == b"reserved"
    second = World(config=ClientConfig(reservation_token=token, families=(6,)))
    second.run(1)
    request = second.relay.requests[0]
    assert request[RESERVATION_TOKEN] == token and REQUESTED_ADDRESS_FAMILY not in request


def test_a_server_without_dont_fragment_is_asked_again_without_it() -> None:
    def trouble(request: Message, source: Address) -> bytes | None:
        if DONT_FRAGMENT not in request:
            return None
        return Message.error(request, 420, None, {UNKNOWN_ATTRIBUTES: (0x1A,)}).encode()

    world = World(Relay(trouble=trouble), config=ClientConfig(dont_fragment=True))
    world.run(1)
    assert world.of(Allocated)[0].dont_fragment is False
    able = World(config=ClientConfig(dont_fragment=True))
    able.run(1)
    assert able.of(Allocated)[0].dont_fragment is True


@pytest.mark.parametrize(
    "options",
    [
        {"families": ()},
        {"families": (4, 4)},
        {"families": (5,)},
        {"families": (4, 6), "even_port": True},
        {"families": (4, 6), "reservation_token": bytes(8)},
        {"even_port": False, "reservation_token": bytes(8)},
        {"reservation_token": bytes(7)},
        {"lifetime": 0},
    ],
)
def test_what_no_server_can_give_is_refused_before_anything_is_sent(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        ClientConfig(**options)


# ------------------------------------------------------------------------------------------------------------ its end


def test_an_allocation_that_the_server_has_lost_is_lost() -> None:
    world = World()
    world.run(1)
    world.relay.allocations.clear()
    world.run(600)
    [lost] = world.of(Lost)
    assert lost.code == 437 and "it has no allocation" in lost.reason
    assert world.closes == [world.client.flow] and world.client.next_timer() is None


@pytest.mark.parametrize("ask", ["permit", "bind"])
def test_an_allocation_mismatch_in_any_request_loses_it(ask: str) -> None:
    """RFC 8656, section 5: 437 to any request but Allocate."""
    world = World()
    world.run(1)
    world.relay.allocations.clear()
    peer = Address("192.0.2.50", 4000)
    world.do(getattr(world.client, ask), [peer] if ask == "permit" else peer)
    world.run(1)
    [lost] = world.of(Lost)
    assert lost.code == 437 and world.client.state is State.LOST and world.client.next_timer() is None


def test_an_allocation_whose_stream_closes_is_lost() -> None:
    world = World(transport=Transport.TCP)
    world.run(1)
    assert world.client.flow is not None
    world.do(world.client.receive, Closed(flow=world.client.flow, reason="reset by the server"))
    assert world.of(Lost) == [Lost(code=None, reason="reset by the server")]
    assert world.closes == []  # it is gone already


def test_a_stream_out_of_step_before_there_is_an_allocation_is_closed() -> None:
    world = World(transport=Transport.TCP)
    world.run(0.05)
    assert world.client.flow is not None and world.client.state is State.ALLOCATING
    world.inward(world.client.flow, SERVER, b"\xff" * 4)
    world.run(1)
    assert "no TURN message" in world.of(AllocationFailed)[0].reason and world.closes == [world.client.flow]


def test_a_stream_out_of_step_is_closed() -> None:
    world = World(transport=Transport.TCP)
    world.run(1)
    assert world.client.flow is not None
    world.inward(world.client.flow, SERVER, b"\xff" * 8)
    world.run(1)
    assert "no TURN message" in world.of(Lost)[0].reason and world.closes == [world.client.flow]


@pytest.mark.parametrize("at", [0.0, 0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 1.0])
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_closing_at_any_time_leaves_nothing_behind(at: float, transport: Transport) -> None:
    world = World(transport=transport)
    world.run(at)
    world.do(world.client.close)
    world.do(world.client.close)
    world.run(10)
    assert len(world.of(Released)) == 1 and world.relay.allocations == {}
    assert world.client.state is State.CLOSED and world.client.next_timer() is None
    assert len(world.closes) == len(world.opens)


@pytest.mark.parametrize("at", [0.0, 0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 1.0])
@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_closing_without_waiting_frees_it_all_the_same(at: float, transport: Transport) -> None:
    world = World(transport=transport)
    world.run(at)
    world.do(partial(world.client.close, wait=False))
    assert world.client.state is State.CLOSED and world.client.next_timer() is None
    assert len(world.of(Released)) == 1 and len(world.closes) == len(world.opens)
    world.run(1)
    assert world.relay.allocations == {}


def test_the_last_request_waits_for_no_slot() -> None:
    """Several clients close at one moment: their owner may be gone before the pacer has slots for all."""
    pacer = Pacer()
    worlds = [World(pacer=pacer) for _ in range(3)]
    for world in worlds:
        world.run(1)
    for world in worlds:
        world.do(partial(world.client.close, wait=False))
        world.run(0.1)
        assert world.relay.allocations == {}


def test_closing_takes_five_seconds_at_most() -> None:
    world = World()
    world.run(1)
    world.lose = lambda data, outward: True
    world.do(world.client.close)
    world.run(4.9)
    assert world.of(Released) == []
    world.run(0.2)
    assert "did not confirm in time" in world.of(Released)[0].reason


def test_a_refresh_that_is_under_way_does_not_end_the_closing() -> None:
    world = World()
    world.run(500.13)  # the refresh is sent at 500.08 and its answer is on its way
    assert [m.method for _, m, _ in world.relay.log][-1] == Method.REFRESH
    world.do(world.client.close)
    world.run(1)
    assert world.relay.log[-1][1][LIFETIME] == 0 and world.relay.allocations == {}


def test_what_comes_after_the_end_does_nothing() -> None:
    world = World()
    world.run(1)
    world.do(world.client.close)
    world.run(1)
    emitted, sent = len(world.events), len(world.out)
    peer = Address("192.0.2.50", 1)
    world.do(world.client.permit, [peer])
    world.do(world.client.bind, peer)
    world.do(world.client.set_credentials, USER)
    world.do(world.client.start)
    assert world.do(world.client.send, peer, b"x") is False
    world.run(10)
    assert (len(world.events), len(world.out)) == (emitted, sent)


def test_a_server_that_grants_nothing_has_not_allocated() -> None:
    world = World(Relay(lifetime=0))
    world.run(1)
    assert "lifetime of zero" in world.of(AllocationFailed)[0].reason


def test_transactions_start_in_slots_of_the_pacer() -> None:
    pacer = Pacer(100_000_000)
    world = World(pacer=pacer, flow=True)
    world.run(2)
    starts = [at for at, data in world.out if decode(data).method == Method.ALLOCATE]
    assert len(starts) == 2 and starts[1] - starts[0] >= 100_000_000
    for number in range(5):
        world.do(world.client.bind, Address("192.0.2.50", number + 1))
    world.run(2)
    binds = [at for at, data in world.out if decode(data).method == Method.CHANNEL_BIND]
    assert [after - before for before, after in pairwise(binds)] == [100_000_000] * 4


def test_the_same_seed_gives_the_same_bytes() -> None:
    def run(seed: int) -> list[tuple[int, bytes]]:
        world = World(seed=seed)
        world.run(1)
        world.do(world.client.bind, Address("192.0.2.50", 4000))
        world.run(1000)
        return world.out

    assert run(7) == run(7) != run(8)


def test_a_flow_of_its_own_is_never_confused_with_anothers() -> None:
    world = World()
    world.run(1)
    assert world.client.flow is not None
    assert world.client.expects(world.client.flow, SERVER)
    assert not world.client.expects(world.client.flow, OTHER)
    assert not world.client.expects(Flow(99), SERVER)


# -------------------------------------------------------------------------------------------- impossible addresses

RELAYED = Address("198.51.100.7", 49152)
MAPPED = Address("192.0.2.9", 5001)


def granting(*relayed: Address, mapped: Address = MAPPED):
    """Trouble that answers a signed Allocate with these addresses."""

    def trouble(request: Message, source: Address) -> bytes | None:
        if request.method != Method.ALLOCATE or not request.has_integrity:
            return None
        values = {XOR_RELAYED_ADDRESS: relayed, XOR_MAPPED_ADDRESS: mapped, LIFETIME: 600}
        values[ADDRESS_ERROR_CODE] = AddressError(6, 440, "")
        return Message.success(request, values).encode(integrity=Relay().key(USER.username))

    return trouble


IMPOSSIBLE = [
    Address("0.0.0.0", 0),
    Address("203.0.113.7", 0),
    Address("224.0.0.1", 5000),
    Address("127.0.0.1", 5000),
    Address("::", 0),
    Address("ff02::1", 5000),
    Address("::ffff:203.0.113.7", 5000),
]


@pytest.mark.parametrize("order", [1, -1], ids=["behind", "before"])
@pytest.mark.parametrize("address", IMPOSSIBLE, ids=str)
def test_an_impossible_relayed_address_is_ignored_beside_the_real_one(address: Address, order: int) -> None:
    """coturn without IPv6 answers a dual allocation with a second relayed address of 0.0.0.0:0."""
    relay = Relay(trouble=granting(*[RELAYED, address][::order]))
    world = World(relay, config=ClientConfig(families=(6, 4)))
    world.run(1)
    [allocated] = world.of(Allocated)
    assert allocated.relayed == (RELAYED,)
    [ignored] = allocated.ignored
    assert ignored.startswith(f"as relayed address: {address} ")
    assert [(error.family, error.code) for error in allocated.refused] == [(6, 440)]
    assert str(address) in flat(world.client.why())


def test_one_relayed_address_of_each_family_is_used() -> None:
    second = Address("198.51.100.7", 49153)
    world = World(Relay(trouble=granting(RELAYED, second)), config=ClientConfig(families=(6, 4)))
    world.run(1)
    [allocated] = world.of(Allocated)
    assert allocated.relayed == (RELAYED,)


def test_an_allocation_with_impossible_relayed_addresses_only_fails_and_is_freed() -> None:
    world = World(Relay(trouble=granting(Address("0.0.0.0", 0))))
    world.run(1)
    [failed] = world.of(AllocationFailed)
    assert "no relayed address of a requested family" in failed.reason and "0.0.0.0:0 is unspecified" in failed.reason


@pytest.mark.parametrize("mapped", [*IMPOSSIBLE, Address("2001:db8::9", 5000)], ids=str)
def test_an_impossible_mapped_address_is_ignored(mapped: Address) -> None:
    world = World(Relay(trouble=granting(RELAYED, mapped=mapped)))
    world.run(1)
    [allocated] = world.of(Allocated)
    assert allocated.relayed == (RELAYED,) and allocated.mapped is None
    assert allocated.ignored[0].startswith(f"as mapped address: {mapped} ")


@pytest.mark.parametrize("address", IMPOSSIBLE, ids=str)
def test_no_redirection_to_an_impossible_server_is_followed(address: Address) -> None:
    world = World(Relay(trouble=lambda request, _: alternate(request, address)))
    world.run(1)
    [failed] = world.of(AllocationFailed)
    assert f"one that is impossible: {address} " in failed.reason


@pytest.mark.parametrize("lost", [0, 1], ids=["both arrive", "the first is lost"])
def test_a_silent_server_is_asked_again_and_allocates_once(lost: int) -> None:
    world = World(delay=200 * MILLISECOND, start=False)
    left = [lost]

    def lose(data: bytes, outward: bool) -> bool:
        left[0] -= 1
        return left[0] >= 0

    world.lose = lose
    world.do(world.client.start)
    world.run(0.1)
    [_] = world.opens  # the flow opens after two delays
    world.run(0.35)
    world.do(world.client.ask_again)
    assert len(world.out) == 2
    world.run(3)
    [allocated] = world.of(Allocated)
    assert len(world.relay.allocations) == 1 and allocated.relayed == (RELAYED,)
    assert world.client.rtt == 400 * MILLISECOND
    before = len(world.out)
    world.do(world.client.ask_again)
    assert len(world.out) == before, "the server has answered"
