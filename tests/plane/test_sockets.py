"""Listeners that several processes read: the system spreads clients over them, and over nobody else's."""

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
def test_a_port_that_the_system_chooses_is_no_other_servers() -> None:
    """With SO_REUSEPORT it may choose one that other programs of this user share, and clients would be split."""
    with namespace("listeners") as here:
        here.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001")
        here.run(sys.executable, "-c", TWO_SERVERS)
