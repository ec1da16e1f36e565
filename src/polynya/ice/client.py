"""Our checks of one generation: sent, resent, answered, run out (RFC 8445, section 7.2: STUN client procedures).

An answer is taken only when it is signed with the other side's password and came back on the path that its request left
by; all else is dropped and the check goes on. Consent checks travel the same way, are sent once, and decide nothing but
the time of the last answer.
"""

from __future__ import annotations

from errno import errorcode
from random import Random
from typing import Protocol

from polynya.core.instants import Instant
from polynya.core.machine import Closed, IcmpError, SendFailed
from polynya.stun.attributes import ERROR_CODE, StunError
from polynya.stun.message import Received
from polynya.stun.registry import Class, ErrorCode
from polynya.stun.transactions import ONCE, Schedule, Transactions

from . import checks
from .authenticated import Authenticated
from .candidates import LocalCandidates
from .checklist import ChecklistSet
from .checks import Check, Credentials
from .journal import Journal
from .pairs import Pair, PairEvent, PairState
from .roles import Role
from .verdicts import Verdicts


class OnConflict(Protocol):
    """Handles a role conflict that an answer reported."""

    def __call__(self, check: Check, *, now: Instant) -> None: ...


class CheckClient:
    """Sends the checks of one generation and takes their answers."""

    __slots__ = (
        "_authenticated",
        "_checklists",
        "_credentials",
        "_journal",
        "_locals",
        "_random",
        "_role",
        "_schedule",
        "_verdicts",
        "remote_lite",
        "transactions",
    )

    def __init__(
        self,
        *,
        credentials: Credentials,
        checklists: ChecklistSet,
        transactions: Transactions[Check],
        verdicts: Verdicts,
        authenticated: Authenticated,
        locals_: LocalCandidates,
        role: Role,
        journal: Journal,
        random: Random,
        schedule: Schedule,
    ) -> None:
        self._credentials = credentials
        self._checklists = checklists
        self._verdicts = verdicts
        self._authenticated = authenticated
        self._locals = locals_
        self._role = role
        self._journal = journal
        self._random = random
        self._schedule = schedule
        self.transactions = transactions
        self.remote_lite = False

    def check(self, pair: Pair, *, now: Instant, nominate: bool = False, triggered: bool = False) -> None:
        """Send a check on a pair; on a Succeeded one only to nominate it."""
        context = self._request(pair, now=now, nominate=nominate, triggered=triggered)
        if pair.transaction is not None:  # this one takes its place; an answer to it still counts
            self.transactions.cancel(pair.transaction, now=now)
        pair.checked_at = now
        if pair.tried_at is None:
            pair.tried_at = now
        self._journal.move(pair, PairEvent.CHECK_SENT, "a check was sent", now=now)
        self._start(context, now=now, schedule=self._schedule)

    def consent_check(self, pair: Pair, *, now: Instant, reason: str = "asked for") -> None:
        """Ask for consent on a pair, once. Towards a lite agent it carries the nomination, which such agents go by."""
        nominate = self._role.controlling and pair.nominated and self.remote_lite
        context = self._request(pair, now=now, nominate=nominate)
        context.consent = True
        self._start(context, now=now, schedule=ONCE)
        if self._journal.trace.enabled:
            self._journal.trace.consent(reason, now=now, pair=pair.id, state="granted", agent=self._journal.label)

    def show_role(self, pair: Pair, *, now: Instant) -> None:
        """Check a valid pair once more, now: the other side learns that our role is another, and may object."""
        self.consent_check(pair, now=now, reason="our role has changed")

    def keepalive(self, pair: Pair) -> None:
        """Keep the mapping of a pair that carries nothing else (section 11)."""
        self._journal.send(*pair.path, checks.keepalive(self.draw_id()))

    def draw_id(self) -> bytes:
        return self._random.getrandbits(96).to_bytes(12, "big")

    def _request(self, pair: Pair, *, now: Instant, nominate: bool, triggered: bool = False) -> Check:
        number = self._verdicts.number(pair) if nominate else 0
        return Check(pair, self._role.controlling, nominate, checks.reflexive_priority(pair), now, triggered, number)

    def _start(self, check: Check, *, now: Instant, schedule: Schedule) -> None:
        transaction_id = self.draw_id()
        pair = check.pair
        data = checks.request_check(
            self._credentials,
            transaction_id,
            self._role,
            check.priority,
            nominate=check.nominate,
            nomination=check.nomination,
        )
        if check.consent:
            pair.consent_requests_sent += 1
        else:
            pair.requests_sent += 1
            pair.transaction = transaction_id
        self.transactions.start(transaction_id, data, *pair.path, now=now, context=check, schedule=schedule)
        self._flush()

    def tick(self, *, now: Instant) -> None:
        """Resend what is due; a check that ran out fails its pair."""
        self.transactions.tick(now=now)
        self._flush()
        self.reap(now=now)

    def reap(self, *, now: Instant) -> None:
        """Act on the transactions that ended without an answer (section 7.2.5.2.3)."""
        for ended in self.transactions.events():
            if not ended.context.consent:
                self._verdicts.fail(ended.context.pair, ended.reason, now=now)

    def _flush(self) -> None:
        self._journal.outputs += self.transactions.outputs()

    def answered(self, received: Received, *, now: Instant, on_conflict: OnConflict) -> None:
        """An answer to a check of ours (section 7.2.5). What does not fit is dropped and the check goes on."""
        message = received.message
        transaction = self.transactions.by_id.get(message.transaction_id)
        key = self._credentials.remote_key
        if transaction is None or key is None:
            return
        check = transaction.context
        pair = check.pair
        if not message.verify(key):
            if (unsigned := message.get(ERROR_CODE)) is not None:
                pair.hint(f"an unsigned answer {_phrase(unsigned)}")
            self._journal.dropped(
                received.remote, "an answer with wrong or no integrity", now=now, packet=received.packet
            )
            return
        error = message.get(ERROR_CODE)
        conflict = error is not None and error.code == ErrorCode.ROLE_CONFLICT
        if (received.flow, received.remote) != pair.path and not conflict:  # whose turn it is, is said from anywhere
            self._journal.dropped(
                received.remote, "an answer from elsewhere than asked", now=now, packet=received.packet
            )
            if not check.consent:  # section 7.2.5.2.1
                self.transactions.drop(message.transaction_id)
                pair.asymmetric = True
                self._verdicts.fail(pair, f"it was answered from {received.remote}", now=now, packet=received.packet)
            return
        mapped = checks.mapped_address(message)
        if message.cls is Class.SUCCESS and mapped is None:
            self._journal.dropped(
                received.remote, "an answer without a mapped address", now=now, packet=received.packet
            )
            return
        self.transactions.answer(transaction, now=now)
        pair.responses_received += 1
        if transaction.rtt is not None:
            pair.rtt = transaction.rtt
            pair.rtt_total += transaction.rtt
        if message.cls is not Class.SUCCESS or mapped is None:
            self._refused(check, error, now=now, packet=received.packet, on_conflict=on_conflict)
            return
        if check.consent:
            pair.answered_at = now
            return
        base = pair.local
        pair.seen = self._locals.peer_reflexive(base, mapped, check.priority)
        self._authenticated.add(pair.path, base)
        if check.nominate and pair.transaction in (None, message.transaction_id):  # else another one is under way
            pair.nominating = False
        self._verdicts.succeeded(pair, "its check was answered", now=now, packet=received.packet)
        if check.nominate and check.controlling:  # the other side has accepted it, whatever our role is by now
            self._verdicts.nominate(pair, "the check that nominates it was answered", now=now, number=check.nomination)
        elif pair.nominate_on_success and not self._role.controlling:
            self._verdicts.nominate(pair, "the other side had nominated it", now=now, number=pair.nomination)
        if check.controlling is not self._role.controlling:  # it said what was our role then
            self.show_role(pair, now=now)

    def _refused(
        self,
        check: Check,
        error: StunError | None,
        *,
        now: Instant,
        packet: int,
        on_conflict: OnConflict,
    ) -> None:
        code = None if error is None else error.code
        if code == ErrorCode.ROLE_CONFLICT:
            on_conflict(check, now=now)
            if not check.consent and not check.pair.revoked:
                check.pair.nominating = False
                self._journal.move(
                    check.pair, PairEvent.TRIGGERED, "role conflict: checked again", now=now, packet=packet
                )
                if check.pair.state is not PairState.SUCCEEDED:
                    self._checklists.lists[check.pair.stream].trigger(check.pair)
        elif code == ErrorCode.FORBIDDEN and check.consent:
            self._verdicts.revoke(check.pair, "the other side revoked its consent (403)", now=now)
        elif not check.consent:
            self._verdicts.fail(check.pair, f"its check was refused: {_phrase(error)}", now=now, packet=packet)

    def trouble(self, trouble: SendFailed | IcmpError | Closed, *, now: Instant) -> None:
        """A refused send or a soft ICMP error is a lost packet, remembered as a hint; a hard one ends the check."""
        if not isinstance(trouble, Closed):
            what = _trouble_name(trouble)
            self._journal.count(what)
            for checklist in self._checklists.lists:
                pair = checklist.at(trouble.flow, trouble.remote)
                if pair is not None and pair.state is not PairState.SUCCEEDED:
                    pair.hint(what)
        self.transactions.receive(trouble, now=now)
        self.reap(now=now)


def _phrase(error: StunError | None) -> str:
    return "an error without a code" if error is None else f"{error.code} {error.reason}"[:80]


def _trouble_name(trouble: SendFailed | IcmpError) -> str:
    if isinstance(trouble, SendFailed):
        return f"the system refused to send, {errorcode.get(trouble.errno, trouble.errno)}"
    return f"ICMP {trouble.kind.value}" + (f" from {trouble.origin}" if trouble.origin else "")
