"""What comes in, by signaling and by the network, and which part of the agent it is for.

    a request                   `reception`, which answers it for the generation that its USERNAME names
    an indication               a keepalive: counted
    an answer                   the generation whose check it answers
    a refused send, ICMP        every generation: it may explain why a check has no answer
    a flow that is gone         every generation, and our candidates
    a candidate                 the generation whose ufrag it carries; first its name is looked up, where it has one

Nothing is derived here: the agent does so afterwards, from the pairs.
"""

from __future__ import annotations

import errno
from random import Random

from polynya.core.errors import DecodeError
from polynya.core.instants import Instant
from polynya.core.machine import Closed, Datagram, IcmpError, IcmpKind, Resolved, SendFailed
from polynya.stun.message import Received, decode
from polynya.stun.registry import Class, Method

from .candidates import Candidate, LocalCandidates
from .checks import Check
from .generations import Generations
from .journal import Journal
from .names import Names
from .reception import Reception
from .roles import Role
from .sdp import UNRESOLVED

IceInput = Datagram | Received | SendFailed | IcmpError | Closed | Resolved


class Inbox:
    """Hands on what comes in."""

    __slots__ = ("_generations", "_journal", "_locals", "_random", "_reception", "_role", "names")

    def __init__(
        self, generations: Generations, locals_: LocalCandidates, role: Role, journal: Journal, random: Random
    ) -> None:
        self.names = Names()
        self._random = random
        self._generations = generations
        self._locals = locals_
        self._role = role
        self._journal = journal
        self._reception = Reception(locals_, role, journal)

    def receive(self, input: IceInput, *, now: Instant) -> None:
        """`Received` is a datagram that the owner has decoded already."""
        if isinstance(input, Received):
            self._message(input, now=now)
        elif isinstance(input, Datagram):
            try:
                message = decode(input.data)
            except DecodeError as error:
                self._journal.dropped(input.remote, str(error), now=now, packet=input.packet)
                return
            self._message(Received(input.flow, input.remote, message, input.data, input.packet), now=now)
        elif isinstance(input, Resolved):
            for candidate, stream in self.names.resolved(input):
                self.candidate(candidate, stream, now=now)
        else:
            self._trouble(input, now=now)

    def candidate(self, candidate: Candidate, stream: int, *, now: Instant) -> None:
        """A candidate of the other side was signaled, or its name was found."""
        generation = self._generations.current
        if candidate.host_name is not None and candidate.address.host == UNRESOLVED:
            query = self.names.look_up(candidate, candidate.host_name, stream)
            if query is not None:
                self._journal.outputs.append(query)
            outcome = "its name is looked up"
        else:
            outcome = generation.add_remote(candidate, stream, now=now)
        generation.note_candidate("remote", candidate, outcome, now=now)

    def _message(self, received: Received, *, now: Instant) -> None:
        message = received.message
        if message.method is not Method.BINDING:
            self._journal.dropped(received.remote, "not a Binding message", now=now, packet=received.packet)
        elif message.cls is Class.REQUEST:
            current, previous = self._generations.current, self._generations.previous
            self._reception.request(received, current, previous, self._yield_role, now=now)
        elif message.cls is Class.INDICATION:
            self._journal.count("keepalives received")
        else:
            for generation in self._generations.all():
                if message.transaction_id in generation.transactions:
                    generation.client.answered(received, now=now, on_conflict=self._on_conflict)
                    return
            self._journal.dropped(
                received.remote, "an answer to nothing that is under way", now=now, packet=received.packet
            )

    def _on_conflict(self, check: Check, *, now: Instant) -> None:
        if self._role.refused(check.controlling, self._random):
            self._yield_role("the other side answered 487", now=now)

    def _yield_role(self, reason: str, *, now: Instant) -> None:
        self._generations.switch_role(not self._role.controlling, reason, now=now)

    def _trouble(self, trouble: SendFailed | IcmpError | Closed, *, now: Instant) -> None:
        """A send was refused, an ICMP error came back, a flow is gone."""
        if isinstance(trouble, SendFailed) and trouble.errno == errno.ECONNREFUSED:
            trouble = IcmpError(flow=trouble.flow, remote=trouble.remote, kind=IcmpKind.PORT_UNREACHABLE)
        for generation in self._generations.all():
            generation.trouble(trouble, now=now)
        if isinstance(trouble, Closed):
            self._locals.remove(trouble.flow)
