"""Our client with our server for an hour, behind a symmetric NAT with short timeouts, on the virtual network."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hmac import digest
from random import Random
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import MILLISECOND, SECOND
from polynya.lab import Host, Network, Process, Profile
from polynya.lab.programs import Listening
from polynya.nat import Behavior, NatConfig, PortAssignment
from polynya.stun.registry import PasswordAlgorithmNumber
from polynya.turn.client import (
    Allocated,
    AllocationFailed,
    ChannelBound,
    ChannelFailed,
    ClientConfig,
    Credentials,
    CredentialsNeeded,
    Lost,
    PermissionFailed,
    Permitted,
    RelayedData,
    Released,
    ServerAddress,
    State,
    TurnClient,
)
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.policy import PeerPolicy
from polynya.turn.server.server import TurnServer
from polynya.turn.server.users import Directory, SharedSecrets, StaticUsers, User
from tests.lab.conftest import Program

REALM = "lab.example"
SERVER = ("203.0.113.9", "2001:db8:100::9")
ALLOWED = ("198.51.100.0/24", "2001:db8:2::/48")
UNIX = 1_800_000_000
"""The time of day at the server at the start."""
ALICE = Credentials("alice", "open sesame")


@dataclass
class Scene:
    net: Network
    client: TurnClient
    process: Process
    peers: list[Program]

    def call(self, method: Any, *arguments: Any) -> Any:
        return self.process.call(method, *arguments)

    def of(self, kind: type[Any]) -> list[Any]:
        return self.process.events(kind)

    def exchange(self) -> None:
        """Whether the echo of all data from the peers arrives, in order."""
        before = len(self.of(RelayedData))
        sent = [(peer.address, b"%d" % number) for number in range(3) for peer in self.peers]
        for peer, data in sent:
            assert self.process.call(self.client.send, peer, data)
        self.net.run_for(SECOND)
        got = [(event.peer, event.data) for event in self.of(RelayedData)[before:]]
        assert got == sent


def scene(
    *,
    directory: Directory | None = None,
    credentials: Credentials = ALICE,
    algorithms: tuple[int, ...] = (2, 1),
    families: tuple[int, ...] = (4,),
    link: Profile | None = None,
    seed: int = 1,
    nonce_lifetime: int = 60 * SECOND,
    nat_timeout: int = 30 * SECOND,
) -> Scene:
    net = Network(seed)
    middle = net.router("middle")
    users = directory or StaticUsers(REALM, [User.with_password("alice", REALM, "open sesame")])
    config = ServerConfig(
        realm=REALM,
        relays=tuple(RelayHost(host=each) for each in SERVER),
        policy=PeerPolicy(allow=ALLOWED),
        algorithms=algorithms,
        nonce_lifetime=nonce_lifetime,
        refuse_expired_refresh=True,
    )
    server = net.host("turn", SERVER, middle, delay=5 * MILLISECOND)
    random = Random(seed)
    machine = TurnServer(config, users, Forwarder(net.flow_ids, random=random), random=random)
    machine.control.set_unix_time(UNIX, now=net.now)
    server.run(Listening(machine, {net.flow_ids.new(): Address(each, 3478) for each in SERVER}))
    symmetric = NatConfig(mapping=Behavior.APD, ports=PortAssignment.RANDOM, udp_timeout=nat_timeout)
    nat = net.nat("nat", outside=middle, address="192.0.2.1", inside="10.0.0.0/24", config=symmetric)
    host = net.host("client", "10.0.0.7", nat, link=link)
    peers = [Program(net, _host(net, number, middle), echo=True) for number in range(1, 4)]
    if 6 in families:
        peers.append(Program(net, net.host("six", "2001:db8:2::5", middle), local="2001:db8:2::5", echo=True))
    client = TurnClient(
        ServerAddress(address=Address(SERVER[0], 3478)),
        ClientConfig(families=families),
        random=Random(seed),
        flow_ids=net.flow_ids,
        credentials=credentials,
    )
    made = Scene(net, client, host.run(client), peers)
    made.call(client.start)
    net.run_for(3 * SECOND)
    return made


def _host(net: Network, number: int, router: Any) -> Host:
    return net.host(f"peer{number}", f"198.51.100.{number}", router)


@pytest.fixture(params=[(2, 1), (1,)], ids=["SHA-256", "MD5"])
def algorithms(request: pytest.FixtureRequest) -> tuple[int, ...]:
    assert PasswordAlgorithmNumber.SHA256 == 2
    return tuple(request.param)


def test_a_relay_behind_a_nat_with_short_timeouts_lasts_an_hour(algorithms: tuple[int, ...]) -> None:
    one = scene(algorithms=algorithms, families=(4, 6))
    [allocated] = one.of(Allocated)
    assert [address.family for address in allocated.relayed] == [4, 6]
    assert allocated.mapped is not None and allocated.mapped.host == "192.0.2.1"
    one.call(one.client.permit, [peer.address for peer in one.peers])
    one.call(one.client.bind, one.peers[0].address)
    one.net.run_for(SECOND)
    assert one.of(ChannelBound) and sum(len(event.peers) for event in one.of(Permitted)) == 4
    one.exchange()
    for _ in range(4):
        one.net.run_for(900 * SECOND)  # idle: only keepalives and refreshes
        one.exchange()
    assert one.client.counters["challenges 438"] >= 12
    assert not (one.of(Lost) or one.of(PermissionFailed) or one.of(ChannelFailed) or one.of(CredentialsNeeded))
    one.call(one.client.close)
    one.net.run_for(SECOND)
    assert one.of(Released)[0].reason == "the server has freed it"


@pytest.mark.parametrize("seed", range(10))
def test_a_relay_lasts_an_hour_with_packet_loss(seed: int) -> None:
    one = scene(link=Profile(delay=40 * MILLISECOND, loss=0.1), seed=seed, nat_timeout=120 * SECOND)
    one.net.run_for(40 * SECOND)
    one.call(one.client.permit, [peer.address for peer in one.peers])
    one.call(one.client.bind, one.peers[1].address)
    one.net.run_for(3600 * SECOND)
    assert one.client.state is State.ALLOCATED and not (
        one.of(Lost) or one.of(PermissionFailed) or one.of(ChannelFailed)
    )


def test_time_limited_credentials_are_renewed_after_they_expire() -> None:
    first, second = (made_of("a secret", f"{UNIX + seconds}:alice") for seconds in (700, 7200))
    one = scene(directory=SharedSecrets(REALM, ["a secret"]), credentials=first)
    one.call(one.client.permit, [peer.address for peer in one.peers])
    one.call(one.client.bind, one.peers[0].address)
    one.net.run_for(990 * SECOND)
    assert not one.of(CredentialsNeeded)
    one.net.run_for(30 * SECOND)  # the second refresh
    assert len(one.of(CredentialsNeeded)) == 1
    one.call(one.client.set_credentials, second)
    one.net.run_for(1800 * SECOND)
    one.exchange()
    assert len(one.of(CredentialsNeeded)) == 1 and not one.of(Lost)


def made_of(secret: str, name: str) -> Credentials:
    return Credentials(name, base64.b64encode(digest(secret.encode(), name.encode(), "sha1")).decode())


def test_a_denied_peer_is_reported_and_the_others_are_permitted() -> None:
    one = scene()
    one.call(one.client.permit, [one.peers[0].address, Address("169.254.169.254", 80), Address("127.0.0.1", 1)])
    one.net.run_for(SECOND)
    assert [event.code for event in one.of(PermissionFailed)] == [403, 403]
    assert one.client.permitted(one.peers[0].address)


def test_a_wrong_password_requests_other_credentials() -> None:
    one = scene(credentials=Credentials("alice", "wrong"))
    assert len(one.of(CredentialsNeeded)) == 1 and not one.of(AllocationFailed)
    one.call(one.client.set_credentials, ALICE)
    one.net.run_for(SECOND)
    assert one.of(Allocated)
