"""The TURN part of `polynya serve`: runs the machine, looks up users, logs events, drains and reloads.

The machine and its data plane are made by `planes.PlaneRunner`; `Server` owns the driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from polynya.aio import sockets
from polynya.aio.driver import Driver
from polynya.core.addresses import Address, scope
from polynya.core.errors import ConfigurationError
from polynya.core.flows import Flow, FlowIds, Transport
from polynya.core.machine import Open
from polynya.core.trace import NO_TRACE, Tracer
from polynya.turn.server.commands import Traffic
from polynya.turn.server.config import ServerConfig
from polynya.turn.server.control import FIXED
from polynya.turn.server.events import AllocationCreated, AllocationEnded, Drained, PeerRefused, RequestRefused
from polynya.turn.server.lookups import LookUp, UserFound
from polynya.turn.server.policy import PeerPolicy

from .config import LookUpUser, TurnOptions
from .descriptors import within_share
from .discovery import Discovery
from .log import has_room
from .own_addresses import OwnAddresses
from .planes import PlaneRunner

logger: Final = logging.getLogger("polynya.serve.turn")

CLOSE_TIME: Final = 1.0
"""Seconds that the data plane gets at the end to report the traffic of each allocation."""
CLOCK_INTERVAL: Final = 60.0
"""Seconds between two readings of the time of day, which may be set while the server runs."""
_KEYS: Final = {"relays": "relay_ips or external_ips"}
"""Keys of the configuration file, where they differ from the fields of ServerConfig."""
_ROUTINE: Final = frozenset({"no credentials", "stale nonce"})
"""Reasons of error responses that every client gets when it starts."""


@dataclass(slots=True)
class TotalTraffic:
    """Datagrams and payload bytes that several relays have carried."""

    to_peers: int = 0
    bytes_to_peers: int = 0
    from_peers: int = 0
    bytes_from_peers: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Dropped datagrams by reason."""

    def add(self, traffic: Iterable[Traffic]) -> TotalTraffic:
        """Add the traffic of these relays."""
        for each in traffic:
            self.to_peers += each.to_peers
            self.bytes_to_peers += each.bytes_to_peers
            self.from_peers += each.from_peers
            self.bytes_from_peers += each.bytes_from_peers
            self.dropped += each.dropped
            self.reasons.update(each.reasons)
        return self


class Relaying:
    """A TURN server with its data plane, logs and user lookups. `attach` it to the driver of its sockets."""

    def __init__(
        self,
        options: TurnOptions,
        listen: Sequence[Address],
        discovery: Discovery,
        flow_ids: FlowIds,
        *,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.options = options = _within_share(options)
        check_relays(options.config)
        self._discovery = discovery
        self.data_plane = PlaneRunner(options, listen, discovery, flow_ids, trace.of("turn-server"))
        self.machine = self.data_plane.machine
        self.created = 0
        """Number of allocations since the start."""
        self._ended = TotalTraffic()
        self.secure_listeners: tuple[Flow, ...] = ()
        """The listeners for TLS; set before `attach`."""
        self._listeners: tuple[Address, ...] = ()
        self._hosts: tuple[str, ...] = ()
        self._local: tuple[str, ...] = ()
        """Addresses of this host, kept up to date by `addresses`."""
        self._driver: Driver[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.addresses = OwnAddresses(self._set_hosts)
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._drained = asyncio.Event()
        self._leaving = 0
        """Allocations that must end before the server closes."""
        self._left = asyncio.Event()

    def attach(
        self, driver: Driver[Any], listeners: tuple[Address, ...], hosts: tuple[str, ...], udp: Mapping[Flow, Address]
    ) -> None:  # fmt: skip
        """Start the server. The peer policy denies its own `listeners`, and every port of the addresses of this host.

        `hosts` are the server's further addresses: external ones, and those of its relays.
        `udp` are the UDP listeners of the driver; the data plane has the others.
        """
        self._driver = driver
        self._call(self.machine.control.set_secure_listeners, self.secure_listeners)
        self._call(self.machine.control.set_origins, self._discovery.origins({**udp, **self.data_plane.udp}))
        self._listeners, self._hosts = listeners, hosts
        self.data_plane.start(driver)
        self._local = self.addresses.start()
        self._call(self.machine.control.set_policy, self._policy())
        self._set_time()
        _warn_of_private_relays(self.options.config)

    async def aclose(self) -> None:
        """End every allocation, cancel user lookups and close the data plane."""
        if self._timer is not None:
            self._timer.cancel()
        self.addresses.close()
        lookups = list(self._lookups.values())
        for task in lookups:
            task.cancel()
        try:
            await asyncio.gather(*lookups, return_exceptions=True)
            self._leaving = self.allocations
            if self._leaving and self._driver is not None:
                self._call(self.machine.control.close_all, "the server stops")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._left.wait(), CLOSE_TIME)
        finally:
            self.data_plane.close()

    async def drain(self, hurry: asyncio.Event, *, unlimited: bool = False) -> None:
        """Refuse new allocations and wait until the existing ones have ended, at most until `hurry` is set.

        The wait takes at most `options.drain` seconds, unless it is `unlimited`.
        """
        options = self.options
        self._call(lambda now: self.machine.control.drain(now=now, alternates=options.alternates))
        if self._drained.is_set() or not (options.drain or unlimited):
            return
        until = "until they end" if unlimited else f"for at most {options.drain:g} s"
        logger.info("draining %d allocations %s", self.allocations, until)
        waits = [asyncio.ensure_future(self._drained.wait()), asyncio.ensure_future(hurry.wait())]
        try:
            await asyncio.wait(waits, timeout=None if unlimited else options.drain, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def reload(self, options: TurnOptions) -> list[str]:
        """Apply new options; allocations are kept. Returns the keys whose change needs a restart."""
        options = _within_share(options)
        old, new = self.options.config, options.config
        fixed = [name for name in FIXED if getattr(old, name) != getattr(new, name)]
        kept = replace(new, **{name: getattr(old, name) for name in fixed})
        process = [name for name in ("workers", "gather") if getattr(self.options, name) != getattr(options, name)]
        self.options = replace(options, config=kept, **{name: getattr(self.options, name) for name in process})
        self._call(self.machine.control.set_config, kept)
        self._call(self.machine.control.set_directory, self.options.directory())
        self._call(self.machine.control.set_policy, self._policy())
        return [_KEYS.get(name, name) for name in (*fixed, *process)]

    # --------------------------------------------------------------------------------------------------------- figures

    @property
    def allocations(self) -> int:
        """Number of allocations."""
        return len(self.machine.control.allocations.by_client)

    @property
    def carried(self) -> TotalTraffic:
        """Traffic since the start."""
        return replace(self._ended).add(self.machine.plane.traffic())

    # ---------------------------------------------------------------------------------------------------------- events

    def on_event(self, event: object) -> None:
        """Log an event of the machine; a `LookUp` starts a user lookup."""
        match event:
            case AllocationCreated():
                self.created += 1
                if _is_logged(logging.INFO):
                    relayed = ", ".join(map(str, event.relayed))
                    logger.info("allocation for %s, user %s: %s", event.client, event.user, relayed)
            case AllocationEnded():
                self._leaving -= 1
                if not self._leaving:
                    self._left.set()
                self._ended.add(event.traffic)
                if _is_logged(logging.INFO):
                    self._log_end(event)
            case RequestRefused():
                level = logging.DEBUG if event.reason in _ROUTINE else logging.INFO
                if _is_logged(level):
                    user, code = f", user {event.user}" if event.user else "", event.code
                    logger.log(
                        level, "%s from %s%s refused: %d %s", event.method, event.client, user, code, event.reason
                    )
            case PeerRefused():
                if _is_logged(logging.DEBUG):
                    logger.debug(
                        "relay of %s, user %s: peer %s is denied: %s", event.client, event.user, event.peer, event.rule
                    )
            case Drained():
                self._drained.set()
            case LookUp():
                self._look_up(event.name)

    def _log_end(self, event: AllocationEnded) -> None:
        carried = TotalTraffic().add(event.traffic)
        reasons = ", ".join(f"{count} {reason}" for reason, count in carried.reasons.most_common())
        logger.info(
            "allocation for %s, user %s, ended: %s; %d bytes to peers, %d from peers, %d datagrams dropped%s",
            event.client,
            event.user,
            event.reason,
            carried.bytes_to_peers,
            carried.bytes_from_peers,
            carried.dropped,
            f" ({reasons})" if reasons else "",
        )

    def _look_up(self, name: str) -> None:
        look_up = self.options.look_up
        if look_up is not None and name not in self._lookups:
            task = asyncio.get_running_loop().create_task(self._find(look_up, name), name="look up a TURN user")
            self._lookups[name] = task
            task.add_done_callback(lambda _: self._lookups.pop(name, None))

    async def _find(self, look_up: LookUpUser, name: str) -> None:
        user = None
        try:
            user = await look_up(name)
        except Exception as error:  # noqa: BLE001 - an error of the callback must not end the server
            logger.warning("user lookup of %s failed: %s", name, error)
        self._call(self.machine.receive, UserFound(name, user))

    # ----------------------------------------------------------------------------------------------------------- steps

    def _policy(self) -> PeerPolicy:
        policy = self.options.config.policy
        return replace(
            policy,
            listeners=(*policy.listeners, *self._listeners),
            own_hosts=(*policy.own_hosts, *self._hosts, *self._local),
        )

    def _set_hosts(self, hosts: tuple[str, ...]) -> None:
        self._local = hosts
        self._call(self.machine.control.set_policy, self._policy())

    def _set_time(self) -> None:
        self._call(self.machine.control.set_unix_time, int(time.time()))
        self._timer = asyncio.get_running_loop().call_later(CLOCK_INTERVAL, self._set_time)

    def _call(self, method: Callable[..., None], *args: object) -> None:
        driver = self._driver
        if driver is None or driver.closed:
            return

        def step(*, now: Any) -> None:
            method(*args, now=now)
            self.machine.settle(now=now)

        driver.call(step)


def _within_share(options: TurnOptions) -> TurnOptions:
    """Limit the streams to their share of the open files."""
    config = options.config
    limits = replace(config.limits, streams=within_share(config.limits.streams))
    return replace(options, config=replace(config, limits=limits))


def check_relays(config: ServerConfig) -> None:
    """Raise ConfigurationError for a relay address that this host does not have."""
    for relay in config.relays:
        local = Address(relay.host, 0)
        try:
            sockets.open_udp(Open(flow=Flow(0), transport=Transport.UDP, local=local))[0].close()
        except OSError as error:
            raise ConfigurationError(
                f"cannot relay on {relay.host}: {sockets.explain(error)}; relay_ips are addresses of this host, and "
                "external_ips those that clients get"
            ) from None


def _warn_of_private_relays(config: ServerConfig) -> None:
    """Log relay addresses that are not public: usually `--external-ip` was forgotten."""
    for relay in config.relays:
        if scope(relay.outside) != "loopback" and PeerPolicy().judge_host(relay.outside):
            logger.info(
                "clients get the relay address %s, which is not public: if a NAT forwards to it, set its external "
                "address with --external-ip",
                relay.outside,
            )


def _is_logged(level: int) -> bool:
    """Whether a line of this level is logged; the number of lines is limited, since clients cause them."""
    return logger.isEnabledFor(level) and has_room()
