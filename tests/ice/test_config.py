"""Options of an agent: seconds outside, nanoseconds inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from polynya.core.errors import ConfigurationError
from polynya.core.instants import MILLISECOND, SECOND
from polynya.ice import IceConfig, NominationPolicy, Renomination
from polynya.ice.config import durations
from polynya.stun.transactions import Schedule


def test_durations_are_seconds_and_become_nanoseconds_once() -> None:
    timing = durations(IceConfig(pacing=0.007, patience=1.5, consent_interval=2, consent_timeout=12.0))
    assert (timing.pacing, timing.patience) == (7 * MILLISECOND, 1500 * MILLISECOND)
    assert (timing.consent_interval, timing.consent_timeout) == (2 * SECOND, 12 * SECOND)
    assert timing.consent_check.total == 12 * SECOND, "a response counts until the consent expires"


def test_the_defaults_are_those_of_the_rfcs() -> None:
    """RFC 8445, sections 11, 14.2 and 14.3; RFC 8863, section 4; RFC 7675, section 5.1."""
    config = IceConfig()
    assert (config.keepalive, config.patience) == (15.0, 39.5)
    assert (config.consent_interval, config.consent_timeout, config.schedule.rto) == (5.0, 30.0, 0.5)


def test_a_changed_copy_has_durations_of_its_own() -> None:
    config = IceConfig()
    assert durations(replace(config, keepalive=20.0)).keepalive == 20 * SECOND
    assert durations(config).keepalive == 15 * SECOND
    assert config == IceConfig() and durations(config) is durations(IceConfig())


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["pacing", "silent_pacing", "patience", "trickle_limit", "keepalive", "consent_interval", "consent_timeout"]
)
def test_an_option_that_is_no_duration_is_refused_with_its_name_and_unit(name: str, wrong: float) -> None:
    options: dict[str, Any] = {name: wrong}
    with pytest.raises(ConfigurationError, match=f"{name} is .* seconds, not "):
        IceConfig(**options)


@pytest.mark.parametrize("name", ["keepalive", "consent_interval", "consent_timeout"])
def test_intervals_are_more_than_zero(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigurationError, match=f"{name} is more than zero seconds, not 0"):
        IceConfig(**options)


def test_consent_must_be_checked_before_it_expires() -> None:
    with pytest.raises(ConfigurationError, match=r"must be longer than consent_interval, not 4\.0 and 5\.0 seconds"):
        IceConfig(consent_timeout=4.0)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_policies_and_schedules_refuse_what_is_no_duration(wrong: float) -> None:
    for make in (
        lambda: NominationPolicy(bound=wrong),
        lambda: NominationPolicy(minimum=wrong),
        lambda: Renomination(settle=wrong),
        lambda: Schedule(rto=wrong),
    ):
        with pytest.raises(ConfigurationError, match="seconds, not "):
            make()
