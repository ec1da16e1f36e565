"""A server on one UDP port for any number of clients, each with a lite agent of its own (RFC 8445, section 2.5).

    python lite_server.py serve 9000
    python lite_server.py call 9000 "hello"

A lite agent has host candidates only and sends no checks. It answers the checks of the full agent, which selects the
pair. This suits a server with a public address. A client sends its description over TCP, to the port with the same
number. The server answers with its own description and candidate, and echoes the data of the client.

`LiteServer` is a machine like those of Polynya, and contains one of them: it also runs in the virtual network.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from contextlib import suppress
from itertools import count
from typing import Any

import polynya
from polynya.aio.driver import Driver
from polynya.core.addresses import Address
from polynya.core.flows import FlowIds
from polynya.core.instants import Instant
from polynya.core.machine import Input, Opened, Output
from polynya.core.pacer import Pacer
from polynya.ice.agent import IceAgent
from polynya.ice.config import IceConfig
from polynya.session.mux import AgentData, Mux
from polynya.session.options import HostAddress

LITE = IceConfig(lite=True, controlling=False, options=("ice2",))


class LiteServer:
    """A machine with one socket and an agent for each client. It echoes all data."""

    def __init__(self, local: Address, *, flow_ids: FlowIds, random: random.Random) -> None:
        self.local = local
        self._flow = flow_ids.new()
        self._random = random
        self._pacer = Pacer()
        self._mux: Mux[int] = Mux(random=random, pacer=self._pacer)
        self._numbers = count(1)
        self._mux.open(self._flow, HostAddress(address=local, interface="", pinned=False))

    def welcome(self, description: polynya.Description, *, now: Instant) -> tuple[int, IceAgent]:
        """Make an agent for a client. Returns its number, and the agent to signal from."""
        number = next(self._numbers)
        agent = IceAgent(LITE, random=self._random, pacer=self._pacer)
        agent.set_remote(description, now=now)
        self._mux.add(number, agent)
        self._mux.gather(number, now=now)
        return number, agent

    def farewell(self, number: int, *, now: Instant) -> None:
        """Remove the agent of a client that hung up: a lite agent does not notice it."""
        self._mux.remove(number, now=now)

    # ------------------------------------------------------------------------------------------- what every machine has

    def receive(self, input: Input, *, now: Instant) -> None:
        if isinstance(input, Opened):
            self.local = input.local
        self._mux.receive(input, now=now)

    def tick(self, *, now: Instant) -> None:
        self._mux.tick(now=now)

    def next_timer(self) -> Instant | None:
        return self._mux.next_timer()

    def outputs(self) -> list[Output]:
        for event in self._mux.events():
            if isinstance(event, AgentData):
                self._mux.send(event.name, event.data)
        return self._mux.outputs()

    def events(self) -> list[Any]:
        return []


class Front:
    """Signaling of the server: one line from the client, one line back. The client hangs up when it is done."""

    def __init__(self, driver: Driver[LiteServer]) -> None:
        self._driver = driver

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine = self._driver.machine
        try:
            description = polynya.Description.parse(json.loads(await reader.readline()))
            number, agent = self._driver.call(machine.welcome, description)
            try:
                [candidate] = [str(local.candidate) for local in agent.local_candidates()]
                writer.write(json.dumps([agent.local_description.to_sdp(), candidate]).encode() + b"\n")
                await reader.read()  # until the client hangs up
            finally:
                self._driver.call(machine.farewell, number)
        except (ValueError, polynya.PolynyaError) as error:
            print(f"a client was refused: {error}")
        finally:
            writer.close()


async def serve(host: str, port: int) -> None:
    flow_ids = FlowIds()
    machine = LiteServer(Address.of(host, port), flow_ids=flow_ids, random=random.SystemRandom())
    driver = Driver(machine, on_event=print, flow_ids=flow_ids)
    driver.call(machine.tick)  # the first call carries out what the machine wants: its socket
    try:
        async with await asyncio.start_server(Front(driver).meet, host, machine.local.port) as server:
            print(f"serving on {machine.local}", flush=True)
            await server.serve_forever()
    finally:
        await driver.aclose()


async def call(host: str, port: int, text: str) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    async with polynya.Agent(controlling=True, loopback=True) as agent:
        writer.write(json.dumps(agent.description.to_sdp()).encode() + b"\n")
        description, candidate = json.loads(await reader.readline())
        agent.set_remote(polynya.Description.parse(description))
        agent.add_candidate(candidate)
        agent.add_candidate(None)
        connection = await agent.connect(timeout=10)
        await agent.completed()  # a lite agent sends nothing before a pair is nominated
        connection.send(text.encode())
        print((await connection.recv()).decode())
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "call"):
        commands.add_parser(name).add_argument("port", type=int)
    commands.choices["call"].add_argument("text")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(arguments.host, arguments.port))
    else:
        asyncio.run(call(arguments.host, arguments.port, arguments.text))


if __name__ == "__main__":
    main()
