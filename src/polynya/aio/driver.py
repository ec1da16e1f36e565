"""The driver: runs one machine on real sockets in the running event loop.

Whatever happens (a datagram, a timer, a call of the user) is one step: the machine is called once, then its outputs
are carried out, then its events are told, and at last the one timer is set. What happens meanwhile (a socket that was
opened at once, a send that failed) waits in the inbox and is the next step; so nothing is ever called from within
itself, and an event's receiver may call the machine again.

    socket, timer, user --> machine --> outputs --> events --> timer
                 ^                         |           |
                 +------- inbox <----------+           +--> on_event, which may `call` again
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds
from polynya.core.machine import Close, Input, Machine, Open, Output, Resolve, Send
from polynya.core.trace import NO_TRACE, Tracer

from . import clock
from .alarm import alarm
from .dns import ResolveName, Resolver
from .hub import Hub
from .packet_trace import Capture, PacketTrace
from .tcp import STREAM_LIMITS, StreamLimits, Tls, tls_contexts
from .udp import Deliver, SendData

R = TypeVar("R")
MachineT = TypeVar("MachineT", bound=Machine[Any, Any, Any])


class Driver(Generic[MachineT]):
    """Runs one machine on real sockets in the running event loop.

    Make it inside a running loop and close it there. `on_event` gets each event after the outputs of its step were
    carried out; what it raises goes to the loop's exception handler. `flow_ids` allocates the machine's flows.

    `tls` is the context of TLS flows, or a function that makes one for each `Open`; the default trusts the system's
    certificate authorities. `resolve` looks up host names in place of the system's resolver. `capture` is called for
    every packet while `trace` is enabled. `ip_fields` requests the ECN, DSCP and TTL of datagrams that arrive, which
    makes each datagram a little slower.
    """

    __slots__ = (
        "__weakref__",
        "_alarm",
        "_called_again",
        "_hub",
        "_inbox",
        "_loop",
        "_on_event",
        "_resolver",
        "_stepping",
        "_tasks",
        "closed",
        "flow_ids",
        "machine",
    )

    def __init__(
        self,
        machine: MachineT,
        *,
        on_event: Callable[[Any], None],
        flow_ids: FlowIds | None = None,
        trace: Tracer = NO_TRACE,
        resolve: ResolveName | None = None,
        tls: Tls | None = None,
        limits: StreamLimits = STREAM_LIMITS,
        capture: Capture | None = None,
        ip_fields: bool = False,
    ) -> None:
        self.machine = machine
        self.flow_ids = flow_ids or FlowIds()
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._resolver = None if resolve is None else Resolver(resolve=resolve)
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._inbox: tuple[Input, ...] = ()
        self._stepping = False
        self._called_again = False
        self._alarm = alarm(self._loop)
        self._hub = Hub(
            self._loop,
            self,
            tls=tls_contexts(tls),
            limits=limits,
            ip_fields=ip_fields,
            trace=PacketTrace(trace, capture) if trace.enabled else None,
        )

    # ------------------------------------------------------------------------------------------- user

    def call(self, method: Callable[..., R], *args: Any) -> R:
        """Call `method(*args, now=now)` on the machine and carry out what follows. Returns what the method returns.

        Safe from within `on_event`: what follows is then carried out before anything new from outside. After the
        driver was closed nothing is sent any more, but events are still told.
        """
        if self._stepping:
            self._called_again = True
            return method(*args, now=clock.now())
        self._stepping = True
        try:
            return method(*args, now=clock.now())
        finally:
            self._finish_step()

    def take(self, input: Input) -> None:
        """Give the machine an input: now, or as soon as the step that is under way ends."""
        if self.closed:
            return
        if self._stepping or self._inbox:
            self._inbox += (input,)
            self._resume()
            return
        self._stepping = True
        try:
            self.machine.receive(input, now=clock.now())
        finally:
            self._finish_step()

    def accept_data(self, flow: Flow, remote: Address, deliver: Deliver) -> None:
        """From now on a datagram on `flow` from `remote` that is not STUN goes straight to `deliver`.

        A flow that is gone meanwhile is no error: nothing will come from it.
        """
        self._hub.accept(flow, remote, deliver)

    def refuse_data(self, flow: Flow, remote: Address) -> None:
        """From now on datagrams on `flow` from `remote` go to the machine again."""
        self._hub.refuse(flow, remote)

    def sender(self, flow: Flow, remote: Address) -> SendData:
        """A function that sends a datagram on `flow` to `remote` at once.

        It returns False when the system refused: counted, and a `SendFailed` for the machine unless a buffer was full.
        """
        return self._hub.sender(flow, remote)

    @property
    def counters(self) -> dict[str, int]:
        """Datagrams and bytes in and out, kernel drops, and failed sends by the error's name, since the start."""
        return self._hub.counters()

    def receive_buffers(self) -> dict[Flow, int]:
        """Bytes of receive buffer that the system granted each open UDP flow."""
        return self._hub.receive_buffers()

    def write_buffers(self) -> dict[Flow, int]:
        """Bytes that wait to be written on each open stream."""
        return self._hub.write_buffers()

    # ------------------------------------------------------------------------------------------ close

    def close_now(self) -> None:
        """Close every socket and cancel every timer and task, without waiting. Safe to call twice."""
        self._stop()
        self._hub.abort()

    async def aclose(self) -> None:
        """Close everything; streams get a second to write what waits. Safe to call twice, and to cancel."""
        self._stop()
        await self._hub.aclose()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets one turn later

    def _stop(self) -> None:
        if not self.closed:
            self._alarm.leave(self)
        self.closed = True
        self._inbox = ()
        for task in self._tasks:
            task.cancel()

    # ------------------------------------------------------------------------------------------- step

    def _finish_step(self) -> None:
        """Drain the machine, feed it what waits, and set the timer. The caller has set `_stepping`."""
        refusal: ConfigurationError | None = None
        machine = self.machine
        try:
            while True:
                refusal = self._drain() or refusal
                if not self._inbox:
                    break
                first, *rest = self._inbox
                self._inbox = tuple(rest)
                machine.receive(first, now=clock.now())
        finally:
            self._stepping = False
            if self._inbox:  # the machine raised: what waits is not lost with it
                self._loop.call_soon(self._resume)
            self._set_timer()
        if refusal is not None:
            raise refusal

    def _resume(self) -> None:
        if not self._stepping and self._inbox:
            self._stepping = True
            self._finish_step()

    def _drain(self) -> ConfigurationError | None:
        """Outputs, then events, and again if the events' receiver called the machine. Returns what cannot be opened."""
        refusal = None
        machine = self.machine
        while True:
            self._called_again = False
            for output in machine.outputs():
                try:
                    self._perform(output)
                except ConfigurationError as error:
                    refusal = refusal or error
            for event in machine.events():
                try:
                    self._on_event(event)
                except Exception as error:  # noqa: BLE001  # the receiver's fault must not stop the machine
                    self._report("on_event failed", error)
            if not self._called_again:
                return refusal

    def _perform(self, output: Output) -> None:
        if self.closed:
            return
        if isinstance(output, Send):
            self._hub.send(output)
        elif isinstance(output, Open):
            self._hub.open(output)
        elif isinstance(output, Close):
            self._hub.close(output.flow)
        else:
            self.start(self._resolve(output), f"resolve {output.name}")

    # ------------------------------------------------------------------------------------------- time

    def _set_timer(self) -> None:
        """One timer, never later than the machine's. An earlier one is left: it finds that it is early."""
        if self.closed:
            return
        due = self.machine.next_timer()
        if due is None:
            return
        earlier = self._alarm.at(self)
        if earlier is None or earlier > due:
            self._alarm.set(self, due)

    def timer_due(self) -> None:
        """The timer is due."""
        if self.closed:
            return
        due = self.machine.next_timer()
        if due is None or clock.now() < due:
            self._set_timer()
        else:
            self.call(self.machine.tick)

    # ------------------------------------------------------------------------------------------ tasks

    async def _resolve(self, query: Resolve) -> None:
        if self._resolver is None:
            self._resolver = Resolver()
        self.take(await self._resolver.resolve(query))

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run what takes time; it is cancelled when the driver closes."""
        task = self._loop.create_task(work, name=name)
        self._tasks = (*self._tasks, task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks = tuple(left for left in self._tasks if left is not task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(f"{task.get_name()} failed", error)

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})
