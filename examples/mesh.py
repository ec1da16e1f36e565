"""A mesh: every program that joins the room greets each other one, over a connection of their own.

polynya serve --http 127.0.0.1:8080 --listen 127.0.0.1:3478
python mesh.py http://127.0.0.1:8080 alice      # and bob, and carol, each in a terminal
"""

import asyncio
import sys

import polynya


async def talk(connection: polynya.Connection, name: str) -> None:
    connection.send(f"hello from {name}".encode())
    async for data in connection:
        print(data.decode(), flush=True)


async def main(url: str, name: str) -> None:
    async with asyncio.TaskGroup() as tasks, polynya.Room(url, "mesh") as room:
        async for _, connection in room:
            tasks.create_task(talk(connection, name))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
