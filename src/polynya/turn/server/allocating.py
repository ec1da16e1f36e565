"""Allocate and Refresh (RFC 8656, sections 7 and 8), and the end of allocations."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.instants import SECOND, Instant
from polynya.stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    ALTERNATE_SERVER,
    EVEN_PORT,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    SSODA_ADDITIONAL_ADDRESS_FAMILY,
    SSODA_ADDRESS_ERROR_CODE,
    XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS,
    AddressError,
)
from polynya.stun.message import Message
from polynya.stun.registry import ErrorCode
from polynya.turn.numbers import RESERVATION_LIFETIME, UDP

from .allocations import Allocation, Allocations, Claim, Relayed
from .commands import AssignRelay, Client, FreeRelay, OpenRelay, Refused, Relay, SetExpiry
from .config import ServerConfig
from .events import AllocationCreated, AllocationEnded
from .requests import Ask, Attributes, Order, Procedure, Refusal, Resumed, allocation_of

_TRIES: Final = 8
"""Ports that are tried when other programs hold some of the range."""
_ELSEWHERE: Final = (errno.EADDRINUSE, errno.EACCES)


@dataclass(slots=True)
class _Wish:
    """What an Allocate request asks for."""

    family: int
    additional: int | None = None
    even: bool = False
    reserve: bool = False
    token: bytes | None = None


class Allocating:
    """Makes, prolongs and ends allocations."""

    def __init__(self, config: ServerConfig, allocations: Allocations) -> None:
        self.config = config
        self._families = config.families
        self._allocations = allocations
        self._opening: dict[Client, None] = {}
        self._events: list[AllocationCreated | AllocationEnded] = []
        self.draining: Callable[[Client], list[Address]] | None = None
        """Set while no new allocations are made: where a client can be sent instead, if anywhere."""

    def events(self) -> list[AllocationCreated | AllocationEnded]:
        """What became of allocations, oldest first; drained by the call."""
        if not self._events:
            return []
        drained, self._events = self._events, []
        return drained

    # -------------------------------------------------------------------------------------------------------- allocate

    def allocate(self, ask: Ask, *, now: Instant) -> Procedure:
        """RFC 8656, section 7.2."""
        if ask.client in self._allocations.by_client or ask.client in self._opening:
            raise Refusal(ErrorCode.ALLOCATION_MISMATCH, "there is an allocation already")
        self._opening[ask.client] = None
        try:
            return (yield from self._allocate(ask, now=now))
        finally:
            del self._opening[ask.client]

    def _allocate(self, ask: Ask, *, now: Instant) -> Procedure:
        wish = self._wish(ask.message)
        if self.draining is not None:
            self._send_away(self.draining(ask.client))
        lifetime = self._lifetime(ask.message)
        user = ask.granted.user
        reply: Attributes = {}
        if wish.token is not None:
            reservation = self._allocations.redeem(wish.token, user)
            if reservation is None:
                raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, "no such reservation")
            claim, relays = reservation.claim, [reservation.relayed]
            now = yield from self._assign(ask, reservation.relayed, claim, lifetime, now=now)
        else:
            taken = self._allocations.claim(user, ask.client)
            if taken is None:
                raise Refusal(ErrorCode.ALLOCATION_QUOTA_REACHED, "too many allocations")
            claim = taken
            relays, reply, now = yield from self._open_all(ask, wish, claim, lifetime, now=now)
        allocation = Allocation(ask.client, user, claim, relays, stream=ask.stream)
        self._allocations.add(allocation)
        relayed = tuple(each.external for each in relays)
        self._events.append(AllocationCreated(client=ask.client, user=user.name, relayed=relayed, lifetime=lifetime))
        if ask.abandoned:
            yield from self.end(allocation, "its stream closed", now=now)
            return {}
        return {
            XOR_RELAYED_ADDRESS: relayed,
            LIFETIME: lifetime // SECOND,
            XOR_MAPPED_ADDRESS: ask.client.remote,
            **reply,
        }

    def _send_away(self, elsewhere: list[Address]) -> NoReturn:
        """To any of those that the client can reach as it reached us (RFC 8489, section 14.15)."""
        if not elsewhere:
            raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, "the server is draining")
        chosen = self._allocations.any_of(elsewhere)
        raise Refusal(ErrorCode.TRY_ALTERNATE, "the server is draining", {ALTERNATE_SERVER: (chosen,)})

    def _wish(self, message: Message) -> _Wish:
        value = message.attributes.get
        transport = value(REQUESTED_TRANSPORT)
        if transport is None:
            raise Refusal(ErrorCode.BAD_REQUEST, "REQUESTED-TRANSPORT is missing")
        if transport != UDP:
            raise Refusal(ErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL, f"transport protocol {transport} is not relayed")
        even = value(EVEN_PORT)
        token = value(RESERVATION_TOKEN)
        family = value(REQUESTED_ADDRESS_FAMILY)
        additional = value(ADDITIONAL_ADDRESS_FAMILY)
        if additional is None:
            additional = value(SSODA_ADDITIONAL_ADDRESS_FAMILY)
        if token is not None and (even is not None or family is not None or additional is not None):
            raise Refusal(ErrorCode.BAD_REQUEST, "a reservation is not compatible with other wishes")
        if additional is not None and (family is not None or even or additional != IPV6):
            raise Refusal(ErrorCode.BAD_REQUEST, "ADDITIONAL-ADDRESS-FAMILY does not fit")
        family = IPV4 if family is None else family
        available = self._families
        if token is None and family not in available and not (additional is not None and additional in available):
            raise Refusal(ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED, f"address family {family} is not relayed")
        return _Wish(family, additional, even is not None, bool(even), token)

    def _lifetime(self, message: Message) -> int:
        """Nanoseconds: what was asked for, between the default and the maximum."""
        asked = message.get(LIFETIME)
        if asked is None:
            return self.config.default_lifetime
        return max(self.config.default_lifetime, min(asked * SECOND, self.config.max_lifetime))

    def _open_all(
        self, ask: Ask, wish: _Wish, claim: Claim, lifetime: int, *, now: Instant
    ) -> Generator[Order, Resumed, tuple[list[Relayed], Attributes, Instant]]:
        """Open every relayed address that is wished for. Of two families one is enough; the other's error is told."""
        relays: list[Relayed] = []
        reply: Attributes = {}
        failed: AddressError | None = None
        why = ""
        for family in (wish.family,) if wish.additional is None else (wish.family, wish.additional):
            if family not in self._families:
                failed = AddressError(family, ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED)
                continue
            opened, why, now = yield from self._open(ask, family, wish, lifetime, now=now)
            if not opened:
                failed = AddressError(family, ErrorCode.INSUFFICIENT_CAPACITY)
                continue
            relays.append(opened[0])
            if len(opened) == 2:
                second = self._allocations.claim(ask.granted.user, ask.client)
                if second is None:
                    yield from self._free(opened, now=now)
                    self._allocations.release(claim)
                    raise Refusal(ErrorCode.ALLOCATION_QUOTA_REACHED, "too many allocations for a reservation, too")
                reply[RESERVATION_TOKEN] = self._allocations.reserve(opened[1], second)
        if not relays:
            self._allocations.release(claim)
            raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, why or "no relay port is free")
        if failed is not None:
            old = ADDITIONAL_ADDRESS_FAMILY not in ask.message  # who asks by the draft's number reads that one
            reply[SSODA_ADDRESS_ERROR_CODE if old else ADDRESS_ERROR_CODE] = failed
        return relays, reply, now

    def _open(
        self, ask: Ask, family: int, wish: _Wish, lifetime: int, *, now: Instant
    ) -> Generator[Order, Resumed, tuple[list[Relayed], str, Instant]]:
        """One relay port, and the next one, held for later, when that is wished for; empty, and why, where none is."""
        pair = wish.reserve
        why = ""
        for _ in range(_TRIES):
            taken = self._allocations.take_port(family, now=now, even=wish.even, pair=pair)
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
                    client=None if opened else ask.client,
                    stream=ask.stream,
                    until=until,
                    bytes_per_second=self.config.limits.bytes_per_second,
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
            if refused.errno is not None and refused.errno not in _ELSEWHERE:
                break
        return [], why, now

    def _assign(
        self, ask: Ask, relayed: Relayed, claim: Claim, lifetime: int, *, now: Instant
    ) -> Generator[Order, Resumed, Instant]:
        relayed.until = Instant(now + lifetime)
        report, now = yield partial(
            AssignRelay,
            relay=relayed.relay,
            client=ask.client,
            stream=ask.stream,
            until=relayed.until,
            bytes_per_second=self.config.limits.bytes_per_second,
        )
        if isinstance(report, Refused):
            yield from self._free([relayed], now=now)
            self._allocations.release(claim)
            raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, f"the reserved port is lost: {report.reason}")
        return now

    # --------------------------------------------------------------------------------------------------------- refresh

    def refresh(self, ask: Ask, *, now: Instant) -> Procedure:
        """RFC 8656, section 8.2."""
        allocation = allocation_of(ask, self._allocations)
        family = ask.message.get(REQUESTED_ADDRESS_FAMILY)
        relays = [each for each in allocation.relays if family in (None, each.external.family)]
        if not relays:
            raise Refusal(ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"nothing of address family {family} is allocated")
        if ask.message.get(LIFETIME) == 0:
            yield from self.end(allocation, "ended by its client", now=now, relays=relays)
            return {LIFETIME: 0}
        lifetime = self._lifetime(ask.message)
        for relayed in relays:
            until = Instant(now + lifetime)
            report, now = yield partial(SetExpiry, relay=relayed.relay, until=until)
            if isinstance(report, Refused) or allocation.reason:
                raise Refusal(ErrorCode.ALLOCATION_MISMATCH, "the allocation has ended meanwhile")
            relayed.until = until
        self._allocations.expiries.set(allocation.client, allocation.until)
        return {LIFETIME: lifetime // SECOND}

    # ------------------------------------------------------------------------------------------------------------- end

    def end(
        self, allocation: Allocation, reason: str, *, now: Instant, relays: list[Relayed] | None = None
    ) -> Generator[Order, Resumed, Instant]:
        """End an allocation, or some of its relayed addresses: known no more at once, counted until the plane is done.

        Each relay must be ended once only.
        """
        ending = list(allocation.relays if relays is None else relays)
        for relayed in ending:
            self._allocations.part(allocation, relayed)
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

    def expire(self, allocation: Allocation, *, now: Instant) -> Generator[Order, Resumed, Instant]:
        """End what has expired of an allocation."""
        over = [each for each in allocation.relays if each.until <= now]
        if not over:
            self._allocations.expiries.set(allocation.client, allocation.until)
        return self.end(allocation, "expired", now=now, relays=over)

    def give_up(self, token: bytes, *, now: Instant) -> Generator[Order, Resumed, Instant]:
        """Free the port of a reservation that nobody redeemed."""
        reservation = self._allocations.reservations.pop(token)
        now = yield from self._free([reservation.relayed], now=now)
        self._allocations.release(reservation.claim)
        return now

    def _free(self, relays: list[Relayed], *, now: Instant) -> Generator[Order, Resumed, Instant]:
        for relayed in relays:
            _, now = yield partial(FreeRelay, relay=relayed.relay)
            self._allocations.relayed.pop(relayed.relay, None)
            relayed.ports.release(relayed.relay.port, now=now)
        return now
