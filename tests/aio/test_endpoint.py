"""Agents of both kinds: calls in any order, one-shot signaling, waiting for nomination, inspection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import polynya
from polynya.aio.endpoint import AgentEvent, Endpoint
from polynya.ice.events import AgentState, AgentStateChanged, LocalCandidateAdded, SelectedPairChanged
from polynya.session.events import GatheringState
from tests.aio.test_agent import local_agent
from tests.aio.test_signals import carried
from tests.reports import flat

pytestmark = pytest.mark.loops("asyncio", "uvloop")

NOWHERE = polynya.Description(ufrag="abcd", password="0123456789012345678901")
QUICK = polynya.IceConfig(patience=0.1, trickle_limit=0.1)
LINE = "candidate:1 1 udp 2130706431 127.0.0.1 1 typ host"


@asynccontextmanager
async def alone(kind: str, **options: object) -> AsyncIterator[Endpoint]:
    """An agent of either kind, which is not started."""
    if kind == "agent":
        yield local_agent(**options)
    else:
        async with polynya.Mux(loopback=True, addresses=["127.0.0.1"]) as mux:
            yield mux.agent(**options)  # type: ignore[arg-type]


both_kinds = pytest.mark.parametrize("kind", ["agent", "muxed"])


async def one_shot(a: Endpoint, b: Endpoint) -> None:
    """Exchanges one text each way."""
    b.add_remote_signal(await a.signal_text())
    a.add_remote_signal(await b.signal_text())


# ------------------------------------------------------------------------------------------------------- free order


@both_kinds
async def test_everything_may_be_set_before_the_start(kind: str) -> None:
    async with alone(kind) as a, local_agent(controlling=False) as b:
        a.set_controlling(True)
        candidates = [candidate async for candidate in b.candidates()]
        a.add_candidate(candidates[0])
        a.set_remote(b.description)
        for candidate in candidates[1:]:
            a.add_candidate(str(candidate))
        a.add_candidate(None)
        connection = a.connection()
        assert a.is_controlling and not connection.ready and a.state is AgentState.NEW
        assert a.gathering_state is GatheringState.NEW
        assert [each.address for each in a.remote_candidates()] == [each.address for each in candidates]
        b.set_remote(a.description)
        async with a:
            async for candidate in a.candidates():
                b.add_candidate(candidate)
            b.add_candidate(None)
            here, there = await asyncio.gather(a.connect(9), b.connect(9))
            assert here is connection
            await asyncio.gather(a.completed(9), b.completed(9))
            assert a.is_controlling and not b.is_controlling
            here.send(b"x")
            assert await there.recv() == b"x"


@both_kinds
async def test_what_is_set_before_the_start_can_be_wrong_at_once(kind: str) -> None:
    async with alone(kind) as agent:
        with pytest.raises(polynya.DecodeError):
            agent.add_candidate("candidate:nonsense")
        with pytest.raises(polynya.DecodeError):
            agent.add_remote_signal("nonsense")
        with pytest.raises(polynya.UsageError, match="no stream 0 with a component 2"):
            agent.connection(component=2)
        with pytest.raises(polynya.UsageError, match="async with"):
            agent.restart()


@both_kinds
async def test_iterators_begin_before_the_start_and_wait_for_it(kind: str) -> None:
    async with alone(kind) as agent:
        signals, events, candidates = agent.local_signals(), agent.events(), agent.candidates()
        assert agent.description.ufrag in await anext(signals)
        waiting = [asyncio.ensure_future(anext(each)) for each in (signals, events, candidates)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        async with agent:
            text, event, candidate = await asyncio.gather(*waiting)
            assert str(candidate.address.port) in text and isinstance(event, AgentEvent)
        await asyncio.gather(*(each.aclose() for each in (signals, events, candidates)))


@both_kinds
async def test_a_second_start_changes_nothing(kind: str) -> None:
    async with alone(kind) as agent:
        agent.start()
        async with agent:
            agent.start()
            assert [candidate async for candidate in agent.candidates()]
            addresses = [each.candidate for each in agent._candidates]
            agent.start()
            assert [each.candidate for each in agent._candidates] == addresses
        with pytest.raises(polynya.UsageError, match="closed: make a new one"):
            agent.start()


@both_kinds
async def test_an_agent_that_was_never_started_can_be_closed(kind: str) -> None:
    async with alone(kind) as agent:
        connection = agent.connection()
        await agent.close()
        assert await connection.wait_closed() == "the agent was closed"
        for call in (agent.start, lambda: agent.set_remote(NOWHERE), lambda: agent.set_controlling(True)):
            with pytest.raises(polynya.UsageError, match="closed"):
                call()
        assert [text async for text in agent.local_signals()] == []


def test_the_role_of_a_lite_agent_is_refused_at_once() -> None:
    agent = local_agent(ice=polynya.IceConfig(lite=True, controlling=False))
    agent.set_remote(NOWHERE)
    with pytest.raises(polynya.UsageError, match="lite"):
        agent.set_controlling(True)


# -------------------------------------------------------------------------------------------------- one-shot signaling


@both_kinds
async def test_one_text_each_way_connects(kind: str) -> None:
    async with alone(kind, controlling=True) as a, a, local_agent(controlling=False) as b:
        text = await a.signal_text()
        assert text.startswith("polynya1:") and "\n" not in text and len(text) < 200
        await one_shot(a, b)
        here, there = await asyncio.gather(a.connect(), b.connect())
        here.send(b"x")
        assert await there.recv() == b"x"


async def test_several_texts_may_be_joined_and_one_wrong_one_changes_nothing() -> None:
    async with local_agent(controlling=True) as a, local_agent(controlling=False) as b:
        texts = []
        async for text in a.local_signals():
            texts.append(text)
            if "a=end-of-candidates" in text:
                break
        with pytest.raises(polynya.DecodeError):
            b.add_remote_signal("".join(texts) + "m=nonsense\r\n")
        assert b.remote_candidates() == []
        b.add_remote_signal("\n".join(texts))
        assert len(b.remote_candidates()) == len(texts) - 2
        a.add_remote_signal(await b.signal_text())
        await asyncio.gather(a.connect(), b.connect())


@both_kinds
async def test_an_agent_that_is_fed_its_own_signals_refuses_them(kind: str) -> None:
    async with alone(kind, controlling=True) as a, a, local_agent(controlling=False) as b:
        own, other = await a.signal_text(), await b.signal_text()
        candidates = [candidate async for candidate in a.candidates()]
        for text in (own, other + "\n" + own):
            with pytest.raises(polynya.UsageError, match="is this agent's own: pass the signals of the other"):
                a.add_remote_signal(text)
        with pytest.raises(polynya.UsageError, match="is this agent's own"):
            a.set_remote(a.description)
        with pytest.raises(polynya.UsageError, match="is this agent's own"):
            a.add_candidate(str(candidates[0]))
        assert a.remote_candidates() == [] and a.state is AgentState.NEW
        with pytest.raises(polynya.UsageError, match="the other side is unknown"):
            await a.connect()
        assert "is this agent's own" in flat(a.why())
        await one_shot(a, b)
        await asyncio.gather(a.connect(), b.connect())
        with pytest.raises(polynya.UsageError, match="is this agent's own"):
            a.add_remote_signal(own)
        assert a.connection().ready


@pytest.mark.parametrize("signal", [b"a=ice-ufrag:abcd", None, 5])
def test_what_is_no_text_is_refused(signal: object) -> None:
    with pytest.raises(polynya.UsageError, match="a remote signal is text"):
        local_agent().add_remote_signal(signal)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ connecting


async def test_completed_waits_for_every_component() -> None:
    a = local_agent(controlling=True, components=(1, 2), families=(4,))
    b = local_agent(controlling=False, components=(1, 2), families=(4,))
    async with carried(a, b):
        await asyncio.gather(a.completed(9), b.completed(9))
        assert a.state is b.state is AgentState.COMPLETED
        for agent in (a, b):
            assert all(agent.connection(*place).path.nominated for place in ((0, 1), (1, 1), (1, 2)))
        await a.completed()


async def test_completed_fails_with_every_attempt() -> None:
    async with local_agent(families=(4,)) as agent:
        with pytest.raises(polynya.UsageError, match="a timeout"):
            await agent.completed()
        with pytest.raises(polynya.ConnectError, match="no description of the other side arrived within"):
            await agent.completed(0.01)
        agent.set_remote(NOWHERE)
        agent.add_candidate(LINE)
        with pytest.raises(polynya.ConnectError, match="not every component has a nominated pair within") as failed:
            await agent.completed(0.05)
        assert "127.0.0.1:1" in failed.value.attempts[0].what


async def test_an_agent_that_is_closed_meanwhile_ends_the_wait() -> None:
    async with local_agent() as agent:
        waiting = [asyncio.ensure_future(call) for call in (agent.connect(9), agent.completed(9))]
        await asyncio.sleep(0)
        await agent.close()
        for each in waiting:
            with pytest.raises((polynya.UsageError, polynya.ConnectionClosed), match="closed"):
                await each


async def test_remote_candidates_are_those_of_each_stream_and_peer_reflexive_ones() -> None:
    a = local_agent(controlling=True, components=(1, 1), families=(4,))
    b = local_agent(controlling=False, components=(1, 1), families=(4,))
    async with a, b:
        b.add_remote_signal(await a.signal_text())
        for stream in (0, 1):
            [ours] = [candidate async for candidate in a.candidates(stream)]
            assert [each.address for each in b.remote_candidates(stream)] == [ours.address]
        assert len(b.remote_candidates()) == 2 and a.remote_candidates() == []
        a.set_remote(b.description)  # b's candidates are not signaled: its checks show where it is
        await asyncio.gather(a.connect(9), b.connect(9))
        assert {each.type.value for each in a.remote_candidates()} == {"prflx"}


# ---------------------------------------------------------------------------------------------------------- seeing


async def test_events_are_those_for_users() -> None:
    a, b = local_agent(controlling=True), local_agent(controlling=False)
    seen: list[AgentEvent] = []

    async def watch() -> None:
        async for event in a.events():
            seen.append(event)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    async with carried(a, b):
        connection, _ = await asyncio.gather(a.connect(9), b.connect(9))
        await asyncio.gather(a.completed(9), b.completed(9))
        connection.send(b"x")
    await watching
    kinds = {type(event) for event in seen}
    assert {LocalCandidateAdded, SelectedPairChanged, AgentStateChanged} <= kinds
    assert {kind.__name__ for kind in kinds} <= set(polynya.__all__)


@both_kinds
async def test_the_representation_says_how_far_it_is(kind: str) -> None:
    async with alone(kind, controlling=False) as a, local_agent(controlling=True) as b:
        name = "Agent" if kind == "agent" else "MuxedAgent"
        assert repr(a) == f"<{name} new, controlled>"
        async with a:
            await one_shot(a, b)
            connection, _ = await asyncio.gather(a.connect(9), b.connect(9))
            await asyncio.gather(a.completed(9), b.completed(9))
            path = f"{connection.path.local.label} -> {connection.path.remote.label} (direct, nominated)"
            assert repr(a) == f"<{name} completed, controlled: {path}>"
            assert repr(connection) == f"<Connection 0/1 {path}>" and repr(connection.path) == f"<Path {path}>"
        assert repr(connection) == "<Connection 0/1 closed: closed here>"
        assert repr(a) == f"<{name} closed, controlled>"


# ------------------------------------------------------------------------------------------------- after a failure


@both_kinds
async def test_connect_works_after_a_failure_that_a_candidate_ended(kind: str) -> None:
    """The dead candidate, the end of candidates, ConnectError, then a good candidate: no restart is needed."""
    async with alone(kind, controlling=True, ice=QUICK) as a, a, local_agent(controlling=False, families=(4,)) as b:
        a.set_remote(b.description)
        b.set_remote(a.description)
        a.add_candidate(LINE)
        a.add_candidate(None)
        failed = a.connection()
        with pytest.raises(polynya.ConnectError, match="failed"):
            await a.connect()
        assert failed.closed and a.connection() is failed and a.state is AgentState.FAILED
        async for candidate in b.candidates():
            a.add_candidate(candidate)
        here, there = await asyncio.gather(a.connect(9), b.connect(9))
        assert here is not failed and a.connection() is here
        await a.completed(9)
        assert here.send(b"to b") and there.send(b"to a")
        assert await there.recv() == b"to b" and await here.recv() == b"to a"
        failed._deliver(b"on a path of the old one")
        assert await here.recv() == b"on a path of the old one"


@both_kinds
async def test_each_failure_is_an_exception_of_its_own(kind: str) -> None:
    async with alone(kind, controlling=True, ice=QUICK) as a, a:
        a.set_remote(NOWHERE)
        a.add_candidate(LINE)
        a.add_candidate(None)
        errors = []
        for _ in range(3):
            for call in (a.connect, a.completed):
                with pytest.raises(polynya.ConnectError, match="failed") as raised:
                    await call()
                errors.append((raised.value, len(raised.traceback)))
        assert len({id(error) for error, _ in errors}) == 6
        assert len({depth for _, depth in errors}) <= 2 and errors[-1][0].attempts == errors[0][0].attempts != ()


@both_kinds
async def test_what_waits_when_the_agent_is_closed_hears_that_it_is_closed(kind: str) -> None:
    """Only a call on an agent that is closed is a mistake of the caller."""
    async with alone(kind) as agent:
        agent.start()
        waiting = [asyncio.ensure_future(call) for call in (agent.connect(9), agent.completed(9))]
        await asyncio.sleep(0)
        await agent.close()
        for each in waiting:
            with pytest.raises(polynya.ConnectionClosed, match="closed"):
                await each
        for call in (agent.connect(1), agent.completed(1), agent.signal_text()):
            with pytest.raises(polynya.UsageError, match="make a new one"):
                await call


async def test_a_call_while_the_agent_is_being_closed_hears_that_it_is_closed() -> None:
    async with local_agent() as agent:
        closing = asyncio.ensure_future(agent.close())
        await asyncio.sleep(0)
        assert not closing.done()
        for call in (agent.connect(1), agent.completed(1), agent.signal_text()):
            with pytest.raises(polynya.ConnectionClosed, match="closed"):
                await call
        await closing
