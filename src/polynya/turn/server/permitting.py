"""CreatePermission and ChannelBind (RFC 8656, sections 9, 10 and 12)."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.stun.attributes import CHANNEL_NUMBER, XOR_PEER_ADDRESS
from polynya.stun.registry import ErrorCode
from polynya.turn.numbers import CHANNEL_LIFETIME, CHANNEL_REST, FIRST_CHANNEL, PERMISSION_LIFETIME

from .allocations import Allocation, Allocations, Channel, Relayed
from .commands import BindChannel, Peer, Permit, Refused, Unpermit
from .config import ServerConfig
from .policy import PeerPolicy
from .requests import Ask, Order, Procedure, Refusal, Resumed, allocation_of


class Permitting:
    """Lets clients and peers reach each other, where the rules allow it."""

    def __init__(self, config: ServerConfig, allocations: Allocations) -> None:
        self._allocations = allocations
        self.policy: PeerPolicy = config.policy
        self.configure(config)

    def configure(self, config: ServerConfig) -> None:
        """Go by these limits, and this channel range, from now on."""
        self._limits = config.limits
        self._last_channel = config.channel_range.last

    def create_permission(self, ask: Ask, *, now: Instant) -> Procedure:
        """RFC 8656, section 10.2. All of the peers or none."""
        allocation = allocation_of(ask, self._allocations)
        peers = ask.message.get(XOR_PEER_ADDRESS)
        if not peers:
            raise Refusal(ErrorCode.BAD_REQUEST, "XOR-PEER-ADDRESS is missing")
        if self._limits.peers_per_request and len(peers) > self._limits.peers_per_request:
            raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, f"{len(peers)} peers in one request")
        by_relay: dict[Relayed, dict[str, None]] = {}
        for peer in peers:
            by_relay.setdefault(_relay_for(allocation, peer), {})[peer.host] = None
        for peer in peers:
            verdict = self.policy.judge_host(peer.host)
            if verdict and not self._allocations.live_at(peer.host):
                raise Refusal(ErrorCode.FORBIDDEN, f"peer {peer.host}: {verdict}")
        yield from self._permit(allocation, {each: tuple(hosts) for each, hosts in by_relay.items()}, now=now)
        return {}

    def channel_bind(self, ask: Ask, *, now: Instant) -> Procedure:
        """RFC 8656, section 12.2."""
        allocation = allocation_of(ask, self._allocations)
        number, peers = ask.message.get(CHANNEL_NUMBER), ask.message.get(XOR_PEER_ADDRESS)
        if number is None or not peers:
            raise Refusal(ErrorCode.BAD_REQUEST, "CHANNEL-NUMBER or XOR-PEER-ADDRESS is missing")
        if not FIRST_CHANNEL <= number <= self._last_channel:
            raise Refusal(ErrorCode.BAD_REQUEST, f"channel {number:#06x} is out of range")
        peer = Peer(peers[0])
        relayed = _relay_for(allocation, peer)
        self._forget_rested(allocation, now=now)
        known = allocation.channels.get(number)
        if known is not None and known.peer != peer:
            raise Refusal(ErrorCode.BAD_REQUEST, f"channel {number:#06x} is another peer's")
        other = allocation.channels_by_peer.get(peer)
        if other is not None and other.number != number:
            raise Refusal(ErrorCode.BAD_REQUEST, f"peer {peer} has channel {other.number:#06x}")
        verdict = self.policy.judge(peer)
        if verdict and not self._allocations.live_at(peer.host):
            raise Refusal(ErrorCode.FORBIDDEN, f"peer {peer}: {verdict}")
        if known is None:
            if self._limits.channels and len(allocation.channels) >= self._limits.channels:
                raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, "too many channels")
            # Known from now on, so that a second request meanwhile cannot take the number for another peer.
            known = allocation.channels[number] = allocation.channels_by_peer[peer] = Channel(number, peer, now)
        try:
            known.until = yield from self._bind(allocation, relayed, known, now=now)
        except Refusal:
            if other is None:  # it never was bound, so it need not rest
                allocation.channels.pop(number, None)
                allocation.channels_by_peer.pop(peer, None)
            raise
        return {}

    def _bind(
        self, allocation: Allocation, relayed: Relayed, channel: Channel, *, now: Instant
    ) -> Generator[Order, Resumed, Instant]:
        """Permit and bind; until when it is bound."""
        number, peer = channel.number, channel.peer
        now = yield from self._permit(allocation, {relayed: (peer.host,)}, now=now)
        until = Instant(now + CHANNEL_LIFETIME)
        report, _ = yield partial(BindChannel, relay=relayed.relay, channel=number, peer=peer, until=until)
        if isinstance(report, Refused):
            raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, report.reason)
        return until

    def revoke(self, allocation: Allocation, *, now: Instant) -> Generator[Order, Resumed, Instant]:
        """Take back the permissions that new rules forbid."""
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

    def _permit(
        self, allocation: Allocation, by_relay: dict[Relayed, tuple[str, ...]], *, now: Instant
    ) -> Generator[Order, Resumed, Instant]:
        permissions, limit = allocation.permissions, self._limits.permissions
        wanted = [host for hosts in by_relay.values() for host in hosts]
        if limit and len(permissions) + len(wanted) > limit:
            for host in [host for host, until in permissions.items() if until <= now]:
                del permissions[host]
        new = [host for host in wanted if host not in permissions]
        if limit and len(permissions) + len(new) > limit:
            raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, "too many permissions")
        done: list[tuple[Relayed, tuple[str, ...]]] = []
        for host in new:
            permissions[host] = now  # counted from now on
        for relayed, hosts in by_relay.items():
            until = Instant(now + PERMISSION_LIFETIME)
            report, now = yield partial(Permit, relay=relayed.relay, hosts=hosts, until=until)
            if isinstance(report, Refused):
                for undone, names in done:
                    taken_back = tuple(name for name in names if name in new)
                    _, now = yield partial(Unpermit, relay=undone.relay, hosts=taken_back)
                for host in new:
                    permissions.pop(host, None)
                raise Refusal(ErrorCode.INSUFFICIENT_CAPACITY, report.reason)
            done.append((relayed, hosts))
            for host in hosts:
                permissions[host] = until
        return now

    def _forget_rested(self, allocation: Allocation, *, now: Instant) -> None:
        rested = [each for each in allocation.channels.values() if each.until + CHANNEL_REST <= now]
        for channel in rested:
            del allocation.channels[channel.number]
            del allocation.channels_by_peer[channel.peer]


def _relay_for(allocation: Allocation, peer: Address) -> Relayed:
    relayed = allocation.of_family(peer.family)
    if relayed is None:
        raise Refusal(ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH, f"nothing is allocated for peers like {peer}")
    return relayed
