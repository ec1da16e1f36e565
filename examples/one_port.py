"""A server with one UDP port for all of its clients, which need no signaling: they know its address.

    python one_port.py 20

Each client makes one secret, which replaces the signaling: it is the ufrag and the password of both sides. The first
check of a client names the ufrag, and the server makes the agent that answers it. libp2p's WebRTC Direct works like
this. A check shows the secret to everyone on the path, so encrypt the data itself.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets

import polynya

LABEL = "example/"
LARGEST = 200
"""Clients at a time: anyone who knows the address may send a check, so the server limits its agents."""


def credentials(secret: str) -> polynya.IceConfig:
    return polynya.IceConfig(ufrag=secret, password=secret)


class Server:
    """Answers every message in capital letters."""

    def __init__(self) -> None:
        self.mux = polynya.Mux(loopback=True, addresses=["127.0.0.1"], on_unknown_peer=self.meet)
        self.serving: set[asyncio.Task[None]] = set()

    def meet(self, peer: polynya.UnknownPeer) -> None:
        """Makes an agent for a check whose ufrag no agent has."""
        if not peer.ufrag.startswith(LABEL) or len(self.serving) >= LARGEST:
            return
        agent = self.mux.agent(controlling=False, ice=credentials(peer.ufrag))
        agent.start()
        agent.set_remote(polynya.Description(ufrag=peer.remote_ufrag, password=peer.ufrag))
        task = asyncio.create_task(self.serve(agent))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def serve(self, agent: polynya.MuxedAgent) -> None:
        try:
            connection = await agent.connect(timeout=20)
            async for message in connection:
                connection.send(message.upper())
        except polynya.ConnectError as error:
            print(f"no connection to a client: {error}")
        finally:
            await agent.close()


async def call(server: polynya.Candidate, number: int) -> str:
    """Sends one message as a client, which knows only the address of the server, and returns the answer."""
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
