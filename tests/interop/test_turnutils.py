"""coturn's STUN client with `polynya serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.real.netns import PATH

pytestmark = pytest.mark.peer("turnutils")

FAMILIES = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[int, int]]:
    """Run a server on loopback. Yield its STUN ports by family."""
    listen = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(
        [sys.executable, "-m", "polynya", "serve", *listen], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            yield {
                4: int(re.search(r"127\.0\.0\.1:(\d+)", ready.partition("http")[0])[1]),  # type: ignore[index]
                6: int(re.search(r"\[::1\]:(\d+)", ready)[1]),  # type: ignore[index]
            }
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_stunclient_prints_its_own_address(ports: dict[int, int], family: int) -> None:
    """It binds an ephemeral port and prints the mapped address of the answer."""
    host = FAMILIES[family]
    done = subprocess.run(
        ["turnutils_stunclient", "-L", host, "-p", str(ports[family]), host],
        capture_output=True, text=True, timeout=20, check=False, env={**os.environ, "PATH": PATH},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    seen = re.search(rf"IPv{family}\. UDP reflexive addr: (.*):(\d+)", said)
    assert seen, said
    assert seen[1].strip("[]") == host
    assert int(seen[2]) not in {0, ports[family]}
