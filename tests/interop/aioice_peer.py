"""aioice as a peer, driven by lines of JSON (`dialogue.py`). The interpreter with aioice runs it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import aioice


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def receive(connection: aioice.Connection) -> None:
    while True:
        try:
            say(received=(await connection.recv()).hex())
        except ConnectionError as error:
            say(closed=str(error))
            return


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--controlling", action="store_true")
    parser.add_argument("--family", type=int, choices=[4, 6], required=True)
    parser.add_argument("--relay", nargs=4, metavar=("HOST", "PORT", "USER", "PASSWORD"), help="by this server only")
    parser.add_argument("--tcp", action="store_true", help="go to it over TCP")
    arguments = parser.parse_args()
    relayed: dict[str, Any] = {}
    if arguments.relay:
        host, port, user, password = arguments.relay
        relayed = {
            "turn_server": (host, int(port)), "turn_username": user, "turn_password": password,
            "turn_transport": "tcp" if arguments.tcp else "udp", "transport_policy": aioice.TransportPolicy.RELAY,
        }  # fmt: skip
    connection = aioice.Connection(
        ice_controlling=arguments.controlling, use_ipv4=arguments.family == 4, use_ipv6=arguments.family == 6, **relayed
    )
    await connection.gather_candidates()
    say(
        description={
            "ufrag": connection.local_username, "password": connection.local_password, "options": [], "lite": False
        }
    )  # fmt: skip
    for candidate in connection.local_candidates:
        say(candidate=candidate.to_sdp())
    say(candidate=None)

    tasks = []

    async def add(text: str | None) -> None:
        await connection.add_remote_candidate(text and aioice.Candidate.from_sdp(text))

    async def connect() -> None:
        try:
            await connection.connect()
        except ConnectionError as error:
            say(failed=str(error))
            return
        pair = connection._nominated[1]
        say(connected={"local": list(pair.local_addr[:2]), "remote": list(pair.remote_addr[:2])})
        await receive(connection)

    reader = await commands()
    while line := await reader.readline():
        command = json.loads(line)
        if "description" in command:
            description = command["description"]
            for text in description.get("candidates", ()):
                await add(text)
            connection.remote_username = description["ufrag"]
            connection.remote_password = description["password"]
            connection.remote_is_lite = description["lite"]
            tasks.append(asyncio.create_task(connect()))
        elif "candidate" in command:
            await add(command["candidate"])
        elif "send" in command:
            await connection.send(bytes.fromhex(command["send"]))
        elif "close" in command:
            break
    await connection.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    say(ended=True)


asyncio.run(main())
