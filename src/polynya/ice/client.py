"""STUN client of connectivity checks: requests, retransmissions and responses of one generation (RFC 8445, 7.2).

A response counts only if it is signed with the password of the other side and arrived on the path of its request.
Others are dropped, and the check continues. Consent checks use the same path, are sent once, and change only the time
of the last response.
"""

from __future__ import annotations

from errno import errorcode
from typing import Final

from polynya.core.addresses import Address
from polynya.core.instants import Instant
from polynya.core.machine import Closed, IcmpError, SendFailed
from polynya.stun.attributes import ERROR_CODE, StunError
from polynya.stun.message import Received
from polynya.stun.registry import Class, ErrorCode
from polynya.stun.reported import why_impossible
from polynya.stun.transactions import ClientTransaction

from . import checks
from .authenticated import Authenticated
from .candidates import LocalCandidate
from .checklist import ChecklistSet
from .checks import Check, Credentials
from .config import durations
from .context import Context
from .pairs import Pair, PairState

FAREWELLS: Final = 3
"""Copies of the indication that this agent has closed."""
CONFLICT_LIMIT: Final = 8
"""Role changes by 487 responses in one generation. A conflict needs one or two; afterwards a 487 is a refusal."""


class CheckClient:
    """Sends the checks of one generation and handles their responses."""

    __slots__ = ("_authenticated", "_checklists", "_conflicts", "_context", "_credentials", "_outbox", "remote_lite")

    def __init__(
        self, context: Context, credentials: Credentials, checklists: ChecklistSet, authenticated: Authenticated
    ) -> None:
        self._context = context
        self._outbox = context.outbox
        self._credentials = credentials
        self._checklists = checklists
        self._authenticated = authenticated
        self._conflicts = 0
        self.remote_lite = False

    # -------------------------------------------------------------------------------------------------------- requests

    def check(self, pair: Pair, *, now: Instant, nominate: bool = False, triggered: bool = False) -> None:
        """Send a check on a pair; on a Succeeded one only to nominate it."""
        check = self._new_check(pair, now=now, nominate=nominate, triggered=triggered)
        transaction_id = self._context.draw_id()
        self._checklists.check_sent(pair, transaction_id, now=now)
        if nominate:
            self._checklists.nominating_sent(pair, now=now)
        self._send(check, transaction_id, now=now)

    def consent_check(self, pair: Pair, *, now: Instant, reason: str = "requested") -> None:
        """Send one consent check. Towards a lite agent it repeats the nomination, which such agents rely on."""
        nominate = self._context.role.controlling and pair.nominated and self.remote_lite
        check = self._new_check(pair, now=now, nominate=nominate)
        check.consent = True
        pair.consent_check_sent()
        self._send(check, self._context.draw_id(), now=now)
        self._outbox.trace.consent(reason, now=now, pair=pair.id, state="granted")

    def show_role(self, pair: Pair, *, now: Instant) -> None:
        """Check a valid pair now: the other side sees our new role and may object."""
        self.consent_check(pair, now=now, reason="our role has changed")

    def keepalive(self, pair: Pair) -> None:
        """Keep the NAT mapping of a pair without traffic (section 11)."""
        self._outbox.send(*pair.path, checks.keepalive(self._context.draw_id()))

    def farewell(self, pair: Pair) -> None:
        """Notify the other side that this agent closes. Three copies, because nothing repeats a lost one."""
        packet = checks.farewell(self._credentials, self._context.draw_id())
        for _ in range(FAREWELLS):
            self._outbox.send(*pair.path, packet)

    def _new_check(self, pair: Pair, *, now: Instant, nominate: bool, triggered: bool = False) -> Check:
        number = self._checklists.number(pair) if nominate else 0
        controlling, priority = self._context.role.controlling, checks.reflexive_priority(pair)
        return Check(pair, controlling, nominate, priority, now, triggered, number)

    def _send(self, check: Check, transaction_id: bytes, *, now: Instant) -> None:
        request = checks.request_check(
            self._credentials,
            transaction_id,
            self._context.role,
            check.priority,
            nominate=check.nominate,
            nomination=check.nomination,
        )
        config = self._context.config
        schedule = durations(config).consent_check if check.consent else config.schedule
        self._checklists.transactions.start(
            transaction_id, request, *check.pair.path, now=now, context=check, schedule=schedule
        )

    def tick(self, *, now: Instant) -> None:
        """Resend requests that are due, and fail the pairs of checks that timed out."""
        self._checklists.transactions.tick(now=now)
        self._reap(now=now)

    def _reap(self, *, now: Instant) -> None:
        """Fail the pairs of checks that ended without a response (section 7.2.5.2.3)."""
        for ended in self._checklists.transactions.events():
            if not ended.context.consent:
                self._checklists.fail(ended.context.pair, ended.reason, now=now)

    # ------------------------------------------------------------------------------------------------------- responses

    def answered(self, transaction: ClientTransaction[Check], received: Received, *, now: Instant) -> Check | None:
        """Handle a response to a check (section 7.2.5). Invalid responses are dropped, and the check continues.

        Returns the check if the response is 487: the agent compares roles and then calls `check_again`. After
        `CONFLICT_LIMIT` role changes, a 487 is a refusal like any other: the other side refuses both roles.
        """
        message = received.message
        key = self._credentials.remote_key
        check = transaction.context
        pair = check.pair
        if key is None or not message.verify(key):
            if (unsigned := message.get(ERROR_CODE)) is not None:
                pair.hint(f"an unsigned answer {_phrase(unsigned)}")
            self._drop(received, "an answer with wrong or no integrity", now=now)
            return None
        error = message.get(ERROR_CODE)
        conflict = error is not None and error.code == ErrorCode.ROLE_CONFLICT
        if (received.flow, received.remote) != pair.path and not conflict:  # roles are resolved from any address
            self._drop(received, "an answer from another address than the request went to", now=now)
            if not check.consent:  # section 7.2.5.2.1
                self._checklists.transactions.drop(message.transaction_id)
                pair.answered_elsewhere(received.remote)
                self._checklists.fail(pair, f"it was answered from {received.remote}", now=now, packet=received.packet)
            return None
        mapped = checks.mapped_address(message)
        if message.cls is Class.SUCCESS and mapped is None:
            self._drop(received, "an answer without a mapped address", now=now)
            return None
        self._checklists.transactions.answer(transaction, now=now)
        pair.response_received(transaction.rtt)
        if conflict and message.cls is not Class.SUCCESS and self._may_change_role(check):
            return check
        if message.cls is not Class.SUCCESS or mapped is None:
            self._refused(check, error, now=now, packet=received.packet)
            return None
        if check.consent:
            pair.answered(now=now)
            return None
        pair.seen_as(self._seen(pair, mapped, check.priority))
        self._authenticated.add(pair.path, pair.local)
        if check.nominate and pair.transaction in (None, message.transaction_id):  # otherwise another is under way
            pair.end_nomination()
        self._checklists.succeeded(pair, "its check was answered", now=now, packet=received.packet)
        role = self._context.role
        if check.nominate and check.controlling:  # the other side has accepted it, whatever our role is by now
            reason = "the check that nominates it was answered"
            self._checklists.nominate(pair, reason, now=now, number=check.nomination)
        elif pair.nominate_on_success and not role.controlling:
            self._checklists.nominate(pair, "the other side had nominated it", now=now, number=pair.nomination)
        if check.controlling is not role.controlling:  # the request carried our former role
            self.show_role(pair, now=now)
        return None

    def _seen(self, pair: Pair, mapped: Address, priority: int) -> LocalCandidate:
        """Return the local candidate of a mapped address; an impossible one makes no candidate (7.2.5.3.1)."""
        impossible = why_impossible(mapped, by=pair.path[1], mapped=True)
        if not impossible:
            return self._context.locals.peer_reflexive(pair.local, mapped, priority)
        pair.hint(f"its answer reports an impossible mapped address: {impossible}")
        self._outbox.count("impossible mapped addresses")
        return pair.local

    def _may_change_role(self, check: Check) -> bool:
        """Return whether a 487 to this check still counts; a check in our former role causes no change."""
        if check.controlling is not self._context.role.controlling:
            return True
        self._conflicts += 1
        return self._conflicts <= CONFLICT_LIMIT

    def check_again(self, check: Check, *, now: Instant, packet: int) -> None:
        """Repeat a check that was refused with 487, in the role that we have now (section 7.2.5.1)."""
        if not check.consent and not check.pair.revoked:
            check.pair.end_nomination()
            self._checklists.trigger(check.pair, "role conflict: checked again", now=now, packet=packet)

    def _refused(self, check: Check, error: StunError | None, *, now: Instant, packet: int) -> None:
        """Handle an error response other than 487."""
        if error is not None and error.code == ErrorCode.FORBIDDEN and check.consent:
            self._checklists.revoke(check.pair, "the other side revoked its consent (403)", now=now)
        elif not check.consent:
            self._checklists.fail(check.pair, f"its check was refused: {_phrase(error)}", now=now, packet=packet)

    def _drop(self, received: Received, reason: str, *, now: Instant) -> None:
        self._outbox.dropped(received.remote, reason, now=now, packet=received.packet)

    # ---------------------------------------------------------------------------------------------------------- errors

    def trouble(self, trouble: SendFailed | IcmpError | Closed, *, now: Instant) -> None:
        """Handle a refused send, an ICMP error or a closed flow.

        A refused send or a soft ICMP error counts as a lost packet and is recorded as a hint. The others end the check.
        """
        if not isinstance(trouble, Closed):
            what = _trouble_name(trouble)
            self._outbox.count(what)
            for checklist in self._checklists.lists:
                pair = checklist.at((trouble.flow, trouble.remote))
                if pair is not None and pair.state is not PairState.SUCCEEDED:
                    pair.hint(what)
        self._checklists.transactions.receive(trouble, now=now)
        self._reap(now=now)


def _phrase(error: StunError | None) -> str:
    return "an error without a code" if error is None else f"{error.code} {error.reason}"[:80]


def _trouble_name(trouble: SendFailed | IcmpError) -> str:
    if isinstance(trouble, SendFailed):
        return f"the system refused to send, {errorcode.get(trouble.errno, trouble.errno)}"
    return f"ICMP {trouble.kind.value}" + (f" from {trouble.origin}" if trouble.origin else "")
