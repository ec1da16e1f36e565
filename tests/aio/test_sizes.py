"""The size of a datagram on each kind of path."""

from __future__ import annotations

import pytest

from polynya.aio.sizes import max_datagram_size, max_length
from polynya.core.addresses import IPV4, IPV6, Address
from polynya.core.flows import Flow, Transport
from polynya.ice.candidates import Candidate, CandidateType
from polynya.ice.pairs import PairState, PairView
from polynya.turn.client.indications import MAX_DATA, SEND_HEADER
from polynya.turn.client.report import RelayOverhead

HERE = {IPV4: Address("192.0.2.1", 1), IPV6: Address("2001:db8::1", 1)}
THERE = {IPV4: Address("198.51.100.1", 1), IPV6: Address("2001:db8:1::1", 1)}


def pair(family: int, *, remote: CandidateType = CandidateType.HOST) -> PairView:
    def candidate(address: Address, kind: CandidateType) -> Candidate:
        return Candidate(foundation="1", component=1, priority=1, address=address, type=kind)

    return PairView(
        id=1, stream=0, component=1, flow=Flow(1), remote_address=THERE[family], base=HERE[family],
        local=candidate(HERE[family], CandidateType.HOST), remote=candidate(THERE[family], remote),
        state=PairState.SUCCEEDED, writable=True, readable=True, valid=True, nominated=True, selected=True, priority=1,
        rtt=None, reason="",
    )  # fmt: skip


def channel(family: int, transport: Transport = Transport.UDP) -> RelayOverhead:
    return RelayOverhead(family=family, transport=transport, channel=True, header=4)


def indication(family: int, peer: int, transport: Transport = Transport.UDP) -> RelayOverhead:
    return RelayOverhead(family=family, transport=transport, channel=False, header=SEND_HEADER[peer])


@pytest.mark.parametrize(
    ("family", "overhead", "size", "length"),
    [
        (IPV4, None, 576 - 28, 65507),
        (IPV6, None, 1280 - 48, 65527),
        (IPV4, channel(IPV4), 576 - 28 - 4, 65507 - 36 - 3),
        (IPV4, indication(IPV4, IPV4), 576 - 28 - 36, 65507 - 36 - 3),
        (IPV4, channel(IPV6), 576 - 28, 65527 - 36 - 3),
        (IPV6, channel(IPV4), 576 - 28 - 4, 65507 - 48 - 3),
        (IPV6, indication(IPV4, IPV6), 576 - 28 - 48, 65507 - 48 - 3),
        (IPV6, channel(IPV6), 1280 - 48 - 4, MAX_DATA),
        (IPV4, channel(IPV4, Transport.TCP), 576 - 28, MAX_DATA),
        (IPV6, indication(IPV4, IPV6, Transport.TLS), 1280 - 48, MAX_DATA),
    ],
)
def test_each_leg_of_a_path_counts(family: int, overhead: RelayOverhead | None, size: int, length: int) -> None:
    assert max_datagram_size(pair(family), overhead) == size
    assert max_length(pair(family), overhead) == min(length, MAX_DATA if overhead else length)


@pytest.mark.parametrize(("family", "size"), [(IPV4, 576 - 28 - 36), (IPV6, 1280 - 48 - 48)])
def test_the_relay_of_the_other_side_counts_too(family: int, size: int) -> None:
    assert max_datagram_size(pair(family, remote=CandidateType.RELAYED), None) == size
