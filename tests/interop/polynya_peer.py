"""Polynya as a peer, driven by lines of JSON (`dialogue.py`).

It also writes {"nominated": {"local", "remote", "relayed"}} for each nominated pair.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import polynya
from polynya.ice.config import IceConfig
from polynya.ice.events import Restarted, SelectedPairChanged


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def path(local: polynya.Candidate, remote: polynya.Candidate, *, relayed: bool) -> dict[str, Any]:
    return {"local": list(local.address[:2]), "remote": list(remote.address[:2]), "relayed": relayed}


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def describe(description: polynya.Description) -> None:
    fields = {"ufrag": description.ufrag, "password": description.password, "options": list(description.options)}
    say(description={**fields, "lite": description.lite})


async def trickle(agent: polynya.Agent) -> None:
    describe(agent.description)
    async for candidate in agent.candidates():
        say(candidate=str(candidate).removeprefix("candidate:"))
    say(candidate=None)


async def watch(agent: polynya.Agent) -> None:
    """Signal again after a restart of either side, and report nominated pairs."""
    async for event in agent.events():
        match event:
            case Restarted():
                await trickle(agent)
            case SelectedPairChanged(nominated=True) if event.pair is not None:
                say(nominated=path(event.pair.local, event.pair.remote, relayed=event.pair.relayed))


async def use(agent: polynya.Agent, connected: asyncio.Future[polynya.Connection]) -> None:
    try:
        connection = await agent.connect(timeout=30)
    except polynya.ConnectError as error:
        say(failed=str(error), why=str(agent.why()))
        return
    connected.set_result(connection)
    way = connection.path
    say(connected=path(way.local, way.remote, relayed=way.relayed))
    while True:
        try:
            say(received=(await connection.recv()).hex())
        except polynya.ConnectionClosed as error:
            say(closed=str(error))
            return


def set_remote(agent: polynya.Agent, described: dict[str, Any]) -> None:
    agent.set_remote(
        polynya.Description(
            ufrag=described["ufrag"],
            password=described["password"],
            options=tuple(described["options"]),
            lite=described["lite"],
        )
    )
    for text in described.get("candidates", ()):
        add(agent, text)


def add(agent: polynya.Agent, text: str | None) -> None:
    agent.add_candidate(text and f"candidate:{text}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--controlling", action="store_true")
    parser.add_argument("--family", type=int, choices=[4, 6], required=True)
    parser.add_argument("--lite", action="store_true")
    parser.add_argument("--whole", action="store_true", help="do not say that candidates may follow")
    parser.add_argument("--server", action="append", default=[])
    parser.add_argument("--relay", nargs=4, metavar=("HOST", "PORT", "USER", "PASSWORD"), help="by this server only")
    parser.add_argument("--tcp", action="store_true", help="go to it over TCP")
    arguments = parser.parse_args()
    options = ("ice2",) if arguments.whole else ("ice2", "trickle")
    ice = IceConfig(controlling=arguments.controlling, lite=arguments.lite, options=options)
    relayed: dict[str, Any] = {}
    servers = arguments.server
    if arguments.relay:
        host, port, user, password = arguments.relay
        uri = f"turn:{host}:{port}?transport={'tcp' if arguments.tcp else 'udp'}"
        servers = [*servers, polynya.IceServer(uri, user, password)]
        relayed = {"policy": "relay", "loopback": True}
    async with polynya.Agent(ice=ice, families=(arguments.family,), servers=servers, **relayed) as agent:
        connected: asyncio.Future[polynya.Connection] = asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(watch(agent)), asyncio.create_task(trickle(agent))]
        reader = await commands()
        while line := await reader.readline():
            command = json.loads(line)
            if "description" in command:
                set_remote(agent, command["description"])
                if len(tasks) == 2:
                    tasks.append(asyncio.create_task(use(agent, connected)))
            elif "candidate" in command:
                add(agent, command["candidate"])
            elif "send" in command:
                (await connected).send(bytes.fromhex(command["send"]))
            elif "restart" in command:
                agent.restart()
            elif "why" in command:
                say(why=str(agent.why()))
            elif "close" in command:
                break
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    say(ended=True)


asyncio.run(main())
