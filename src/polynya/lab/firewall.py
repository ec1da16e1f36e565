"""A stateful firewall: rules first, then sessions.

A packet from inside passes unless a rule forbids it, and opens a session for its two endpoints. A packet from outside
passes if a rule allows it or a session exists. An ICMP error passes if the packet that it quotes has a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.core.packets import IpPacket, Protocol
from polynya.core.trace import NO_TRACE, Json, Tracer
from polynya.nat.rewriting import destination_of, source_of

from .routes import Prefix

Session = tuple[Protocol, Address, Address]


class Refusal(Enum):
    """Answer to the sender of a packet that is not let through."""

    SILENT = "nothing"
    ICMP = "ICMP administratively prohibited"
    RESET = "a reset for TCP, ICMP for the others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Allows or forbids the packets that it matches. A field that is None matches all.

    `outward` is True for packets from inside. `remote` is a prefix of outside addresses, such as `203.0.113.0/24`.
    """

    allow: bool
    outward: bool | None = None
    protocol: Protocol | None = None
    remote: str | None = None
    remote_ports: tuple[int, int] | None = None
    inside_ports: tuple[int, int] | None = None
    name: str = ""

    def matches(self, protocol: Protocol, inside: Address, remote: Address, *, outward: bool) -> bool:
        return (
            self.outward in (None, outward)
            and self.protocol in (None, protocol)
            and (self.remote_ports is None or self.remote_ports[0] <= remote.port <= self.remote_ports[1])
            and (self.inside_ports is None or self.inside_ports[0] <= inside.port <= self.inside_ports[1])
            and (self.remote is None or remote.host in Prefix(self.remote))
        )

    def __str__(self) -> str:
        if self.name:
            return self.name
        parts = ["allow" if self.allow else "forbid"]
        parts += [] if self.outward is None else ["out" if self.outward else "in"]
        parts += [self.protocol.name] if self.protocol else []
        parts += [f"remote {self.remote}"] if self.remote else []
        parts += [f"remote ports {self.remote_ports[0]}-{self.remote_ports[1]}"] if self.remote_ports else []
        parts += [f"inside ports {self.inside_ports[0]}-{self.inside_ports[1]}"] if self.inside_ports else []
        return " ".join(parts)


UDP_BLOCKED = Rule(allow=False, protocol=Protocol.UDP, name="UDP is blocked")
OPEN = Rule(allow=True, outward=False, name="everything is let in")


class Firewall:
    """A list of rules, of which the first match applies, and a table of sessions."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        *,
        refusal: Refusal = Refusal.SILENT,
        timeout: int = 120 * SECOND,
        tcp_timeout: int = 7440 * SECOND,
        trace: Tracer = NO_TRACE,
    ) -> None:
        self.refusal = refusal
        self._rules = tuple(rules)
        self._timeout = timeout
        self._tcp_timeout = tcp_timeout
        self._sessions: dict[Session, Instant] = {}
        self._trace = trace

    def __repr__(self) -> str:
        return f"<Firewall {', '.join(map(str, self._rules)) or 'without rules'}: {self.size} sessions>"

    @property
    def size(self) -> int:
        """The number of sessions, including those that expired after the last new one."""
        return len(self._sessions)

    def outbound(self, packet: IpPacket, *, now: Instant) -> str:
        """Check a packet from inside. Return why it may not pass; empty if it may."""
        if packet.icmp is not None and packet.icmp.about is not None:
            about = packet.icmp.about
            return self._error(about, destination_of(about), source_of(about), now=now)
        inside, remote = source_of(packet), destination_of(packet)
        rule = self._rule(packet.protocol, inside, remote, outward=True)
        if rule is not None and not rule.allow:
            return f"firewall: {rule}"
        self._open((packet.protocol, inside, remote), now=now)
        return ""

    def inbound(self, packet: IpPacket, *, now: Instant) -> str:
        """Check a packet from outside. Return why it may not pass; empty if it may."""
        if packet.icmp is not None and packet.icmp.about is not None:
            about = packet.icmp.about
            return self._error(about, source_of(about), destination_of(about), now=now)
        remote, inside = source_of(packet), destination_of(packet)
        rule = self._rule(packet.protocol, inside, remote, outward=False)
        session = (packet.protocol, inside, remote)
        if rule is not None:
            if not rule.allow:
                return f"firewall: {rule}"
            self._open(session, now=now)
            return ""
        if self._sessions.get(session, now) > now:
            self._open(session, now=now)
            return ""
        return f"firewall: nothing was sent to {remote} from {inside}"

    def _error(self, about: IpPacket, inside: Address, remote: Address, *, now: Instant) -> str:
        if self._sessions.get((about.protocol, inside, remote), now) > now:
            return ""
        return f"firewall: an ICMP error about a packet between {inside} and {remote}, which have no session"

    def _rule(self, protocol: Protocol, inside: Address, remote: Address, *, outward: bool) -> Rule | None:
        return next((r for r in self._rules if r.matches(protocol, inside, remote, outward=outward)), None)

    def _open(self, session: Session, *, now: Instant) -> None:
        known = self._sessions.get(session, now) > now
        self._sessions[session] = Instant(now + (self._tcp_timeout if session[0] is Protocol.TCP else self._timeout))
        if known:
            return
        ended = [s for s, at in self._sessions.items() if at <= now]
        for old in ended:
            del self._sessions[old]
        self._trace.firewall(now=now, added=[_row(session)], removed=[_row(s) for s in ended])


def _row(session: Session) -> Json:
    protocol, inside, remote = session
    return {"protocol": protocol.name.lower(), "inside": str(inside), "remote": str(remote)}
