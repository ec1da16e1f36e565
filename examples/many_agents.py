"""Many agents in one process: pairs of them connect, all at once.

    python many_agents.py 50

The agents share nothing but the pacing: two checks of one process start at least 5 ms apart (RFC 8445, section 14.2),
so a hundred agents take longer than two.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import polynya


async def converse(number: int) -> float:
    """Connects one pair, exchanges a question and its answer, and returns the seconds until it was connected."""
    begun = time.monotonic()
    async with (
        polynya.Agent(controlling=True, loopback=True, addresses=["127.0.0.1"]) as alice,
        polynya.Agent(controlling=False, loopback=True, addresses=["127.0.0.1"]) as bob,
    ):
        alice.add_remote_signal(await bob.signal_text())  # within a process, a call is all the signaling
        bob.add_remote_signal(await alice.signal_text())
        at_alice, at_bob = await asyncio.gather(alice.connect(timeout=30), bob.connect(timeout=30))
        took = time.monotonic() - begun
        at_alice.send(f"question {number}".encode())
        question = await at_bob.recv()
        at_bob.send(b"answer to " + question)
        answer = await at_alice.recv()
        if answer != f"answer to question {number}".encode():
            raise RuntimeError(f"pair {number} got {answer!r}")
    return took


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", type=int, nargs="?", default=50)
    pairs = parser.parse_args().pairs
    took = sorted(await asyncio.gather(*(converse(number) for number in range(pairs))))
    print(
        f"{2 * pairs} agents made {pairs} connections: the first after {took[0]:.2f} s, the last after {took[-1]:.2f} s"
    )


if __name__ == "__main__":
    asyncio.run(main())
