"""The allocations by client and by relay, their relay ports, reservations and quotas.

    none    --quota claimed----------------> OPENING
    OPENING --every relay is open----------> LIVE
    LIVE    --Refresh 0, expiry, lost port-> FREEING
    FREEING --every relay is free----------> none, and the quota is released

An allocation counts towards the quotas of its account, its source and the server until its last relay is free.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.core.timers import Timers
from polynya.stun.budget import source_of

from .commands import Client, Peer, Relay, Traffic
from .config import RelayHost, ServerConfig
from .ports import RelayPorts
from .users import User

TOKEN_BYTES: Final = 8


class Relayed:
    """One relayed transport address of an allocation."""

    __slots__ = ("external", "ports", "relay", "traffic", "until")

    def __init__(self, relay: Relay, external: Address, ports: RelayPorts, until: Instant) -> None:
        self.relay = relay
        self.external = external
        self.ports = ports
        self.until = until
        self.traffic: Traffic | None = None


class Channel:
    """A channel binding. After `until` its number and peer can be bound to each other only, for five minutes."""

    __slots__ = ("number", "peer", "until")

    def __init__(self, number: int, peer: Peer, until: Instant) -> None:
        self.number = number
        self.peer = peer
        self.until = until


class Claim:
    """One unit of the quotas of an account, of a source and of the server."""

    __slots__ = ("account", "source")

    def __init__(self, account: str, source: str) -> None:
        self.account = account
        self.source = source


class Allocation:
    """An allocation: its relayed addresses, permissions and channels."""

    __slots__ = (
        "answer", "channels", "channels_by_peer", "claim", "client", "freeing", "permissions", "reason", "relays",
        "stream", "traffic", "transaction_id", "user",
    )  # fmt: skip

    def __init__(self, client: Client, user: User, claim: Claim, relays: list[Relayed], *, stream: bool) -> None:
        self.client = client
        self.user = user
        self.claim = claim
        self.relays = relays
        self.stream = stream
        self.transaction_id = b""
        """Transaction id of its Allocate request: a retransmission gets the same answer."""
        self.answer = b""
        self.permissions: dict[str, Instant] = {}
        self.channels: dict[int, Channel] = {}
        self.channels_by_peer: dict[Peer, Channel] = {}
        self.freeing = 0
        """Relays that the data plane has not yet freed."""
        self.traffic: list[Traffic] = []
        """Traffic of its freed relays."""
        self.reason = ""
        """Why it has ended; empty while it is live."""

    def of_family(self, family: int) -> Relayed | None:
        """Return its relayed address of a family, 4 or 6."""
        return next((each for each in self.relays if each.external.family == family), None)

    @property
    def until(self) -> Instant:
        """The time at which the first of its relayed addresses expires."""
        return min(each.until for each in self.relays)


@dataclass(slots=True)
class Reservation:
    """The upper port of an EVEN-PORT request, held until its RESERVATION-TOKEN is used."""

    relayed: Relayed
    claim: Claim


class Allocations:
    """All allocations, relay ports, reservations and quotas."""

    def __init__(self, config: ServerConfig, random: random.Random) -> None:
        self.by_client: dict[Client, Allocation] = {}
        self.by_relay: dict[Relay, Allocation] = {}
        self.relayed: dict[Relay, Relayed] = {}
        """Relays that are open, reserved or being freed."""
        self.reservations: dict[bytes, Reservation] = {}
        self.expiries: Timers[Client] = Timers()
        self.reserved_until: Timers[bytes] = Timers()
        self.claimed = 0
        """Number of claims: of live allocations, of those being opened or freed, and of reservations."""
        self.limits = config.limits
        self._random = random
        self._by_account: dict[str, int] = {}
        self._by_source: dict[str, int] = {}
        self._live_hosts: dict[str, int] = {}
        self._live_relays: dict[tuple[str, int], Relay] = {}
        """Live relays by bound and by external endpoint."""
        low, high = config.ports
        self._hosts = [(each, RelayPorts(low, high, config.port_rest, random)) for each in config.relays]
        self._by_family = {family: [each for each in self._hosts if each[0].family == family] for family in (4, 6)}

    # ---------------------------------------------------------------------------------------------------------- quotas

    def claim(self, user: User, client: Client) -> Claim | None:
        """Count one more; None if the quota of the account, the source or the server is used up."""
        limits, account, source = self.limits, user.account, source_of(client.remote.host)
        per_user = user.max_allocations if user.max_allocations is not None else limits.allocations_per_user
        of_user, of_source = self._by_account.get(account, 0), self._by_source.get(source, 0)
        if (
            0 < limits.allocations <= self.claimed
            or 0 < per_user <= of_user
            or 0 < limits.allocations_per_address <= of_source
        ):
            return None
        self.claimed += 1
        self._by_account[account] = of_user + 1
        self._by_source[source] = of_source + 1
        return Claim(account, source)

    def release(self, claim: Claim) -> None:
        """Count one less."""
        self.claimed -= 1
        for table, key in ((self._by_account, claim.account), (self._by_source, claim.source)):
            if table[key] == 1:
                del table[key]
            else:
                table[key] -= 1

    # ----------------------------------------------------------------------------------------------------------- ports

    def take_port(
        self, family: int, *, now: Instant, even: bool, pair: bool
    ) -> tuple[RelayHost, RelayPorts, int] | None:
        """Take a port of a host of this family, with `pair` two adjacent ones; None if all are in use."""
        hosts = self._by_family[family]
        if len(hosts) > 1:
            start = self._random.randrange(len(hosts))
            hosts = hosts[start:] + hosts[:start]
        for host, ports in hosts:
            port = ports.take_even(now=now, pair=pair) if even else ports.take(now=now)
            if port is not None:
                return host, ports, port
        return None

    def any_of(self, addresses: Sequence[Address]) -> Address:
        """Choose one of these addresses at random."""
        return self._random.choice(addresses)

    def live_at(self, host: str) -> bool:
        """Whether a live relayed address has this host, bound or external."""
        return host in self._live_hosts

    def is_live(self, peer: Address) -> bool:
        """Whether this endpoint is a live relayed address, bound or external."""
        return (peer.host, peer.port) in self._live_relays

    def free_ports(self, *, now: Instant) -> int:
        """Return the number of free relay ports."""
        return sum(ports.free_ports(now=now) for _, ports in self._hosts)

    @property
    def ports_in_use(self) -> int:
        """Number of relay ports that are neither free nor resting."""
        return sum(ports.used for _, ports in self._hosts)

    @property
    def ports_resting(self) -> int:
        """Number of relay ports that were released and rest before they are used again."""
        return sum(ports.resting for _, ports in self._hosts)

    @property
    def size(self) -> dict[str, int]:
        """Number of entries in each table, to show leaks."""
        return {
            "allocations": len(self.by_client),
            "live relays": len(self.by_relay),
            "relays": len(self.relayed),
            "reservations": len(self.reservations),
            "claims": self.claimed,
            "accounts": len(self._by_account),
            "sources": len(self._by_source),
            "live hosts": len(self._live_hosts),
            "live endpoints": len(self._live_relays),
            "ports in use": self.ports_in_use,
        }

    # ----------------------------------------------------------------------------------------------------------- table

    def add(self, allocation: Allocation) -> None:
        """Add a live allocation."""
        self.by_client[allocation.client] = allocation
        for relayed in allocation.relays:
            self.by_relay[relayed.relay] = allocation
            for host in _names(relayed):
                self._live_hosts[host] = self._live_hosts.get(host, 0) + 1
            for each in (relayed.relay, relayed.external):
                self._live_relays[each.host, each.port] = relayed.relay
        self.expiries.set(allocation.client, allocation.until)

    def remove(self, allocation: Allocation, relayed: Relayed) -> None:
        """Remove a relayed address of an allocation; with its last one the allocation is removed."""
        allocation.relays = [each for each in allocation.relays if each is not relayed]
        self.by_relay.pop(relayed.relay, None)
        for each in (relayed.relay, relayed.external):
            self._live_relays.pop((each.host, each.port), None)
        for host in _names(relayed):
            if self._live_hosts[host] == 1:
                del self._live_hosts[host]
            else:
                self._live_hosts[host] -= 1
        if allocation.relays:
            self.expiries.set(allocation.client, allocation.until)
        elif self.by_client.get(allocation.client) is allocation:
            del self.by_client[allocation.client]
            self.expiries.cancel(allocation.client)

    def reserve(self, relayed: Relayed, claim: Claim) -> bytes:
        """Hold a port for a client of the same account and return the RESERVATION-TOKEN."""
        token = self._random.randbytes(TOKEN_BYTES)
        while token in self.reservations:
            token = self._random.randbytes(TOKEN_BYTES)
        self.reservations[token] = Reservation(relayed, claim)
        self.reserved_until.set(token, relayed.until)
        return token

    def redeem(self, token: bytes, user: User) -> Reservation | None:
        """Remove and return a reservation; None if there is none with this token and account."""
        reservation = self.reservations.get(token)
        if reservation is None or reservation.claim.account != user.account:
            return None
        self.reserved_until.cancel(token)
        return self.reservations.pop(token)


def _names(relayed: Relayed) -> tuple[str, ...]:
    inside, outside = relayed.relay.host, relayed.external.host
    return (inside,) if inside == outside else (inside, outside)
