"""NAT behavior discovery by foreign clients: `polynya serve` on two addresses, then on two ports of one.

coturn's `turnutils_natdiscovery` implements RFC 5780, Debian's `stun` RFC 3489. There is no NAT on loopback, so every
test must report endpoint-independent mapping and filtering, and hairpinning.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.netns import PATH, alone

HERE = Path(__file__).resolve().parent

# loopback addresses of this process: what else runs on this host has other ones
NET = f"127.{64 | os.getpid() >> 8 & 63}.{os.getpid() & 255}"
SERVERS = {"STUN only": (), "with TURN": ("--user", "a:b"), "with workers": ("--user", "a:b", "--workers", "2")}
FIRST, OTHER, PORT, OTHER_PORT = f"{NET}.1", f"{NET}.2", 23478, 23479


@contextmanager
def serving(listen: str, alternate: str, *options: str) -> Iterator[None]:
    command = [sys.executable, "-m", "polynya", "serve", "--listen", f"{listen}:{PORT}", "--stun-alternate", alternate]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PATH": PATH}
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS)
def two_addresses(request: pytest.FixtureRequest) -> Iterator[None]:
    with serving(FIRST, f"{OTHER}:{OTHER_PORT}", *request.param):
        yield


def natdiscovery(*options: str, server: str = FIRST) -> str:
    return run("turnutils_natdiscovery", "-L", f"{NET}.9", "-p", str(PORT), *options, server)


@pytest.mark.peer("turnutils")
@pytest.mark.parametrize("padding", [(), ("-P",)], ids=["plain", "with PADDING"])
@pytest.mark.usefixtures("two_addresses")
def test_natdiscovery_reports_no_nat(padding: tuple[str, ...]) -> None:
    """It prints each response, and a verdict after each part."""
    said = natdiscovery("-m", "-f", "-H", *padding)
    parts = re.split(r"-= (\w+) Behavior Discovery =-", said)
    of = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert "NAT with Endpoint Independent Mapping!" in of["Mapping"]
    assert "NAT with Endpoint Independent Filtering!" in of["Filtering"]
    assert "successful hairpinning" in of["Hairpinning"]
    assert said.count("No ALG: Mapped == XOR-Mapped") == said.count("RFC 5780 response") > 3
    origins = re.findall(r"Response origin: : (\S+):(\d+)", of["Filtering"])
    assert [(FIRST, str(PORT)), (OTHER, str(OTHER_PORT))] == list(dict.fromkeys(origins))
    assert (OTHER, str(OTHER_PORT)) in re.findall(r"Other addr: : (\S+):(\d+)", said)
    assert "error" not in said


@pytest.mark.peer("turnutils")
@pytest.mark.usefixtures("two_addresses")
def test_natdiscovery_receives_the_answer_at_its_other_port() -> None:
    """Section 4.6: the second request asks for an answer to the port of the first one."""
    said = natdiscovery("-t", "-T", "1")
    assert said.count("RFC 5780 response") == 2 and "error" not in said
    ports = re.findall(r"UDP reflexive addr: \S+:(\d+)", said)
    assert len(dict.fromkeys(ports)) == 2, "the answers are to two requests from two ports"


@pytest.mark.peer("stun")
@pytest.mark.usefixtures("two_addresses")
def test_a_client_of_rfc_3489_reports_no_nat() -> None:
    said = run("stun", f"{FIRST}:{PORT}", "-v")
    passed = dict(re.findall(r"^(test \S+|is nat|hairpin) *= (\d)$", said, re.MULTILINE))
    assert passed == {"test I": "1", "test II": "1", "test III": "1", "test I(2)": "1", "is nat": "0", "hairpin": "1"}
    assert re.search(r"^Primary: Open", said, re.MULTILINE)
    assert f"ChangedAddress = {OTHER}:{OTHER_PORT}" in said and f"SourceAddress = {OTHER}:{PORT}" in said


@pytest.mark.peer("turnutils")
def test_a_server_with_one_address_offers_no_discovery() -> None:
    """Without OTHER-ADDRESS the client reports that the server does not support RFC 5780."""
    alone = f"{NET}.3"
    with serving(alone, f"{alone}:{OTHER_PORT}"):
        said = natdiscovery("-m", "-f", server=alone)
    assert said.count("UDP reflexive addr") >= 2
    assert "RFC 5780" not in said and "NAT with" not in said and "Other addr" not in said


@pytest.mark.root
@pytest.mark.peer("ip", "turnutils")
@pytest.mark.usefixtures("free_of_leftovers")
def test_discovery_works_over_ipv6() -> None:
    with alone(["fd80::1/64", "fd80::2/64", "fd80::9/64"]) as here:
        serve = ["serve", "--listen", "[fd80::1]:3478", "--stun-alternate", "[fd80::2]:3479", "--user", "a:b"]
        with here.popen(sys.executable, "-m", "polynya", *serve, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout.readline().startswith("ready ")
                said = here.run("turnutils_natdiscovery", "-m", "-f", "-L", "fd80::9", "fd80::1").stdout
                found = json.loads(here.run(sys.executable, HERE / "discovery_peer.py", "stun:[fd80::1]:3478").stdout)
            finally:
                server.terminate()
            assert server.wait(timeout=10) == 0
    assert "NAT with Endpoint Independent Mapping!" in said and "NAT with Endpoint Independent Filtering!" in said
    assert re.search(r"Other addr: : \[?fd80::2\]?:3479", said)
    assert (found["translated"], found["mapping"], found["filtering"]) == (False, "EI", "EI")
