"""Fragments: RFC 4787, REQ-14; RFC 791, section 3.2; RFC 5722."""

import itertools
from dataclasses import replace

import pytest

from polynya.core.addresses import Address
from polynya.core.instants import SECOND, Instant
from polynya.core.packets import Fragment, IpPacket, Protocol
from polynya.nat import Action, NatConfig
from polynya.nat.fragments import TIMEOUT, Reassembler, fragment
from tests.nat.conftest import INSIDE, SERVER, Bench

SIX = Address("2001:db8::1", 5000), Address("2001:db8::2", 9)


def packet(source: Address = INSIDE, destination: Address = SERVER, size: int = 3000) -> IpPacket:
    return IpPacket(9, source, destination, Protocol.UDP, bytes(i % 251 for i in range(size)))


@pytest.mark.parametrize(("source", "destination"), [(INSIDE, SERVER), SIX])
def test_fragments_are_reassembled_in_any_order(source: Address, destination: Address) -> None:
    pieces = fragment(packet(source, destination), 1280)
    assert len(pieces) == 3
    for order in itertools.permutations(pieces):
        reassembler = Reassembler()
        *early, last = (replace(piece) for piece in order)
        for piece in early:
            assert isinstance(reassembler.add(piece, now=Instant(0)), str)
        assert reassembler.add(last, now=Instant(0)) == packet(source, destination)


def test_a_fragment_can_be_fragmented() -> None:
    pieces = [small for piece in fragment(packet(), 1500) for small in fragment(piece, 576)]
    reassembler = Reassembler()
    results = [reassembler.add(piece, now=Instant(0)) for piece in pieces]
    assert results[-1] == packet()
    assert all(isinstance(r, str) for r in results[:-1])


def test_a_packet_that_fits_is_not_fragmented() -> None:
    assert fragment(packet(size=100), 1500) == [packet(size=100)]
    with pytest.raises(ValueError, match="too small for a fragment"):
        fragment(packet(), 24)


def test_overlapping_fragments_drop_the_packet() -> None:
    first, second, *_ = fragment(packet(), 1500)
    assert second.fragment is not None
    lie = replace(second, fragment=replace(second.fragment, offset=second.fragment.offset - 8))
    reassembler = Reassembler()
    reassembler.add(first, now=Instant(0))
    assert reassembler.add(lie, now=Instant(0)) == "its fragments overlap"


def test_an_incomplete_packet_expires() -> None:
    first, second, third = fragment(packet(), 1300)
    reassembler = Reassembler()
    reassembler.add(first, now=Instant(0))
    reassembler.add(second, now=Instant(0))
    assert isinstance(reassembler.add(third, now=Instant(TIMEOUT)), str)


def test_the_number_of_incomplete_packets_is_limited() -> None:
    reassembler = Reassembler()
    answers = []
    for i in range(70):
        part = replace(packet(size=8), fragment=Fragment(identification=i, offset=8, more=False))
        answers.append(reassembler.add(part, now=Instant(0)))
    assert answers[-1] == "64 other packets are incomplete, which is the limit"


def test_a_nat_translates_fragments_as_one_packet() -> None:
    nat = Bench(NatConfig())
    verdicts = [nat.nat.outbound(piece, now=nat.now) for piece in reversed(fragment(packet(), 1500))]
    assert [v.action for v in verdicts] == [Action.HOLD, Action.HOLD, Action.FORWARD]
    whole = verdicts[-1].packet
    assert whole is not None
    assert (whole.source, whole.destination, whole.payload) == (
        Address("198.51.100.1", 5000), SERVER, packet().payload,
    )  # fmt: skip


def test_a_nat_that_drops_fragments_gives_the_reason() -> None:
    nat = Bench(NatConfig(fragments=False))
    assert {nat.nat.outbound(p, now=Instant(SECOND)).reason for p in fragment(packet(), 1500)} == {
        "this NAT drops fragments"
    }
