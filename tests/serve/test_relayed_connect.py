"""Two programs in a room are relayed by the TURN server of their signaling server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from websockets.asyncio.client import connect

from polynya.aio.meeting import Meeting, connect_room
from polynya.aio.signaling import Signaling, fetch_servers
from polynya.aio.websocket import websocket_url
from polynya.core.addresses import Address
from polynya.core.errors import SignalingError
from polynya.serve import ServeConfig, Server, TurnOptions
from polynya.serve.credentials import Offers
from polynya.signaling.messages import IceServer, ListServers, ServerList, decode_from_server, encode
from polynya.turn.server.config import RelayHost, ServerConfig
from polynya.turn.server.users import User, time_limited_password
from tests.cli.conftest import Process, start

pytestmark = pytest.mark.loops("asyncio", "uvloop")

__all__ = ["start"]

ANY = Address("127.0.0.1", 0)
SECRET = "a secret of the operator"


def house(*, unix_time: Callable[[], float] = time.time, room_tokens: tuple[str, ...] = (), **turn: object) -> Server:
    config = ServerConfig(realm="example.org", relays=(RelayHost(host="127.0.0.1"),))
    options = TurnOptions(**{"config": config, "shared_secrets": (SECRET,), **turn})  # type: ignore[arg-type]
    serve = ServeConfig(listen=(ANY,), http=(ANY,), turn=options, room_tokens=room_tokens)
    return Server(serve, unix_time=unix_time)


async def server_list(server: Server) -> tuple[IceServer, ...]:
    """Request the server list by the protocol, for the lifetime of credentials."""
    async with connect(websocket_url(server.url), proxy=None) as link:
        await link.send(encode(ListServers()))
        answer = decode_from_server(await link.recv())
        assert isinstance(answer, ServerList)
        return answer.servers


async def test_members_get_the_turn_listeners_with_credentials_that_expire() -> None:
    async with house(credential_lifetime=3600) as server, Signaling(server.url, "r") as room:
        stun, turn = await server_list(server)
        [address] = server.stun_addresses
        assert stun.uris == (f"stun:{address}",) and not stun.username
        assert turn.uris == (f"turn:{address}?transport=udp", f"turn:{address}?transport=tcp")
        expiry, owner = turn.username.split(":")
        assert turn.lifetime == 3600 and 3590 < int(expiry) - time.time() <= 3600
        assert turn.credential == time_limited_password(turn.username, SECRET.encode())
        assert "127.0.0.1" not in owner
        assert [each.uri for each in room.servers] == [*stun.uris, *turn.uris]
        again = (await fetch_servers(server.url)).servers
        assert again[1].username.partition(":")[2] == owner, "the same client is the same user"


async def test_without_a_shared_secret_turn_is_not_listed() -> None:
    users = (User.with_password("alice", "example.org", "wonder"),)
    async with house(shared_secrets=(), users=users) as server, Signaling(server.url, "r") as room:
        assert [each.uri for each in room.servers] == list(server.stun_uris)


class _Options:
    shared_secrets = (SECRET,)
    credential_lifetime = 86_400


@pytest.mark.parametrize(
    ("turn", "tokens", "opened", "lifetime"),
    [
        ("192.0.2.1", (), False, None),
        ("192.0.2.1", (), True, 3600),
        ("192.0.2.1", ("t",), False, 86_400),
        ("127.0.0.1", (), False, 3600),
        ("::1", (), False, 3600),
        ("127.0.0.1", ("t",), False, 86_400),
        ("0.0.0.0", (), False, None),
    ],
)
def test_credentials_need_a_room_token_or_the_operators_word(
    turn: str, tokens: tuple[str, ...], opened: bool, lifetime: int | None
) -> None:
    offers = Offers(turn=[Address(turn, 3478)], unix_time=lambda: 0)
    offers.take(_Options, None, room_tokens=tokens, open_turn=opened)  # type: ignore[arg-type]
    listed = offers.servers(turn, turn, "127.0.0.1")
    if lifetime is None:
        assert listed == () and "--room-token or --open-turn" in offers.no_relay
        return
    [server] = listed
    assert server.lifetime == lifetime and not offers.no_relay
    assert server.username.startswith(f"{lifetime}:open-") is not bool(tokens)


def test_one_turn_listener_that_is_not_on_loopback_closes_them_all() -> None:
    offers = Offers(turn=[Address("127.0.0.1", 3478)], tls=[Address("192.0.2.1", 5349)], unix_time=lambda: 0)
    offers.take(_Options, None)  # type: ignore[arg-type]
    assert not offers.open and offers.servers("127.0.0.1", "127.0.0.1", "127.0.0.1") == ()


async def test_a_room_token_is_asked_for_and_gives_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(room_tokens=("first", "second")) as server:
        for token in (None, "", "wrong", "first "):
            with pytest.raises(SignalingError, match="room token"):
                await Signaling(server.url, "r", token=token).__aenter__()
            with pytest.raises(SignalingError, match="room token"):
                await fetch_servers(server.url, token=token)
        offer = await fetch_servers(server.url, token="second")
        assert [each.uri.partition(":")[0] for each in offer.servers] == ["stun", "turn", "turn"]
        assert "open-" not in offer.servers[1].username and offer.no_relay == ""
        monkeypatch.setenv("POLYNYA_TOKEN", "second")
        one, two = await asyncio.gather(connect_room(server.url, "r", token="first"), connect_room(server.url, "r"))
        async with one, two:
            one.send(b"x")
            assert await two.recv() == b"x"
        assert server.reload(replace(server.config, room_tokens=("third",))) == []
        with pytest.raises(SignalingError, match="room token"):
            await fetch_servers(server.url)
        assert (await fetch_servers(server.url, token="third")).servers


@pytest.mark.parametrize(
    ("tokens", "secrets", "line"),
    [
        (("t",), (SECRET,), "rooms need a room token, and their members get TURN credentials: yes"),
        ((), (SECRET,), "rooms are open, and any visitor gets TURN credentials: all TURN listeners are on loopback"),
        ((), (), "rooms are open, and give no TURN credentials: this server makes no TURN credentials"),
    ],
)
async def test_the_log_says_at_the_start_who_gets_credentials(
    caplog: pytest.LogCaptureFixture, tokens: tuple[str, ...], secrets: tuple[str, ...], line: str
) -> None:
    users = (User.with_password("alice", "example.org", "wonder"),)
    with caplog.at_level("INFO", "polynya.serve"):
        async with house(room_tokens=tokens, shared_secrets=secrets, users=users):
            pass
    assert line in caplog.text


async def test_a_list_without_relays_says_why() -> None:
    async with house(shared_secrets=(), users=(User.with_password("a", "r", "b"),)) as server:
        assert "--shared-secret" in (await fetch_servers(server.url)).no_relay
    async with Server(ServeConfig(listen=(ANY,), http=(ANY,))) as server, Signaling(server.url, "r") as room:
        assert "has no TURN" in room.no_relay
        assert [each.uri.partition(":")[0] for each in room.servers] == ["stun"]


def test_tls_is_listed_with_a_name_and_never_with_an_address() -> None:
    class Options:
        shared_secrets = (SECRET,)
        credential_lifetime = 600

    class Files:
        server_name = ""

    offers = Offers(tls=[Address("0.0.0.0", 5349)], unix_time=lambda: 1000.5)
    offers.take(Options, Files, open_turn=True)  # type: ignore[arg-type]
    assert offers.servers("192.0.2.1", "192.0.2.1", "198.51.100.1") == ()
    [listed] = offers.servers("turn.example.org", "192.0.2.1", "198.51.100.1")
    assert listed.uris == ("turns:turn.example.org:5349?transport=tcp",)
    assert listed.username.startswith("1600:")
    Files.server_name = "other.example.org"
    offers.take(Options, Files, open_turn=True)  # type: ignore[arg-type]
    [listed] = offers.servers("192.0.2.1", "192.0.2.1", "198.51.100.1")
    assert listed.uris == ("turns:other.example.org:5349?transport=tcp",)


def test_credentials_differ_by_client_and_not_by_the_rest_of_an_ipv6_subnet() -> None:
    class Options:
        shared_secrets = (SECRET,)
        credential_lifetime = 600

    offers = Offers(turn=[Address("192.0.2.1", 3478)], unix_time=lambda: 0)
    offers.take(Options, None, room_tokens=["t"])  # type: ignore[arg-type]
    names = [
        offers.servers(None, "192.0.2.1", remote)[0].username
        for remote in ("198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "")
    ]
    assert len(set(names)) == 5 and names[2] == names[3]


async def test_two_relay_only_members_of_a_room_exchange_datagrams() -> None:
    async with (
        house() as server,
        Meeting(server.url, "r", policy="relay") as one,
        Meeting(server.url, "r", policy="relay") as two,
    ):
        here, there = await asyncio.gather(one.connect(10), two.connect(10))
        for number in range(20):
            here.send(b"a %d" % number)
            there.send(b"b %d" % number)
        assert [await there.recv() for _ in range(20)] == [b"a %d" % number for number in range(20)]
        assert [await here.recv() for _ in range(20)] == [b"b %d" % number for number in range(20)]
        assert here.path.relayed and there.path.relayed
        relaying = server.relaying
        assert relaying is not None and relaying.allocations >= 2 and relaying.carried.bytes_to_peers > 100


async def test_expired_credentials_are_replaced_by_new_ones() -> None:
    """The credentials of a member that joined long ago have expired when it begins to allocate."""
    behind = 1000.0
    async with (
        house(credential_lifetime=60, unix_time=lambda: time.time() - behind) as server,
        Meeting(server.url, "r", policy="relay") as one,
        Meeting(server.url, "r", policy="relay") as two,
    ):
        behind = 0.0
        here, there = await asyncio.gather(one.connect(10), two.connect(10))
        here.send(b"x")
        assert await there.recv() == b"x"
        assert server.counters["turn.error responses 401"] >= 4
        assert server.counters["signaling.server-lists"] == 2
        assert server.counters["signaling.joined"] == 2


def test_two_processes_are_relayed_by_the_server_of_their_room(start: type[Process]) -> None:
    """All by the command line: `serve` with a shared secret, `connect --policy relay` twice, default peer policy."""
    server = start(
        "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shared-secret", SECRET, "--realm", "example.org"
    )
    ready = server.line().split()
    url = ready[-1].removeprefix("http=")
    assert [each.partition("=")[0] for each in ready] == ["ready", "stun", "turn", "http"]
    one = start("connect", "room", "--policy", "relay", server=url)
    two = start("connect", "room", "--policy", "relay", server=url)
    for each in (one, two):
        each.write(b"hello from %d\n" % each.process.pid)
    for each, other in ((one, two), (two, one)):
        line = each.until("path: ")
        assert "relay" in line and "direct" not in line
        expected = b"hello from %d\n" % other.process.pid
        assert each.read(len(expected)) == expected
    one.end_input()
    two.end_input()
    assert one.wait() == two.wait() == 0
