"""`local_signals` and `add_remote_signal`: one channel of texts carries everything to signal, restarts too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import polynya
from polynya.core.addresses import Address
from polynya.ice.events import AgentState
from polynya.ice.sdp.signal import read_signal
from polynya.session.events import GatheringState
from polynya.stun.attributes import XOR_MAPPED_ADDRESS
from polynya.stun.message import Message, decode
from tests.aio.test_agent import local_agent
from tests.loops import until
from tests.reports import flat

pytestmark = pytest.mark.loops("asyncio", "uvloop")

Change = Callable[[list[str]], list[str]]
CREDENTIALS = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"


async def carry(source: polynya.Agent, target: polynya.Agent) -> None:
    async for text in source.local_signals():
        target.add_remote_signal(text)


@asynccontextmanager
async def carried(a: polynya.Agent, b: polynya.Agent) -> AsyncIterator[None]:
    """Starts two agents and carries their signals to each other while the block runs."""
    async with a, b:
        carrying = [asyncio.create_task(carry(*each)) for each in ((a, b), (b, a))]
        try:
            yield
        finally:
            for task in carrying:
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)


async def settled(*agents: polynya.Agent, generation: int) -> None:
    for agent in agents:
        await until(lambda: agent.state is AgentState.COMPLETED and agent.description.generation >= generation)  # noqa: B023


async def test_two_agents_connect_with_nothing_but_a_channel_of_texts() -> None:
    """aiortc/aioice#4. `connect` is called before anything was signaled."""
    a, b = local_agent(controlling=True), local_agent(controlling=False)
    async with carried(a, b):
        one, two = await asyncio.gather(a.connect(timeout=9), b.connect(timeout=9))
        one.send(b"hello")
        assert await two.recv() == b"hello"


@pytest.mark.parametrize("who", ["one", "the other", "both at once"])
async def test_the_channel_carries_restarts_while_data_flows(who: str) -> None:
    """RFC 8445, section 9; aiortc/aiortc#211, #1367. Restarts that cross end in one generation."""
    a, b = local_agent(controlling=True), local_agent(controlling=False)
    async with carried(a, b):
        one, two = await asyncio.gather(a.connect(timeout=9), b.connect(timeout=9))
        await settled(a, b, generation=0)
        if who != "the other":
            a.restart()
        if who != "one":
            b.restart()
        one.send(b"over the old pair")
        assert await two.recv() == b"over the old pair"
        await settled(a, b, generation=1)
        assert a.description.generation == b.description.generation == 1
        two.send(b"over the new one")
        assert await one.recv() == b"over the new one"


async def signals_of(agent: polynya.Agent) -> list[str]:
    """Returns the signals of an agent up to the end of candidates."""
    texts = []
    async for text in agent.local_signals():
        texts.append(text)
        if read_signal(text).ended:
            break
    return texts


@pytest.mark.parametrize(
    "change", [lambda texts: texts[::-1], lambda texts: texts * 2, lambda texts: texts[1:]],
    ids=["in the wrong order", "twice", "without the first"],
)  # fmt: skip
async def test_texts_may_come_in_any_order_twice_or_not_all(change: Change) -> None:
    """Each text has the description in it, so none of them is needed for another."""
    a, b = local_agent(controlling=True), local_agent(controlling=False)
    async with a, b:
        for source, target in ((a, b), (b, a)):
            for text in change(await signals_of(source)):
                target.add_remote_signal(text)
        await asyncio.gather(a.connect(timeout=9), b.connect(timeout=9))


async def test_a_late_end_of_an_old_generation_does_not_end_the_new_one() -> None:
    a, b = local_agent(controlling=True), local_agent(controlling=False)
    async with a, b:
        old_end = (await signals_of(b))[-1]
        b.restart()
        new_description = (await signals_of(b))[0]
        a.add_remote_signal(new_description)
        a.add_remote_signal(old_end)
        assert a._session.agent.remote_description == b.description
        assert not a._session.agent.generation.remote_ended


async def test_each_stream_has_its_own_connections() -> None:
    a = local_agent(controlling=True, components=(1, 2), families=(4,))
    b = local_agent(controlling=False, components=(1, 2), families=(4,))
    async with carried(a, b):
        for stream, component in ((0, 1), (1, 1), (1, 2)):
            one, two = await asyncio.gather(
                a.connect(9, stream=stream, component=component), b.connect(9, stream=stream, component=component)
            )
            assert one is a.connection(stream, component)
            one.send(b"%d %d" % (stream, component))
            assert await two.recv() == b"%d %d" % (stream, component)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "missing"),
        ("v=0\r\n", "missing"),
        ("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=polynya-generation:-1\r\n", "generation"),
        ("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=polynya-generation:" + "9" * 40, "generation"),
    ],
)
async def test_a_text_that_is_no_signal_is_refused_and_changes_nothing(text: str, what: str) -> None:
    async with local_agent() as agent:
        with pytest.raises(polynya.DecodeError, match=what):
            agent.add_remote_signal(text)
        assert agent._session.agent.remote_description is None


async def test_an_odd_line_of_a_signal_is_ignored_and_reported() -> None:
    """A candidate outside of any medium."""
    odd = "a=candidate:1 1 UDP 1 192.0.2.1 1 typ host"
    async with local_agent() as agent:
        agent.add_remote_signal(f"a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n{odd}")
        assert agent._session.agent.remote_description is not None and agent.remote_candidates() == []
        assert agent.counters["remote lines ignored"] == 1
        assert "line 3: candidate is only allowed below an m= line" in flat(agent.why())


async def test_a_fragment_of_another_program_is_understood() -> None:
    """RFC 8840, section 9: credentials and the end may be attributes of a medium, whose mid is any name."""
    async with local_agent(components=(1, 1)) as agent:
        agent.add_remote_signal(
            "a=ice-options:trickle ice2\r\n"
            "m=audio 9 RTP/AVP 0\r\na=mid:left\r\na=ice-ufrag:8hhY\r\na=ice-pwd:asd88fgpdd777uzjYhagZg\r\n"
            "m=audio 9 RTP/AVP 0\r\na=mid:right\r\na=candidate:1 1 UDP 2130706431 192.0.2.1 5000 typ host\r\n"
        )
        remote = agent._session.agent.remote_description
        assert remote is not None and (remote.ufrag, remote.trickle) == ("8hhY", True)
        assert agent.stats()["remote-0-1-1-host-192.0.2.1:5000"]["port"] == 5000


async def test_a_stream_is_added_and_another_removed_in_a_restart() -> None:
    """RFC 8445, section 9 with RFC 8839, section 4.4: the other streams keep their numbers, sockets and data."""
    a = local_agent(controlling=True, components=(1, 1), families=(4,))
    b = local_agent(controlling=False, components=(1, 1), families=(4,))
    async with a, b:
        tasks = [asyncio.create_task(carry(*each)) for each in ((a, b), (b, a))]
        kept, removed = await asyncio.gather(a.connect(9, stream=1), a.connect(9, stream=0))
        there, gone = await asyncio.gather(b.connect(9, stream=1), b.connect(9, stream=0))
        sockets = {socket["local"] for socket in a.why().data["gathering"]["sockets"]}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        agreed = (0, 1, 2)
        b.set_remote(a.restart(agreed), agreed)
        kept.send(b"over the old pair")
        assert await there.recv() == b"over the old pair"
        tasks = [asyncio.create_task(carry(*each)) for each in ((a, b), (b, a))]
        for component in (1, 2):
            ours, theirs = await asyncio.gather(
                a.connect(9, stream=2, component=component), b.connect(9, stream=2, component=component)
            )
            ours.send(b"%d" % component)
            assert await theirs.recv() == b"%d" % component
        for ended in (removed, gone):
            with pytest.raises(polynya.ConnectionClosed, match="its stream was removed"):
                await ended.recv()
        with pytest.raises(polynya.UsageError):
            a.connection(0)
        now = {socket["local"] for socket in a.why().data["gathering"]["sockets"]}
        assert len(now) == 3 and len(now & sockets) == 1, "one closed, one stayed, two came"
        there.send(b"still one")
        assert await kept.recv() == b"still one"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(server: socket.socket, mapped: Address) -> None:
    """Lets a STUN server answer the oldest of its pending requests, and no other."""
    while True:
        try:
            question, source = server.recvfrom(2048)
            break
        except BlockingIOError:
            await asyncio.sleep(0.005)  # real sockets
    message = Message.success(decode(question), {XOR_MAPPED_ADDRESS: mapped})
    server.sendto(message.encode(fingerprint=True), source)


async def test_a_late_answer_of_a_server_is_signaled_after_the_end_of_candidates() -> None:
    """RFC 8838, section 13: the end is signaled once and not delayed; the other side accepts later candidates."""
    with socket.socket(type=socket.SOCK_DGRAM) as prompt, socket.socket(type=socket.SOCK_DGRAM) as slow:
        for server in (prompt, slow):
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
        uris = [f"stun:127.0.0.1:{server.getsockname()[1]}" for server in (prompt, slow)]
        a = local_agent(controlling=True, families=(4,), servers=uris)
        b = local_agent(controlling=False, families=(4,))
        async with a, b:
            await answer(prompt, Address("198.51.100.7", 40000))
            texts: list[str] = []
            async for text in a.local_signals():
                texts.append(text)
                b.add_remote_signal(text)
                if read_signal(text).ended:
                    await answer(slow, Address("198.51.100.7", 40001))
                elif "40001" in text:
                    break
            assert [read_signal(text).ended for text in texts][-2:] == [True, False]
            assert a.gathering_state is GatheringState.COMPLETE
            [late] = [each for each in b.stats().values() if each.get("port") == 40001]
            assert late["type"] == "remote-candidate"
