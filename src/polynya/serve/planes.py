"""Chooses the data plane of the TURN server, binds its UDP listeners and runs it in the server's event loop.

| where                          | plane                                                                     |
|--------------------------------|---------------------------------------------------------------------------|
| Linux, no workers              | portable, in the server's own loop                                        |
| Linux, with workers            | portable, in worker processes; the relays of streams in the loop          |
| elsewhere, or with a trace     | the reference forwarder on the driver's sockets: slower, traces packets   |
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Any, Final

from polynya.aio import sockets
from polynya.aio.driver import Driver
from polynya.aio.icmp import read_errors
from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.trace import Tracer
from polynya.plane.portable import PortablePlane
from polynya.plane.sockets import bind_listeners
from polynya.plane.workers import WorkerPlane
from polynya.stun.listeners import Place
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.server import TurnServer

from .config import TurnOptions
from .discovery import Discovery
from .rounds import Rounds

logger: Final = logging.getLogger("polynya.serve.turn")

CHECK_TIME: Final = 1.0
"""Seconds between two checks of the workers."""
TRIES: Final = 16
"""Ports that are tried if the system's choice for UDP is in use for TCP."""
_ERRORS: Final = "polynya.aio.icmp:read_errors"


@dataclass(frozen=True, slots=True)
class _Bound:
    """The sockets of one UDP listener."""

    local: Address
    sockets: list[socket.socket]


class PlaneRunner:
    """Runs the TURN server with the data plane for this host and these options.

    Making it binds the listeners. Raises ConfigurationError, with nothing left open, if a listener cannot be bound.
    """

    def __init__(
        self, options: TurnOptions, listen: Sequence[Address], discovery: Discovery, flow_ids: FlowIds, trace: Tracer
    ) -> None:  # fmt: skip
        random = SystemRandom()
        config, directory = options.config, options.directory()
        self.places: tuple[Place, ...]
        """The listeners that the driver must open, for each of `listen` in order."""
        self.more: tuple[Place, ...] = ()
        """The listeners that the driver must open for behavior discovery."""
        self.machine: TurnServer
        self._bound: dict[Flow, _Bound] = {}
        self._portable: PortablePlane | None = None
        self._workers: WorkerPlane | None = None
        self._gather = options.gather
        self._rounds: Rounds | None = None
        self._step: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if trace.enabled or not hasattr(select, "epoll"):
            if options.workers:
                raise ConfigurationError(
                    "workers need Linux and cannot be traced: set workers to 0 or leave the trace out"
                )
            self.places = tuple(Place(each, (Transport.UDP, Transport.TCP)) for each in listen)
            self.more = tuple(Place(each, (Transport.UDP,)) for each in discovery.more)
            self.machine = TurnServer(config, directory, Forwarder(flow_ids, random=random), random=random, trace=trace)
            logger.info("data plane: reference")
            return
        try:
            for address in (*listen, *discovery.more):
                self._bound[flow_ids.new()] = _bind(address, max(options.workers, 1))
            by_flow = {flow: bound.sockets for flow, bound in self._bound.items()}
            origins = {flow: origin.attributes for flow, origin in discovery.origins(self.udp).items()}
            plane: PortablePlane | WorkerPlane
            if options.workers:
                plane = self._workers = WorkerPlane(
                    by_flow,
                    options.workers,
                    gather=options.gather,
                    origins=origins,
                    errors=_ERRORS,
                    read_errors=read_errors,
                )
            else:
                first = {flow: each[0] for flow, each in by_flow.items()}
                plane = self._portable = PortablePlane(
                    first, gather=options.gather, origins=origins, read_errors=read_errors
                )
            self.machine = TurnServer(config, directory, plane, random=random, trace=trace)
        except BaseException:
            self.close()
            raise
        self.places = tuple(Place(bound.local, (Transport.TCP,)) for bound in list(self._bound.values())[: len(listen)])
        logger.info("data plane: portable, %s", f"{options.workers} workers" if options.workers else "in this process")

    def start(self, driver: Driver[Any]) -> None:
        """Run the data plane in the event loop of this driver, which runs the machine."""
        loop, machine = asyncio.get_running_loop(), self.machine
        if self._portable is not None:
            portable = self._portable

            def settle() -> None:
                if portable.pending:  # most packets lead to no report, and then a step of the driver is saved
                    driver.call(machine.settle)

            self._rounds = Rounds(portable, self._gather, settle, loop)
        elif self._workers is not None:
            workers = self._workers

            def run() -> None:
                workers.run(0)
                for process, code in workers.deaths:
                    logger.error(
                        "worker process %d ended with code %d; a new one continues its allocations", process, code
                    )
                workers.deaths.clear()
                driver.call(machine.settle)

            loop.add_reader(workers.fileno(), run)
            self._step = run
            self._check_workers()

    def _check_workers(self) -> None:
        if self._step is not None:
            self._step()
            self._timer = asyncio.get_running_loop().call_later(CHECK_TIME, self._check_workers)

    async def refresh(self) -> None:
        """Update the counts of the workers."""
        if self._workers is not None:
            self._workers.request_counts()
            await asyncio.sleep(0.05)

    @property
    def udp(self) -> dict[Flow, Address]:
        """The UDP listeners that the data plane reads."""
        return {flow: bound.local for flow, bound in self._bound.items()}

    @property
    def kernel_drops(self) -> int:
        """Datagrams that were dropped because a listener's receive buffer was full."""
        bound = (sock for each in self._bound.values() for sock in each.sockets)
        return sum(sockets.kernel_drops(sock) or 0 for sock in bound)

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return self._workers.processes if self._workers is not None else ()

    def close(self) -> None:
        """Close relays and listeners, and end the workers. Safe to call twice."""
        if self._rounds is not None:
            self._rounds.close()
        if self._workers is not None and self._step is not None:
            asyncio.get_running_loop().remove_reader(self._workers.fileno())
        for plane in (self._portable, self._workers):
            if plane is not None:
                plane.close()
        self._portable = self._workers = self._rounds = self._step = None
        if self._timer is not None:
            self._timer.cancel()
        for bound in self._bound.values():
            for sock in bound.sockets:
                sock.close()
        self._bound.clear()


def _bind(address: Address, count: int) -> _Bound:
    """Bind the UDP sockets of an address; port 0 chooses a port that is free for TCP, too."""
    for tries in range(TRIES):
        try:
            made = bind_listeners(address, count)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on udp {address}: {sockets.explain(error)}") from None
        local = sockets.from_sockaddr(made[0].getsockname())
        if address.port or tries == TRIES - 1 or _is_free(local):
            return _Bound(local, made)
        for sock in made:
            sock.close()
    raise AssertionError("the last try returns")


def _is_free(address: Address) -> bool:
    """Whether no TCP listener uses this address."""
    family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(sockets.to_sockaddr(address))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
