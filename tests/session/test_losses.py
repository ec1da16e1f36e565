"""When a relay that is missing is asked for again (RFC 8656, section 7.4)."""

from __future__ import annotations

from random import Random

import pytest

from polynya.core.flows import Flow
from polynya.core.instants import SECOND, Instant
from polynya.session.losses import FINAL, Losses
from polynya.stun.uris import TurnUri

WAY = Flow(1), TurnUri.parse("turn:203.0.113.9")
NOW = Instant(1000 * SECOND)


def test_a_relay_that_was_lost_is_asked_for_at_once() -> None:
    losses = Losses(Random(1))
    losses.lost(WAY, now=NOW)
    assert losses.due(now=NOW) == [WAY] and WAY in losses


def test_a_server_that_stays_silent_is_asked_ever_more_rarely() -> None:
    losses = Losses(Random(1))
    losses.lost(WAY, now=NOW)
    waits = []
    for _ in range(12):
        losses.due(now=Instant(NOW + 1000 * SECOND))
        losses.refused(WAY, now=NOW, code=None)
        due = losses.next_timer()
        assert due is not None
        waits.append((due - NOW) / SECOND)
    assert all(0.75 * ideal < wait <= ideal for wait, ideal in zip(waits, (1, 2, 4, 8, 16, 32, *[64] * 6), strict=True))


@pytest.mark.parametrize(("code", "least"), [(486, 60), (508, 60), (437, 120)])
def test_a_server_that_has_refused_is_left_alone_for_as_long_as_the_rfc_says(code: int, least: int) -> None:
    losses = Losses(Random(1))
    losses.lost(WAY, now=NOW)
    losses.due(now=NOW)
    losses.refused(WAY, now=NOW, code=code)
    assert losses.due(now=Instant(NOW + least * SECOND - 1)) == []
    assert losses.due(now=Instant(NOW + least * SECOND)) == [WAY]


@pytest.mark.parametrize("code", sorted(FINAL))
def test_what_would_be_refused_again_is_not_asked_again(code: int) -> None:
    losses = Losses(Random(1))
    losses.lost(WAY, now=NOW)
    losses.due(now=NOW)
    losses.refused(WAY, now=NOW, code=code)
    assert losses.next_timer() is None and WAY not in losses


def test_what_is_found_again_or_whose_base_is_gone_is_not_asked_for() -> None:
    losses = Losses(Random(1))
    losses.lost(WAY, now=NOW)
    losses.found(WAY)
    losses.lost(WAY, now=NOW)
    losses.forget(WAY[0])
    assert losses.next_timer() is None
