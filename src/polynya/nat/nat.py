"""The NAT: translates packets and returns verdicts.

The owner (a router of the virtual network, a TUN device) passes in each packet that crosses the NAT, and acts on the
verdict. A packet is rewritten in place. `outputs` returns packets that the NAT itself sends, such as a delayed ICMP
error.

    outbound     find or create the mapping -> add the permission -> rewrite the source
    inbound      find the mapping -> check the filter -> rewrite the destination
    hairpin      outbound, then inbound of the mapping that it is addressed to
    ICMP error   find the mapping of the quoted packet; renew nothing, remove nothing (RFC 4787, REQ-12)
    fragments    reassemble first (REQ-14)

Mapping and filtering are separate objects; the reason of a drop names which of them dropped the packet and why.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.behavior import Behavior
from polynya.core.compact import Queue
from polynya.core.instants import Instant, in_seconds
from polynya.core.packets import IcmpMessage, IpPacket, Protocol, TcpFields, TcpFlags
from polynya.core.timers import Timers
from polynya.core.trace import NO_TRACE, Json, Tracer

from .config import Hairpinning, NatConfig, UnsolicitedSyn
from .filtering import Filter
from .fragments import Reassembler
from .mapping import Mapping, MappingTable
from .ports import AddressPool, PortAllocator
from .rewriting import destination_of, refusal, reset, set_destination, set_source, source_of
from .tcp import IN, OUT

_PENDING_SYNS = 256
_PERMISSIONS = 0  # the timer of the filter; mappings are numbered from 1


class Action(Enum):
    FORWARD = "forward"
    """Forward it to the other side."""
    HAIRPIN = "hairpin"
    """Send it back to the side that it came from."""
    DROP = "drop"
    HOLD = "hold"
    """A fragment of an incomplete packet: the NAT keeps it."""


@dataclass(slots=True)
class Verdict:
    """The action for a packet. `packet` is the rewritten packet, or None if dropped or held; `reason` is for people."""

    action: Action
    packet: IpPacket | None
    reason: str = ""


class Nat:
    """A NAT with its external addresses. `table` shows its state."""

    def __init__(
        self, config: NatConfig, external: Sequence[str], *, random: random.Random, trace: Tracer = NO_TRACE
    ) -> None:
        if not external:
            raise ValueError("a NAT needs at least one external address")
        self.config = config
        self.external = tuple(external)
        self.counters: dict[str, int] = {}
        self._trace = trace
        self._mappings = MappingTable(config.mapping)
        self._filter = Filter(config.filtering, config.filter_scope)
        self._pool = AddressPool(config, self.external, random)
        self._ports = PortAllocator(config, random)
        self._fragments = Reassembler()
        self._timers: Timers[int] = Timers()
        self._syns: dict[tuple[Address, Address], tuple[Instant, IpPacket]] = {}
        self._outputs: Queue[IpPacket] = Queue()

    def __repr__(self) -> str:
        return f"<Nat {self.config.label} {', '.join(self.external)}: {len(self._mappings)} mappings>"

    def table(self, *, now: Instant) -> str:
        """Return the mappings and permissions as a text table: local, external, destination, expires in."""
        found = [(mapping.row(key), mapping.expires) for mapping in self._mappings for key in mapping.keys]
        lines = [("entry", "protocol", "local", "external", "destination", "expires in")]
        for row, expires in found + self._filter.expiries():
            if expires > now:
                cells = (str(row.get(name, "-")) for name in ("entry", "protocol", "internal", "external", "remote"))
                lines.append((*cells, f"{in_seconds(Instant(expires - now)):.1f} s"))  # type: ignore[arg-type]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def mapping_of(self, protocol: Protocol, external: Address) -> Mapping | None:
        """Return the mapping of an external endpoint, for inspection."""
        return self._mappings.inbound(protocol, external)

    # ---------------------------------------------------------------------------------------------------- packets

    def outbound(self, packet: IpPacket, *, now: Instant) -> Verdict:
        """Translate a packet from inside to outside."""
        whole = self._whole(packet, now=now)
        if isinstance(whole, Verdict):
            return whole
        if whole.icmp is not None:
            if whole.icmp.about is not None:
                return self._error_outbound(whole, whole.icmp, now=now)
            if whole.icmp.reply:
                return self._drop("an echo reply to a request that this NAT did not translate")
        return self._outbound(whole, now=now)

    def inbound(self, packet: IpPacket, *, now: Instant) -> Verdict:
        """Translate a packet from outside to one of the external addresses."""
        whole = self._whole(packet, now=now)
        if isinstance(whole, Verdict):
            return whole
        if whole.icmp is not None:
            if whole.icmp.about is not None:
                return self._error_inbound(whole, whole.icmp, now=now)
            if not whole.icmp.reply:
                return self._drop("an echo request from outside, which selects no inside host")
        return self._inbound(whole, now=now)

    # ------------------------------------------------------------------------------------------------------- time

    def tick(self, *, now: Instant) -> None:
        """Remove expired mappings and permissions; answer unsolicited SYNs that are due."""
        for number in self._timers.due(now=now):
            mapping = self._mappings.numbered(number)
            if number == _PERMISSIONS:
                removed = list(self._filter.expire(now=now))
                if removed:
                    self._trace.nat("permissions expired", now=now, added=[], removed=removed)
                if (following := self._filter.next_expiry()) is not None:
                    self._timers.set(_PERMISSIONS, following)
            elif mapping is not None:
                if mapping.expires > now:
                    self._timers.set(number, mapping.expires)
                else:
                    self._remove(mapping, now=now)
        while self._syns:
            key = next(iter(self._syns))
            due, syn = self._syns[key]
            if due > now:
                break
            del self._syns[key]
            self._outputs.append(refusal(syn))

    def next_timer(self) -> Instant | None:
        at = self._timers.next()
        if self._syns:
            due = next(iter(self._syns.values()))[0]
            return due if at is None else min(at, due)
        return at

    def outputs(self) -> list[IpPacket]:
        """Remove and return the packets that the NAT sends to the outside."""
        return self._outputs.drain()

    def rows(self) -> list[dict[str, Json]]:
        """Return mappings, then permissions, as the trace shows them."""
        return [m.row(key) for m in self._mappings for key in m.keys] + self._filter.rows()

    # -------------------------------------------------------------------------------------------------- translation

    def _outbound(self, packet: IpPacket, *, now: Instant) -> Verdict:
        protocol, internal, remote = packet.protocol, source_of(packet), destination_of(packet)
        mapping = self._live(self._mappings.outbound(protocol, internal, remote), now=now)
        if mapping is None:
            if packet.tcp is not None and not packet.tcp.flags & TcpFlags.SYN:
                return self._drop(f"a TCP segment without SYN from {internal}, which has no mapping for {remote}")
            made = self._make(protocol, internal, remote, now=now)
            if isinstance(made, str):
                return self._drop(made)
            mapping = made
            renew = True
        else:
            renew = self.config.outbound_refresh
        self._renew(mapping, remote, packet.tcp, OUT, now=now, renew=renew)
        self._permit(mapping, remote, now=now, renew=renew)
        if packet.tcp is not None:
            self._syns.pop((remote, mapping.external), None)
        if remote.host in self.external:
            return self._hairpin(packet, mapping, now=now)
        set_source(packet, mapping.external)
        return Verdict(Action.FORWARD, packet)

    def _inbound(self, packet: IpPacket, *, now: Instant) -> Verdict:
        remote, external = source_of(packet), destination_of(packet)
        mapping = self._live(self._mappings.inbound(packet.protocol, external), now=now)
        reason = self._refusal(mapping, packet, remote, external, now=now)
        if mapping is None or reason:
            return self._unsolicited(packet, remote, external, reason, now=now)
        self._accept(mapping, packet, remote, now=now)
        return Verdict(Action.FORWARD, packet)

    def _hairpin(self, packet: IpPacket, sender: Mapping, *, now: Instant) -> Verdict:
        """Translate a packet between two inside hosts through an external endpoint (RFC 4787, REQ-9)."""
        external = destination_of(packet)
        if self.config.hairpinning is Hairpinning.NONE:
            return self._drop(f"hairpinning is off: {external} is an address of this NAT")
        target = self._live(self._mappings.inbound(packet.protocol, external), now=now)
        reason = self._refusal(target, packet, sender.external, external, now=now)
        if target is None or reason:
            return self._drop(reason)
        if self.config.hairpinning is Hairpinning.EXTERNAL_SOURCE:
            set_source(packet, sender.external)
        self._accept(target, packet, sender.external, now=now)
        return Verdict(Action.HAIRPIN, packet)

    def _refusal(
        self, mapping: Mapping | None, packet: IpPacket, remote: Address, external: Address, *, now: Instant
    ) -> str:
        if mapping is None:
            return f"no mapping: {external} is mapped to no inside endpoint"
        if not self._filter.allows(mapping, remote, now=now):
            return self._filter.why_not(mapping, remote, now=now)
        if packet.tcp is not None and not packet.tcp.flags & TcpFlags.SYN and not mapping.connected(remote, now=now):
            return f"a TCP segment without SYN from {remote}, which has no connection with {mapping.internal}"
        return ""

    def _accept(self, mapping: Mapping, packet: IpPacket, remote: Address, *, now: Instant) -> None:
        config = self.config
        tcp = packet.tcp
        self._renew(mapping, remote, tcp, IN, now=now, renew=config.inbound_refresh or tcp is not None)
        if config.inbound_refresh or tcp is not None:
            self._filter.renew(mapping, remote)
            self._arm_permissions(mapping.until(remote))
        if config.inbound_sessions:
            key = self._mappings.bind(mapping, remote)
            if key is not None:
                self._trace.nat(f"a packet from {remote} was accepted", now=now, added=[mapping.row(key)], removed=[])
            self._permit(mapping, remote, now=now, renew=False)
        set_destination(packet, mapping.internal)

    def _unsolicited(
        self, packet: IpPacket, remote: Address, external: Address, reason: str, *, now: Instant
    ) -> Verdict:
        """Drop an inbound packet that is not accepted; answer a SYN by the policy (RFC 5382, REQ-4)."""
        tcp = packet.tcp
        if tcp is not None and tcp.flags & (TcpFlags.SYN | TcpFlags.ACK) == TcpFlags.SYN:
            policy = self.config.unsolicited_syn
            if policy is UnsolicitedSyn.RESET:
                self._outputs.append(reset(packet, tcp))
            elif policy is UnsolicitedSyn.WAIT_THEN_ICMP and len(self._syns) < _PENDING_SYNS:
                self._syns.setdefault((remote, external), (Instant(now + self.config.syn_wait), packet))
        return self._drop(reason)

    # ------------------------------------------------------------------------------------------------- ICMP errors

    def _error_outbound(self, packet: IpPacket, icmp: IcmpMessage, *, now: Instant) -> Verdict:
        """Translate an ICMP error of an inside host or router about an inbound packet (RFC 5508, REQ-5)."""
        about = icmp.about
        assert about is not None
        internal, remote = destination_of(about), source_of(about)
        mapping = self._live(self._mappings.outbound(about.protocol, internal, remote), now=now)
        if mapping is None:
            others = self._mappings.of_endpoint(about.protocol, internal)
            mapping = self._live(others[0], now=now) if len(others) == 1 else None
        if mapping is None:
            return self._drop(f"an ICMP error about a packet to {internal}, which has no mapping")
        set_destination(about, mapping.external)
        packet.source = Address(mapping.external.host, 0)
        if remote.host not in self.external:
            return Verdict(Action.FORWARD, packet)
        sender = self._live(self._mappings.inbound(about.protocol, remote), now=now)
        if sender is None or self.config.hairpinning is Hairpinning.NONE:
            return self._drop(f"an ICMP error about a packet from {remote}, which is mapped to no inside endpoint")
        set_source(about, sender.internal)
        packet.destination = Address(sender.internal.host, 0)
        return Verdict(Action.HAIRPIN, packet)

    def _error_inbound(self, packet: IpPacket, icmp: IcmpMessage, *, now: Instant) -> Verdict:
        """Translate an ICMP error from outside about an outbound packet (RFC 5508, REQ-4)."""
        about = icmp.about
        assert about is not None
        external = source_of(about)
        mapping = self._live(self._mappings.inbound(about.protocol, external), now=now)
        if mapping is None:
            return self._drop(f"an ICMP error about a packet from {external}, which is mapped to no inside endpoint")
        set_source(about, mapping.internal)
        packet.destination = Address(mapping.internal.host, 0)
        return Verdict(Action.FORWARD, packet)

    # ----------------------------------------------------------------------------------------------------- mappings

    def _make(self, protocol: Protocol, internal: Address, remote: Address, *, now: Instant) -> Mapping | str:
        config, table = self.config, self._mappings
        if config.max_mappings is not None and len(table) >= config.max_mappings:
            return f"the table is full: it has {config.max_mappings} mappings"
        if config.max_mappings_per_host is not None and table.count(internal.host) >= config.max_mappings_per_host:
            return f"{internal.host} has reached the limit of {config.max_mappings_per_host} mappings per host"
        host = self._pool.choose(internal.host, remote.family)
        if host is None:
            return f"this NAT has no external address of the family of {remote}"

        def taken(port: int) -> bool:
            return self._live(table.inbound(protocol, Address(host, port)), now=now) is not None

        port = self._ports.choose(internal.port, host, taken)
        if port is None:
            return f"no port of {host} is free for {internal}"
        mapping = table.add(protocol, internal, remote, Address(host, port))
        row = mapping.row(mapping.keys[0])
        self._trace.nat(f"{internal} sent to {remote}", now=now, added=[row], removed=[])
        return mapping

    def _renew(
        self, mapping: Mapping, remote: Address, tcp: TcpFields | None, direction: int, *, now: Instant, renew: bool
    ) -> None:
        """Set the expiry of a mapping after a packet that passed."""
        config = self.config
        if tcp is not None:
            mapping.segment(remote, tcp.flags, direction, config, now=now)
        elif renew:
            lifetime = config.icmp_timeout if mapping.protocol is Protocol.ICMP else config.udp_timeout
            mapping.expires = Instant(now + lifetime)
        # A later expiry is checked when the timer fires. Only an earlier one must be set now.
        at = self._timers.at(mapping.number)
        if at is None or mapping.expires < at:
            self._timers.set(mapping.number, mapping.expires)

    def _permit(self, mapping: Mapping, remote: Address, *, now: Instant, renew: bool) -> None:
        """Permit answers of `remote` to the mapping."""
        key = self._filter.permit(mapping, remote, now=now, renew=renew)
        self._arm_permissions(mapping.until(remote))
        if key is not None:
            row = self._filter.row(mapping, key)
            self._trace.nat(f"{mapping.internal} sent to {remote}", now=now, added=[row], removed=[])

    def _arm_permissions(self, until: Instant) -> None:
        """Arm the timer for a permission that expires at `until`."""
        at = self._timers.at(_PERMISSIONS)
        if (at is None or until < at) and self.config.filtering is not Behavior.EI:
            self._timers.set(_PERMISSIONS, until)

    def _live(self, mapping: Mapping | None, *, now: Instant) -> Mapping | None:
        if mapping is not None and mapping.expires <= now:
            self._remove(mapping, now=now)
            return None
        return mapping

    def _remove(self, mapping: Mapping, *, now: Instant) -> None:
        self._mappings.remove(mapping)
        self._timers.cancel(mapping.number)
        gone = [mapping.row(key) for key in mapping.keys] + list(self._filter.forget(mapping))
        self._trace.nat(f"the mapping of {mapping.external} expired", now=now, added=[], removed=gone)

    def _whole(self, packet: IpPacket, *, now: Instant) -> IpPacket | Verdict:
        if packet.fragment is None:
            return packet
        if not self.config.fragments:
            return self._drop("this NAT drops fragments")
        whole = self._fragments.add(packet, now=now)
        if isinstance(whole, str):
            return Verdict(Action.HOLD, None, whole)
        return whole

    def _drop(self, reason: str) -> Verdict:
        self.counters["dropped"] = self.counters.get("dropped", 0) + 1
        return Verdict(Action.DROP, None, reason)
