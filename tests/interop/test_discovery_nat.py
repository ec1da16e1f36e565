"""NAT behavior discovery behind the kernel's NAT: our client and coturn's agree, with our server and with coturn.

Many results need a timeout, so all runs are concurrent, and each test checks one of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.real.netns import End, Namespace, cable, namespace

pytestmark = [pytest.mark.root, pytest.mark.peer("ip", "nft", "turnutils", "coturn")]

HERE = Path(__file__).resolve().parent
INSIDE = "192.168.7"
OUTSIDE = "203.0.113"
SERVERS = {"polynya": (f"{OUTSIDE}.1", f"{OUTSIDE}.2"), "coturn": (f"{OUTSIDE}.3", f"{OUTSIDE}.4")}
PORT = 3478
RULES = {
    "masquerade": """
table ip polynya {
    chain out { type nat hook postrouting priority 100; oifname "outer" masquerade; }
    chain own { type filter hook input priority 0; iifname "outer" drop; }
    chain through {
        type filter hook forward priority 0; policy drop;
        iifname "inner" accept
        ct state established,related accept
    }
}
""",
    "masquerade fully-random": """
table ip polynya {
    chain out { type nat hook postrouting priority 100; oifname "outer" masquerade fully-random; }
    chain own { type filter hook input priority 0; iifname "outer" drop; }
    chain through {
        type filter hook forward priority 0; policy drop;
        iifname "inner" accept
        ct state established,related accept
    }
}
""",
    "everything forwarded": f"""
table ip polynya {{
    chain out {{ type nat hook postrouting priority 100; oifname "outer" masquerade; }}
    chain in {{ type nat hook prerouting priority -100; iifname "outer" udp dport 1024-65535 dnat to {INSIDE}.2; }}
}}
""",
    "forwarded from where was sent to": f"""
table ip polynya {{
    set sent {{ type inet_service . ipv4_addr; flags dynamic, timeout; timeout 60s; }}
    chain out {{ type nat hook postrouting priority 100; oifname "outer" masquerade; }}
    chain note {{ type filter hook forward priority 0; oifname "outer" add @sent {{ udp sport . ip daddr }}; }}
    chain in {{
        type nat hook prerouting priority -100;
        iifname "outer" udp dport . ip saddr @sent dnat to {INSIDE}.2
    }}
    chain own {{ type filter hook input priority 0; iifname "outer" drop; }}
}}
""",
}
"""The nftables rules of the router."""
FOUND = {
    "masquerade": ("EI", "APD"),
    "masquerade fully-random": ("APD", "APD"),
    "everything forwarded": ("EI", "EI"),
    "forwarded from where was sent to": ("EI", "AD"),
}
NAMES = {
    "EI": "Endpoint Independent",
    "AD": "Address Dependent",
    "APD": "Address and Port Dependent",
}
FORGETFUL, LIFE = "masquerade that forgets soon", 3
RUNS = [(rules, server, client) for rules in RULES for server in SERVERS for client in ("polynya", "natdiscovery")]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Namespace]]:
    """Hosts behind NATs, by the rules of the NAT."""
    with ExitStack() as stack:
        hub = stack.enter_context(namespace("hub"))
        hub.ip("link", "add", "net", "type", "bridge")
        for host in (each for pair in SERVERS.values() for each in pair):
            hub.ip("address", "add", f"{host}/24", "dev", "net")
        hub.ip("link", "set", "net", "up")
        hosts = {rules: _behind(stack, hub, number, rules) for number, rules in enumerate(RULES, start=11)}
        hosts[FORGETFUL] = _behind(stack, hub, 30, "masquerade", LIFE)
        _serve(stack, hub, tmp_path_factory.mktemp("discovery"))
        yield hosts


def _behind(stack: ExitStack, hub: Namespace, number: int, rules: str, life: int = 0) -> Namespace:
    """Create a host and its NAT, whose mappings time out after `life` seconds, or after the kernel's default."""
    host, router = (stack.enter_context(namespace(f"{what}-{number}")) for what in ("host", "nat"))
    cable(End(host, "pn0", [f"{INSIDE}.2/24"]), End(router, "inner", [f"{INSIDE}.1/24"]))
    cable(End(router, "outer", [f"{OUTSIDE}.{number}/24"]), End(hub, f"to{number}"))
    hub.ip("link", "set", f"to{number}", "master", "net")
    host.ip("route", "add", "default", "via", f"{INSIDE}.1")
    router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    router.run("nft", "-f", "-", input=RULES[rules])
    for timer in ("udp_timeout", "udp_timeout_stream") if life else ():
        router.run("sh", "-c", f"echo {life} > /proc/sys/net/netfilter/nf_conntrack_{timer}")
    return host


def _serve(stack: ExitStack, hub: Namespace, folder: Path) -> None:
    """Run both servers, each with two addresses and the ports PORT and PORT + 1."""
    first, other = SERVERS["polynya"]
    command = ["serve", "--listen", f"{first}:{PORT}", "--stun-alternate", f"{other}:{PORT + 1}", "--user", "a:b"]
    ours = stack.enter_context(
        hub.popen(sys.executable, "-m", "polynya", *command, stdout=subprocess.PIPE, text=True)
    )  # fmt: skip
    stack.callback(ours.terminate)
    assert ours.stdout.readline().startswith("ready ")
    first, other = SERVERS["coturn"]
    log = stack.enter_context((folder / "coturn.log").open("w+"))
    theirs = stack.enter_context(
        hub.popen(
            "turnserver", "-n", "--no-auth", "--no-cli", "--no-tls", "--no-dtls", "--log-file=stdout", "--realm=x",
            f"--listening-ip={first}", f"--listening-ip={other}", f"--listening-port={PORT}", f"--relay-ip={first}",
            f"--userdb={folder / 'turndb'}", f"--pidfile={folder / 'pid'}", stdout=log, stderr=log,
        )
    )  # fmt: skip
    stack.callback(theirs.terminate)
    hub.run(
        sys.executable, "-c",
        "import socket, sys, time\n"
        "until = time.monotonic() + 15\n"
        "while True:\n"
        "    try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 1); break\n"
        "    except OSError: assert time.monotonic() < until; time.sleep(0.05)\n",
        other, str(PORT + 1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(hosts: dict[str, Namespace]) -> Iterator[dict[tuple[str, str, str], subprocess.Popen[str]]]:
    started = {}
    for rules, server, client in RUNS:
        address = SERVERS[server][0]
        command = [sys.executable, HERE / "discovery_peer.py", f"stun:{address}:{PORT}"]
        if client == "natdiscovery":
            command = ["turnutils_natdiscovery", "-m", "-f", "-L", f"{INSIDE}.2", "-p", str(PORT), address]
        started[rules, server, client] = hosts[rules].popen(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    uri = f"stun:{SERVERS['polynya'][0]}:{PORT}"
    started[FORGETFUL, "polynya", "polynya"] = hosts[FORGETFUL].popen(
        sys.executable, HERE / "discovery_peer.py", uri, "5", "2",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize(("rules", "server", "client"), RUNS)
@pytest.mark.usefixtures("free_of_leftovers")
def test_the_nat_of_the_kernel_is_classified_correctly(
    runs: dict[tuple[str, str, str], subprocess.Popen[str]], rules: str, server: str, client: str
) -> None:
    said, _ = runs[rules, server, client].communicate(timeout=120)
    mapping, filtering = FOUND[rules]
    if client == "natdiscovery":
        verdicts = re.findall(r"NAT with (.*?) (Mapping|Filtering)!", said)
        assert (NAMES[mapping], "Mapping") in verdicts and (NAMES[filtering], "Filtering") in verdicts, said
        return
    found = json.loads(said)
    assert (found["translated"], found["mapping"], found["filtering"]) == (True, mapping, filtering), found
    assert found["mapped"].startswith(OUTSIDE)


@pytest.mark.usefixtures("free_of_leftovers")
def test_the_timeout_of_the_kernels_nat_is_measured(runs: dict[tuple[str, str, str], subprocess.Popen[str]]) -> None:
    """RFC 5780, section 4.6. On a slow machine a pause takes longer, so the measured lifetime can be shorter."""
    said, _ = runs[FORGETFUL, "polynya", "polynya"].communicate(timeout=120)
    found = json.loads(said)
    assert found["survived"] is not None and found["survived"] <= LIFE, found
    assert 0 < found["gone_after"] <= LIFE + 2, found
