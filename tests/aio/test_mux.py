"""Many agents on the sockets of one `Mux`, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any

import pytest

import polynya
from polynya.aio.endpoint import Endpoint
from polynya.aio.mux import Mux, UnknownPeer
from polynya.core.addresses import Address
from polynya.core.machine import Datagram, Interface, InterfaceAddress
from polynya.session.events import GatheringState
from polynya.session.mux import Mux as MuxMachine
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from polynya.stun.registry import Class
from tests.aio.test_signals import carry
from tests.free_ports import free_port
from tests.loops import until
from tests.reports import flat

pytestmark = pytest.mark.loops("asyncio", "uvloop")


def local_mux(**options: object) -> Mux:
    return Mux(loopback=True, addresses=["127.0.0.1"], **options)  # type: ignore[arg-type]


def client(**options: object) -> polynya.Agent:
    return polynya.Agent(loopback=True, addresses=["127.0.0.1"], **options)  # type: ignore[arg-type]


@asynccontextmanager
async def carried(here: Endpoint, there: Endpoint) -> AsyncIterator[None]:
    """Carries the signals of two agents to each other while the block runs."""
    carrying = [asyncio.create_task(carry(*each)) for each in ((here, there), (there, here))]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


async def converse(mux: Mux, number: int) -> None:
    """Lets one peer connect to the mux, ask, get its answer and leave."""
    async with mux.agent(controlling=False) as here, client(controlling=True) as there, carried(here, there):
        ours, theirs = await asyncio.gather(here.connect(9), there.connect(9))
        theirs.send(b"question %d" % number)
        assert await ours.recv() == b"question %d" % number
        ours.send(b"answer %d" % number)
        assert await theirs.recv() == b"answer %d" % number
        assert ours.path.local.address in mux.addresses


async def test_many_peers_talk_through_one_socket_each_with_its_own_agent() -> None:
    """libp2p/py-libp2p#1352."""
    async with local_mux() as mux:
        assert len(mux.addresses) == 1
        await asyncio.gather(*(converse(mux, number) for number in range(20)))
        assert len(mux) == 0
        assert mux.counters["datagrams_in"] >= 60


async def test_an_agent_that_leaves_affects_neither_the_socket_nor_other_agents() -> None:
    """pion/ice#550, #469."""
    async with (
        local_mux() as mux,
        mux.agent(controlling=False) as stays,
        client() as peer,
        carried(stays, peer),
    ):
        ours, theirs = await asyncio.gather(stays.connect(9), peer.connect(9))
        await converse(mux, 1)
        ours.send(b"still here")
        assert await theirs.recv() == b"still here"
        await ours.close()
        assert len(mux) == 0
        await converse(mux, 2)


async def test_an_unknown_peer_is_answered_by_the_agent_that_is_made_for_it() -> None:
    """libp2p/py-libp2p#1352: WebRTC Direct has no signaling; the ufrag of the first check is all there is."""
    unknown: list[UnknownPeer] = []
    agents: list[Endpoint] = []

    def adopt(peer: UnknownPeer) -> None:
        unknown.append(peer)
        if not peer.ufrag.startswith("libp2p"):
            return
        secret = peer.ufrag
        agent = mux.agent(controlling=False, ice=polynya.IceConfig(ufrag=secret, password=secret))
        agent.start()
        agent.set_remote(polynya.Description(ufrag=peer.remote_ufrag, password=secret))
        agents.append(agent)

    async with local_mux(on_unknown_peer=adopt) as mux:
        for name, known in (("other/v1/0123456789abcdef", False), ("libp2p/v1/0123456789abcdef", True)):
            async with client(controlling=True, ice=polynya.IceConfig(ufrag=name, password=name)) as there:
                there.set_remote(polynya.Description(ufrag=name, password=name))
                there.add_candidate(
                    f"candidate:1 1 udp 1 127.0.0.1 {mux.addresses[0].port} typ host"
                )  # fmt: skip
                if not known:
                    with pytest.raises(polynya.ConnectError):
                        await there.connect(0.3)
                    assert mux.counters["unknown ufrag"] >= 1
                    continue
                theirs = await there.connect(9)
                assert len(agents) == 1 == len(mux), "one check makes one agent"
                ours = await agents[0].connect(9)
                theirs.send(b"hello")
                assert await ours.recv() == b"hello"
        assert {peer.ufrag for peer in unknown} == {
            "other/v1/0123456789abcdef", "libp2p/v1/0123456789abcdef"
        }  # fmt: skip
        assert all(peer.remote.host == "127.0.0.1" for peer in unknown)


async def test_a_restart_on_a_shared_socket_keeps_the_connection() -> None:
    async with local_mux() as mux, mux.agent(controlling=False) as here, client() as there, carried(here, there):
        ours, theirs = await asyncio.gather(here.connect(9), there.connect(9))
        here.restart()
        ours.send(b"meanwhile")
        assert await theirs.recv() == b"meanwhile"
        await until(lambda: theirs.path.nominated and theirs.path.local.generation == 1)
        theirs.send(b"after")
        assert await ours.recv() == b"after"
        assert "generation 1" in flat(here.why()) and here.stats()["transport-0-1"]["iceRole"] == "controlled"
        assert not here.interfaces_changed()


async def test_a_client_on_the_port_of_an_earlier_one_keeps_its_path_when_the_earlier_agent_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that starts again on its port meets a new agent while the old one is still there."""
    port = free_port()
    async with local_mux() as mux, mux.agent(controlling=False) as old:
        async with client(ports=(port, port)) as first, carried(old, first):
            await asyncio.gather(old.connect(9), first.connect(9))
        async with mux.agent(controlling=False) as new, client(ports=(port, port)) as second, carried(new, second):
            ours, theirs = await asyncio.gather(new.connect(9), second.connect(9))
            await second.completed()
            here = (next(iter(mux._open)), theirs.path.local.address)
            assert mux._machine.reader(*here) is new
            await old.close()
            assert mux._machine.reader(*here) is new
            seen: list[object] = []
            receive = MuxMachine.receive
            monkeypatch.setattr(
                MuxMachine,
                "receive",
                lambda machine, given, *, now: (seen.append(given), receive(machine, given, now=now)),
            )
            theirs.send(b"still here")
            assert await ours.recv() == b"still here"
            data = [each for each in seen if isinstance(each, Datagram) and each.data == b"still here"]
            assert data == [], "the socket hands data to the connection, not to the machine"


async def test_nat_1to1_adds_a_candidate_of_the_mux() -> None:
    async with local_mux(nat_1to1={"127.0.0.1": "198.51.100.1"}) as mux, mux.agent() as agent:
        found = [candidate.label async for candidate in agent.candidates()]
        port = mux.addresses[0].port
        assert found == [f"host 127.0.0.1:{port}", f"srflx 198.51.100.1:{port}"]


async def test_wrong_options_and_calls_are_refused() -> None:
    with pytest.raises(polynya.ConfigurationError, match="loopback is not enabled"):
        async with Mux(addresses=["127.0.0.1"]):
            pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(polynya.ConfigurationError, match="in use"):
            async with local_mux(port=taken.getsockname()[1]):
                pass
    mux = local_mux()
    with pytest.raises(polynya.UsageError, match="async with"):
        mux.agent().start()
    async with mux:
        with pytest.raises(polynya.ConfigurationError, match="one component"):
            mux.agent(ice=polynya.IceConfig(components=(2,)))
        named = polynya.IceConfig(ufrag="same", password="0123456789012345678901")
        async with mux.agent(ice=named) as agent:
            with pytest.raises(polynya.ConfigurationError, match="this ufrag"):
                mux.agent(ice=named).start()
            agent.start()
            assert len(mux) == 1, "a second start changes nothing"
        with pytest.raises(polynya.UsageError, match="closed"):
            agent.set_remote(agent.description)
        with pytest.raises(polynya.UsageError, match="started before"):
            await mux.__aenter__()


class Nat(asyncio.DatagramProtocol):
    """A STUN server on loopback that sees every source at port 40000 of another address."""

    questions = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        request = decode(data)
        if request.cls is Class.REQUEST:
            self.questions += 1
            mapped = Address("198.51.100.1", 40000)
            answer = Message.success(request, {XOR_MAPPED_ADDRESS: mapped}).encode(fingerprint=True)
            self.transport.sendto(answer, source)


async def test_a_stun_server_is_asked_once_for_all_agents() -> None:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(Nat, local_addr=("127.0.0.1", 0))
    uri = f"stun:127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    async with AsyncExitStack() as stack:
        stack.enter_context(closing(transport))
        mux = await stack.enter_async_context(local_mux(servers=[uri]))
        agents = [await stack.enter_async_context(mux.agent()) for _ in range(100)]
        port = mux.addresses[0].port
        for agent in agents:
            found = [candidate.label async for candidate in agent.candidates()]
            assert found == [f"host 127.0.0.1:{port}", "srflx 198.51.100.1:40000"]
            assert agent.gathering_state is GatheringState.COMPLETE
        assert server.questions == 1
        assert "198.51.100.1:40000" in flat(agents[0].why())
        await converse(mux, 1)
    await asyncio.sleep(0)


async def test_a_connection_survives_the_loss_of_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lo(*hosts: str) -> None:
        addresses = tuple(InterfaceAddress(host=host, prefix_length=8) for host in hosts)
        interfaces = (Interface(name="lo", index=1, addresses=addresses, loopback=True),)
        monkeypatch.setattr("polynya.aio.mux.list_interfaces", lambda: interfaces)

    lo("127.0.0.1")
    with pytest.raises(polynya.UsageError, match="async with"):
        Mux().interfaces_changed()
    async with (
        Mux(loopback=True) as mux,
        mux.agent(controlling=False) as here,
        polynya.Agent(loopback=True, addresses=["127.0.0.1"], controlling=True) as there,
        carried(here, there),
    ):
        ours, theirs = await asyncio.gather(here.connect(9), there.connect(9))
        await there.completed()
        assert not mux.interfaces_changed()
        lo("127.0.0.2")
        assert mux.interfaces_changed()
        await until(lambda: theirs.path.nominated and theirs.path.remote.address.host == "127.0.0.2")
        assert [address.host for address in mux.addresses] == ["127.0.0.2"]
        theirs.send(b"after")
        assert await ours.recv() == b"after"
        assert "127.0.0.1 is not used: its address is gone from this host" in flat(here.why())


def test_a_turn_server_is_refused() -> None:
    with pytest.raises(polynya.ConfigurationError, match="asks STUN servers only"):
        Mux(servers=[polynya.IceServer("turn:192.0.2.1", "user", "password")])
