"""The TURN part of the server: its machine, who may use it, what is logged of it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from polynya.aio.driver import Driver
from polynya.core.addresses import Address, scope
from polynya.core.flows import Flow, FlowIds
from polynya.core.trace import NO_TRACE, Tracer
from polynya.turn.server.commands import Traffic
from polynya.turn.server.config import ServerConfig
from polynya.turn.server.control import FIXED
from polynya.turn.server.events import AllocationCreated, AllocationEnded, Drained, PeerRefused, RequestRefused
from polynya.turn.server.lookups import LookUp, UserFound
from polynya.turn.server.policy import PeerPolicy

from .config import LookUpUser, TurnOptions
from .discovery import Discovery
from .log import has_room
from .planes import DataPlane

logger: Final = logging.getLogger("polynya.serve.turn")

CLOSE_TIME: Final = 1.0
"""Seconds that the data plane gets to say what each allocation carried, at the end."""
TELL_TIME: Final = 60.0
"""Seconds between two looks at the time of day, which may be set while the server runs."""
_KEYS: Final = {"relays": "relay_ips or external_ips"}
"""How the file calls what the machine calls otherwise."""
_EXPECTED: Final = frozenset({"no credentials", "stale nonce"})
"""Refusals that are part of every client's first steps."""


@dataclass(slots=True)
class Carried:
    """What was relayed: datagrams and payload bytes."""

    to_peers: int = 0
    bytes_to_peers: int = 0
    from_peers: int = 0
    bytes_from_peers: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """What was dropped, by why."""

    def add(self, traffic: Iterable[Traffic]) -> Carried:
        """Count these relays, too."""
        for each in traffic:
            self.to_peers += each.to_peers
            self.bytes_to_peers += each.bytes_to_peers
            self.from_peers += each.from_peers
            self.bytes_from_peers += each.bytes_from_peers
            self.dropped += each.dropped
            self.reasons.update(each.reasons)
        return self


class Relaying:
    """A TURN server's machine and what is around it. `attach` it to the driver that runs its sockets."""

    def __init__(
        self,
        options: TurnOptions,
        listen: Sequence[Address],
        discovery: Discovery,
        flow_ids: FlowIds,
        *,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.options = options
        self._discovery = discovery
        self.data_plane = DataPlane(options, listen, discovery, flow_ids, trace.of("turn-server"))
        self.machine = self.data_plane.machine
        self.created = 0
        """Allocations since the start."""
        self._ended = Carried()
        self.secure_listeners: tuple[Flow, ...] = ()
        """Those that speak TLS; known before it is attached."""
        self._listeners: tuple[Address, ...] = ()
        self._hosts: tuple[str, ...] = ()
        self._driver: Driver[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._drained = asyncio.Event()
        self._leaving = 0
        """Allocations that are still to end before all is closed."""
        self._left = asyncio.Event()

    def attach(
        self, driver: Driver[Any], listeners: tuple[Address, ...], hosts: tuple[str, ...], udp: Mapping[Flow, Address]
    ) -> None:  # fmt: skip
        """Begin: no peer may be one of the server's own `listeners`, under any of its `hosts`.

        `udp` are the listeners that the driver has; the others are the data plane's.
        """
        self._driver = driver
        self._call(self.machine.control.set_secure_listeners, self.secure_listeners)
        self._call(self.machine.control.set_origins, self._discovery.origins({**udp, **self.data_plane.udp}))
        self._listeners, self._hosts = listeners, hosts
        self.data_plane.start(driver)
        self._call(self.machine.control.set_policy, self._policy())
        self._tell_time()
        _tell_of_hidden_relays(self.options.config)

    async def aclose(self) -> None:
        """End every allocation, and what goes on beside the machine."""
        if self._timer is not None:
            self._timer.cancel()
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        try:
            await asyncio.gather(*asking, return_exceptions=True)
            self._leaving = self.allocations
            if self._leaving and self._driver is not None:
                self._call(self.machine.control.close_all, "the server stops")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._left.wait(), CLOSE_TIME)
        finally:
            self.data_plane.close()

    async def drain(self, hurry: asyncio.Event) -> None:
        """Make no new allocations, and give those that are there the time to end; less when there is a `hurry`."""
        options = self.options
        self._call(lambda now: self.machine.control.drain(now=now, alternates=options.alternates))
        if self._drained.is_set() or not options.drain:
            return
        logger.info("draining %d allocations for at most %g s", self.allocations, options.drain)
        waits = [asyncio.ensure_future(self._drained.wait()), asyncio.ensure_future(hurry.wait())]
        try:
            await asyncio.wait(waits, timeout=options.drain, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def reload(self, options: TurnOptions) -> list[str]:
        """Go by new options at once; sessions go on. Returns the keys that need a restart to change."""
        old, new = self.options.config, options.config
        fixed = [name for name in FIXED if getattr(old, name) != getattr(new, name)]
        kept = replace(new, **{name: getattr(old, name) for name in fixed})
        ours = [name for name in ("workers", "gather") if getattr(self.options, name) != getattr(options, name)]
        self.options = replace(options, config=kept, **{name: getattr(self.options, name) for name in ours})
        self._call(self.machine.control.set_config, kept)
        self._call(self.machine.control.set_directory, self.options.directory())
        self._call(self.machine.control.set_policy, self._policy())
        return [_KEYS.get(name, name) for name in (*fixed, *ours)]

    # --------------------------------------------------------------------------------------------------------- figures

    @property
    def allocations(self) -> int:
        """How many there are now."""
        return len(self.machine.control.allocations.by_client)

    @property
    def carried(self) -> Carried:
        """What was relayed since the start."""
        return replace(self._ended).add(self.machine.plane.traffic())

    # ---------------------------------------------------------------------------------------------------------- events

    def on_event(self, event: object) -> None:
        """Log an event of the machine, and do what it asks for."""
        match event:
            case AllocationCreated():
                self.created += 1
                if _is_told(logging.INFO):
                    relayed = ", ".join(map(str, event.relayed))
                    logger.info("allocation for %s, user %s: %s", event.client, event.user, relayed)
            case AllocationEnded():
                self._leaving -= 1
                if not self._leaving:
                    self._left.set()
                self._ended.add(event.traffic)
                if _is_told(logging.INFO):
                    self._tell_end(event)
            case RequestRefused():
                level = logging.DEBUG if event.reason in _EXPECTED else logging.INFO
                if _is_told(level):
                    whose, code = f", user {event.user}" if event.user else "", event.code
                    logger.log(
                        level, "%s from %s%s refused: %d %s", event.method, event.client, whose, code, event.reason
                    )
            case PeerRefused():
                if _is_told(logging.DEBUG):
                    logger.debug(
                        "relay of %s, user %s: peer %s is refused: %s", event.client, event.user, event.peer, event.rule
                    )
            case Drained():
                self._drained.set()
            case LookUp():
                self._look_up(event.name)

    def _tell_end(self, event: AllocationEnded) -> None:
        carried = Carried().add(event.traffic)
        reasons = ", ".join(f"{count} {reason}" for reason, count in carried.reasons.most_common())
        logger.info(
            "allocation for %s, user %s, is over: %s; %d bytes to peers, %d from peers, %d datagrams dropped%s",
            event.client,
            event.user,
            event.reason,
            carried.bytes_to_peers,
            carried.bytes_from_peers,
            carried.dropped,
            f" ({reasons})" if reasons else "",
        )

    def _look_up(self, name: str) -> None:
        ask = self.options.look_up
        if ask is not None and name not in self._asking:
            task = asyncio.get_running_loop().create_task(self._ask(ask, name), name="look up a TURN user")
            self._asking[name] = task
            task.add_done_callback(lambda _: self._asking.pop(name, None))

    async def _ask(self, ask: LookUpUser, name: str) -> None:
        user = None
        try:
            user = await ask(name)
        except Exception as error:  # noqa: BLE001 - whatever the look-up raises, the server goes on
            logger.warning("the look-up of user %s failed: %s", name, error)
        self._call(self.machine.receive, UserFound(name, user))

    # ----------------------------------------------------------------------------------------------------------- steps

    def _policy(self) -> PeerPolicy:
        policy = self.options.config.policy
        return replace(
            policy, listeners=(*policy.listeners, *self._listeners), own_hosts=(*policy.own_hosts, *self._hosts)
        )

    def _tell_time(self) -> None:
        self._call(self.machine.control.set_unix_time, int(time.time()))
        self._timer = asyncio.get_running_loop().call_later(TELL_TIME, self._tell_time)

    def _call(self, method: Callable[..., None], *args: object) -> None:
        driver = self._driver
        if driver is None or driver.closed:
            return

        def step(*, now: Any) -> None:
            method(*args, now=now)
            self.machine.settle(now=now)

        driver.call(step)


def _tell_of_hidden_relays(config: ServerConfig) -> None:
    """Log which relayed addresses are of no use outside: mostly a NAT was forgotten."""
    for relay in config.relays:
        if scope(relay.outside) != "loopback" and PeerPolicy().judge_host(relay.outside):
            logger.info(
                "clients are told the relay address %s, which is not public: if a NAT forwards to it, --external-ip "
                "says what it is called outside",
                relay.outside,
            )


def _is_told(level: int) -> bool:
    """Whether a line of this level would be written; clients make as many as they like."""
    return logger.isEnabledFor(level) and has_room()
