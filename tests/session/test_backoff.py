"""Retry times of a lost relay (RFC 8656, section 7.4)."""

from __future__ import annotations

from random import Random

import pytest

from polynya.core.instants import SECOND, Instant
from polynya.session.backoff import FINAL, Backoff

NOW = Instant(1000 * SECOND)


def lost() -> Backoff:
    backoff = Backoff(Random(1))
    backoff.lost(now=NOW)
    return backoff


def test_a_lost_relay_is_retried_at_once() -> None:
    backoff = lost()
    assert backoff.due(now=NOW)
    assert not backoff.due(now=NOW), "once"


def test_a_silent_server_is_retried_after_ever_longer_waits() -> None:
    backoff = lost()
    waits = []
    for _ in range(12):
        backoff.due(now=Instant(NOW + 1000 * SECOND))
        backoff.refused(now=NOW, code=None)
        due = backoff.next_timer()
        assert due is not None
        waits.append((due - NOW) / SECOND)
    assert all(0.75 * ideal < wait <= ideal for wait, ideal in zip(waits, (1, 2, 4, 8, 16, 32, *[64] * 6), strict=True))


@pytest.mark.parametrize(("code", "least"), [(486, 60), (508, 60), (437, 120)])
def test_after_a_refusal_the_wait_is_at_least_that_of_the_rfc(code: int, least: int) -> None:
    backoff = lost()
    assert backoff.due(now=NOW)
    backoff.refused(now=NOW, code=code)
    assert not backoff.due(now=Instant(NOW + least * SECOND - 1))
    assert backoff.due(now=Instant(NOW + least * SECOND))


@pytest.mark.parametrize("code", sorted(FINAL))
def test_a_refusal_that_would_be_repeated_ends_the_retries(code: int) -> None:
    backoff = lost()
    assert backoff.due(now=NOW)
    backoff.refused(now=NOW, code=code)
    assert backoff.next_timer() is None


def test_a_relay_that_is_found_again_is_not_retried() -> None:
    backoff = lost()
    backoff.reset()
    assert backoff.next_timer() is None and not backoff.due(now=Instant(NOW + 1000 * SECOND))
    backoff.lost(now=NOW)
    assert backoff.due(now=NOW), "the next loss begins with the shortest wait"
