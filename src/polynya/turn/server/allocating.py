"""The procedures of Allocate, Refresh, CreatePermission and ChannelBind (RFC 8656, sections 7 to 10 and 12).

    Allocate          checks the request, claims a quota, opens relay ports, adds the allocation
    Refresh           sets a new expiry, or ends the allocation if the lifetime is 0
    CreatePermission  installs permissions for all peers of the request, or for none
    ChannelBind       installs a permission and binds a channel
    end, expire       frees the relays of an allocation and releases its quota

Each is a generator as `procedures` describes: it yields commands for the data plane and returns the attributes of the
success response. While a procedure waits, other requests are handled, so limits are counted before the first command.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, TypeVar

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.compact import Queue
from polynya.core.instants import SECOND, Instant
from polynya.stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_SERVER,
    CHANNEL_NUMBER,
    EVEN_PORT,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    SSODA_ADDITIONAL_ADDRESS_FAMILY,
    SSODA_ADDRESS_ERROR_CODE,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
)
from polynya.stun.message import Message
from polynya.stun.registry import ErrorCode
from polynya.turn.numbers import (
    CHANNEL_LIFETIME,
    CHANNEL_REST,
    FIRST_CHANNEL,
    PERMISSION_LIFETIME,
    RESERVATION_LIFETIME,
    UDP,
)

from .allocations import Allocation, Allocations, Channel, Claim, Relayed
from .commands import (
    AssignRelay,
    BindChannel,
    Client,
    FreeRelay,
    OpenRelay,
    Peer,
    Permit,
    Refused,
    Relay,
    SetExpiry,
    Unpermit,
)
from .config import ServerConfig
from .events import AllocationCreated, AllocationEnded
from .meters import SharedLimit
from .policy import PeerPolicy
from .procedures import Acknowledged, Attributes, ErrorResponse, Procedure, Request, UnnumberedCommand

_TRIES: Final = 8
"""Ports that are tried if other programs use some of the range."""
_PORT_ERRORS: Final = (errno.EADDRINUSE, errno.EACCES)
"""Errors after which another port may still be opened."""

T = TypeVar("T")
Steps = Generator[UnnumberedCommand, Acknowledged, T]
"""Part of a procedure, for `yield from`."""


@dataclass(slots=True)
class _Requested:
    """The relayed addresses that an Allocate request asks for."""

    family: int
    additional: int | None = None
    even: bool = False
    reserve: bool = False
    token: bytes | None = None


class Allocating:
    """Makes, changes and ends allocations."""

    def __init__(self, config: ServerConfig, allocations: Allocations) -> None:
        self._allocations = allocations
        self._families = config.families
        self._opening: dict[Client, None] = {}
        self._events: Queue[AllocationCreated | AllocationEnded] = Queue()
        self.policy: PeerPolicy = config.policy
        self.draining: Callable[[Client], list[Address]] | None = None
        """Set while the server drains: returns the alternate servers for a client."""
        self.configure(config)

    def configure(self, config: ServerConfig) -> None:
        """Apply new limits, lifetimes and the channel range."""
        self._config = config
        self._limits = config.limits
        self._last_channel = config.channel_range.last

    def events(self) -> list[AllocationCreated | AllocationEnded]:
        """Return the events about allocations, oldest first; drained by the call."""
        return self._events.drain()

    # -------------------------------------------------------------------------------------------------------- Allocate

    def allocate(self, request: Request, *, now: Instant) -> Procedure:
        """RFC 8656, section 7.2."""
        if request.client in self._allocations.by_client or request.client in self._opening:
            raise ErrorResponse(ErrorCode.ALLOCATION_MISMATCH, "there is an allocation already")
        self._opening[request.client] = None
        try:
            return (yield from self._allocate(request, now=now))
        finally:
            del self._opening[request.client]

    def _allocate(self, request: Request, *, now: Instant) -> Procedure:
        requested = self._requested(request.message)
        if self.draining is not None:
            self._redirect(self.draining(request.client))
        lifetime = self._lifetime(request.message)
        user = request.authenticated.user
        attributes: Attributes = {}
        if requested.token is not None:
            reservation = self._allocations.redeem(requested.token, user)
            if reservation is None:
                raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, "no such reservation")
            claim, relays = reservation.claim, [reservation.relayed]
            now = yield from self._assign(request, reservation.relayed, claim, lifetime, now=now)
        else:
            claimed = self._allocations.claim(user, request.client)
            if claimed is None:
                raise ErrorResponse(ErrorCode.ALLOCATION_QUOTA_REACHED, "too many allocations")
            claim = claimed
            relays, attributes, now = yield from self._open_all(request, requested, claim, lifetime, now=now)
        allocation = Allocation(request.client, user, claim, relays, stream=request.stream)
        self._allocations.add(allocation)
        relayed = tuple(each.external for each in relays)
        self._events.append(
            AllocationCreated(client=request.client, user=user.name, relayed=relayed, lifetime=lifetime)
        )
        if request.abandoned:
            yield from self.end(allocation, "its stream closed", now=now)
            return {}
        return {
            XOR_RELAYED_ADDRESS: relayed,
            LIFETIME: lifetime // SECOND,
            XOR_MAPPED_ADDRESS: request.client.remote,
            **attributes,
        }

    def _redirect(self, alternates: list[Address]) -> NoReturn:
        """Send the client of a draining server to one of these alternates (RFC 8489, section 14.15)."""
        if not alternates:
            raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, "the server is draining")
        chosen = self._allocations.any_of(alternates)
        raise ErrorResponse(ErrorCode.TRY_ALTERNATE, "the server is draining", {ALTERNATE_SERVER: (chosen,)})

    def _requested(self, message: Message) -> _Requested:
        value = message.attributes.get
        transport = value(REQUESTED_TRANSPORT)
        if transport is None:
            raise ErrorResponse(ErrorCode.BAD_REQUEST, "REQUESTED-TRANSPORT is missing")
        if transport != UDP:
            raise ErrorResponse(
                ErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL, f"transport protocol {transport} is not relayed"
            )
        even = value(EVEN_PORT)
        token = value(RESERVATION_TOKEN)
        family = value(REQUESTED_ADDRESS_FAMILY)
        additional = value(ADDITIONAL_ADDRESS_FAMILY)
        if additional is None:
            additional = value(SSODA_ADDITIONAL_ADDRESS_FAMILY)
        if token is not None and (even is not None or family is not None or additional is not None):
            raise ErrorResponse(ErrorCode.BAD_REQUEST, "RESERVATION-TOKEN excludes EVEN-PORT and address families")
        if additional is not None and (family is not None or even or additional != IPV6):
            raise ErrorResponse(ErrorCode.BAD_REQUEST, "ADDITIONAL-ADDRESS-FAMILY conflicts with other attributes")
        family = IPV4 if family is None else family
        available = self._families
        if token is None and family not in available and not (additional is not None and additional in available):
            raise ErrorResponse(ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED, f"address family {family} is not relayed")
        return _Requested(family, additional, even is not None, bool(even), token)

    def _lifetime(self, message: Message) -> int:
        """Return the requested lifetime, limited to the range from default to maximum, in nanoseconds."""
        requested = message.get(LIFETIME)
        if requested is None:
            return self._config.default_lifetime
        return max(self._config.default_lifetime, min(requested * SECOND, self._config.max_lifetime))

    def _open_all(
        self, request: Request, requested: _Requested, claim: Claim, lifetime: int, *, now: Instant
    ) -> Steps[tuple[list[Relayed], Attributes, Instant]]:
        """Open all requested relayed addresses. One of two families is enough; ADDRESS-ERROR-CODE reports the other."""
        relays: list[Relayed] = []
        attributes: Attributes = {}
        failed: AddressError | None = None
        why = ""
        for family in (requested.family,) if requested.additional is None else (requested.family, requested.additional):
            if family not in self._families:
                failed = AddressError(family, ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED)
                continue
            opened, why, now = yield from self._open(request, family, requested, lifetime, now=now)
            if not opened:
                failed = AddressError(family, ErrorCode.INSUFFICIENT_CAPACITY)
                continue
            relays.append(opened[0])
            if len(opened) == 2:
                second = self._allocations.claim(request.authenticated.user, request.client)
                if second is None:
                    yield from self._free(opened, now=now)
                    self._allocations.release(claim)
                    raise ErrorResponse(ErrorCode.ALLOCATION_QUOTA_REACHED, "too many allocations for a reservation")
                attributes[RESERVATION_TOKEN] = self._allocations.reserve(opened[1], second)
        if not relays:
            self._allocations.release(claim)
            raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, why or "no relay port is free")
        if failed is not None:
            draft = ADDITIONAL_ADDRESS_FAMILY not in request.message  # such clients know the draft's numbers only
            attributes[SSODA_ADDRESS_ERROR_CODE if draft else ADDRESS_ERROR_CODE] = failed
        return relays, attributes, now

    def _open(
        self, request: Request, family: int, requested: _Requested, lifetime: int, *, now: Instant
    ) -> Steps[tuple[list[Relayed], str, Instant]]:
        """Open a relay port, and reserve the next one if requested. Returns no port, and the reason, on failure."""
        pair = requested.reserve
        why = ""
        for _ in range(_TRIES):
            taken = self._allocations.take_port(family, now=now, even=requested.even, pair=pair)
            if taken is None:
                break
            host, ports, port = taken
            opened: list[Relayed] = []
            refused: Refused | None = None
            for number in (port, port + 1) if pair else (port,):
                until = Instant(now + (RESERVATION_LIFETIME if opened else lifetime))
                relay = Relay(Address(host.host, number))
                relayed = Relayed(relay, Address(host.outside, number), ports, until)
                report, now = yield partial(
                    OpenRelay,
                    relay=relay,
                    external=relayed.external,
                    client=None if opened else request.client,
                    stream=request.stream,
                    until=until,
                    bytes_per_second=self._limits.bytes_per_second,
                    shared=self._shared(request),
                )
                if isinstance(report, Refused):
                    refused = report
                    for unopened in range(number, port + pair + 1):
                        ports.release(unopened, now=now)
                    break
                opened.append(relayed)
                self._allocations.relayed[relay] = relayed
            else:
                return opened, "", now
            now = yield from self._free(opened, now=now)
            why = f"no relay port can be opened: {refused.reason}"
            if refused.errno is not None and refused.errno not in _PORT_ERRORS:
                break
        return [], why, now

    def _shared(self, request: Request) -> SharedLimit | None:
        """Return the limits for all relays of an account, if any visitor can get its credentials."""
        user, limits = request.authenticated.user, self._limits
        if not user.open or not (limits.open_bytes_per_second or limits.open_bytes_per_hour):
            return None
        return SharedLimit(user.account, limits.open_bytes_per_second, limits.open_bytes_per_hour)

    def _assign(
        self, request: Request, relayed: Relayed, claim: Claim, lifetime: int, *, now: Instant
    ) -> Steps[Instant]:
        relayed.until = Instant(now + lifetime)
        report, now = yield partial(
            AssignRelay,
            relay=relayed.relay,
            client=request.client,
            stream=request.stream,
            until=relayed.until,
            bytes_per_second=self._limits.bytes_per_second,
            shared=self._shared(request),
        )
        if isinstance(report, Refused):
            yield from self._free([relayed], now=now)
            self._allocations.release(claim)
            raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, f"the reserved port is lost: {report.reason}")
        return now

    # --------------------------------------------------------------------------------------------------------- Refresh

    def refresh(self, request: Request, *, now: Instant) -> Procedure:
        """RFC 8656, section 8.2."""
        allocation = self._allocation_of(request)
        family = request.message.get(REQUESTED_ADDRESS_FAMILY)
        relays = [each for each in allocation.relays if family in (None, each.external.family)]
        if not relays:
            raise ErrorResponse(
                ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"nothing of address family {family} is allocated"
            )
        if request.message.get(LIFETIME) == 0:
            yield from self.end(allocation, "ended by its client", now=now, relays=relays)
            return {LIFETIME: 0}
        lifetime = self._lifetime(request.message)
        for relayed in relays:
            until = Instant(now + lifetime)
            report, now = yield partial(SetExpiry, relay=relayed.relay, until=until)
            if isinstance(report, Refused) or allocation.reason:
                raise ErrorResponse(ErrorCode.ALLOCATION_MISMATCH, "the allocation has ended meanwhile")
            relayed.until = until
        self._allocations.expiries.set(allocation.client, allocation.until)
        return {LIFETIME: lifetime // SECOND}

    # ----------------------------------------------------------------------------------- CreatePermission, ChannelBind

    def create_permission(self, request: Request, *, now: Instant) -> Procedure:
        """RFC 8656, section 10.2: all peers of the request, or none."""
        allocation = self._allocation_of(request)
        peers = request.message.get(XOR_PEER_ADDRESS)
        if not peers:
            raise ErrorResponse(ErrorCode.BAD_REQUEST, "XOR-PEER-ADDRESS is missing")
        if self._limits.peers_per_request and len(peers) > self._limits.peers_per_request:
            raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, f"{len(peers)} peers in one request")
        by_relay: dict[Relayed, dict[str, None]] = {}
        for peer in peers:
            by_relay.setdefault(_relay_for(allocation, peer), {})[peer.host] = None
        for peer in peers:
            verdict = self.policy.judge_host(peer.host)
            if verdict and not self._allocations.live_at(peer.host):
                raise ErrorResponse(ErrorCode.FORBIDDEN, f"peer {peer.host}: {verdict}")
        yield from self._permit(allocation, {each: tuple(hosts) for each, hosts in by_relay.items()}, now=now)
        return {}

    def channel_bind(self, request: Request, *, now: Instant) -> Procedure:
        """RFC 8656, section 12.2."""
        allocation = self._allocation_of(request)
        number, peers = request.message.get(CHANNEL_NUMBER), request.message.get(XOR_PEER_ADDRESS)
        if number is None or not peers:
            raise ErrorResponse(ErrorCode.BAD_REQUEST, "CHANNEL-NUMBER or XOR-PEER-ADDRESS is missing")
        if not FIRST_CHANNEL <= number <= self._last_channel:
            raise ErrorResponse(ErrorCode.BAD_REQUEST, f"channel {number:#06x} is out of range")
        peer = Peer(peers[0])
        relayed = _relay_for(allocation, peer)
        _remove_rested_channels(allocation, now=now)
        bound = allocation.channels.get(number)
        if bound is not None and bound.peer != peer:
            raise ErrorResponse(ErrorCode.BAD_REQUEST, f"channel {number:#06x} is bound to another peer")
        other = allocation.channels_by_peer.get(peer)
        if other is not None and other.number != number:
            raise ErrorResponse(ErrorCode.BAD_REQUEST, f"peer {peer} is bound to channel {other.number:#06x}")
        verdict = self.policy.judge(peer)
        if verdict and not self._allocations.is_live(peer):
            raise ErrorResponse(ErrorCode.FORBIDDEN, f"peer {peer}: {verdict}")
        if bound is None:
            if self._limits.channels and len(allocation.channels) >= self._limits.channels:
                raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, "too many channels")
            # Added before the first command, so that a concurrent request cannot bind the number to another peer.
            bound = allocation.channels[number] = allocation.channels_by_peer[peer] = Channel(number, peer, now)
        try:
            bound.until = yield from self._bind(allocation, relayed, bound, now=now)
        except ErrorResponse:
            if other is None:  # it was never bound, so it need not rest
                allocation.channels.pop(number, None)
                allocation.channels_by_peer.pop(peer, None)
            raise
        return {}

    def _bind(self, allocation: Allocation, relayed: Relayed, channel: Channel, *, now: Instant) -> Steps[Instant]:
        """Permit the peer and bind the channel; returns the expiry of the channel."""
        number, peer = channel.number, channel.peer
        now = yield from self._permit(allocation, {relayed: (peer.host,)}, now=now)
        until = Instant(now + CHANNEL_LIFETIME)
        report, _ = yield partial(BindChannel, relay=relayed.relay, channel=number, peer=peer, until=until)
        if isinstance(report, Refused):
            raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, report.reason)
        return until

    def _permit(
        self, allocation: Allocation, by_relay: dict[Relayed, tuple[str, ...]], *, now: Instant
    ) -> Steps[Instant]:
        permissions, limit = allocation.permissions, self._limits.permissions
        wanted = [host for hosts in by_relay.values() for host in hosts]
        if limit and len(permissions) + len(wanted) > limit:
            for host in [host for host, until in permissions.items() if until <= now]:
                del permissions[host]
        new = [host for host in wanted if host not in permissions]
        if limit and len(permissions) + len(new) > limit:
            raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, "too many permissions")
        done: list[tuple[Relayed, tuple[str, ...]]] = []
        for host in new:
            permissions[host] = now  # counts towards the limit before it is installed
        for relayed, hosts in by_relay.items():
            until = Instant(now + PERMISSION_LIFETIME)
            report, now = yield partial(Permit, relay=relayed.relay, hosts=hosts, until=until)
            if isinstance(report, Refused):
                for undone, names in done:
                    removed = tuple(name for name in names if name in new)
                    _, now = yield partial(Unpermit, relay=undone.relay, hosts=removed)
                for host in new:
                    permissions.pop(host, None)
                raise ErrorResponse(ErrorCode.INSUFFICIENT_CAPACITY, report.reason)
            done.append((relayed, hosts))
            for host in hosts:
                permissions[host] = until
        return now

    def revoke(self, allocation: Allocation, *, now: Instant) -> Steps[Instant]:
        """Remove the permissions that the current policy denies."""
        for relayed in list(allocation.relays):
            forbidden = tuple(
                host
                for host in allocation.permissions
                if Address(host, 0).family == relayed.external.family
                and self.policy.judge_host(host)
                and not self._allocations.live_at(host)
            )
            if forbidden:
                for host in forbidden:
                    del allocation.permissions[host]
                _, now = yield partial(Unpermit, relay=relayed.relay, hosts=forbidden)
        return now

    # ------------------------------------------------------------------------------------------------------------- end

    def end(
        self, allocation: Allocation, reason: str, *, now: Instant, relays: list[Relayed] | None = None
    ) -> Steps[Instant]:
        """End an allocation, or free some of its relayed addresses; each relay may be ended only once.

        The relays are removed at once; the quota is released when the data plane has freed the last of them.
        """
        ending = list(allocation.relays if relays is None else relays)
        for relayed in ending:
            self._allocations.remove(allocation, relayed)
        if not allocation.relays:
            allocation.reason = reason
        allocation.freeing += len(ending)
        for relayed in ending:
            now = yield from self._free([relayed], now=now)
            allocation.freeing -= 1
            if relayed.traffic is not None:
                allocation.traffic.append(relayed.traffic)
        if ending and allocation.reason and not allocation.freeing:
            self._allocations.release(allocation.claim)
            self._events.append(
                AllocationEnded(
                    client=allocation.client,
                    user=allocation.user.name,
                    reason=allocation.reason,
                    traffic=tuple(allocation.traffic),
                )
            )
        return now

    def expire(self, allocation: Allocation, *, now: Instant) -> Steps[Instant]:
        """Free the relayed addresses of an allocation that have expired."""
        expired = [each for each in allocation.relays if each.until <= now]
        if not expired:
            self._allocations.expiries.set(allocation.client, allocation.until)
        return self.end(allocation, "expired", now=now, relays=expired)

    def expire_reservation(self, token: bytes, *, now: Instant) -> Steps[Instant]:
        """Free the port of a reservation that was not redeemed in time."""
        reservation = self._allocations.reservations.pop(token)
        now = yield from self._free([reservation.relayed], now=now)
        self._allocations.release(reservation.claim)
        return now

    def _free(self, relays: list[Relayed], *, now: Instant) -> Steps[Instant]:
        for relayed in relays:
            _, now = yield partial(FreeRelay, relay=relayed.relay)
            self._allocations.relayed.pop(relayed.relay, None)
            relayed.ports.release(relayed.relay.port, now=now)
        return now

    def _allocation_of(self, request: Request) -> Allocation:
        """Return the allocation of a request's client; ErrorResponse if there is none or its user is another."""
        allocation = self._allocations.by_client.get(request.client)
        if allocation is None:
            raise ErrorResponse(ErrorCode.ALLOCATION_MISMATCH, "no allocation")
        if allocation.user.account != request.authenticated.user.account:
            raise ErrorResponse(ErrorCode.WRONG_CREDENTIALS, "the allocation was made with other credentials")
        allocation.answer = b""  # the client has received the answer to its Allocate
        return allocation


def _relay_for(allocation: Allocation, peer: Address) -> Relayed:
    relayed = allocation.of_family(peer.family)
    if relayed is None:
        raise ErrorResponse(ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"no relayed address of the family of peer {peer}")
    return relayed


def _remove_rested_channels(allocation: Allocation, *, now: Instant) -> None:
    rested = [each for each in allocation.channels.values() if each.until + CHANNEL_REST <= now]
    for channel in rested:
        del allocation.channels[channel.number]
        del allocation.channels_by_peer[channel.peer]
