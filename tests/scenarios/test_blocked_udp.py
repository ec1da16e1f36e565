"""Gathering ends early if UDP seems blocked, and loses hardly a direct path by it, also without trickle."""

import pytest

from tests.scenarios.blocked_udp import play


@pytest.mark.parametrize("seed", [900061, 900155, 900184, 900246, 900261])
def test_a_direct_path_is_not_lost_if_the_stun_server_is_far_or_packets_are(seed: int) -> None:
    """These were relayed when only the STUN server was asked again, or only once."""
    assert play(seed, blocked_udp=True).path == "direct"
