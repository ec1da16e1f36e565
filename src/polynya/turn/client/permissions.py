"""Permissions: which hosts may send to the relayed address (RFC 8656, sections 2.3 and 9).

    state     | permit | success                | refused              | no answer         | renewal due | its end
    ----------+--------+------------------------+----------------------+-------------------+-------------+--------
    (none)    | ASKED  | INSTALLED (by channel) |                      |                   |             |
    ASKED     |        | INSTALLED              | (none)               | (none)            |             |
    INSTALLED |        | INSTALLED              | (none)               | INSTALLED, later  | asks again  | (none)

A permission is for a host, whatever the port. Many go into one request: those that are asked for together, and those
that are wanted while a request waits for its slot. The server installs none when it forbids one, so a refused request
for several is made again for each alone. Renewals that are due soon travel together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.core.timers import Timers
from polynya.stun.attributes import XOR_PEER_ADDRESS
from polynya.stun.registry import Method
from polynya.turn.numbers import PERMISSION_LIFETIME

from .events import PermissionFailed, Permitted
from .lifetimes import RETRY, TEMPORARY, renewal
from .requests import Answer, Ask

MAX_PEERS: Final = 16
"""Peers in one request: with IPv6 addresses and credentials it still fits a packet of 1,280 bytes."""
TOGETHER: Final = 30 * SECOND
"""Renewals that are due within this time go along with the first."""

_NEVER: Final = Instant(0)


class State(Enum):
    ASKED = "asked"
    INSTALLED = "installed"


class _Timer(Enum):
    RENEW = "renew"
    END = "end"


@dataclass(slots=True)
class _Permission:
    peers: dict[Address, None] = field(default_factory=dict)
    """As the owner named them; the first stands for the host in requests."""
    state: State = State.ASKED
    ends: Instant = _NEVER


class Permissions:
    """The permissions of one allocation. Drained by the client: `asks`, then `events`."""

    def __init__(self) -> None:
        self._by_host: dict[str, _Permission] = {}
        self._timers: Timers[tuple[_Timer, str]] = Timers()
        self._asks: list[Ask] = []
        self._last: Ask | None = None
        """Takes more hosts until it is sent."""
        self._events: list[Permitted | PermissionFailed] = []

    # ---------------------------------------------------------------------------------------------------------- calls

    def permit(self, peers: Iterable[Address]) -> None:
        """Let these peers in, and those that have a permission of their host already at once."""
        new: list[str] = []
        told: list[Address] = []
        for peer in peers:
            permission = self._by_host.get(peer.host)
            if permission is None:
                permission = self._by_host[peer.host] = _Permission()
                new.append(peer.host)
            elif permission.state is State.INSTALLED:
                told.append(peer)
            permission.peers[peer] = None
        self._ask(new)
        if told:
            self._events.append(Permitted(peers=tuple(told)))

    def forget(self, host: str) -> None:
        """Renew it no more; what the server still lets through is not taken."""
        self._by_host.pop(host, None)
        self._cancel(host)

    def installed(self, host: str) -> bool:
        """Whether data can be sent to this host."""
        permission = self._by_host.get(host)
        return permission is not None and permission.state is State.INSTALLED

    def __contains__(self, host: object) -> bool:
        """Whether data from this host is wanted: the server may let it in before we hear that it does."""
        return host in self._by_host

    def by_channel(self, peer: Address, sent_at: Instant) -> None:
        """A channel was bound or renewed, which installs or renews its peer's permission (section 12.2)."""
        permission = self._by_host.setdefault(peer.host, _Permission())
        permission.peers[peer] = None
        self._install([peer.host], sent_at)

    def clear(self) -> None:
        """The allocation is gone."""
        self._by_host.clear()
        self._timers.clear()
        self._asks.clear()
        self._last = None

    def states(self) -> dict[str, str]:
        """Each host with its state, for `why()`."""
        return {host: permission.state.value for host, permission in self._by_host.items()}

    # -------------------------------------------------------------------------------------------------------- machine

    def answered(self, answer: Answer, *, now: Instant) -> None:
        """The end of one of our requests."""
        hosts = [host for host in answer.ask.subject if host in self._by_host]
        if answer.ok:
            self._install(hosts, answer.sent_at)
        elif answer.code not in TEMPORARY and len(answer.ask.subject) > 1:
            for host in hosts:
                self._new_ask((host,))
            self._last = None
        else:
            for host in hosts:
                self._failed(host, answer.code, answer.reason, now=now)

    def tick(self, *, now: Instant) -> None:
        renewals: list[str] = []
        for timer, host in self._timers.due(now=now):
            if timer is _Timer.RENEW:
                renewals.append(host)
            else:
                self._drop(host, None, f"the permission of {host} could not be renewed in time")
        if renewals:
            for host in self._by_host:
                due = self._timers.at((_Timer.RENEW, host))
                if due is not None and due <= now + TOGETHER:
                    self._timers.cancel((_Timer.RENEW, host))
                    renewals.append(host)
            self._ask([host for host in renewals if host in self._by_host])

    def next_timer(self) -> Instant | None:
        return self._timers.next()

    def asks(self) -> list[Ask]:
        drained, self._asks = self._asks, []
        return drained

    def events(self) -> list[Permitted | PermissionFailed]:
        drained, self._events = self._events, []
        return drained

    # --------------------------------------------------------------------------------------------------------- inside

    def _ask(self, hosts: list[str]) -> None:
        last = self._last
        if last is not None and not last.tries:
            room = MAX_PEERS - len(last.subject)
            last.subject += tuple(hosts[:room])
            last.attributes[XOR_PEER_ADDRESS] += self._addresses(hosts[:room])
            hosts = hosts[room:]
        for start in range(0, len(hosts), MAX_PEERS):
            self._new_ask(tuple(hosts[start : start + MAX_PEERS]))

    def _new_ask(self, hosts: tuple[str, ...]) -> None:
        self._last = Ask(Method.CREATE_PERMISSION, {XOR_PEER_ADDRESS: self._addresses(hosts)}, hosts)
        self._asks.append(self._last)

    def _addresses(self, hosts: Iterable[str]) -> tuple[Address, ...]:
        return tuple(next(iter(self._by_host[host].peers)) for host in hosts)

    def _install(self, hosts: list[str], sent_at: Instant) -> None:
        told: list[Address] = []
        for host in hosts:
            permission = self._by_host[host]
            if permission.state is State.ASKED:
                permission.state = State.INSTALLED
                told += permission.peers
            permission.ends = Instant(max(permission.ends, sent_at + PERMISSION_LIFETIME))
            renew = permission.ends - PERMISSION_LIFETIME + renewal(PERMISSION_LIFETIME)
            self._timers.set((_Timer.RENEW, host), Instant(renew))
            self._timers.set((_Timer.END, host), permission.ends)
        if told:
            self._events.append(Permitted(peers=tuple(told)))

    def _failed(self, host: str, code: int | None, reason: str, *, now: Instant) -> None:
        if self._by_host[host].state is State.INSTALLED and code in TEMPORARY:
            self._timers.set((_Timer.RENEW, host), Instant(now + RETRY))
        else:
            self._drop(host, code, reason)

    def _drop(self, host: str, code: int | None, reason: str) -> None:
        permission = self._by_host.pop(host, None)
        self._cancel(host)
        if permission is not None:
            self._events.append(PermissionFailed(peers=tuple(permission.peers), code=code, reason=reason))

    def _cancel(self, host: str) -> None:
        self._timers.cancel((_Timer.RENEW, host))
        self._timers.cancel((_Timer.END, host))
