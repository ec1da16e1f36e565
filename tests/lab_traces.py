"""Writes the traces of seeded runs of two agents to standard output: `python -m tests.lab_traces SEED...`.

A program of its own, so that `test_determinism.py` can run it under different values of PYTHONHASHSEED.
"""

from __future__ import annotations

import sys
from typing import IO

from polynya.core.instants import MILLISECOND, SECOND, Instant
from polynya.core.trace import Tracer, TraceWriter
from polynya.ice.config import IceConfig
from polynya.lab.exchange import Exchange, Peer
from polynya.lab.network import Network
from polynya.lab.topologies import random_topology
from polynya.session.options import SessionConfig
from polynya.stun.uris import StunUri


def write_run(seed: int, file: IO[str]) -> None:
    """Two agents in a random lossy topology, both of which think that they control: gather, connect, talk, close."""
    network = Network(seed, trace=Tracer(TraceWriter(file)))
    topology = random_topology(network, lossy=True)
    config = SessionConfig(ice=IceConfig(controlling=True), stun_servers=(StunUri.parse(topology.stun),))
    peers = [Peer(network, host, config) for host in (topology.one, topology.other)]
    Exchange(network, *peers, jitter=30 * MILLISECOND).start(later=100 * MILLISECOND)
    network.run(Instant(8 * SECOND))
    for peer in peers:
        peer.send(f"from {peer.name}".encode())
    network.run(Instant(10 * SECOND))
    for peer in peers:
        peer.close()
    network.run(Instant(11 * SECOND))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write_run(int(argument), sys.stdout)
