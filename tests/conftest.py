"""Shared by all tests: the markers `root` and `peer(name)`, hypothesis' profile, seeds, the list of skipped groups.

A test that needs root or a foreign program is skipped with the reason where that is missing; the end of the run names
each skipped group, why, and what enables it. POLYNYA_SKIPPED=FILE writes the same list as tab-separated lines, for CI.
"""

from __future__ import annotations

import inspect
import os
import random
import shutil
import signal
import subprocess
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from tests.loops import run

ROOT = Path(__file__).resolve().parent.parent
SBIN = os.pathsep.join(["/usr/sbin", "/sbin"])

hypothesis.settings.register_profile(
    "polynya", derandomize=True, deadline=None, database=None, print_blob=True, max_examples=200
)
hypothesis.settings.load_profile("polynya")


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a group of tests cannot run here, and what would let it."""

    reason: str
    enable: str


def _program(program: str, package: str) -> Callable[[], Lack | None]:
    def lack() -> Lack | None:
        if shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{SBIN}"):
            return None
        return Lack(f"the program {program} is missing", f"install Debian's {package}; as root, make setup does")

    return lack


def _python_peer(name: str, module: str) -> Callable[[], Lack | None]:
    def lack() -> Lack | None:
        python = ROOT / ".peers" / name / "bin" / "python"
        if python.exists():
            imported = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
            if imported.returncode == 0:
                return None
        return Lack(f"{module} is not in .peers/{name}", "make setup")

    return lack


def _pion() -> Lack | None:
    """Our Go programs around pion's libraries."""
    program = ROOT / ".peers" / "pion" / "turn"
    if program.exists() and subprocess.run([program, "-h"], capture_output=True, check=False).returncode == 0:
        return None
    return Lack("pion is not built in .peers/pion", "make setup, which gets Go where it has to")


def _libnice() -> Lack | None:
    """libnice is driven from Debian's own Python, by introspection."""
    load = "import gi; gi.require_version('Nice', '0.1'); from gi.repository import Nice"
    python = Path("/usr/bin/python3")
    if python.exists() and subprocess.run([python, "-c", load], capture_output=True, check=False).returncode == 0:
        return None
    return Lack("libnice is missing", "install Debian's gir1.2-nice-0.1 and python3-gi; as root, make setup does")


PEERS: dict[str, Callable[[], Lack | None]] = {
    "aioice": _python_peer("aioice", "aioice"),
    "coturn": _program("turnserver", "coturn"),
    "libnice": _libnice,
    "pion": _pion,
    "turnutils": _program("turnutils_stunclient", "coturn"),
    "stun": _program("stun", "stun-client"),
    "tshark": _program("tshark", "tshark"),
    "ip": _program("ip", "iproute2"),
    "nft": _program("nft", "nftables"),
    "iptables": _program("iptables", "iptables"),
    "nginx": _program("nginx", "nginx"),
    "systemd-analyze": _program("systemd-analyze", "systemd"),
}
"""The foreign programs that a test may name in `@pytest.mark.peer(name)`, and how each is looked for."""


def _lacks_root() -> Lack | None:
    if os.geteuid() != 0:
        return Lack("this is not root", "run it as root")
    unshare = shutil.which("unshare")
    made = unshare and subprocess.run([unshare, "--net", "true"], capture_output=True, check=False)
    if not made or made.returncode != 0:
        said = made.stderr.decode(errors="replace").strip() if made else "the program unshare is missing"
        return Lack(f"this root cannot make network namespaces: {said}", "run it with CAP_SYS_ADMIN and CAP_NET_ADMIN")
    return None


@cache
def lack_of(group: str) -> Lack | None:
    """The reason why the group `root` or `peer:NAME` cannot run here; None if it can."""
    if group == "root":
        return _lacks_root()
    name = group.removeprefix("peer:")
    if name not in PEERS:
        raise pytest.UsageError(f"no peer is named {name!r}; tests/conftest.py knows {', '.join(PEERS)}")
    return PEERS[name]()


def groups_of(item: pytest.Item) -> list[str]:
    """The groups that a test belongs to by its markers: `root`, `peer:NAME`."""
    groups = ["root"] if item.get_closest_marker("root") else []
    for marker in item.iter_markers("peer"):
        groups += [f"peer:{name}" for name in marker.args]
    return groups


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in an order drawn from this seed")


def pytest_configure() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and so would be what the tests interrupt."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run an async test on each loop that its marker names."""
    if inspect.iscoroutinefunction(metafunc.function):
        marker = metafunc.definition.get_closest_marker("loops")
        metafunc.fixturenames.append("loop")
        metafunc.parametrize("loop", marker.args if marker is not None else ["asyncio"], indirect=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run async tests: no test makes a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    marker = pyfuncitem.get_closest_marker("unhandled")
    expected = marker.args[0] if marker is not None else 0
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run(pyfuncitem.obj(**arguments), pyfuncitem.callspec.params["loop"], unhandled=expected)
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)
    else:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # files that take long are not the last
    for item in items:
        for group in groups_of(item):
            if lack := lack_of(group):
                item.user_properties.append(("skipped", f"{group}\t{lack.reason}\t{lack.enable}"))
                item.add_marker(pytest.mark.skip(reason=f"{group}: {lack.reason} ({lack.enable})"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tests = Counter(
        value
        for report in terminalreporter.stats.get("skipped", [])
        for name, value in getattr(report, "user_properties", [])
        if name == "skipped"
    )
    rows = sorted((*value.split("\t"), count) for value, count in tests.items())
    if rows:
        terminalreporter.section("groups of tests that were skipped")
    for group, reason, enable, count in rows:
        terminalreporter.write_line(f"{group}: {count} tests, because {reason}. To run them: {enable}.")
    if path := os.environ.get("POLYNYA_SKIPPED"):
        lines = [f"{group}\t{count}\t{reason}\t{enable}\n" for group, reason, enable, count in rows]
        Path(path).write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness of the test's own, the same in every run and every order."""
    return random.Random(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def free_of_leftovers() -> Iterator[None]:
    """Fails a test that leaves a network namespace of this process (`tests/real/netns.py`) behind."""
    before = _namespaces()
    yield
    left = sorted(_namespaces() - before)
    assert not left, f"namespaces left behind: {', '.join(left)}"


def _namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {path.name for path in folder.glob(f"pn-*-{os.getpid()}-*")} if folder.is_dir() else set()
