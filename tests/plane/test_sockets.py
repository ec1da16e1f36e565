"""Listeners that several processes share: the system spreads clients over them and over no other sockets."""

from __future__ import annotations

import sys

import pytest

from tests.real.netns import namespace

TWO_SERVERS = """
from polynya.core.addresses import Address
from polynya.plane.sockets import bind_listeners
for host in ("127.0.0.1", "::1"):
    for _ in range(10):
        servers = [bind_listeners(Address(host, 0), 2) for _ in "ab"]
        ports = [{sock.getsockname()[1] for sock in server} for server in servers]
        assert ports in ([{40000}, {40001}], [{40001}, {40000}]), ports
        for server in servers:
            for sock in server:
                sock.close()
"""


@pytest.mark.root
@pytest.mark.peer("ip")
def test_a_port_that_the_system_chooses_is_not_shared_with_another_server() -> None:
    """With SO_REUSEPORT the system may choose a port that other programs share; clients would be split between them."""
    with namespace("listeners") as here:
        here.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001")
        here.run(sys.executable, "-c", TWO_SERVERS)
