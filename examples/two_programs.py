"""Two programs that connect, with a TCP connection for the signaling. Candidates are told as they are found.

    python two_programs.py listen 9000
    python two_programs.py dial 9000

Anything that carries lines both ways would do in place of TCP. Both programs run on one host here; for two hosts give
`dial` an address, drop `loopback=True` and name a STUN server.
"""

from __future__ import annotations

import argparse
import asyncio
import json

import polynya


async def tell(agent: polynya.Agent, writer: asyncio.StreamWriter) -> None:
    """Signal all there is, as long as the agent lives: our description, each candidate when it is found, restarts."""
    async for text in agent.local_signals():
        writer.write(json.dumps(text).encode() + b"\n")
        await writer.drain()


async def hear(agent: polynya.Agent, reader: asyncio.StreamReader) -> None:
    """Give the agent what the other side signals."""
    while line := await reader.readline():
        agent.add_remote_signal(json.loads(line))


async def talk(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, controlling: bool) -> None:
    async with polynya.Agent(controlling=controlling, loopback=True) as agent, asyncio.TaskGroup() as tasks:
        signaling = [tasks.create_task(tell(agent, writer)), tasks.create_task(hear(agent, reader))]
        connection = await agent.connect(timeout=20)
        connection.send(f"hello from {name}".encode())
        print((await connection.recv()).decode())
        print(f"path: {connection.path}")
        for task in signaling:
            task.cancel()
    writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["listen", "dial"])
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    if arguments.mode == "dial":
        reader, writer = await asyncio.open_connection(arguments.host, arguments.port)
        await talk("the one who dialled", reader, writer, controlling=True)
        return
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: accepted.put_nowait(streams), arguments.host, arguments.port)
    print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
    await talk("the one who listened", *await accepted.get(), controlling=False)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
