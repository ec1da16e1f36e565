"""The public agent and its connections, on this host's loopback."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import polynya
from polynya.aio.connection import QUEUE_LENGTH
from polynya.core.machine import Interface, InterfaceAddress
from polynya.core.trace import TraceEvent, Tracer
from polynya.ice.config import IceConfig
from polynya.ice.events import AgentState, SelectedPairChanged

pytestmark = pytest.mark.usefixtures("no_open_sockets")

RunAsync = Callable[..., object]


@pytest.fixture
def no_open_sockets() -> AsyncIterator[None]:
    """Whatever happened, no socket of the test is left open."""
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


def test_two_agents_find_each_other_and_talk_both_ways() -> None:
    async def main() -> None:
        async with connected() as (a, b):
            for number in range(50):
                assert a.send(b"to b %d" % number)
                assert b.send(b"to a %d" % number)
            assert [await b.recv() for _ in range(50)] == [b"to b %d" % number for number in range(50)]
            assert [await a.recv() for _ in range(50)] == [b"to a %d" % number for number in range(50)]

    asyncio.run(main())


@pytest.mark.parametrize("family", [4, 6])
def test_the_path_is_nominated_on_both_sides_and_is_the_same_pair(family: int) -> None:
    async def main() -> None:
        async with connected(families=(family,)) as (a, b):
            ours, theirs = await asyncio.wait_for(asyncio.gather(a.nominated(), b.nominated()), 10)
            assert (ours.local.address, ours.remote.address) == (theirs.remote.address, theirs.local.address)
            assert ours.remote.address.family == family
            assert ours.nominated
            assert not ours.relayed
            assert ours.rtt is not None
            assert ours.rtt > 0
            assert a.max_datagram_size == (548 if family == 4 else 1232)

    asyncio.run(main())


def test_the_path_counts_what_passes() -> None:
    async def main() -> None:
        async with connected() as (a, b):
            a.send(b"one")
            a.send(b"two")
            assert [await b.recv(), await b.recv()] == [b"one", b"two"]
            assert a.path.datagrams_sent == 2
            assert b.path.datagrams_received == 2

    asyncio.run(main())


def test_data_that_looks_almost_like_stun_is_data() -> None:
    async def main() -> None:
        async with connected() as (a, b):
            odd = [b"", b"\x00", b"\x00\x01\x00\x00", b"\x01\x01" + bytes(18), b"Hello", b"\x40\x00\x00\x04data"]
            for data in odd:
                a.send(data)
            assert [await b.recv() for _ in odd] == odd

    asyncio.run(main())


def test_with_both_sides_controlling_a_role_conflict_is_repaired() -> None:
    async def main() -> None:
        async with local_agent() as a, local_agent() as b:
            a.set_remote(b.description)
            b.set_remote(a.description)
            _, _, here, there = await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
            await asyncio.wait_for(asyncio.gather(here.nominated(), there.nominated()), 10)
            assert a.controlling != b.controlling

    asyncio.run(main())


def test_what_arrives_before_connect_returns_is_kept() -> None:
    async def main() -> None:
        async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
            a.set_remote(b.description)
            b.set_remote(a.description)
            await asyncio.gather(tell_all(a, b), tell_all(b, a))
            early = await a.connect(10)
            early.send(b"first")
            await asyncio.sleep(0.02)  # a real socket: the datagram must lie there before the other side looks
            assert await (await b.connect(10)).recv() == b"first"

    asyncio.run(main())


def test_a_full_receive_queue_drops_and_counts() -> None:
    async def main() -> None:
        async with connected() as (a, b):
            for _ in range(QUEUE_LENGTH + 5):
                b._deliver(b"x")
            assert b.path.datagrams_dropped == 5
            assert [await b.recv() for _ in range(QUEUE_LENGTH)] == [b"x"] * QUEUE_LENGTH
            a.send(b"and it goes on")
            assert await b.recv() == b"and it goes on"

    asyncio.run(main())


def test_closing_ends_recv_iteration_and_send_with_the_reason() -> None:
    async def main() -> None:
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

    asyncio.run(main())


async def collect(connection: polynya.Connection) -> list[bytes]:
    return [data async for data in connection]


def test_cancelling_recv_loses_nothing() -> None:
    async def main() -> None:
        async with connected() as (a, b):
            waiting = asyncio.create_task(b.recv())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            a.send(b"still here")
            assert await b.recv() == b"still here"

    asyncio.run(main())


def test_two_receivers_at_once_are_refused() -> None:
    async def main() -> None:
        async with connected() as (_, b):
            waiting = asyncio.create_task(b.recv())
            await asyncio.sleep(0)
            with pytest.raises(polynya.UsageError, match="another task waits"):
                await b.recv()
            waiting.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(12))
def test_cancelling_at_any_turn_leaves_nothing_open(turns: int) -> None:
    async def main() -> None:
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

    asyncio.run(main())


def test_connect_fails_with_every_attempt_and_its_reason() -> None:
    async def main() -> None:
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

    asyncio.run(main())


def test_an_agent_that_gave_up_says_so_without_a_timeout() -> None:
    async def main() -> None:
        ice = IceConfig(controlling=True, patience=0.05)
        async with local_agent(families=(4,), ice=ice) as a:
            a.set_remote(polynya.Description(ufrag="abcd", password="0123456789012345678901"))
            a.add_candidate(None)
            with pytest.raises(polynya.ConnectError, match="no pair could be made"):
                await a.connect()
            assert a.state is AgentState.FAILED

    asyncio.run(main())


def test_wrong_use_raises_at_once_and_says_what_to_do() -> None:
    async def main() -> None:
        agent = local_agent()
        with pytest.raises(polynya.UsageError, match="async with"):
            agent.set_remote(polynya.Description(ufrag="abcd", password="0123456789012345678901"))
        async with agent:
            with pytest.raises(polynya.UsageError, match="a timeout"):
                await agent.connect()
            with pytest.raises(polynya.ConnectError, match="did not describe itself"):
                await agent.connect(0.01)
            for stream, component in ((0, 0), (0, 2), (1, 1), (-1, 1)):
                with pytest.raises(polynya.UsageError, match="components="):
                    agent.connection(stream, component)
            with pytest.raises(polynya.UsageError, match="started before"):
                agent.start()
            with pytest.raises(polynya.DecodeError):
                agent.add_candidate("candidate:nonsense")
            agent.add_candidate("candidate:1 1 udp 1 192.0.2.1 1 typ future")  # RFC 8839, section 5.1: ignored
        with pytest.raises(polynya.UsageError, match="closed"):
            agent.set_remote(polynya.Description(ufrag="abcd", password="0123456789012345678901"))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"servers": "stun:192.0.2.1"}, "list"),
        ({"servers": ["http://192.0.2.1"]}, "stun"),
        ({"policy": "some"}, "all, no-host or relay"),
        ({"families": (5,)}, "families"),
        ({"ports": (70000, 70001)}, "port range"),
        ({"interfaces": "eth0"}, "list"),
        ({"addresses": ["not an address"]}, "not an IP address"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(polynya.ConfigurationError, match=message):
        polynya.Agent(**options)  # type: ignore[arg-type]


def test_loopback_is_not_gathered_unless_asked_for() -> None:
    async def main() -> None:
        async with polynya.Agent(interfaces=["lo"]) as agent:
            assert [candidate async for candidate in agent.candidates()] == []
            assert "loopback is not enabled" in str(agent.why())

    asyncio.run(main())


def test_ports_stay_within_the_range() -> None:
    """aiortc/aioice#2, #47; magic-wormhole/magic-wormhole#673: choose the port range."""

    async def main() -> None:
        async with local_agent(ports=(52000, 52009)) as agent:
            ports = [candidate.address.port async for candidate in agent.candidates()]
            assert ports
            assert all(52000 <= port <= 52009 for port in ports)

    asyncio.run(main())


def test_candidates_can_be_read_twice_and_late() -> None:
    async def main() -> None:
        async with local_agent() as agent:
            first = [str(candidate) async for candidate in agent.candidates()]
            assert first
            assert [str(candidate) async for candidate in agent.candidates()] == first

    asyncio.run(main())


def test_events_show_what_happens_as_it_happens() -> None:
    async def main() -> None:
        async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
            seen = []

            async def watch() -> None:
                async for event in a.events():
                    seen.append(event)

            watching = asyncio.create_task(watch())
            a.set_remote(b.description)
            b.set_remote(a.description)
            _, _, here, _ = await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
            await here.nominated()
            await a.close()
            await asyncio.wait_for(watching, 10)
            assert any(isinstance(event, SelectedPairChanged) and event.nominated for event in seen)

    asyncio.run(main())


def test_why_names_every_transition_with_its_reason_and_no_secret() -> None:
    async def main() -> None:
        async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
            a.set_remote(b.description)
            b.set_remote(a.description)
            await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
            report = a.why()
            assert all(step["reason"] for pair in report.data["ice"]["pairs"] for step in pair["transitions"])
            assert "its check was answered" in str(report)
            assert a.description.password not in str(report) + str(report.data)
            assert b.description.password not in str(report) + str(report.data)

    asyncio.run(main())


def test_a_restart_keeps_the_connection_and_moves_it_to_the_new_generation() -> None:
    """aiortc/aiortc#211, #1367: restart by either side, with data flowing all the while."""

    async def main() -> None:
        async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
            a.set_remote(b.description)
            b.set_remote(a.description)
            _, _, here, there = await asyncio.gather(tell_all(a, b), tell_all(b, a), a.connect(10), b.connect(10))
            await asyncio.gather(here.nominated(), there.nominated())
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
                async with asyncio.timeout(10):
                    while any(agent.state is not AgentState.COMPLETED for agent in (a, b)):  # noqa: ASYNC110  # of two
                        await asyncio.sleep(0.01)  # real sockets
                here.send(b"after")
                assert await there.recv() == b"after"

    asyncio.run(main())


def test_components_have_connections_of_their_own() -> None:
    async def main() -> None:
        async def side(controlling: bool) -> polynya.Agent:
            ice = IceConfig(controlling=controlling, components=(2,))
            return local_agent(ice=ice, families=(4,))

        async with await side(True) as a, await side(False) as b:
            a.set_remote(b.description)
            b.set_remote(a.description)
            await asyncio.gather(tell_all(a, b), tell_all(b, a))
            for component in (1, 2):
                here, there = await asyncio.gather(
                    a.connect(10, component=component), b.connect(10, component=component)
                )
                here.send(b"component %d" % component)
                assert await there.recv() == b"component %d" % component

    asyncio.run(main())


def test_interfaces_that_stayed_as_they_are_restart_nothing() -> None:
    async def main() -> None:
        async with local_agent() as agent:
            before = agent.description
            assert not agent.interfaces_changed()
            assert agent.description == before

    asyncio.run(main())


def test_a_nat_that_maps_one_to_one_is_told_by_the_user() -> None:
    async def main() -> None:
        async with local_agent(families=(4,), external={"127.0.0.1": "198.51.100.7"}) as agent:
            told = [candidate async for candidate in agent.candidates()]
            assert [candidate.type.value for candidate in told] == ["host", "srflx"]
            assert told[1].address == ("198.51.100.7", told[0].address.port, "")

    asyncio.run(main())


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
def test_what_an_agent_is_given_goes_before_its_ice_options(
    options: dict[str, object], controlling: bool, components: tuple[int, ...]
) -> None:
    agent = local_agent(**options)
    assert agent.controlling is controlling
    assert agent._session.agent.components == components


def test_interfaces_and_addresses_are_chosen_by_callables() -> None:
    """aiortc/aioice#2: choose the interface; each callable is asked with what it has to decide on."""

    async def main() -> None:
        asked: list[tuple[str, str]] = []

        def only_ipv6(interface: Interface, address: InterfaceAddress) -> bool:
            asked.append((interface.name, address.host))
            return ":" in address.host

        async with polynya.Agent(loopback=True, interfaces=lambda each: each.loopback, addresses=only_ipv6) as agent:
            told = [candidate.address.host async for candidate in agent.candidates()]
        assert set(told) == {"::1"}
        assert {("lo", "127.0.0.1"), ("lo", "::1")} <= set(asked)
        assert all(name == "lo" for name, _ in asked)

    asyncio.run(main())


def test_with_a_trace_why_names_the_packet_that_caused_a_transition() -> None:
    async def main() -> None:
        events: list[TraceEvent] = []
        async with connected(trace=Tracer(events.append, node="here")) as (one, other):
            await asyncio.gather(one.nominated(), other.nominated())
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
                    assert f"(packet {packet})" in str(report)

    asyncio.run(main())
