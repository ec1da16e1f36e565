"""security.md, line 10: ports, nonces and tokens come from the system's randomness, which the shell injects."""

from __future__ import annotations

import ast
import random
from itertools import pairwise
from pathlib import Path

import pytest

import polynya
from polynya.core.addresses import Address
from polynya.core.flows import FlowIds
from polynya.stun import attributes as a
from polynya.stun.message import decode
from polynya.turn.server.forwarder import Forwarder
from polynya.turn.server.server import TurnServer
from tests.turn.server.harness import CLIENT, PEER, Person, Table, code, config, users


def run(seed: int) -> list[bytes]:
    table = Table(config(ports=(49152, 65535)), seed=seed)
    alice = Person(table)
    alice.allocate({a.EVEN_PORT: True})
    alice.permit(PEER)
    table.from_peer(alice.relayed[0], b"x")
    return [each.data for each in table.sent]


def drawn(seed: int) -> list[bytes]:
    """Return what an attacker might guess: nonce, relay port, reservation token, transaction id."""
    messages = [decode(data) for data in run(seed)]
    allocated = next(message for message in messages if a.RESERVATION_TOKEN in message)
    return [messages[0][a.NONCE], allocated[a.RESERVATION_TOKEN], messages[-1].transaction_id,
            str(allocated[a.XOR_RELAYED_ADDRESS]).encode()]  # fmt: skip


def test_randomness_comes_from_the_seed_only() -> None:
    assert run(1) == run(1)
    assert not set(drawn(1)) & set(drawn(2))


def test_the_systems_randomness_can_be_injected() -> None:
    table = Table(config(ports=(49152, 65535)))
    chance = random.SystemRandom()
    plane = Forwarder(FlowIds(), random=chance)
    table.server = TurnServer(config(ports=(49152, 65535)), users(), plane, random=chance)
    ports = []
    for number in range(50):
        person = Person(table, Address(CLIENT.host, 1000 + number))
        assert code(person.allocate()) == 0
        ports.append(person.relayed[0].port)
    assert len(set(ports)) == 50
    steps = [second - first for first, second in pairwise(ports)]
    assert len(set(steps)) > 40, "ports are not sequential"


SHELLS = sorted(
    path
    for folder in ("aio", "serve", "stream", "cli", "plane", "compat", "demo")
    for path in (Path(polynya.__file__).parent / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shells_use_the_systems_randomness_only(path: Path) -> None:
    """Shells use `SystemRandom`, `secrets` or `os.urandom` only, for themselves and for machines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        assert name != "Random", f"{path.name}:{node.lineno} makes a predictable generator"
        of = called.value if isinstance(called, ast.Attribute) else None
        assert not (isinstance(of, ast.Name) and of.id == "random" and name != "SystemRandom"), (
            f"{path.name}:{node.lineno} draws from the module's predictable generator"
        )


def test_the_scan_finds_the_shells() -> None:
    assert {"planes.py", "links.py", "agent.py", "turn.py", "signaling.py"} <= {path.name for path in SHELLS}
