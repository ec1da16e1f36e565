"""Two programs that connect, with a TCP connection for the signaling. Candidates are signaled as they are found.

    python two_programs.py listen 9000
    python two_programs.py dial 9000

Anything that carries lines both ways works in place of TCP. Both programs run on one host here. For two hosts, give
`dial` an address, leave out `loopback=True` and name a STUN server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json

import polynya


async def send_signals(agent: polynya.Agent, writer: asyncio.StreamWriter) -> None:
    """Signals the description, each candidate when it is found, and restarts, until the agent is closed."""
    with contextlib.suppress(ConnectionError):  # the other program may end first
        async for text in agent.local_signals():
            writer.write(json.dumps(text).encode() + b"\n")
            await writer.drain()


async def receive_signals(agent: polynya.Agent, reader: asyncio.StreamReader) -> None:
    """Passes the signals of the other side to the agent."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            agent.add_remote_signal(json.loads(line))


async def talk(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, controlling: bool) -> None:
    async with polynya.Agent(controlling=controlling, loopback=True) as agent, asyncio.TaskGroup() as tasks:
        signaling = [tasks.create_task(each) for each in (send_signals(agent, writer), receive_signals(agent, reader))]
        connection = await agent.connect(timeout=20)
        await agent.completed(timeout=20)  # neither side ends before both have settled on a path
        path = connection.path
        connection.send(f"hello from {name}".encode())
        print((await connection.recv()).decode())  # by now, the other program may have closed the connection
        print(f"path: {path}")
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
        await talk("the dialing program", reader, writer, controlling=True)
        return
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: accepted.put_nowait(streams), arguments.host, arguments.port)
    print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
    await talk("the listening program", *await accepted.get(), controlling=False)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
