"""Polynya as a peer, driven by lines of JSON: see `dialogue.py` for what is said."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import polynya
from polynya.ice.description import Description


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def trickle(agent: polynya.Agent) -> None:
    async for candidate in agent.candidates():
        say(candidate=str(candidate).removeprefix("candidate:"))
    say(candidate=None)


async def use(agent: polynya.Agent, connected: asyncio.Future[polynya.Connection]) -> None:
    try:
        connection = await agent.connect(timeout=30)
    except polynya.ConnectError as error:
        say(failed=str(error), why=str(agent.why()))
        return
    connected.set_result(connection)
    path = connection.path
    say(connected={"local": list(path.local.address[:2]), "remote": list(path.remote.address[:2])})
    async for data in connection:
        say(received=data.hex())


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--controlling", action="store_true")
    parser.add_argument("--family", type=int, choices=[4, 6], required=True)
    arguments = parser.parse_args()
    async with polynya.Agent(controlling=arguments.controlling, families=(arguments.family,)) as agent:
        own = agent.description
        say(description={"ufrag": own.ufrag, "password": own.password, "options": list(own.options)})
        connected: asyncio.Future[polynya.Connection] = asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(trickle(agent))]
        reader = await commands()
        while line := await reader.readline():
            command = json.loads(line)
            if "description" in command:
                remote = command["description"]
                agent.set_remote(
                    Description(ufrag=remote["ufrag"], password=remote["password"], options=tuple(remote["options"]))
                )
                tasks.append(asyncio.create_task(use(agent, connected)))
            elif "candidate" in command:
                text = command["candidate"]
                agent.add_candidate(text and f"candidate:{text}")
            elif "send" in command:
                (await connected).send(bytes.fromhex(command["send"]))
            elif "why" in command:
                say(why=str(agent.why()))
            elif "close" in command:
                break
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    say(ended=True)


asyncio.run(main())
