"""Small makers that the tests of this folder share."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.ice.candidates import Candidate, CandidateType, LocalCandidate, LocalCandidates, candidate_priority
from polynya.ice.config import IceConfig
from polynya.ice.context import Context
from polynya.ice.outbox import Outbox
from polynya.ice.roles import Role


def context(**options: Any) -> Context:
    """The context of an agent that has no other parts."""
    config = IceConfig(**options)
    return Context(config, Outbox(), Role(config.controlling, Random(1)), LocalCandidates(), Random(1))


class Make:
    """Candidates by number: local `n` is 10.0.0.n:5000 on flow n, remote `n` is 192.0.2.n:6000."""

    @staticmethod
    def local(
        n: int = 1, *, stream: int = 0, component: int = 1, foundation: str | None = None, host: str | None = None
    ) -> LocalCandidate:
        address = Address.of(host or f"10.0.0.{n}", 5000)
        candidate = Candidate(
            foundation=foundation or f"L{n}",
            component=component,
            priority=candidate_priority(126, 65535 - n, component),
            address=Address(address.host, address.port, address.zone),
            type=CandidateType.HOST,
        )
        return LocalCandidate(
            candidate=candidate, base=address, flow=Flow(100 * stream + 10 * component + n), stream=stream
        )

    @staticmethod
    def remote(
        n: int = 1,
        *,
        component: int = 1,
        foundation: str | None = None,
        type: CandidateType = CandidateType.HOST,
        host: str | None = None,
        **more: Any,
    ) -> Candidate:
        values: dict[str, Any] = {
            "foundation": foundation or f"R{n}",
            "component": component,
            "priority": candidate_priority(type.preference, 65535 - n, component),
            "address": Address.of(host or f"192.0.2.{n}", 6000),
            "type": type,
        }
        return Candidate(**(values | more))


@pytest.fixture
def make() -> Make:
    return Make()
