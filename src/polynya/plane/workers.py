"""Several portable planes, each in a process of its own, seen as one data plane by the control process.

    control process                                       worker 0, 1, 2 ...
      listeners: N sockets for each address, ------------> worker i reads the i-th socket of each address
        bound once and kept
      relay ports, bound here and kept ------------------> a copy of the socket, with OpenRelay
      what each relay was told (its record) -------------> told again when its worker starts anew

The system sends a client always to the same of N sockets, as long as none of them is closed; and the control process
closes none. So a worker that dies stops its own clients only: a new one takes the same sockets and is told its relays'
records, and they go on. A client whose packets come to another worker than the one that has its allocation (its record
was made before its first packet, or the system spread it anew) is handed over with the socket. Clients on streams come
by the control process, so their relays are served there, by a portable plane without listeners.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

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

from .messages import AskTraffic, Counted, ForgetRelay, KnowRelay, Packet, ReleaseRelay, Setup
from .portable import PortablePlane, ReadErrors, now
from .processes import WorkerProcess
from .records import NOBODY, Record
from .sockets import bind_relay, name_of

HERE: Final = -1
"""The control process itself, as the worker of clients on streams."""
NOWHERE: Final = -2
"""The worker of a relay that is only held."""
RESTART_PAUSE: Final = SECOND
"""A worker that lived for less is not started again before this has passed."""
_SEEN: Final = 65_536


class WorkerPlane:
    """A data plane of several processes. `listeners` are as many sockets for each flow as there are workers.

    `errors` names a function for ICMP errors, as `module:function`; `read_errors` is that function.
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
        self._listeners = {flow: list(sockets) for flow, sockets in listeners.items()}
        self._gather = gather
        self._origins = tuple((origins or {}).items())
        self._errors = errors
        self._wants_errors = read_errors is not None
        self._policy: SetPolicy | None = None
        self._records: dict[Relay, Record] = {}
        self._by_client: dict[Client, dict[Relay, Record]] = {}
        self._seen: OrderedDict[Client, int] = OrderedDict()
        """By which worker a client came last, for those without an allocation."""
        self._awaited: Counter[int] = Counter()
        """Acknowledgements that are still to come for a command that went to all."""
        self._counted: dict[int, Counted] = {}
        self._counted_before: Counter[str] = Counter()
        """What workers had told that have died."""
        self._reports: list[Report] = []
        self._local = PortablePlane({}, read_errors=read_errors)
        self._epoll = select.epoll()
        self._epoll.register(self._local.fileno(), select.EPOLLIN)
        self._by_fd: dict[int, WorkerProcess] = {}
        self._workers = [self._start(index) for index in range(workers)]

    # ------------------------------------------------------------------------------------------------------------ loop

    def fileno(self) -> int:
        """What an event loop watches; besides, `run` is to be called once a second."""
        return self._epoll.fileno()

    def run(self, timeout: float | None) -> None:
        """Take what workers report, serve streams' relays, and start anew what has died."""
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
                self._listen(worker)
        for worker in list(self._workers):
            if worker.channel.closed:
                self._restart(worker)
            elif worker.channel.waiting != worker.watched:
                worker.watched = worker.channel.waiting
                mask = select.EPOLLIN | (select.EPOLLOUT if worker.watched else 0)
                self._epoll.modify(worker.channel.sock.fileno(), mask)

    def reports(self) -> list[Report]:
        """What the control plane should know, oldest first; drained by the call."""
        for report in self._local.reports():
            self._report(HERE, report)
        drained, self._reports = self._reports, []
        return drained

    def send(self, output: Send) -> bool:
        """Send an answer of the control plane by a listener; False when there is no such flow."""
        sockets = self._listeners.get(output.flow)
        if sockets is None:
            return False
        try:
            sockets[0].sendto(output.data, name_of(output.remote))
        except OSError:
            self._local.relays.count("answers refused by the system")
        return True

    def ask_traffic(self) -> None:
        """Let every relay's traffic be reported."""
        for worker in self._workers:
            worker.channel.send([AskTraffic()])
        for traffic in self._local.traffic():
            self._report(HERE, replace(traffic))

    def traffic(self) -> list[Traffic]:
        """What each open relay had carried when `ask_traffic` was last answered."""
        return [record.last for record in self._records.values()]

    @property
    def counters(self) -> dict[str, int]:
        """What was not forwarded, by why, as of the last `ask_traffic`."""
        total: Counter[str] = Counter(self._local.counters) + self._counted_before
        for counted in self._counted.values():
            total.update(counted.counters)
        return {**total, "worker restarts": self.restarts}

    @property
    def size(self) -> dict[str, int]:
        """How much of everything is held here and, as of the last `ask_traffic`, in the workers."""
        total: Counter[str] = Counter(self._local.size)
        for counted in self._counted.values():
            total.update(counted.size)
        return {**total, "records": len(self._records)}

    def close(self) -> None:
        """End the workers and close every relay port. The listeners are their owner's."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.wait()
        self._local.close()
        for record in self._records.values():
            if record.worker != HERE:
                record.sock.close()
        self._epoll.close()

    @property
    def processes(self) -> tuple[int, ...]:
        """The workers' process ids."""
        return tuple(worker.process.pid for worker in self._workers)

    def worker_of(self, relay: Relay) -> int:
        """Which worker serves a relay."""
        return self._records[relay].worker

    # -------------------------------------------------------------------------------------------------------- commands

    def execute(self, command: Command | Forward, *, now: Instant) -> None:
        """Carry out a command, here or in a worker."""
        if isinstance(command, Forward):
            self._local.execute(command, now=now)
        elif isinstance(command, SetPolicy):
            self._policy = command
            self._awaited[command.number] = len(self._workers) + 1
            self._local.execute(command, now=now)
            for worker in self._workers:
                self._ask(worker, command)
        elif isinstance(command, OpenRelay):
            self._open(command)
        elif (record := self._records.get(command.relay)) is None:
            done = isinstance(command, FreeRelay)
            number = command.number
            self._reports.append(Done(number) if done else Refused(number, "there is no such relay"))
        elif isinstance(command, AssignRelay):
            self._assign(record, command)
        elif record.worker == NOWHERE:
            record.note(command)
            self._finish(record, command)
        else:
            record.note(command)
            self._tell(record.worker, command, record)

    def _open(self, command: OpenRelay) -> None:
        if command.relay in self._records:
            self._reports.append(Refused(command.number, "the relay is open"))
            return
        try:
            sock = bind_relay(command.relay, errors=self._wants_errors)
        except OSError as error:
            self._reports.append(Refused(command.number, error.strerror or str(error), error.errno))
            return
        record = self._records[command.relay] = Record(open=command, sock=sock, worker=NOWHERE)
        if command.client is None:
            self._reports.append(Done(command.number))
        else:
            self._place(record, self._worker_for(command.client), command)

    def _assign(self, record: Record, command: AssignRelay) -> None:
        with contextlib.suppress(BlockingIOError):  # what came while nobody had the port is nobody's
            while True:
                record.sock.recv(1)
        record.open = replace(
            record.open,
            number=command.number,
            client=command.client,
            stream=command.stream,
            until=command.until,
            bytes_per_second=command.bytes_per_second,
        )
        self._place(record, self._worker_for(command.client), record.open)

    def _worker_for(self, client: Client) -> int:
        if client.flow not in self._listeners:
            return HERE
        records = self._by_client.get(client)
        if records:
            return next(iter(records.values())).worker
        index = self._seen.pop(client, None)
        return index if index is not None else len(self._records) % len(self._workers)

    def _place(self, record: Record, index: int, command: OpenRelay) -> None:
        """Let a worker serve a relay."""
        record.worker = index
        if command.client is not None:
            self._by_client.setdefault(command.client, {})[command.relay] = record
        if index == HERE:
            self._local.execute(command, now=now(), sock=record.sock)
        else:
            worker = self._workers[index]
            if command.number != NOBODY:
                worker.asked[command.number] = command
            record.tell(worker.channel, command)
            self._local.relays.know(command.relay, command.external)
        self._tell_others(index, KnowRelay(command.relay, command.external))

    def _tell_others(self, index: int, item: KnowRelay | ForgetRelay) -> None:
        for worker in self._workers:
            if worker.index != index:
                worker.channel.send([item])

    def _tell(self, index: int, command: Command, record: Record) -> None:
        if index == HERE:
            self._local.execute(command, now=now())
            if isinstance(command, FreeRelay):
                for report in self._local.reports():  # its last traffic, while it is still known
                    self._report(HERE, report)
                self._erase(record)
        else:
            self._ask(self._workers[index], command)

    def _ask(self, worker: WorkerProcess, command: Command) -> None:
        worker.asked[command.number] = command
        worker.channel.send([command])

    def _finish(self, record: Record | None, command: Command) -> None:
        """A command is carried out: say so, and close what was freed."""
        if isinstance(command, FreeRelay) and record is not None:
            self._erase(record)
        self._reports.append(Done(command.number))

    def _erase(self, record: Record) -> None:
        relay, client = record.open.relay, record.open.client
        del self._records[relay]
        if client is not None and (records := self._by_client.get(client)) is not None:
            records.pop(relay, None)
            if not records:
                del self._by_client[client]
        self._tell_others(record.worker, ForgetRelay(relay))
        if record.worker != HERE:
            self._local.relays.forget(relay)
            record.sock.close()

    # --------------------------------------------------------------------------------------------------------- reports

    def _listen(self, worker: WorkerProcess) -> None:
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
            self._came(index, report)
        elif isinstance(report, Traffic):
            self._carried(index, report)
        elif isinstance(report, Counted):
            self._counted[index] = report
        elif isinstance(report, RelayLost):
            record = self._records.get(report.relay)
            if record is not None and record.worker == index:
                self._erase(record)
                self._reports.append(report)
        else:
            self._reports.append(report)

    def _acknowledged(self, index: int, report: Done | Refused) -> None:
        if report.number == NOBODY:
            return
        command = self._workers[index].asked.pop(report.number, None) if index != HERE else None
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

    def _came(self, index: int, datagram: Datagram) -> None:
        """A worker does not know this packet: it is for the control plane, unless another worker has its client."""
        client = Client(datagram.flow, datagram.remote)
        records = self._by_client.get(client)
        if records is None:
            self._seen[client] = index
            self._seen.move_to_end(client)
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
        else:
            for record in list(records.values()):
                if record.worker not in (index, HERE):
                    self._move(record, index)
            if datagram.data[:1] and (datagram.data[0] >> 6 == 1 or datagram.data[:2] == SEND_TYPE):
                self._workers[index].channel.send([Packet(datagram)])
                return
        self._reports.append(datagram)

    def _move(self, record: Record, index: int) -> None:
        """Hand a relay over to the worker that its client comes to."""
        old = self._workers[record.worker]
        old.channel.send([ReleaseRelay(record.open.relay), KnowRelay(record.open.relay, record.open.external)])
        self._place(record, index, replace(record.open, number=NOBODY))

    def _carried(self, index: int, traffic: Traffic) -> None:
        record = self._records.get(traffic.relay)
        if record is None:
            return
        if record.worker not in (index, NOWHERE):  # the last of a worker that it has left
            record.left(traffic)
        else:
            self._reports.append(record.carried(traffic))

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
        """Let another process take a dead one's place, with all that it was told."""
        if dead.channel.sock.fileno() >= 0:
            self._epoll.unregister(dead.channel.sock.fileno())
            del self._by_fd[dead.channel.sock.fileno()]
            dead.channel.close()
        if dead.process.poll() is None:
            dead.process.kill()  # it has closed its channel: it is of no use any more
        if now() - dead.started < RESTART_PAUSE:
            return
        dead.process.wait()
        self.restarts += 1
        if (counted := self._counted.pop(dead.index, None)) is not None:
            self._counted_before.update(counted.counters)
        worker = self._workers[dead.index] = self._start(dead.index)
        if self._policy is not None:
            worker.channel.send([replace(self._policy, number=NOBODY)])
        for record in self._records.values():
            if record.worker == dead.index:
                record.before = record.last  # what it has told since is not known, what it had told must not be lost
                record.tell(worker.channel, replace(record.open, number=NOBODY))
            elif record.worker != NOWHERE:
                worker.channel.send([KnowRelay(record.open.relay, record.open.external)])
        for command in dead.asked.values():
            self._answer_for(dead.index, worker, command)

    def _answer_for(self, index: int, worker: WorkerProcess, command: Command) -> None:
        """A command that died with its worker: what was to be told is in the record, and was told the new one."""
        if isinstance(command, FreeRelay):
            self._ask(worker, command)
        elif isinstance(command, SetPolicy):
            self._acknowledged(index, Done(command.number))
        else:
            self._reports.append(Done(command.number))
