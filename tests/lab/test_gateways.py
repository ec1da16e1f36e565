"""NAT routers and firewalls in the network: which packets cross them, and which errors the sender receives."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import IcmpError, IcmpKind, IpFields
from polynya.core.packets import IpPacket, Protocol, TcpFields, TcpFlags
from polynya.core.pcapng import PcapngWriter
from polynya.core.trace import TraceEvent, Tracer
from polynya.lab import UDP_BLOCKED, Firewall, Network, Profile, Refusal, Rule
from polynya.lab.nodes import Node
from polynya.lab.table import cell
from polynya.nat import Hairpinning, NatConfig, full_cone, port_restricted_cone, symmetric
from tests.lab.conftest import Program

EXTERNAL = "198.51.100.1"


class Home:
    """A client behind a NAT, a server and a stranger with public addresses."""

    def __init__(self, net: Network, config: NatConfig | None = None) -> None:
        self.net = net
        self.internet: Node = net.router("internet")
        self.server = Program(net, net.host("server", "203.0.113.1", self.internet), 3478, echo=True)
        self.stranger = Program(net, net.host("stranger", "203.0.113.9", self.internet))
        self.gateway = net.nat(
            "home", outside=self.internet, address=EXTERNAL, inside="10.0.0.0/24", config=config or NatConfig()
        )
        self.alice = Program(net, net.host("alice", "10.0.0.2", self.gateway))

    def reasons(self) -> list[str]:
        return [drop.reason for drop in self.net.drops]


def test_the_server_sees_the_external_endpoint_and_its_answer_comes_back(net: Network) -> None:
    home = Home(net)
    home.alice.send(home.server.address, b"hello")
    net.run_for(SECOND)
    assert home.server.received == [(Address(EXTERNAL, 5000), b"hello")]
    assert home.alice.received == [(home.server.address, b"hello")]


def test_an_unpermitted_packet_is_dropped_with_the_reason(net: Network) -> None:
    home = Home(net, port_restricted_cone())
    home.alice.send(home.server.address)
    net.run_for(SECOND)
    home.stranger.send(Address(EXTERNAL, 5000))
    net.run_for(SECOND)
    [drop] = net.drops
    assert drop.node == "home"
    assert drop.reason == "port-restricted filtering: nothing was sent to 203.0.113.9:5000 from 10.0.0.2:5000"
    assert home.stranger.machine.heard(IcmpError) == []


def test_mappings_expire_in_virtual_time_and_nothing_stays_scheduled(net: Network) -> None:
    home = Home(net)
    home.alice.send(home.server.address)
    net.run_for(119 * SECOND)
    assert home.gateway.nat.rows()
    net.run_for(2 * SECOND)
    assert home.gateway.nat.rows() == []
    assert net.clock.waiting == 0


def test_private_addresses_are_not_routed_outside(net: Network) -> None:
    home = Home(net)
    home.stranger.send(Address("10.0.0.2", 5000))
    net.run_for(SECOND)
    assert home.reasons() == ["no route to 10.0.0.2"]


def test_two_hosts_behind_one_nat_talk_inside_and_by_hairpin(net: Network) -> None:
    home = Home(net, full_cone())
    bob = Program(net, net.host("bob", "10.0.0.3", home.gateway), 6000)
    home.alice.send(bob.address, b"inside")
    bob.send(home.server.address)
    net.run_for(SECOND)
    home.alice.send(Address(EXTERNAL, 6000), b"hairpin")
    net.run_for(SECOND)
    assert bob.received == [
        (Address("10.0.0.2", 5000), b"inside"),
        (home.server.address, b"x"),
        (Address(EXTERNAL, 5000), b"hairpin"),
    ]


def test_without_hairpinning_a_hairpin_packet_is_dropped(net: Network) -> None:
    home = Home(net, full_cone(hairpinning=Hairpinning.NONE))
    home.alice.send(home.server.address)
    net.run_for(SECOND)
    home.alice.send(Address(EXTERNAL, 5000))
    net.run_for(SECOND)
    assert home.reasons() == ["hairpinning is off: 198.51.100.1:5000 is an address of this NAT"]


def test_a_nat_behind_a_nat_translates_twice(net: Network) -> None:
    internet = net.router("internet")
    server = Program(net, net.host("server", "203.0.113.1", internet), echo=True)
    carrier = net.nat("cgn", outside=internet, address=EXTERNAL, inside="100.64.0.0/24", config=symmetric())
    home = net.nat("home", outside=carrier, address="100.64.0.2", inside="10.0.0.0/24")
    alice = Program(net, net.host("alice", "10.0.0.2", home))
    alice.send(server.address)
    net.run_for(SECOND)
    assert [remote.host for remote, _ in server.received] == [EXTERNAL]
    assert alice.received == [(server.address, b"x")]
    assert [row["internal"] for row in carrier.nat.rows() if row["entry"] == "mapping"] == ["100.64.0.2:5000"]


def test_icmp_errors_are_translated_back_through_two_nats(net: Network) -> None:
    internet = net.router("internet")
    server = net.host("server", "203.0.113.1", internet)
    carrier = net.nat("cgn", outside=internet, address=EXTERNAL, inside="100.64.0.0/24")
    home = net.nat("home", outside=carrier, address="100.64.0.2", inside="10.0.0.0/24")
    alice = Program(net, net.host("alice", "10.0.0.2", home))
    closed = Address("203.0.113.1", 7)
    alice.send(closed)
    net.run_for(SECOND)
    [error] = alice.machine.heard(IcmpError)
    assert (error.remote, error.kind, error.origin) == (
        closed,
        IcmpKind.PORT_UNREACHABLE,
        server.interfaces[0].addresses[0],
    )


def test_an_icmp_error_of_an_inside_host_hides_its_address(net: Network) -> None:
    home = Home(net, full_cone())
    home.alice.send(home.server.address)
    net.run_for(SECOND)
    home.alice.process.stop()
    home.stranger.send(Address(EXTERNAL, 5000))
    net.run_for(SECOND)
    [error] = home.stranger.machine.heard(IcmpError)
    assert (error.remote, error.origin) == (Address(EXTERNAL, 5000), EXTERNAL)


def test_an_icmp_error_about_an_inside_link_comes_from_the_external_address(net: Network) -> None:
    home = Home(net, full_cone())
    home.alice.send(home.server.address)
    net.run_for(SECOND)
    peer = home.alice.host.interfaces[0].peer
    assert peer is not None
    peer.up = False
    home.stranger.send(Address(EXTERNAL, 5000))
    net.run_for(SECOND)
    [error] = home.stranger.machine.heard(IcmpError)
    assert (error.remote, error.origin) == (Address(EXTERNAL, 5000), EXTERNAL)


def test_pings_and_expired_hops_cross_a_nat(net: Network) -> None:
    home = Home(net)
    host = home.alice.host
    host.ping("203.0.113.1", 1)
    net.run_for(SECOND)
    assert [(who, n) for _, who, n in host.pongs] == [("203.0.113.1", 1)]
    home.alice.send(home.server.address, b"x", IpFields(ttl=2))
    home.alice.send(home.server.address, b"x", IpFields(ttl=1))
    net.run_for(SECOND)
    origins = [e.origin for e in home.alice.machine.heard(IcmpError) if e.kind is IcmpKind.TTL_EXCEEDED]
    assert sorted(origins) == ["10.0.0.1", "198.18.0.1"]


def test_a_fragmented_packet_crosses_a_nat(net: Network) -> None:
    home = Home(net)
    data = bytes(4000)
    home.alice.send(home.server.address, data)
    net.run_for(SECOND)
    assert home.server.received == [(Address(EXTERNAL, 5000), data)]
    assert home.alice.received == [(home.server.address, data)]


def test_path_mtu_discovery_works_through_a_nat(net: Network) -> None:
    internet = net.router("internet")
    home = net.nat("home", outside=internet, address=EXTERNAL, inside="10.0.0.0/24", link=Profile(mtu=1400))
    server = Program(net, net.host("server", "203.0.113.1", internet, link=Profile(mtu=1300)))
    alice = Program(net, net.host("alice", "10.0.0.2", home))
    alice.send(server.address, bytes(1450), IpFields(dont_fragment=True))
    alice.send(server.address, bytes(1350), IpFields(dont_fragment=True))
    net.run_for(SECOND)
    assert [(e.kind, e.mtu) for e in alice.machine.heard(IcmpError)] == [
        (IcmpKind.TOO_BIG, 1400), (IcmpKind.TOO_BIG, 1300),
    ]  # fmt: skip


def test_an_unsolicited_syn_is_answered_over_the_network_after_six_seconds(net: Network) -> None:
    events: list[TraceEvent] = []
    net = Network(seed=1, trace=Tracer(events.append))
    home = Home(net)
    syn = IpPacket(
        net.packet_id(), home.stranger.address, Address(EXTERNAL, 80), Protocol.TCP, tcp=TcpFields(flags=TcpFlags.SYN)
    )
    home.stranger.host.send(syn)
    net.run_for(5 * SECOND)
    assert [e.reason for e in events if e.kind == "packet-dropped"] == [
        "no mapping: 198.51.100.1:80 is mapped to no inside endpoint"
    ]
    net.run_for(2 * SECOND)
    assert net.drops[-1].reason == "an ICMP error about a packet from 203.0.113.9:5000, where no socket is open"


def test_dual_stack_translates_ipv4_and_filters_ipv6(net: Network) -> None:
    internet = net.router("internet")
    server = Program(
        net, net.host("server", ("203.0.113.1", "2001:db8:5::1"), internet), local="2001:db8:5::1", echo=True
    )
    home = net.nat(
        "home", outside=internet, address=EXTERNAL, inside=("10.0.0.0/24", "2001:db8:a::/64"), firewall=Firewall()
    )
    host = net.host("alice", ("10.0.0.2", "2001:db8:a::2"), home)
    alice = Program(net, host, local="2001:db8:a::2")
    server.send(alice.address, b"unsolicited")
    net.run_for(SECOND)
    assert alice.received == []
    alice.send(server.address, b"hello")
    net.run_for(SECOND)
    assert server.received == [(alice.address, b"hello")]
    assert alice.received == [(server.address, b"hello")]
    assert [d.reason for d in net.drops] == [
        "firewall: nothing was sent to [2001:db8:5::1]:5000 from [2001:db8:a::2]:5000"
    ]


# ------------------------------------------------------------------------------------------------------ firewalls


def office(net: Network, *rules: Rule, refusal: Refusal = Refusal.SILENT) -> tuple[Program, Program]:
    internet = net.router("internet")
    wall = net.firewall("wall", outside=internet, rules=rules, refusal=refusal)
    inside = Program(net, net.host("inside", "192.0.2.1", wall), echo=True)
    outside = Program(net, net.host("outside", "203.0.113.1", internet), echo=True)
    return inside, outside


def test_a_firewall_accepts_answers_alone_until_the_session_expires(net: Network) -> None:
    inside, outside = office(net)
    outside.send(inside.address, b"unsolicited")
    net.run_for(SECOND)
    assert inside.received == []
    inside.machine.echo = outside.machine.echo = False
    inside.send(outside.address, b"hello")
    net.run_for(SECOND)
    outside.send(inside.address, b"answer")
    net.run_for(SECOND)
    assert inside.received == [(outside.address, b"answer")]
    net.run_for(121 * SECOND)
    outside.send(inside.address, b"late")
    net.run_for(SECOND)
    assert len(inside.received) == 1


def test_blocked_udp_is_dropped_silently_or_answered_by_icmp() -> None:
    for refusal, heard in ((Refusal.SILENT, []), (Refusal.ICMP, [IcmpKind.PROHIBITED])):
        net = Network()
        inside, outside = office(net, UDP_BLOCKED, refusal=refusal)
        inside.send(outside.address)
        net.run_for(SECOND)
        assert [d.reason for d in net.drops] == ["firewall: UDP is blocked"]
        assert [e.kind for e in inside.machine.heard(IcmpError)] == heard


def test_rules_match_direction_address_and_port(net: Network) -> None:
    inside, outside = office(
        net,
        Rule(allow=True, outward=False, inside_ports=(5000, 5000)),
        Rule(allow=False, outward=True, remote="203.0.113.0/24", remote_ports=(1, 1023)),
    )
    outside.send(inside.address, b"the open port")
    net.run_for(SECOND)
    assert (outside.address, b"the open port") in inside.received
    inside.send(outside.address.with_port(53))
    outside.send(inside.address.with_port(5001))
    net.run_for(SECOND)
    assert sorted(net.drop_reasons()) == [
        "firewall: forbid out remote 203.0.113.0/24 remote ports 1-1023",
        "firewall: nothing was sent to 203.0.113.1:5000 from 192.0.2.1:5001",
    ]


def test_icmp_errors_pass_a_firewall_only_with_their_session(net: Network) -> None:
    inside, outside = office(net)
    inside.send(outside.address.with_port(7))
    net.run_for(SECOND)
    assert [e.kind for e in inside.machine.heard(IcmpError)] == [IcmpKind.PORT_UNREACHABLE]
    about = IpPacket(99, inside.address, outside.address.with_port(8), Protocol.UDP)
    outside.host.refuse(about, IcmpKind.PORT_UNREACHABLE, "made up")
    net.run_for(SECOND)
    assert len(inside.machine.heard(IcmpError)) == 1
    assert "which have no session" in net.drops[-1].reason


# --------------------------------------------------------------------------------------------------------- captures


def test_a_run_is_captured_at_every_interface_with_its_drops() -> None:
    file = io.BytesIO()
    net = Network(seed=1, capture=PcapngWriter(file))
    home = Home(net, port_restricted_cone())
    home.alice.send(home.server.address)
    home.stranger.send(Address(EXTERNAL, 5000))
    net.run(Instant(SECOND))
    data = file.getvalue()
    for name in (b"alice/eth0", b"home/eth0", b"home/to-alice-eth0", b"server/eth0", b"home dropped"):
        assert name in data
    assert b"dropped: port-restricted filtering: nothing was sent to 203.0.113.9:5000" in data


@pytest.mark.peer("tshark")
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_finds_no_error_in_a_captured_run(tmp_path: Path) -> None:
    path = tmp_path / "meeting.pcapng"
    with path.open("wb") as file:
        row = cell(port_restricted_cone(), symmetric(), seed=1, capture=PcapngWriter(file))
    assert not row.connected
    fields = ["frame.interface_name", "stun.type", "_ws.malformed", "udp.checksum.status", "frame.comment"]
    command = ["tshark", "-r", str(path), "-o", "udp.check_checksum:TRUE", "-T", "fields"]
    run = subprocess.run([*command, *(f"-e{name}" for name in fields)], capture_output=True, check=True, text=True)
    lines = [line.split("\t") for line in run.stdout.splitlines()]
    assert len(lines) > 50
    assert {line[2] for line in lines} == {""}
    assert {line[3] for line in lines} == {"1"}
    assert {"0x0001", "0x0101"} <= {line[1] for line in lines}
    assert any("port-restricted filtering: nothing was sent to" in line[4] for line in lines)
    assert {"alice/eth0", "bob/eth0", "nat-alice dropped"} <= {line[0] for line in lines}


def test_a_private_address_is_refused_at_the_outside_of_the_nat_even_where_a_route_leads_there(net: Network) -> None:
    home = Home(net, full_cone())
    outside = home.gateway.interfaces[0].peer
    assert outside is not None
    home.internet.routes.add("10.0.0.0/24", outside)
    home.stranger.send(Address("10.0.0.2", 5000))
    net.run_for(SECOND)
    assert home.reasons() == ["10.0.0.2 is not an external address of this NAT"]


def test_a_firewall_session_is_renewed_by_both_sides_and_removed_after_its_expiry(net: Network) -> None:
    wall = Firewall()
    out = IpPacket(1, Address("192.0.2.1", 1), Address("203.0.113.1", 2), Protocol.UDP)
    back = IpPacket(2, out.destination, out.source, Protocol.UDP)
    assert wall.outbound(out, now=Instant(0)) == ""
    assert wall.inbound(back, now=Instant(100 * SECOND)) == ""
    assert wall.inbound(back, now=Instant(200 * SECOND)) == ""
    assert wall.inbound(back, now=Instant(320 * SECOND)) != ""
    other = IpPacket(3, Address("192.0.2.1", 9), Address("203.0.113.1", 9), Protocol.UDP)
    assert wall.outbound(other, now=Instant(400 * SECOND)) == ""
    assert wall.size == 1


def test_a_nat_prints_its_table(net: Network) -> None:
    home = Home(net, full_cone())
    home.alice.send(home.server.address)
    net.run_for(20 * SECOND)
    assert str(home.gateway).splitlines() == [
        "home (NAT EI/EI) 198.51.100.1, inside 10.0.0.1",
        "entry    protocol  local          external           destination  expires in",
        "mapping  udp       10.0.0.2:5000  198.51.100.1:5000  any          100.0 s",
    ]
    assert repr(home.gateway.nat) == "<Nat EI/EI 198.51.100.1: 1 mappings>"
