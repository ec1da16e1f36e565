"""A data plane of several worker processes, each with a portable plane of its own.

    control process                                       worker 0, 1, 2 ...
      listeners: N sockets for each address, ------------> worker i reads the i-th socket of each address
        bound once and kept open
      relay ports, bound here and kept open -------------> a copy of the socket, with OpenRelay
      a record of each relay ----------------------------> sent again to a worker that replaces a dead one

The system sends the packets of a client always to the same of N sockets while none of them is closed, so the control
process closes none. A worker that dies stops its own clients only: its successor takes over its sockets and relays.

A client's packets may come to a worker that doesn't have its allocation, because the relay was opened before the first
packet or the system's choice has changed. Then the relay moves to that worker, with its socket. Streams end in the
control process, so their relays are served there by a portable plane without listeners.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from polynya.core.compact import Queue
from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.core.machine import Datagram, Send
from polynya.turn.server.commands import (
    AssignRelay,
    Client,
    Command,
    Done,
    Forward,
    FreeRelay,
    OpenRelay,
    Refused,
    Relay,
    RelayLost,
    Report,
    SetPolicy,
    Traffic,
)
from polynya.turn.server.frames import SEND_TYPE

from .messages import (
    AddLiveRelay,
    Counts,
    Packet,
    ReleaseRelay,
    RemoveLiveRelay,
    RequestCounts,
    Setup,
    WorkerProcess,
)
from .portable import PortablePlane, ReadErrors, now
from .records import UNACKNOWLEDGED, Record
from .sockets import bind_relay, name_of

LOCAL: Final = -1
"""The control process, as the worker of clients on streams."""
UNASSIGNED: Final = -2
"""The worker of a reserved relay."""
RESTART_PAUSE: Final = SECOND
"""A worker that dies within this time is replaced only after it."""
_SEEN: Final = 65_536


class WorkerPlane:
    """A data plane of several processes. `listeners` has one socket for each worker, by flow.

    `errors` names the function that reads ICMP errors, as `module:function`; `read_errors` is that function.
    """

    def __init__(
        self,
        listeners: Mapping[Flow, Sequence[socket.socket]],
        workers: int,
        *,
        gather: float = 0.0,
        origins: Mapping[Flow, bytes] | None = None,
        errors: str = "",
        read_errors: ReadErrors | None = None,
    ) -> None:
        if workers < 1 or any(len(sockets) != workers for sockets in listeners.values()):
            raise ValueError(f"{workers} workers need {workers} sockets for each listener")
        self.restarts = 0
        self.deaths: list[tuple[int, int]] = []
        """Process id and exit code of workers that were replaced; the owner clears it. A negative code is a signal."""
        """Number of workers that were replaced."""
        self.counts_received = 0
        """Number of answers of workers to `request_counts`."""
        self._listeners = {flow: list(sockets) for flow, sockets in listeners.items()}
        self._gather = gather
        self._origins = tuple((origins or {}).items())
        self._errors = errors
        self._wants_errors = read_errors is not None
        self._policy: SetPolicy | None = None
        self._records: dict[Relay, Record] = {}
        self._by_client: dict[Client, dict[Relay, Record]] = {}
        self._seen: OrderedDict[Client, int] = OrderedDict()
        """The worker that received a client's last packet, for clients without an allocation."""
        self._awaited: Counter[int] = Counter()
        """Missing acknowledgements of commands that went to all workers."""
        self._counts: dict[int, Counts] = {}
        self._former_counters: Counter[str] = Counter()
        """Counters of workers that have died."""
        self._reports: Queue[Report] = Queue()
        self._local = PortablePlane({}, read_errors=read_errors)
        self._epoll = select.epoll()
        self._epoll.register(self._local.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, WorkerProcess] = {}
        self._workers = [self._start(index) for index in range(workers)]

    # ------------------------------------------------------------------------------------------------------------ loop

    def fileno(self) -> int:
        """Return the descriptor to watch. Call `run` once a second, too."""
        return self._epoll.fileno()

    def run(self, timeout: float | None) -> None:
        """Read the reports of workers, serve the relays of streams, and replace dead workers."""
        for fd, mask in self._epoll.poll(timeout):
            if fd == self._local.fileno():
                self._local.run(0)
                continue
            worker = self._by_fd.get(fd)
            if worker is None:
                continue
            if mask & select.EPOLLOUT:
                worker.channel.flush()
            if mask & ~select.EPOLLOUT:
                self._read(worker)
        for worker in list(self._workers):
            if worker.channel.closed:
                self._restart(worker)
            elif worker.channel.waiting != worker.watched:
                worker.watched = worker.channel.waiting
                mask = select.EPOLLIN | (select.EPOLLOUT if worker.watched else 0)
                self._epoll.modify(worker.channel.sock.fileno(), mask)

    def receive(self, input: object, *, now: Instant) -> bool:  # noqa: ARG002
        """Return False: the sockets are the plane's own, so no input of the driver is for it."""
        return False

    def reports(self) -> list[Report]:
        """Return the reports for the control plane, oldest first; drained by the call."""
        for report in self._local.reports():
            self._report(LOCAL, report)
        return self._reports.drain()

    def outputs(self) -> list[Send]:
        """Return the frames for clients on streams, oldest first; drained by the call."""
        return self._local.outputs()

    def send(self, answer: Send) -> bool:
        """Send an answer of the control plane by a listener; False if there is no such flow."""
        sockets = self._listeners.get(answer.flow)
        if sockets is None:
            return False
        try:
            sockets[0].sendto(answer.data, name_of(answer.remote))
        except OSError:
            self._local.relays.count("responses refused by the system")
        return True

    def request_counts(self) -> None:
        """Request the traffic of every relay, and the counters and sizes of every worker."""
        for worker in self._workers:
            worker.channel.send([RequestCounts()])
        for traffic in self._local.traffic():
            self._report(LOCAL, replace(traffic))

    def traffic(self) -> list[Traffic]:
        """Return the traffic of each open relay, as of the last `request_counts`."""
        return [record.last for record in self._records.values()]

    @property
    def counters(self) -> dict[str, int]:
        """Datagrams that were not forwarded, by reason, as of the last `request_counts`."""
        total: Counter[str] = Counter(self._local.counters) + self._former_counters
        for counts in self._counts.values():
            total.update(counts.counters)
        return {**total, "worker restarts": self.restarts}

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table here and, as of the last `request_counts`, in the workers."""
        total: Counter[str] = Counter(self._local.size)
        for counts in self._counts.values():
            total.update(counts.size)
        return {**total, "records": len(self._records), "clients of records": len(self._by_client)}

    def close(self) -> None:
        """End the workers and close every relay port. The owner closes the listeners."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.wait()
        self._local.close()
        for record in self._records.values():
            if record.worker != LOCAL:
                record.sock.close()
        self._epoll.close()

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return tuple(worker.process.pid for worker in self._workers)

    @property
    def exit_codes(self) -> tuple[int | None, ...]:
        """The exit codes of the workers; None for one that runs."""
        return tuple(worker.process.returncode for worker in self._workers)

    def age(self, worker: int) -> int:
        """Return the age of a worker process in nanoseconds."""
        return now() - self._workers[worker].started

    def worker_of(self, relay: Relay) -> int:
        """Return the worker that serves a relay."""
        return self._records[relay].worker

    # -------------------------------------------------------------------------------------------------------- commands

    def execute(self, command: Command | Forward, *, now: Instant) -> None:
        """Carry out a command, here or in a worker; a worker acknowledges it later."""
        if isinstance(command, OpenRelay | AssignRelay) and command.shared is not None:
            command = replace(command, shared=command.shared.part(len(self._workers) + 1))
        if isinstance(command, Forward):
            self._local.execute(command, now=now)
        elif isinstance(command, SetPolicy):
            self._policy = command
            self._awaited[command.number] = len(self._workers) + 1
            self._local.execute(command, now=now)
            for worker in self._workers:
                self._send_command(worker, command)
        elif isinstance(command, OpenRelay):
            self._open(command)
        elif (record := self._records.get(command.relay)) is None:
            done = isinstance(command, FreeRelay)
            number = command.number
            self._reports.append(Done(number) if done else Refused(number, "there is no such relay"))
        elif isinstance(command, AssignRelay):
            self._assign(record, command)
        elif record.worker == UNASSIGNED:
            record.update(command)
            self._finish(record, command)
        else:
            record.update(command)
            self._forward(record.worker, command, record)

    def _open(self, command: OpenRelay) -> None:
        if command.relay in self._records:
            self._reports.append(Refused(command.number, "the relay is open already"))
            return
        try:
            sock = bind_relay(command.relay, errors=self._wants_errors)
        except OSError as error:
            self._reports.append(Refused(command.number, error.strerror or str(error), error.errno))
            return
        record = self._records[command.relay] = Record(open=command, sock=sock, worker=UNASSIGNED)
        if command.client is None:
            self._reports.append(Done(command.number))
        else:
            self._place(record, self._worker_for(command.client), command)

    def _assign(self, record: Record, command: AssignRelay) -> None:
        with contextlib.suppress(BlockingIOError):  # datagrams that came while the port was reserved are dropped
            while True:
                record.sock.recv(1)
        record.open = replace(
            record.open,
            number=command.number,
            client=command.client,
            stream=command.stream,
            until=command.until,
            bytes_per_second=command.bytes_per_second,
            shared=command.shared,
        )
        self._place(record, self._worker_for(command.client), record.open)

    def _worker_for(self, client: Client) -> int:
        if client.flow not in self._listeners:
            return LOCAL
        records = self._by_client.get(client)
        if records:
            return next(iter(records.values())).worker
        index = self._seen.pop(client, None)
        return index if index is not None else len(self._records) % len(self._workers)

    def _place(self, record: Record, index: int, command: OpenRelay) -> None:
        """Open a relay in a worker."""
        record.worker = index
        if command.client is not None:
            self._by_client.setdefault(command.client, {})[command.relay] = record
        if index == LOCAL:
            self._local.execute(command, now=now(), sock=record.sock)
        else:
            worker = self._workers[index]
            if command.number != UNACKNOWLEDGED:
                worker.unacknowledged[command.number] = command
            record.send_to(worker.channel, command)
            self._local.relays.add_live(command.relay, command.external)
        self._send_to_others(index, AddLiveRelay(command.relay, command.external))

    def _send_to_others(self, index: int, item: AddLiveRelay | RemoveLiveRelay) -> None:
        for worker in self._workers:
            if worker.index != index:
                worker.channel.send([item])

    def _forward(self, index: int, command: Command, record: Record) -> None:
        if index == LOCAL:
            self._local.execute(command, now=now())
            if isinstance(command, FreeRelay):
                for report in self._local.reports():  # its last traffic, before the record is removed
                    self._report(LOCAL, report)
                self._remove(record)
        else:
            self._send_command(self._workers[index], command)

    def _send_command(self, worker: WorkerProcess, command: Command) -> None:
        worker.unacknowledged[command.number] = command
        worker.channel.send([command])

    def _finish(self, record: Record | None, command: Command) -> None:
        """Acknowledge a command, and close the relay that it freed."""
        if isinstance(command, FreeRelay) and record is not None:
            self._remove(record)
        self._reports.append(Done(command.number))

    def _remove(self, record: Record) -> None:
        relay, client = record.open.relay, record.open.client
        del self._records[relay]
        if client is not None and (records := self._by_client.get(client)) is not None:
            records.pop(relay, None)
            if not records:
                del self._by_client[client]
        self._send_to_others(record.worker, RemoveLiveRelay(relay))
        if record.worker != LOCAL:
            self._local.relays.remove_live(relay)
            record.sock.close()

    # --------------------------------------------------------------------------------------------------------- reports

    def _read(self, worker: WorkerProcess) -> None:
        for _ in range(64):
            items, _ = worker.channel.receive()
            if not items:
                return
            for item in items:
                self._report(worker.index, item)

    def _report(self, index: int, report: Any) -> None:
        if isinstance(report, (Done, Refused)):
            self._acknowledged(index, report)
        elif isinstance(report, Datagram):
            self._unknown_packet(index, report)
        elif isinstance(report, Traffic):
            self._traffic(index, report)
        elif isinstance(report, Counts):
            self._counts[index] = report
            self.counts_received += 1
        elif isinstance(report, RelayLost):
            record = self._records.get(report.relay)
            if record is not None and record.worker == index:
                self._remove(record)
                self._reports.append(report)
        else:
            self._reports.append(report)

    def _acknowledged(self, index: int, report: Done | Refused) -> None:
        if report.number == UNACKNOWLEDGED:
            return
        command = self._workers[index].unacknowledged.pop(report.number, None) if index != LOCAL else None
        if report.number in self._awaited:
            self._awaited[report.number] -= 1
            if self._awaited[report.number]:
                return
            del self._awaited[report.number]
            self._reports.append(report)
        elif command is not None and isinstance(report, Done):
            record = self._records.get(command.relay) if not isinstance(command, SetPolicy) else None
            self._finish(record, command)
        else:
            self._reports.append(report)

    def _unknown_packet(self, index: int, datagram: Datagram) -> None:
        """Report a worker's unknown packet, unless another worker has the client: then the relays move."""
        client = Client(datagram.flow, datagram.remote)
        records = self._by_client.get(client)
        if records is None:
            self._seen[client] = index
            self._seen.move_to_end(client)
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
        else:
            for record in list(records.values()):
                if record.worker not in (index, LOCAL):
                    self._move(record, index)
            if datagram.data[:1] and (datagram.data[0] >> 6 == 1 or datagram.data[:2] == SEND_TYPE):
                self._workers[index].channel.send([Packet(datagram)])
                return
        self._reports.append(datagram)

    def _move(self, record: Record, index: int) -> None:
        """Move a relay to the worker that receives its client's packets."""
        old = self._workers[record.worker]
        old.channel.send([ReleaseRelay(record.open.relay), AddLiveRelay(record.open.relay, record.open.external)])
        self._place(record, index, replace(record.open, number=UNACKNOWLEDGED))

    def _traffic(self, index: int, traffic: Traffic) -> None:
        record = self._records.get(traffic.relay)
        if record is None:
            return
        if record.worker not in (index, UNASSIGNED):  # the final traffic in a former worker
            record.add_former_traffic(traffic)
        else:
            self._reports.append(record.add_traffic(traffic))

    # ----------------------------------------------------------------------------------------------------------- death

    def _start(self, index: int) -> WorkerProcess:
        listeners = [(flow, sockets[index]) for flow, sockets in self._listeners.items()]
        setup = Setup(
            tuple((flow, sock.fileno()) for flow, sock in listeners), self._gather, self._errors, self._origins
        )
        worker = WorkerProcess(index, listeners, setup)
        self._epoll.register(worker.channel.sock.fileno(), select.EPOLLIN)
        self._by_fd[worker.channel.sock.fileno()] = worker
        return worker

    def _restart(self, dead: WorkerProcess) -> None:
        """Replace a dead worker by a new process with the same listeners and relays."""
        if dead.channel.sock.fileno() >= 0:
            self._epoll.unregister(dead.channel.sock.fileno())
            del self._by_fd[dead.channel.sock.fileno()]
            dead.channel.close()
        if dead.process.poll() is None:
            dead.process.kill()  # it has closed its channel, so it gets no commands
        if now() - dead.started < RESTART_PAUSE:
            return
        self.deaths.append((dead.process.pid, dead.process.wait()))
        self.restarts += 1
        if (counts := self._counts.pop(dead.index, None)) is not None:
            self._former_counters.update(counts.counters)
        worker = self._workers[dead.index] = self._start(dead.index)
        if self._policy is not None:
            worker.channel.send([replace(self._policy, number=UNACKNOWLEDGED)])
        for record in self._records.values():
            if record.worker == dead.index:
                record.before = record.last  # traffic since the last report is lost, but the rest counts
                record.send_to(worker.channel, replace(record.open, number=UNACKNOWLEDGED))
            elif record.worker != UNASSIGNED:
                worker.channel.send([AddLiveRelay(record.open.relay, record.open.external)])
        for command in dead.unacknowledged.values():
            self._acknowledge_for(dead.index, worker, command)

    def _acknowledge_for(self, index: int, worker: WorkerProcess, command: Command) -> None:
        """Acknowledge a command of a dead worker: the record has its effect, and the new worker has the record."""
        if isinstance(command, FreeRelay):
            self._send_command(worker, command)
        elif isinstance(command, SetPolicy):
            self._acknowledged(index, Done(command.number))
        else:
            self._reports.append(Done(command.number))
