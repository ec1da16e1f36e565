"""Small makers that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import pytest

from polynya.core.addresses import Address
from polynya.core.flows import Flow
from polynya.ice.candidates import Candidate, CandidateType, LocalCandidate
from polynya.ice.priorities import candidate_priority


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
