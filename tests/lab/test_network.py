"""The virtual network: packets arrive by the routes, or are dropped with a reason."""

import errno
import io

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Transport
from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.machine import (
    Closed,
    IcmpError,
    IcmpKind,
    InterfacesChanged,
    IpFields,
    Open,
    Opened,
    Resolve,
    Resolved,
    SendFailed,
)
from polynya.core.packets import IcmpMessage, IpPacket, Protocol
from polynya.core.trace import TraceEvent, Tracer, TraceWriter
from polynya.lab import LabError, Network, Profile
from polynya.lab.links import copied
from polynya.lab.routes import Prefix, Routes
from tests.lab.conftest import Endpoint, Program


def two(net: Network, **link: float) -> tuple[Program, Program]:
    """Build two hosts at one router; `link` is the profile of the first link."""
    middle = net.router("middle")
    one = net.host("one", ("192.0.2.1", "2001:db8:1::1"), middle, link=Profile(**link))  # type: ignore[arg-type]
    other = net.host("other", ("192.0.2.2", "2001:db8:2::1"), middle)
    return Program(net, one), Program(net, other)


def test_a_datagram_takes_the_time_of_its_links(net: Network) -> None:
    one, other = two(net, delay=7 * MILLISECOND)
    one.send(other.address, b"hello")
    net.run(Instant(8 * MILLISECOND - 1))
    assert other.received == []
    net.run(Instant(8 * MILLISECOND))
    assert other.received == [(one.address, b"hello")]


def test_ipv6_works_as_ipv4_does(net: Network) -> None:
    one, other = two(net)
    six, back = Program(net, one.host, local="2001:db8:1::1"), Program(net, other.host, local="::")
    six.send(Address("2001:db8:2::1", 5000), b"six")
    net.run_for(SECOND)
    assert back.received == [(Address("2001:db8:1::1", 5000), b"six")]
    back.send(Address("2001:db8:1::1", 5000), b"from the wildcard")
    net.run_for(SECOND)
    assert six.received == [(Address("2001:db8:2::1", 5000), b"from the wildcard")]


def test_nested_routers_have_routes_to_each_other(net: Network) -> None:
    middle = net.router("middle")
    left, right = net.router("left", middle), net.router("right", middle)
    one = Program(net, net.host("one", "192.0.2.1", net.router("leaf", left)))
    other = Program(net, net.host("other", "192.0.2.2", right), echo=True)
    one.send(other.address)
    net.run_for(SECOND)
    assert one.received == [(other.address, b"x")]


def test_a_host_reaches_itself_without_a_link(net: Network) -> None:
    one, _ = two(net)
    again = Program(net, one.host, 5001)
    loop = Program(net, one.host, 5002, local="127.0.0.1")
    one.send(again.address)
    loop.send(Address("127.0.0.1", 5002), b"me")
    net.run_for(MILLISECOND)
    assert again.received == [(one.address, b"x")]
    assert loop.received == [(loop.address, b"me")]
    loop.send(Address("192.0.2.2", 5000))
    net.run_for(MILLISECOND)
    assert [f.errno for f in loop.machine.heard(SendFailed)] == [errno.EINVAL]


# ------------------------------------------------------------------------------------------------ errors of sockets


def test_the_first_input_of_a_program_is_the_interfaces(net: Network) -> None:
    one, _ = two(net)
    first = one.machine.inputs[0]
    assert isinstance(first, InterfacesChanged)
    assert [(i.name, i.loopback) for i in first.interfaces] == [("lo", True), ("eth0", False)]
    assert [a.host for a in first.interfaces[1].addresses] == ["192.0.2.1", "2001:db8:1::1"]


def opened(net: Network, program: Program, open: Open) -> object:
    machine = program.machine
    program.process.call(machine.put, open)
    net.run_for(0)
    return machine.inputs[-1]


def test_sockets_are_refused_as_the_system_refuses_them(net: Network) -> None:
    one, _ = two(net)
    net.run_for(0)

    def refusal(**options: object) -> int | None:
        flow = net.flow_ids.new()
        answer = opened(net, one, Open(flow=flow, **({"transport": Transport.UDP} | options)))  # type: ignore[arg-type]
        assert isinstance(answer, Closed)
        assert answer.flow == flow
        return answer.errno

    assert refusal(local=one.address) == errno.EADDRINUSE
    assert refusal(local=Address("203.0.113.77", 0)) == errno.EADDRNOTAVAIL
    assert refusal(local=Address("192.0.2.1", 0), interface="wlan7") == errno.ENODEV
    assert refusal(local=Address("192.0.2.1", 0), ports=(5000, 5000)) == errno.EADDRINUSE


def test_a_port_range_is_kept_and_exhausted(net: Network) -> None:
    one, _ = two(net)
    got = []
    for _ in range(4):
        wanted = Open(
            flow=net.flow_ids.new(), transport=Transport.UDP, local=Address("192.0.2.1", 0), ports=(6000, 6002)
        )
        answer = opened(net, one, wanted)
        got.append(answer.local.port if isinstance(answer, Opened) else None)
    assert sorted(got[:3]) == [6000, 6001, 6002]  # type: ignore[type-var]
    assert got[3] is None


def test_a_closed_port_is_answered_by_icmp_unless_the_host_is_silent(net: Network) -> None:
    one, other = two(net)
    closed = other.address.with_port(7)
    one.send(closed)
    net.run_for(SECOND)
    [error] = one.machine.heard(IcmpError)
    assert (error.flow, error.remote, error.kind) == (one.machine.flow, closed, IcmpKind.PORT_UNREACHABLE)
    assert error.origin == "192.0.2.2"
    other.host.silent = True
    one.send(closed)
    net.run_for(SECOND)
    assert len(one.machine.heard(IcmpError)) == 1
    assert net.drops[-1].reason == "nothing listens at 192.0.2.2:7"


def test_a_router_without_a_route_sends_an_icmp_error(net: Network) -> None:
    one, _ = two(net)
    one.send(Address("203.0.113.99", 9))
    net.run_for(SECOND)
    [error] = one.machine.heard(IcmpError)
    assert error.kind is IcmpKind.NET_UNREACHABLE
    assert net.drop_reasons() == {"no route to 203.0.113.99": 1}


def test_the_router_at_which_the_ttl_expires_sends_an_icmp_error(net: Network) -> None:
    one, other = two(net)
    one.send(other.address, b"x", IpFields(ttl=1))
    net.run_for(SECOND)
    [error] = one.machine.heard(IcmpError)
    assert error.kind is IcmpKind.TTL_EXCEEDED
    assert other.received == []


def test_pings_are_answered(net: Network) -> None:
    one, other = two(net)
    one.host.ping(other.address.host, 3)
    net.run_for(SECOND)
    assert [(host, sequence) for _, host, sequence in one.host.pongs] == [("192.0.2.2", 3)]


def test_known_names_resolve_and_unknown_ones_fail(net: Network) -> None:
    one, _ = two(net)
    net.names["stun.example"] = ("203.0.113.1", "2001:db8::1")
    for name in ("stun.example", "nowhere.example"):
        one.process.call(one.machine.put, Resolve(name=name))
    net.run_for(SECOND)
    known, unknown = one.machine.heard(Resolved)
    assert known.hosts == ("203.0.113.1", "2001:db8::1")
    assert unknown.error == "nowhere.example has no A/AAAA record"


def test_a_send_on_a_closed_flow_is_a_misuse(net: Network) -> None:
    one, other = two(net)
    one.process.stop()
    one.process.stopped = False
    one.send(other.address)
    assert one.process.misuses == ["1 bytes for 192.0.2.2:5000 were sent by flow 1, but it is not open"]


def test_a_machine_whose_timer_stays_due_raises(net: Network) -> None:
    class Stuck(Endpoint):
        def next_timer(self) -> Instant | None:
            return Instant(5)

        def tick(self, *, now: Instant) -> None:
            pass

    host = net.host("one", "192.0.2.1", net.router("middle"))
    host.run(Stuck(net.flow_ids.new(), Address("192.0.2.1", 1)))
    with pytest.raises(LabError, match="still due at 5 after every tick"):
        net.run_for(SECOND)


# ------------------------------------------------------------------------------------------------------------ links


def test_loss_and_duplication_are_what_the_profile_says(net: Network) -> None:
    one, other = two(net, loss=0.25, duplication=0.5)
    for i in range(1000):
        one.send(other.address, i.to_bytes(2, "big"))
    net.run_for(SECOND)
    numbers = [int.from_bytes(data, "big") for _, data in other.received]
    assert 700 < len(set(numbers)) < 800
    assert 1.4 < len(numbers) / len(set(numbers)) < 1.6
    assert net.drop_reasons() == {"lost on the link at one/eth0": 1000 - len(set(numbers))}


def test_jitter_keeps_the_order_and_reordering_does_not(net: Network) -> None:
    one, other = two(net, jitter=20 * MILLISECOND)
    for i in range(100):
        one.send(other.address, bytes([i]))
        net.run_for(MILLISECOND)
    net.run_for(SECOND)
    assert [data[0] for _, data in other.received] == list(range(100))

    net = Network(seed=2)
    one, other = two(net, reordering=0.2)
    for i in range(100):
        one.send(other.address, bytes([i]))
        net.run_for(MILLISECOND)
    net.run_for(SECOND)
    order = [data[0] for _, data in other.received]
    assert order != list(range(100))
    assert sorted(order) == list(range(100))


def test_a_packet_too_big_for_a_link_further_on_is_fragmented_or_refused(net: Network) -> None:
    middle = net.router("middle")
    one = Program(net, net.host("one", ("192.0.2.1", "2001:db8:1::1"), middle))
    far = net.host("far", ("192.0.2.2", "2001:db8:2::1"), middle)
    inner = far.interfaces[0].peer
    assert inner is not None
    inner.outward = Profile(mtu=1300)
    other = Program(net, far)
    data = bytes(range(256)) * 5
    one.send(other.address, data)
    net.run_for(SECOND)
    assert other.received == [(one.address, data)]
    one.send(other.address, data, IpFields(dont_fragment=True))
    net.run_for(SECOND)
    [error] = one.machine.heard(IcmpError)
    assert (error.kind, error.mtu) == (IcmpKind.TOO_BIG, 1300)
    assert len(other.received) == 1
    one.send(other.address, data, IpFields(dont_fragment=True))
    net.run_for(SECOND)
    assert [f.errno for f in one.machine.heard(SendFailed)] == [errno.EMSGSIZE]

    six, six_far = Program(net, one.host, local="2001:db8:1::1"), Program(net, far, local="2001:db8:2::1")
    six.send(six_far.address, data)  # routers do not fragment IPv6: the host learns the path MTU from the ICMP error
    net.run_for(SECOND)
    assert [e.kind for e in six.machine.heard(IcmpError)] == [IcmpKind.TOO_BIG]
    six.send(six_far.address, data)
    net.run_for(SECOND)
    assert six_far.received == [(six.address, data)]


def test_a_segment_size_makes_several_datagrams_of_one_send(net: Network) -> None:
    one, other = two(net)
    one.send(other.address, b"aabbc", IpFields(segment_size=2))
    net.run_for(SECOND)
    assert [data for _, data in other.received] == [b"aa", b"bb", b"c"]


def test_ecn_and_dscp_arrive(net: Network) -> None:
    one, other = two(net)
    one.send(other.address, b"x", IpFields(dscp=46))
    net.run_for(SECOND)
    assert other.machine.inputs[-1].ip.dscp == 46  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------------- changes


def test_an_interface_that_is_down_sends_nothing(net: Network) -> None:
    one, other = two(net)
    host = one.host
    net.set_up(host.interfaces[0], False)
    one.send(other.address)
    net.run_for(SECOND)
    assert [f.errno for f in one.machine.heard(SendFailed)] == [errno.ENETUNREACH]
    assert [i.name for i in one.machine.heard(InterfacesChanged)[-1].interfaces] == ["lo"]
    net.set_up(host.interfaces[0], True)
    one.send(other.address)
    net.run_for(SECOND)
    assert len(other.received) == 1


def test_a_new_address_is_reachable_and_the_old_one_is_not(net: Network) -> None:
    one, other = two(net)
    net.address(one.host.interfaces[0], "192.0.2.99/24")
    other.send(Address("192.0.2.1", 5000))
    one.send(other.address)
    net.run_for(SECOND)
    assert net.drop_reasons() == {"no route to 192.0.2.1": 1}
    assert [f.errno for f in one.machine.heard(SendFailed)] == [errno.EADDRNOTAVAIL]
    moved = Program(net, one.host)
    other.send(moved.address)
    net.run_for(SECOND)
    assert len(moved.received) == 1


def test_a_host_with_two_interfaces_sends_by_the_one_whose_address_is_bound(net: Network) -> None:
    middle = net.router("middle")
    host = net.host("one", "192.0.2.1", net.router("left", middle))
    net.attach(host, "192.0.2.129", net.router("right", middle), name="wwan0")
    other = Program(net, net.host("other", "203.0.113.1", middle))
    first, second = Program(net, host), Program(net, host, local="192.0.2.129")
    first.send(other.address)
    second.send(other.address)
    net.run_for(SECOND)
    assert [remote.host for remote, _ in other.received] == ["192.0.2.1", "192.0.2.129"]


# ---------------------------------------------------------------------------------------------------------- trace


def noisy_run(seed: int) -> str:
    file = io.StringIO()
    net = Network(seed, trace=Tracer(TraceWriter(file)))
    one, other = two(net, loss=0.2, jitter=MILLISECOND, duplication=0.1, reordering=0.1)
    for i in range(50):
        one.send(other.address, bytes([i]))
        net.run_for(MILLISECOND)
    net.run_for(SECOND)
    return file.getvalue()


def test_the_same_seed_gives_the_same_trace_and_another_does_not() -> None:
    assert noisy_run(5) == noisy_run(5)
    assert noisy_run(5) != noisy_run(6)


def test_a_packet_keeps_its_id_from_end_to_end() -> None:
    events: list[TraceEvent] = []
    net = Network(trace=Tracer(events.append))
    one, other = two(net)
    one.send(other.address)
    net.run_for(SECOND)
    path = [(e.node, e.kind, e.fields["packet"]) for e in events if "packet" in e.fields]
    assert path == [("one", "packet-sent", 1), ("middle", "packet-forwarded", 1), ("other", "packet-received", 1)]


def test_a_copied_packet_is_rewritten_alone(net: Network) -> None:
    about = IpPacket(1, Address("192.0.2.1", 1), Address("192.0.2.2", 2), Protocol.UDP)
    error = IpPacket(2, about.destination, about.source, Protocol.ICMP, icmp=IcmpMessage(about=about))
    twin = copied(error)
    assert twin == error
    assert twin.icmp is not None
    assert twin.icmp.about is not about


# -------------------------------------------------------------------------------------------------------- corners


def test_no_icmp_error_is_about_an_icmp_error(net: Network) -> None:
    one, _ = two(net)
    about = IpPacket(90, Address("203.0.113.5", 1), Address("192.0.2.1", 2), Protocol.UDP)
    error = IcmpMessage(kind=IcmpKind.PORT_UNREACHABLE, about=about)
    source = one.address.with_port(0)
    one.host.send(IpPacket(91, source, Address("203.0.113.5", 0), Protocol.ICMP, icmp=error))
    net.run_for(SECOND)
    assert [(d.packet, d.reason) for d in net.drops] == [(91, "no route to 203.0.113.5")]


def test_only_the_first_fragment_of_a_lost_packet_is_reported(net: Network) -> None:
    one, _ = two(net)
    one.send(Address("203.0.113.5", 9), bytes(4000))
    net.run_for(SECOND)
    assert net.drop_reasons() == {"no route to 203.0.113.5": 3}
    assert len(one.machine.heard(IcmpError)) == 1


def test_a_stopped_program_receives_and_sends_nothing(net: Network) -> None:
    one, other = two(net)
    other.process.call(other.machine.send_at, Instant(SECOND), one.address, b"too late")
    one.send(other.address)
    other.process.stop()
    before = len(other.machine.inputs)
    net.run_for(2 * SECOND)
    assert len(other.machine.inputs) == before
    assert one.received == []
    other.process.receive(other.host.interfaces_now())
    assert len(other.machine.inputs) == before


def test_a_rescheduled_timer_fires_at_its_new_time_alone(net: Network) -> None:
    ticks: list[Instant] = []

    class Moving(Endpoint):
        due: Instant | None = Instant(SECOND)

        def next_timer(self) -> Instant | None:
            return self.due

        def tick(self, *, now: Instant) -> None:
            ticks.append(now)
            self.due = None

        def move(self, *, now: Instant) -> None:
            self.due = Instant(3 * SECOND)

    host = net.host("one", "192.0.2.1", net.router("middle"))
    machine = Moving(net.flow_ids.new(), Address("192.0.2.1", 1))
    host.run(machine).call(machine.move)
    net.run_for(5 * SECOND)
    assert ticks == [3 * SECOND]


def test_the_longest_prefix_wins_and_a_new_route_counts_at_once() -> None:
    routes: Routes[str] = Routes()
    routes.add("0.0.0.0/0", "default")
    assert routes.find("10.1.2.3") == "default"
    routes.add("10.0.0.0/8", "wide")
    assert routes.find("10.1.2.3") == "wide"
    routes.add("10.1.0.0/16", "narrow")
    assert (routes.find("10.1.2.3"), routes.find("10.2.0.1"), routes.find("192.0.2.1")) == ("narrow", "wide", "default")
    routes.remove("10.1.0.0/16")
    assert routes.find("10.1.2.3") == "wide"
    assert routes.find("2001:db8::1") is None


@pytest.mark.parametrize("text", ["10.0.0.0/33", "::/129", "10.0.0.0/-1"])
def test_an_invalid_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a prefix"):
        Prefix(text)


def test_a_network_prints_its_tree(net: Network) -> None:
    internet = net.router("internet")
    home = net.nat("home", outside=internet, address="198.51.100.1", inside="10.0.0.0/24")
    host = net.host("alice", "10.0.0.2", home)
    net.attach(host, "192.0.2.1", internet, name="wwan0")
    assert str(net).splitlines() == [
        "internet (router)",
        "  home (NAT EI/APD) 198.51.100.1, inside 10.0.0.1",
        "    alice (host) 10.0.0.2, 192.0.2.1",
        "  alice (wwan0) 192.0.2.1",
    ]
    assert repr(net) == "<Network seed 1 at 0 s: 3 nodes, 0 packets dropped>"
    assert repr(host) == "<Host alice (host) 10.0.0.2, 192.0.2.1>"
    assert repr(host.interfaces[1]) == "<NetworkInterface alice/wwan0: 192.0.2.1>"
