"""Wrong arguments of the public API: each is refused at once, by its name, and leaves nothing behind.

The first tests try every parameter with many values of wrong types, ranges and encodings. A value is either accepted or
refused with an error of Polynya; no other exception gets out. The later ones have the values that users gave.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import polynya
from polynya import Address, Agent, Candidate, CandidateType, ConfigurationError, Description, Mux, UsageError
from polynya.aio.driver import Driver

LINE = "candidate:1 1 udp 1 127.0.0.1 9 typ host"
PASSWORD = "a" * 22
DESCRIPTION = Description(ufrag="abcd", password=PASSWORD)
SURROGATE = "\ud800"


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, *_: object) -> bool:
        return True


async def asynchronous(*_: object) -> bool:
    return True


WRONG: list[Any] = [
    None, True, -1, 0, 1, 3, 2**70, 1.5, float("nan"), float("inf"), -1.0,
    "", "text", "x" * 10_000, SURROGATE, b"", b"bytes", bytearray(b"x"), 1j,
    [], [1], [None], ["text"], [b"x"], [[]], [5000, 5001], [SURROGATE],
    (), (1, 2), (1.5,), (True,), ("a", "b"), {}, {"a": 1}, {1: 2}, {"urls": 5}, set(), {4}, range(3),
    object(), object, asynchronous, Unhashable(), Address("192.0.2.1", 5), io.StringIO(), io.BytesIO(),
]  # fmt: skip

CONSTRUCTORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Agent": (Agent, {}),
    "Mux": (Mux, {}),
    "Mux.agent": (Mux().agent, {}),
    "IceServer": (polynya.IceServer, {"uri": "stun:192.0.2.1"}),
    "IceConfig": (polynya.IceConfig, {}),
    "NominationPolicy": (polynya.NominationPolicy, {}),
    "Renomination": (polynya.Renomination, {}),
    "Schedule": (polynya.Schedule, {}),
    "Signaling": (polynya.Signaling, {"url": "http://192.0.2.1", "room": "kitchen"}),
    "connect_room": (polynya.connect_room, {"url": "http://192.0.2.1", "room": "kitchen"}),
    "Room": (polynya.Room, {"url": "http://192.0.2.1", "room": "kitchen"}),
    "TurnClient": (polynya.TurnClient, {"uri": "turn:192.0.2.1", "username": "u", "password": "p"}),
    "Tracer": (polynya.Tracer, {}),
    "TraceWriter": (polynya.TraceWriter, {"file": io.StringIO()}),
    "PcapngWriter": (polynya.PcapngWriter, {"file": io.BytesIO()}),
    "Description": (Description, {"ufrag": "abcd", "password": PASSWORD}),
    "Candidate": (
        Candidate,
        {"foundation": "1", "component": 1, "priority": 1, "address": Address("192.0.2.1", 5),
         "type": CandidateType.HOST},
    ),
}  # fmt: skip

READERS = {"Description", "Candidate"}
"""Their texts come from the other side, so that DecodeError is their answer to a malformed one."""


def parameters(function: Callable[..., Any]) -> list[str]:
    found = inspect.signature(function).parameters.values()
    return [each.name for each in found if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]


def check_message(error: Exception) -> None:
    message = str(error)
    assert len(message) < 400, "a message does not repeat a long value"
    message.encode()


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_option_is_accepted_or_refused_when_the_object_is_made(name: str) -> None:
    make, valid = CONSTRUCTORS[name]
    refusals = (ConfigurationError, UsageError, *((polynya.DecodeError,) if name in READERS else ()))
    for parameter in parameters(make):
        for value in WRONG:
            try:
                make(**{**valid, parameter: value})
            except refusals as error:
                check_message(error)


OTHER: dict[type, list[Any]] = {
    bool: ["no", 1, None, float("nan"), []],
    int: [True, "1", b"1", float("nan"), -1, []],
    float: [True, "1", b"1", float("nan"), float("inf"), -1.0, []],
}
"""Values that an option is never given, by the type of its default."""


@pytest.mark.parametrize("name", sorted(CONSTRUCTORS.keys() - READERS))
def test_every_option_refuses_other_types_than_that_of_its_default(name: str) -> None:
    make, valid = CONSTRUCTORS[name]
    for parameter in inspect.signature(make).parameters.values():
        for value in OTHER.get(type(parameter.default), []):
            try:
                make(**{**valid, parameter.name: value})
            except ConfigurationError:
                continue
            raise AssertionError(f"{parameter.name}={value!r} is accepted")


CALLS: dict[str, Callable[[Agent, Any], Any]] = {
    "set_remote": lambda agent, value: agent.set_remote(value),
    "set_remote components": lambda agent, value: agent.set_remote(DESCRIPTION, value),
    "add_candidate": lambda agent, value: agent.add_candidate(value),
    "add_candidate stream": lambda agent, value: agent.add_candidate(LINE, value),
    "add_remote_signal": lambda agent, value: agent.add_remote_signal(value),
    "candidates": lambda agent, value: anext(agent.candidates(value), None),
    "remote_candidates": lambda agent, value: agent.remote_candidates(value),
    "set_controlling": lambda agent, value: agent.set_controlling(value),
    "restart": lambda agent, value: agent.restart(value),
    "connect": lambda agent, value: agent.connect(0 if value is None else value),
    "connect stream": lambda agent, value: agent.connect(0, stream=value),
    "connect component": lambda agent, value: agent.connect(0, component=value),
    "completed": lambda agent, value: agent.completed(0 if value is None else value),
    "connection": lambda agent, value: agent.connection(value),
    "connection component": lambda agent, value: agent.connection(0, value),
    "why_pair": lambda agent, value: agent.why_pair(value),
    "send": lambda agent, value: agent.connection().send(value),
}
SHORT = 0.001
"""Seconds until an accepted call that waits is given up."""


async def attempt(call: Callable[[], Any]) -> None:
    """Makes a call: it is accepted, or an error of Polynya is its answer."""
    try:
        result = call()
        if isinstance(result, Awaitable):
            async with asyncio.timeout(SHORT):
                await result
    except (ConfigurationError, UsageError, polynya.DecodeError, polynya.ConnectError) as error:
        check_message(error)
    except (TimeoutError, polynya.ConnectionClosed, polynya.TransactionError):
        pass


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("started", [False, True])
async def test_every_argument_of_an_agents_method_is_accepted_or_refused(name: str, started: bool) -> None:
    for value in WRONG:
        agent = Agent(loopback=True, interfaces=["lo"], families=(4,))
        if started:
            agent.start()
        await attempt(partial(CALLS[name], agent, value))
        await agent.close()


async def test_every_argument_of_other_methods_is_accepted_or_refused() -> None:
    relay = polynya.TurnClient("turn:127.0.0.1:9", username="u", password="p")
    room = polynya.Signaling("http://127.0.0.1:9", "kitchen")
    calls: list[Callable[[Any], Any]] = [
        relay.permit,
        relay.bind,
        lambda value: relay.send(value, b""),
        lambda value: relay.send("192.0.2.1:5", value),
        lambda value: relay.set_credentials(value, "p"),
        lambda value: relay.set_credentials("u", value),
        lambda value: room.send_description(value, DESCRIPTION),
        lambda value: room.send_description("peer", value),
        lambda value: room.send_candidate(value, None),
        lambda value: room.send_candidate("peer", value),
        room.controls,
        Description.parse,
        Candidate.parse,
        Address.parse,
        lambda value: Address.of(value, 0),
        lambda value: Address.of("192.0.2.1", value),
        lambda value: polynya.TurnClient("turn:127.0.0.1:9").allocate(SHORT if value is None else value),
    ]
    for call in calls:
        for value in WRONG:
            await attempt(partial(call, value))


@pytest.mark.parametrize("name", ["discover_behavior", "discover_lifetime", "discover_stream_mapping"])
async def test_every_option_of_a_discovery_is_accepted_or_refused(name: str) -> None:
    discover = getattr(polynya, name)
    first: dict[str, Any] = {"server": "stun:127.0.0.1:9"}
    valid = {"servers": ["stun:127.0.0.1:9", "stun:127.0.0.1:10"]} if "stream" in name else first
    for parameter in parameters(discover):
        for value in WRONG:
            await attempt(lambda parameter=parameter, value=value: discover(**{**valid, parameter: value}))


# ------------------------------------------------------------------------------------------------- what users gave

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Agent(ports=[5000, 5001]), r"ports is a pair: write ports=\(5000, 5001\)"),  # type: ignore[arg-type]
    (lambda: Agent(ports=5000), r"write ports=\(5000, 5000\)"),  # type: ignore[arg-type]
    (lambda: Agent(ports=(5001, 5000)), "LOW, HIGH"),
    (lambda: Agent(ports=(True, True)), "LOW, HIGH"),
    (lambda: Agent(interfaces="eth0"), r"write interfaces=\['eth0'\]"),
    (lambda: Agent(interfaces=[]), "None uses all"),
    (lambda: Agent(interfaces=asynchronous), "a plain function"),  # type: ignore[arg-type]
    (lambda: Agent(addresses=["eth0"]), "addresses: 'eth0' is not an IP address"),
    (lambda: Agent(families=[4, 4]), "each once"),
    (lambda: Agent(families=(4.0,)), "families must be"),  # type: ignore[arg-type]
    (lambda: Agent(controlling="no"), "controlling is True or False, not 'no'"),  # type: ignore[arg-type]
    (lambda: Agent(loopback="no"), "loopback is True or False"),  # type: ignore[arg-type]
    (lambda: Agent(components=2), r"write components=\(2,\)"),  # type: ignore[arg-type]
    (lambda: Agent(components=(True,)), "1 to 256 components"),
    (lambda: Agent(servers=None), "servers is a list, not None"),  # type: ignore[arg-type]
    (lambda: Agent(servers=[b"stun:192.0.2.1"]), "not bytes"),  # type: ignore[list-item]
    (lambda: Agent(nat_1to1={"10.0.0.1": "2001:db8::1"}), "not of the same IP version"),
    (lambda: Agent(nat_1to1={"10.0.0.1": "0.0.0.0"}), "unspecified"),
    (lambda: Agent(nat_1to1=[("10.0.0.1", "192.0.2.1")]), "a dictionary"),  # type: ignore[arg-type]
    (lambda: Agent(ice={"ufrag": "abcd"}), r"write ice=polynya\.IceConfig"),  # type: ignore[arg-type]
    (lambda: Agent(tls=True), "ssl.create_default_context"),  # type: ignore[arg-type]
    (lambda: Agent(trace=print), r"polynya\.Tracer"),  # type: ignore[arg-type]
    (lambda: Agent(capture=polynya.PcapngWriter(io.BytesIO())), "capture is a function"),  # type: ignore[arg-type]
    (lambda: Agent(credentials=("user", "password")), "a function"),  # type: ignore[arg-type]
    (lambda: Mux(port=70000), r"port is a number within 0\.\.65535, not 70000"),
    (lambda: Mux(port=None), "port is a number"),  # type: ignore[arg-type]
    (lambda: polynya.IceConfig(options="trickle"), r"write options=\['trickle'\]"),  # type: ignore[arg-type]
    (lambda: polynya.IceConfig(options=("two words",)), "options"),
    (lambda: Agent(ice=polynya.IceConfig(ufrag="a", password=PASSWORD)), "the ufrag 'a' is not 4 to 256"),
    (lambda: polynya.IceConfig(ufrag="abcd", password="short"), "password is not 22 to 256"),
    (lambda: polynya.IceConfig(ufrag=b"abcd", password=PASSWORD), "decode it first"),  # type: ignore[arg-type]
    (lambda: polynya.IceConfig(keepalive=True), "keepalive is more than zero seconds, not True"),
    (lambda: polynya.IceConfig(patience=1e12), "at most 1000000000 seconds"),
    (lambda: polynya.IceConfig(pair_limit=1.5), "pair_limit is a number"),  # type: ignore[arg-type]
    (lambda: polynya.IceConfig(lite=1), "lite is True or False"),  # type: ignore[arg-type]
    (lambda: polynya.Schedule(sends=2.5), "sends of a schedule is a number"),  # type: ignore[arg-type]
    (lambda: polynya.Schedule(sends=10**6), "within 1..32"),
    (lambda: polynya.Signaling("http://192.0.2.1", "kitchen", timeout=-1), "timeout is more than zero seconds, not -1"),
    (lambda: polynya.Signaling("http://192.0.2.1", "kitchen", reconnect=float("inf")), "reconnect is zero or more"),
    (lambda: polynya.Signaling("http://192.0.2.1", b"kitchen"), "decode it first"),  # type: ignore[arg-type]
    (lambda: polynya.Signaling(SURROGATE, "kitchen"), "surrogate"),
    (lambda: polynya.connect_room("http://192.0.2.1", "kitchen", timeout=-1), "timeout is zero or more"),
    (lambda: polynya.connect_room("http://192.0.2.1", "kitchen", timeout="5"), "not '5'"),  # type: ignore[arg-type]
    (lambda: polynya.connect_room("http://192.0.2.1", "kitchen", servers="stun:192.0.2.1"), "servers is a list"),
    (lambda: polynya.connect_room("http://192.0.2.1", "kitchen", controlling=True), "ids of the two members"),
    (lambda: polynya.Room("http://192.0.2.1", "kitchen", controlling=True), "ids of the two members"),
    (lambda: polynya.connect_room("http://192.0.2.1", "kitchen", trace=None), "write trace=polynya.Tracer"),
    (lambda: polynya.Room("http://192.0.2.1", "kitchen", servers="stun:192.0.2.1"), "servers is a list"),
    (lambda: polynya.TurnClient("turn:192.0.2.1", password="p"), "a password needs a username"),
    (lambda: polynya.TurnClient("turn:192.0.2.1", lifetime=-600), "lifetime is zero or more"),
    (lambda: polynya.TurnClient("turn:192.0.2.1", lifetime=2**33), "lifetime"),
    (lambda: polynya.TurnClient("turn:192.0.2.1", local="eth0"), "local: 'eth0'"),
    (lambda: polynya.TurnClient("turn:192.0.2.1", reservation_token="12345678"), "string of bytes"),  # type: ignore[arg-type]
    (lambda: polynya.IceServer("turn:192.0.2.1", "user", 5), "password of an IceServer"),  # type: ignore[arg-type]
    (lambda: polynya.PcapngWriter(io.StringIO()), 'mode "wb"'),  # type: ignore[arg-type]
    (lambda: polynya.Tracer(asynchronous), "a plain function"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_users_gave_is_refused_with_what_to_do(case: int) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message):
        make()


async def test_a_file_opened_in_the_other_mode_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "trace").open("wb") as binary, pytest.raises(ConfigurationError, match='mode "w"'):
        polynya.TraceWriter(binary)  # type: ignore[arg-type]


def test_filters_need_no_hash_and_lists_need_no_tuple() -> None:
    Agent(interfaces=Unhashable(), addresses=Unhashable(), families=[4], components=[1, 2])
    assert polynya.IceConfig(components=[2], options=["ice2"]).options == ("ice2",)  # type: ignore[arg-type]


async def test_what_users_passed_to_methods_is_refused_with_what_to_do() -> None:
    async with Agent(loopback=True) as agent:
        with pytest.raises(UsageError, match=r"stream is a number within 0\.\.65535, not None"):
            agent.add_candidate(LINE, stream=None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="pass its SDP line"):
            agent.add_candidate({"candidate": LINE})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"Description\.parse"):
            agent.set_remote("a=ice-ufrag:abcd")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="encode it first"):
            agent.connection().send("text")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="timeout is zero or more seconds, not -1"):
            await agent.connect(timeout=-1)
        with pytest.raises(UsageError, match=r"write components=\(2,\)"):
            agent.restart(2)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="True or False"):
            agent.set_controlling("controlled")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- nothing is left behind


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def breaks(*_: object) -> bool:
    raise ZeroDivisionError("a filter of the user")


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
@pytest.mark.parametrize("option", ["interfaces", "addresses"])
@pytest.mark.parametrize("kind", [Agent, Mux])
async def test_a_filter_that_raises_leaves_nothing_open(kind: Any, option: str) -> None:
    before = descriptors()
    with pytest.raises(ZeroDivisionError):
        async with kind(loopback=True, **{option: breaks}):
            pass
    gc.collect()
    assert descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
async def test_a_refused_call_leaves_nothing_open() -> None:
    """`tests/loops.py` also fails on tasks, and pytest on ResourceWarning."""
    before = descriptors()
    for make, _ in REFUSED:
        with pytest.raises(ConfigurationError):
            make()
    for call in (polynya.discover_behavior("stun:127.0.0.1:9", local="eth0"), polynya.discover_lifetime("turn:h")):
        with pytest.raises(ConfigurationError):
            await call
    gc.collect()
    assert descriptors() == before


def test_starting_without_a_running_loop_says_how_to_run_one() -> None:
    with pytest.raises(UsageError, match=r"asyncio\.run"):
        Agent().start()
    with pytest.raises(UsageError, match=r"asyncio\.run"):
        Driver(None, on_event=print)  # type: ignore[type-var]


async def test_a_capture_needs_no_trace() -> None:
    captured = []
    options: dict[str, Any] = {"loopback": True, "interfaces": ["lo"], "families": (4,)}
    async with Agent(servers=["stun:127.0.0.1:9"], capture=lambda *got: captured.append(got), **options) as agent:
        async for _ in agent.candidates():
            pass
    assert captured, "packets were captured"


@pytest.mark.parametrize("missing", ["msgspec", "websockets"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import polynya\n"
        "try: polynya.connect_room('http://192.0.2.1', 'kitchen')\n"
        "except ImportError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"polynya.connect_room needs {missing}: pip install 'polynya[signaling]'\n"
    assert ran.stderr == ""
