"""The driver: runs one machine on real sockets in the running event loop.

A datagram, a timer or a call of the user is one step. In a step the driver calls the machine once, performs its
outputs, passes its events to `on_event`, and sets the timer. An input that arises during a step, such as a failed send,
is queued in the inbox and handled before the step ends. The machine is therefore never re-entered, and `on_event` may
call it.

    socket, timer, user --> machine --> outputs --> events --> timer
                 ^                         |           |
                 +------- inbox <----------+           +--> on_event, which may `call` again
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.errors import ConfigurationError, UsageError
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

    Create and close the driver in a running event loop. `on_event` is called for each event after the outputs of the
    step are performed; an exception that it raises goes to the loop's exception handler. `flow_ids` allocates the
    machine's flows.

    `tls` is the context of TLS flows, or a function that makes one for each `Open`; the default trusts the system's
    certificate authorities. `limits` bounds TCP and TLS streams. `resolve` looks up host names in place of the
    system's resolver. `capture` is called for every packet while `trace` is enabled. `ip_fields` requests the ECN, DSCP
    and TTL of datagrams that arrive, which makes each datagram a little slower.
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
        self._loop = _running_loop()
        self._on_event = on_event
        self._resolver = None if resolve is None else Resolver(resolve=resolve)
        self._tasks: set[asyncio.Task[None]] | None = None
        self._inbox = Queue[Input]()
        self._stepping = False
        self._called_again = False
        self._alarm = alarm(self._loop)
        self._hub = Hub(
            self._loop,
            self,
            tls=tls_contexts(tls),
            limits=limits,
            ip_fields=ip_fields,
            trace=PacketTrace(trace, capture) if trace.enabled or capture is not None else None,
        )

    # ------------------------------------------------------------------------------------------- user

    def call(self, method: Callable[..., R], *args: Any) -> R:
        """Call `method(*args, now=now)` of the machine as one step; return its result.

        `on_event` may use it, too: the outputs are then performed before the next input. A closed driver performs no
        outputs, but still passes events to `on_event`. Raises ConfigurationError if an `Open` of the step is invalid.
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
        """Pass an input to the machine, now or later in the step in progress."""
        if self.closed:
            return
        if self._stepping or self._inbox:
            self._inbox.append(input)
            self._resume()
            return
        self._stepping = True
        try:
            self.machine.receive(input, now=clock.now())
        finally:
            self._finish_step()

    def accept_data(self, flow: Flow, remote: Address, deliver: Deliver) -> None:
        """Deliver datagrams on `flow` from `remote` that are not STUN to `deliver`, bypassing the machine.

        A flow that is closed already is ignored.
        """
        self._hub.accept(flow, remote, deliver)

    def refuse_data(self, flow: Flow, remote: Address) -> None:
        """Deliver datagrams on `flow` from `remote` to the machine again."""
        self._hub.refuse(flow, remote)

    def sender(self, flow: Flow, remote: Address) -> SendData:
        """Return a function that sends a datagram on `flow` to `remote` at once.

        It returns False if the system refuses the datagram. The failure is counted, and the machine receives
        `SendFailed` unless a buffer was full.
        """
        return self._hub.sender(flow, remote)

    def writable(self, flow: Flow) -> bool:
        """Whether the socket of `flow` accepts data now; true for a flow that is closed."""
        return self._hub.writable(flow)

    @property
    def counters(self) -> dict[str, int]:
        """Datagrams and bytes in and out, kernel drops, and failed sends by error name, since the start."""
        return self._hub.counters()

    @property
    def refused(self) -> int:
        """Sends that the system refused, since the start; a call of the machine whose send is refused adds one."""
        return self._hub.tally.refused

    def receive_buffers(self) -> dict[Flow, int]:
        """Bytes of receive buffer that the system granted each open UDP flow."""
        return self._hub.receive_buffers()

    def write_buffers(self) -> dict[Flow, int]:
        """Bytes that wait to be written on each open stream."""
        return self._hub.write_buffers()

    @property
    def closing_streams(self) -> int:
        """Closed streams whose sockets the system has not released yet."""
        return self._hub.closing_streams()

    # ------------------------------------------------------------------------------------------ close

    def close_now(self) -> None:
        """Close every socket and cancel every timer and task without waiting. Safe to call twice."""
        self._stop()
        self._hub.abort()

    async def aclose(self) -> None:
        """Close all flows; streams get `limits.flush_timeout` seconds to write. Safe to call twice and to cancel."""
        self._stop()
        await self._hub.aclose()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets one turn later

    def _stop(self) -> None:
        if not self.closed:
            self._alarm.leave(self)
        self.closed = True
        self._inbox.clear()
        for task in self._tasks or ():
            task.cancel()

    # ------------------------------------------------------------------------------------------- step

    def _finish_step(self) -> None:
        """Drain the machine, pass it the queued inputs, and set the timer. The caller has set `_stepping`."""
        refusal: ConfigurationError | None = None
        machine = self.machine
        try:
            while True:
                refusal = self._drain() or refusal
                if not self._inbox:
                    break
                machine.receive(self._inbox.popleft(), now=clock.now())
        finally:
            self._stepping = False
            if self._inbox:  # the machine raised; the queued inputs are still handled
                self._loop.call_soon(self._resume)
            self._set_timer()
        if refusal is not None:
            raise refusal

    def _resume(self) -> None:
        if not self._stepping and self._inbox:
            self._stepping = True
            self._finish_step()

    def _drain(self) -> ConfigurationError | None:
        """Perform outputs, then pass on events; repeat if `on_event` called the machine. Return a refused `Open`."""
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
                except Exception as error:  # noqa: BLE001  # an error of the user's code must not stop the machine
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
        """Set the alarm no later than the machine's timer. An earlier alarm stays: `timer_due` then sets it again."""
        if self.closed:
            return
        due = self.machine.next_timer()
        if due is None:
            return
        earlier = self._alarm.at(self)
        if earlier is None or earlier > due:
            self._alarm.set(self, due)

    def timer_due(self) -> None:
        """Called by the alarm."""
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
        """Run a coroutine as a task that is canceled when the driver closes."""
        task = self._loop.create_task(work, name=name)
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
            self._tasks = self._tasks or None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(f"{task.get_name()} failed", error)

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("no event loop is running: call this inside a coroutine, run by asyncio.run") from None
