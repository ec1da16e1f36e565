"""Complete ICE checks read, verified and built: messages a second of CPU, in the library of this interpreter.

    .venv/bin/python bench/stun_codec.py                    polynya
    .peers/aioice/bin/python bench/stun_codec.py            aioice

Each of the 1,000 checks differs: transaction id, user name (of nine lengths, as from many peers), priority and
tie-breaker; all have role, USE-CANDIDATE, MESSAGE-INTEGRITY and FINGERPRINT. Ten peers' passwords sign them. Every
attribute is converted to its typed value, which is compared with what went in before anything is timed. The last line
is JSON; each value is the best of several passes over all checks, the passes of the three workloads taking turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

COUNT = 1000
PASSES = 25


@dataclass(frozen=True)
class Check:
    """The values of one check."""

    transaction_id: bytes
    username: str
    password: str
    priority: int
    tie_breaker: int


def checks(count: int = COUNT, seed: int = 8445) -> list[Check]:
    """The same checks in every library."""
    rng = random.Random(seed)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def text(size: int) -> str:
        return "".join(rng.choices(letters, k=size))

    passwords = [text(rng.randint(22, 32)) for _ in range(10)]
    return [
        Check(
            transaction_id=rng.randbytes(12),
            username=f"{text(rng.randint(4, 8))}:{text(rng.randint(4, 8))}",
            password=rng.choice(passwords),
            priority=rng.getrandbits(31),
            tie_breaker=rng.getrandbits(64),
        )
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Workloads:
    """The functions to measure; each processes all checks once."""

    version: str
    build: Callable[[], list[bytes]]
    decode: Callable[[list[bytes]], None]
    verify: Callable[[list[bytes]], None]
    values: Callable[[bytes], tuple[bytes, str, int, int, bool]]
    """Transaction id, user name, priority, tie-breaker and USE-CANDIDATE of one check, for the comparison."""


def polynya_workloads(made: list[Check]) -> Workloads:
    from importlib.metadata import version

    from polynya.stun.attributes import ICE_CONTROLLING, PRIORITY, USE_CANDIDATE, USERNAME
    from polynya.stun.integrity import IntegrityKey
    from polynya.stun.message import Message, decode
    from polynya.stun.registry import Method

    keys = {check.password: IntegrityKey.short_term(check.password) for check in made}
    rows = [(c.transaction_id, c.username, c.priority, c.tie_breaker, keys[c.password]) for c in made]
    signers = [row[4] for row in rows]

    def build() -> list[bytes]:
        return [
            Message.request(
                Method.BINDING,
                transaction_id,
                {USERNAME: username, PRIORITY: priority, ICE_CONTROLLING: tie_breaker, USE_CANDIDATE: True},
            ).encode(integrity=key, fingerprint=True)
            for transaction_id, username, priority, tie_breaker, key in rows
        ]

    def decode_all(data: list[bytes]) -> None:
        for each in data:
            decode(each)

    def verify_all(data: list[bytes]) -> None:
        for each, key in zip(data, signers, strict=True):
            if not decode(each).verify(key):
                raise AssertionError("not verified")

    def values(data: bytes) -> tuple[bytes, str, int, int, bool]:
        message = decode(data)
        return (
            message.transaction_id,
            message[USERNAME],
            message[PRIORITY],
            message[ICE_CONTROLLING],
            USE_CANDIDATE in message,
        )

    return Workloads(f"polynya {version('polynya')}", build, decode_all, verify_all, values)


def aioice_workloads(made: list[Check]) -> Workloads:
    from importlib.metadata import version

    from aioice import stun

    rows = [(c.transaction_id, c.username, c.priority, c.tie_breaker, c.password.encode()) for c in made]
    keys = [row[4] for row in rows]

    def build() -> list[bytes]:
        built = []
        for transaction_id, username, priority, tie_breaker, key in rows:
            message = stun.Message(
                stun.Method.BINDING,
                stun.Class.REQUEST,
                transaction_id,
                {"USERNAME": username, "PRIORITY": priority, "ICE-CONTROLLING": tie_breaker, "USE-CANDIDATE": None},
            )
            message.add_message_integrity(key)
            built.append(bytes(message))
        return built

    def decode_all(data: list[bytes]) -> None:
        for each in data:
            stun.parse_message(each)

    def verify_all(data: list[bytes]) -> None:
        for each, key in zip(data, keys, strict=True):
            if not stun.parse_message(each).check_message_integrity(key):
                raise AssertionError("not verified")

    def values(data: bytes) -> tuple[bytes, str, int, int, bool]:
        message = stun.parse_message(data)
        found = message.attributes
        return (
            message.transaction_id,
            found["USERNAME"],
            found["PRIORITY"],
            found["ICE-CONTROLLING"],
            "USE-CANDIDATE" in found,
        )

    return Workloads(f"aioice {version('aioice')}", build, decode_all, verify_all, values)


LIBRARIES: dict[str, Callable[[list[Check]], Workloads]] = {"polynya": polynya_workloads, "aioice": aioice_workloads}


def measure(library: str, *, count: int = COUNT, passes: int = PASSES) -> dict[str, float]:
    """Messages a second of CPU time for `decode`, `verify` (which decodes too) and `build` (which signs too)."""
    made = checks(count)
    workloads = LIBRARIES[library](made)
    data = workloads.build()
    for check, each in zip(made, data, strict=True):
        expected = (check.transaction_id, check.username, check.priority, check.tie_breaker, True)
        if workloads.values(each) != expected:
            raise AssertionError(f"{workloads.version} reads {each.hex()} wrongly")
    timed: dict[str, Callable[[], object]] = {
        "decode": lambda: workloads.decode(data),
        "verify": lambda: workloads.verify(data),
        "build": workloads.build,
    }
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(passes):
        for name, run in timed.items():
            started = time.process_time_ns()
            run()
            best[name] = min(best[name], (time.process_time_ns() - started) / 1e9)
    print(workloads.version, "us a message:", {name: round(spent / count * 1e6, 2) for name, spent in best.items()})
    return {name: count / spent for name, spent in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [name for name in LIBRARIES if importlib.util.find_spec(name)]
    parser.add_argument("library", nargs="?", choices=list(LIBRARIES), default=installed[0] if installed else None)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--passes", type=int, default=PASSES)
    options = parser.parse_args()
    print(json.dumps(measure(options.library, count=options.count, passes=options.passes)))


if __name__ == "__main__":
    main()
