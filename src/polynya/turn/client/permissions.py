"""Permissions: the hosts that may send to the relayed address (RFC 8656, sections 2.3 and 9).

    state     | permit | success                | refused              | no answer         | renewal due | its end
    ----------+--------+------------------------+----------------------+-------------------+-------------+--------
    (none)    | ASKED  | INSTALLED (by channel) |                      |                   |             |
    ASKED     |        | INSTALLED              | (none)               | (none)            |             |
    INSTALLED |        | INSTALLED              | (none)               | INSTALLED, later  | asks again  | (none)

A permission is for a host, for all of its ports. One request carries many: those of one call, and those of later
calls while the request waits for its slot. A server that forbids one permission installs none of the request, so each
is then requested alone. Renewals that are due soon share a request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from polynya.core.addresses import Address
from polynya.core.compact import Queue
from polynya.core.instants import SECOND, Instant
from polynya.core.timers import Timers
from polynya.stun.attributes import XOR_PEER_ADDRESS
from polynya.stun.registry import Method
from polynya.turn.numbers import PERMISSION_LIFETIME

from .events import PermissionFailed, Permitted
from .lifetimes import RETRY, TEMPORARY, renewal
from .requests import Answer, Ask

MAX_PEERS: Final = 16
"""Peers in one request: with IPv6 addresses and credentials it fits a packet of 1,280 bytes."""
TOGETHER: Final = 30 * SECOND
"""Renewals that are due within this time share a request."""

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
    """The peers of the host, as the owner named them; requests carry the first."""
    state: State = State.ASKED
    ends: Instant = _NEVER


class Permissions:
    """The permissions of one allocation. The client drains `asks`, then `events`."""

    def __init__(self) -> None:
        self._by_host: dict[str, _Permission] = {}
        self._timers: Timers[tuple[_Timer, str]] = Timers()
        self._asks: Queue[Ask] = Queue()
        self._last: Ask | None = None
        """The last request; it takes more hosts until it is sent."""
        self._events: Queue[Permitted | PermissionFailed] = Queue()

    # ---------------------------------------------------------------------------------------------------------- calls

    def permit(self, peers: Iterable[Address]) -> None:
        """Request permissions for these peers; those whose host has one are reported as permitted at once."""
        new: list[str] = []
        permitted: list[Address] = []
        for peer in peers:
            permission = self._by_host.get(peer.host)
            if permission is None:
                permission = self._by_host[peer.host] = _Permission()
                new.append(peer.host)
            elif permission.state is State.INSTALLED:
                permitted.append(peer)
            permission.peers[peer] = None
        self._ask(new)
        if permitted:
            self._events.append(Permitted(peers=tuple(permitted)))

    def forget(self, host: str) -> None:
        """Stop renewing a host's permission and accepting data from it."""
        self._by_host.pop(host, None)
        self._cancel(host)

    def installed(self, host: str) -> bool:
        """Whether data can be sent to this host."""
        permission = self._by_host.get(host)
        return permission is not None and permission.state is State.INSTALLED

    def __contains__(self, host: object) -> bool:
        """Whether data from this host is accepted; the server may relay it before its response arrives."""
        return host in self._by_host

    def by_channel(self, peer: Address, sent_at: Instant) -> None:
        """Install or renew a permission: the peer's channel was bound or renewed (section 12.2)."""
        permission = self._by_host.setdefault(peer.host, _Permission())
        permission.peers[peer] = None
        self._install([peer.host], sent_at)

    def clear(self) -> None:
        """Remove all permissions: the allocation has ended."""
        self._by_host.clear()
        self._timers.clear()
        self._asks.clear()
        self._last = None

    def states(self) -> dict[str, str]:
        """Return each host's state, for `why()`."""
        return {host: permission.state.value for host, permission in self._by_host.items()}

    # -------------------------------------------------------------------------------------------------------- machine

    def answered(self, answer: Answer, *, now: Instant) -> None:
        """Handle the result of a CreatePermission."""
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
        """Return and remove the requests to send."""
        return self._asks.drain()

    def events(self) -> list[Permitted | PermissionFailed]:
        return self._events.drain()

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
        permitted: list[Address] = []
        for host in hosts:
            permission = self._by_host[host]
            if permission.state is State.ASKED:
                permission.state = State.INSTALLED
                permitted += permission.peers
            permission.ends = Instant(max(permission.ends, sent_at + PERMISSION_LIFETIME))
            renew = permission.ends - PERMISSION_LIFETIME + renewal(PERMISSION_LIFETIME)
            self._timers.set((_Timer.RENEW, host), Instant(renew))
            self._timers.set((_Timer.END, host), permission.ends)
        if permitted:
            self._events.append(Permitted(peers=tuple(permitted)))

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
