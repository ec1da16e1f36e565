"""A server with one UDP port for all of its clients, which need no signaling: they know its address.

    python one_port.py 20

Each client makes up one secret, which stands for all that is signaled otherwise: it is the ufrag and the password of
both sides. The server hears of a client by its first check, which names the ufrag, and makes the agent that answers it.
So does libp2p's WebRTC Direct. Whoever reads the checks learns the secret: what is sent must be protected by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets

import polynya

LABEL = "example/"
LARGEST = 200
"""Clients at a time; who knows the address may ask for an agent, so somebody has to count."""


def credentials(secret: str) -> polynya.IceConfig:
    return polynya.IceConfig(ufrag=secret, password=secret)


class Server:
    """Answers every client in capitals."""

    def __init__(self) -> None:
        self.mux = polynya.Mux(loopback=True, addresses=["127.0.0.1"], on_unknown_peer=self.meet)
        self.serving: set[asyncio.Task[None]] = set()

    def meet(self, stranger: polynya.UnknownPeer) -> None:
        """A check for a ufrag that nobody has."""
        if not stranger.ufrag.startswith(LABEL) or len(self.serving) >= LARGEST:
            return
        agent = self.mux.agent(controlling=False, ice=credentials(stranger.ufrag))
        agent.start()
        agent.set_remote(polynya.Description(ufrag=stranger.remote_ufrag, password=stranger.ufrag))
        task = asyncio.create_task(self.serve(agent))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def serve(self, agent: polynya.MuxedAgent) -> None:
        try:
            async for message in await agent.connect(timeout=20):
                agent.connection().send(message.upper())
        except polynya.ConnectError as error:
            print(f"a client was given up: {error}")
        finally:
            await agent.close()


async def call(server: polynya.Candidate, number: int) -> str:
    """One client: all it knows is where the server is."""
    secret = LABEL + secrets.token_hex(12)
    async with polynya.Agent(
        controlling=True, loopback=True, addresses=["127.0.0.1"], ice=credentials(secret)
    ) as agent:
        agent.set_remote(polynya.Description(ufrag=secret, password=secret))
        agent.add_candidate(server)
        agent.add_candidate(None)
        connection = await agent.connect(timeout=20)
        connection.send(f"client {number}".encode())
        return (await connection.recv()).decode()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clients", type=int, nargs="?", default=20)
    clients = parser.parse_args().clients
    server = Server()
    async with server.mux as mux:
        where = polynya.Candidate(
            foundation="1", component=1, priority=1, address=mux.addresses[0], type=polynya.CandidateType.HOST
        )
        answers = await asyncio.gather(*(call(where, number) for number in range(clients)))
        if answers != [f"CLIENT {number}" for number in range(clients)]:
            raise RuntimeError(f"wrong answers: {answers}")
        print(f"{clients} clients were answered through port {mux.addresses[0].port}")
        for task in list(server.serving):
            task.cancel()
        await asyncio.gather(*server.serving, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
