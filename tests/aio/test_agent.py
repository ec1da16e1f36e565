"""The public agent and its connections, on this host's loopback."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import polynya
from polynya.aio.connection import OVERHEAD, RECEIVE_BUFFER
from polynya.core.machine import Interface, InterfaceAddress
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice.config import IceConfig
from polynya.ice.events import AgentState, SelectedPairChanged
from tests.loops import until
from tests.reports import flat

pytestmark = pytest.mark.usefixtures("no_open_sockets")

RunAsync = Callable[..., object]


@pytest.fixture
def no_open_sockets() -> AsyncIterator[None]:
    """Fails a test that leaves a socket open."""
    before = open_sockets()
    yield
    gc.collect()
    assert open_sockets() <= before


def open_sockets() -> int:
    return sum(1 for fd in Path("/proc/self/fd").iterdir() if str(fd.resolve()).partition("socket:")[1])


def local_agent(**options: object) -> polynya.Agent:
    return polynya.Agent(loopback=True, interfaces=["lo"], **options)  # type: ignore[arg-type]


async def tell_all(source: polynya.Agent, target: polynya.Agent) -> None:
    async for candidate in source.candidates():
        target.add_candidate(str(candidate))
    target.add_candidate(None)


@asynccontextmanager
async def connected(**options: object) -> AsyncIterator[tuple[polynya.Connection, polynya.Connection]]:
    async with local_agent(controlling=True, **options) as a, local_agent(controlling=False, **options) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        results = await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
        yield results[2], results[3]


async def test_two_agents_find_each_other_and_talk_both_ways() -> None:
    async with connected() as (a, b):
        for number in range(50):
            assert a.send(b"to b %d" % number)
            assert b.send(b"to a %d" % number)
        assert [await b.recv() for _ in range(50)] == [b"to b %d" % number for number in range(50)]
        assert [await a.recv() for _ in range(50)] == [b"to a %d" % number for number in range(50)]


@pytest.mark.parametrize("family", [4, 6])
async def test_the_path_is_nominated_on_both_sides_and_is_the_same_pair(family: int) -> None:
    async with connected(families=(family,)) as (a, b):
        await asyncio.gather(a.agent.completed(10), b.agent.completed(10))
        ours, theirs = a.path, b.path
        assert (ours.local.address, ours.remote.address) == (theirs.remote.address, theirs.local.address)
        assert ours.remote.address.family == family
        assert ours.nominated
        assert not ours.relayed
        assert ours.rtt is not None
        assert ours.rtt > 0
        assert a.max_datagram_size == (548 if family == 4 else 1232)


async def test_the_path_counts_what_passes() -> None:
    async with connected() as (a, b):
        a.send(b"one")
        a.send(b"two")
        assert [await b.recv(), await b.recv()] == [b"one", b"two"]
        assert a.path.datagrams_sent == 2
        assert b.path.datagrams_received == 2


async def test_data_that_looks_almost_like_stun_is_data() -> None:
    async with connected() as (a, b):
        odd = [b"", b"\x00", b"\x00\x01\x00\x00", b"\x01\x01" + bytes(18), b"Hello", b"\x40\x00\x00\x04data"]
        for data in odd:
            a.send(data)
        assert [await b.recv() for _ in odd] == odd


async def test_with_both_sides_controlling_a_role_conflict_is_repaired() -> None:
    async with local_agent() as a, local_agent() as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        await asyncio.gather(tell_all(a, b), tell_all(b, a), a.completed(10), b.completed(10))
        assert a.is_controlling != b.is_controlling


async def test_data_that_arrives_before_connect_returns_is_kept() -> None:
    async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        await asyncio.gather(tell_all(a, b), tell_all(b, a))
        early = await a.connect(10)
        early.send(b"first")
        await until(lambda: b.connection().datagrams_received)
        assert await (await b.connect(10)).recv() == b"first"


async def test_a_full_receive_queue_drops_and_counts() -> None:
    async with connected() as (a, b):
        fitting = RECEIVE_BUFFER // (1000 + OVERHEAD)
        for _ in range(fitting + 5):
            b._deliver(bytes(1000))
        assert b.path.datagrams_dropped == 5
        assert [await b.recv() for _ in range(fitting)] == [bytes(1000)] * fitting
        a.send(b"and it goes on")
        assert await b.recv() == b"and it goes on"


async def test_closing_ends_recv_iteration_and_send_with_the_reason() -> None:
    async with connected() as (a, b):
        waiting = asyncio.create_task(a.recv())
        iterating = asyncio.create_task(collect(b))
        await asyncio.sleep(0)
        b.send(b"")
        await a.close()
        with pytest.raises(polynya.ConnectionClosed, match="closed here"):
            await waiting
        with pytest.raises(polynya.ConnectionClosed, match="closed here"):
            a.send(b"x")
        with pytest.raises(polynya.ConnectionClosed):
            _ = a.path
        await b.close()
        assert await iterating == []


async def collect(connection: polynya.Connection) -> list[bytes]:
    return [data async for data in connection]


async def test_canceling_recv_loses_no_datagram() -> None:
    async with connected() as (a, b):
        waiting = asyncio.create_task(b.recv())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        a.send(b"still here")
        assert await b.recv() == b"still here"


async def test_two_receivers_at_once_are_refused() -> None:
    async with connected() as (_, b):
        waiting = asyncio.create_task(b.recv())
        await asyncio.sleep(0)
        with pytest.raises(polynya.UsageError, match="another task waits"):
            await b.recv()
        waiting.cancel()


@pytest.mark.parametrize("turns", range(12))
async def test_canceling_at_any_turn_of_the_loop_leaves_nothing_open(turns: int) -> None:
    async def whole() -> None:
        async with connected() as (a, b):
            a.send(b"x")
            await b.recv()
            await asyncio.sleep(60)

    task = asyncio.create_task(whole())
    for _ in range(turns * 2):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_connect_fails_with_every_attempt_and_its_reason() -> None:
    async with local_agent(families=(4,)) as a:
        a.set_remote(polynya.Description(ufrag="abcd", password="0123456789012345678901"))
        a.add_candidate("candidate:1 1 udp 2130706431 127.0.0.1 1 typ host")
        a.add_candidate(None)
        with pytest.raises(polynya.ConnectError, match=r"no pair worked within 0\.2 s") as failed:
            await a.connect(0.2)
        [attempt] = failed.value.attempts
        assert "127.0.0.1:1" in attempt.what
        assert attempt.reason
        assert attempt.what in str(failed.value)


async def test_an_agent_that_gives_up_fails_connect_without_a_timeout() -> None:
    ice = IceConfig(controlling=True, patience=0.05)
    async with local_agent(families=(4,), ice=ice) as a:
        a.set_remote(polynya.Description(ufrag="abcd", password="0123456789012345678901"))
        a.add_candidate(None)
        with pytest.raises(polynya.ConnectError, match="no pair could be made"):
            await a.connect()
        assert a.state is AgentState.FAILED


async def test_a_call_in_the_wrong_state_raises_and_says_what_to_do() -> None:
    agent = local_agent()
    for call in (agent.connect(1), agent.completed(1), agent.signal_text()):
        with pytest.raises(polynya.UsageError, match="async with"):
            await call
    with pytest.raises(polynya.UsageError, match="async with"):
        agent.restart()
    async with agent:
        with pytest.raises(polynya.UsageError, match="a timeout"):
            await agent.connect()
        with pytest.raises(polynya.ConnectError, match="no description of the other side arrived"):
            await agent.connect(0.01)
        for stream, component in ((0, 0), (0, 2), (1, 1), (-1, 1)):
            with pytest.raises(polynya.UsageError, match="components="):
                agent.connection(stream, component)
        with pytest.raises(polynya.DecodeError):
            agent.add_candidate("candidate:nonsense")
        agent.add_candidate("candidate:1 1 udp 1 192.0.2.1 1 typ future")  # RFC 8839, section 5.1: ignored
    with pytest.raises(polynya.UsageError, match="closed"):
        agent.set_remote(polynya.Description(ufrag="abcd", password="0123456789012345678901"))
    with pytest.raises(polynya.UsageError, match="closed: make a new one"):
        agent.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"servers": "stun:192.0.2.1"}, "list"),
        ({"servers": ["http://192.0.2.1"]}, "stun"),
        ({"policy": "some"}, "all, no-host or relay"),
        ({"families": (5,)}, "families"),
        ({"ports": (70000, 70001)}, "ports must be"),
        ({"interfaces": "eth0"}, "list"),
        ({"addresses": ["not an address"]}, "not an IP address"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(polynya.ConfigurationError, match=message):
        polynya.Agent(**options)  # type: ignore[arg-type]


async def test_loopback_is_gathered_by_an_option_only() -> None:
    async with polynya.Agent(interfaces=["lo"]) as agent:
        assert [candidate async for candidate in agent.candidates()] == []
        assert "loopback is not enabled" in flat(agent.why())


async def test_ports_stay_within_the_range() -> None:
    """aiortc/aioice#2, #47; magic-wormhole/magic-wormhole#673: choose the port range."""
    async with local_agent(ports=(52000, 52009)) as agent:
        ports = [candidate.address.port async for candidate in agent.candidates()]
        assert ports
        assert all(52000 <= port <= 52009 for port in ports)


async def test_candidates_can_be_read_twice_and_late() -> None:
    async with local_agent() as agent:
        first = [str(candidate) async for candidate in agent.candidates()]
        assert first
        assert [str(candidate) async for candidate in agent.candidates()] == first


async def test_events_are_yielded_as_they_happen() -> None:
    async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
        seen = []

        async def watch() -> None:
            async for event in a.events():
                seen.append(event)

        watching = asyncio.create_task(watch())
        a.set_remote(b.description)
        b.set_remote(a.description)
        await asyncio.gather(tell_all(a, b), tell_all(b, a), a.completed(10), b.completed(10))
        await a.close()
        await asyncio.wait_for(watching, 10)
        assert any(isinstance(event, SelectedPairChanged) and event.nominated for event in seen)


async def test_why_names_every_transition_with_its_reason_and_no_secret() -> None:
    async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
        report = a.why()
        assert all(step["reason"] for pair in report.data["ice"]["pairs"] for step in pair["transitions"])
        assert "its check was answered" in flat(report)
        assert a.description.password not in flat(report) + str(report.data)
        assert b.description.password not in flat(report) + str(report.data)


async def test_a_restart_keeps_the_connection_and_moves_it_to_the_new_generation() -> None:
    """aiortc/aiortc#211, #1367: restart by either side, with data flowing all the while."""
    async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        _, _, here, there = await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
        await asyncio.gather(a.completed(), b.completed())
        for restarting, other in ((a, b), (b, a)):
            old = restarting.description
            new = restarting.restart()
            assert (new.ufrag, new.generation) != (old.ufrag, old.generation)
            here.send(b"in between")
            assert await there.recv() == b"in between"
            other.set_remote(new)
            restarting.set_remote(other.description)
            assert other.description.generation == new.generation
            await asyncio.gather(tell_all(a, b), tell_all(b, a))
            await until(lambda: all(agent.state is AgentState.COMPLETED for agent in (a, b)))
            here.send(b"after")
            assert await there.recv() == b"after"


async def test_components_have_connections_of_their_own() -> None:
    async def side(controlling: bool) -> polynya.Agent:
        ice = IceConfig(controlling=controlling, components=(2,))
        return local_agent(ice=ice, families=(4,))

    async with await side(True) as a, await side(False) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        await asyncio.gather(tell_all(a, b), tell_all(b, a))
        for component in (1, 2):
            here, there = await asyncio.gather(a.connect(10, component=component), b.connect(10, component=component))
            here.send(b"component %d" % component)
            assert await there.recv() == b"component %d" % component


async def test_unchanged_interfaces_cause_no_restart() -> None:
    async with local_agent() as agent:
        before = agent.description
        assert not agent.interfaces_changed()
        assert agent.description == before


async def test_nat_1to1_adds_a_candidate_without_a_server() -> None:
    async with local_agent(families=(4,), nat_1to1={"127.0.0.1": "198.51.100.7"}) as agent:
        found = [candidate async for candidate in agent.candidates()]
        assert [candidate.type.value for candidate in found] == ["host", "srflx"]
        assert found[1].address == ("198.51.100.7", found[0].address.port, "")


@pytest.mark.parametrize(
    ("options", "controlling", "components"),
    [
        ({}, True, (1,)),
        ({"controlling": False}, False, (1,)),
        ({"ice": IceConfig(controlling=False, components=(2,))}, False, (2,)),
        (
            {"ice": IceConfig(controlling=False, components=(2,)), "controlling": True, "components": [1, 1]},
            True,
            (1, 1),
        ),
    ],
)
def test_options_of_the_agent_override_those_of_ice(
    options: dict[str, object], controlling: bool, components: tuple[int, ...]
) -> None:
    agent = local_agent(**options)
    assert agent.is_controlling is controlling
    assert agent._session.agent.components == components


async def test_interfaces_and_addresses_are_chosen_by_callables() -> None:
    """aiortc/aioice#2: choose the interface; each callable is asked with what it has to decide on."""
    asked: list[tuple[str, str]] = []

    def only_ipv6(interface: Interface, address: InterfaceAddress) -> bool:
        asked.append((interface.name, address.host))
        return ":" in address.host

    async with polynya.Agent(loopback=True, interfaces=lambda each: each.loopback, addresses=only_ipv6) as agent:
        found = [candidate.address.host async for candidate in agent.candidates()]
    assert set(found) == {"::1"}
    assert {("lo", "127.0.0.1"), ("lo", "::1")} <= set(asked)
    assert all(name == "lo" for name, _ in asked)


async def test_with_a_trace_why_names_the_packet_that_caused_a_transition() -> None:
    events: list[TraceEvent] = []
    async with connected(trace=Tracer(events.append, node="here")) as (one, other):
        await asyncio.gather(one.agent.completed(), other.agent.completed())
        for connection in (one, other):
            report = connection.agent.why()
            named = {
                step["packet"]
                for pair in report.data["ice"]["pairs"]
                for step in pair["transitions"]
                if step["reason"] in {"its check was answered", "the other side's check arrived"}
            }
            known = {event.fields["packet"] for event in events if event.kind == "packet-received"}
            assert named and named <= known
            for packet in named:
                assert f"(packet {packet})" in flat(report)
