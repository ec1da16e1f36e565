"""The rules of the source tree, then controls that show that each rule finds what it forbids."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.source_rules import (
    MAY_IMPORT,
    PACKAGE,
    PURE,
    Module,
    import_circles,
    impure_imports,
    impure_timers,
    machines,
    positional_now,
    shell_imports,
    unordered,
    wrong_direction,
)

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / PACKAGE
MODULES = [
    Module(path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
]
LONGEST = 600


def tracked() -> list[Path]:
    """Every file that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_imports_run_one_way() -> None:
    assert [line for module in MODULES for line in wrong_direction(module)] == []


def test_the_rooms_form_no_circle() -> None:
    built: set[str] = set()
    while rest := {room: below - built for room, below in MAY_IMPORT.items() if room not in built}:
        ready = {room for room, below in rest.items() if not below}
        assert ready, f"these import one another: {sorted(rest)}"
        built |= ready


def test_no_two_files_import_each_other() -> None:
    """Imports for type checkers count: a child sees a Protocol that is beside it."""
    assert import_circles(MODULES) == []


def test_every_folder_is_a_room_of_the_design() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert sorted(folders - MAY_IMPORT.keys()) == []


def test_machines_do_no_io_and_draw_no_randomness_of_their_own() -> None:
    assert [line for module in MODULES for line in impure_imports(module)] == []


def test_machines_never_depend_on_the_order_of_hashes() -> None:
    assert [line for module in MODULES for line in unordered(module)] == []


def test_next_timer_changes_nothing() -> None:
    assert [line for module in MODULES for line in impure_timers(module)] == []


def test_the_time_is_always_passed_by_name() -> None:
    assert [line for module in MODULES for line in positional_now(module)] == []


def test_machines_and_shells_never_share_a_folder() -> None:
    with_machines = {module.folder for module in MODULES if machines(module)}
    assert [line for module in MODULES if module.folder in with_machines for line in shell_imports(module)] == []


def test_no_file_is_too_long() -> None:
    lengths = {module.path: module.text.count("\n") for module in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST} == {}


def test_tests_are_found_by_their_path_alone() -> None:
    assert [str(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


@pytest.mark.parametrize(
    "host",
    [
        "pypi" + ".org",
        "python" + "hosted.org",
        "npm" + "js.org",
        "crates" + ".io",
        "golang" + ".org/@",
        "deb.deb" + "ian",
    ],
)
def test_no_file_names_a_package_registrys_host(host: str) -> None:
    assert [str(path) for path in tracked() if host.encode() in path.read_bytes()] == []


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    paths = [b"/wo" + b"rk/main", b"/wo" + b"rk/shared", b"/ro" + b"ot/.", str(ROOT).encode() + b"/"]
    assert [str(path) for path in tracked() if any(text in path.read_bytes() for text in paths)] == []


# ------------------------------------------------------------------------------------------------ controls


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/trace.py", "from ..stun import message"),
        ("core/trace.py", "from .. import stun"),
        ("core/trace.py", "import polynya.ice.agent"),
        ("core/trace.py", "from polynya import Agent"),
        ("core/trace.py", "def late():\n    from polynya.aio import driver"),
        ("ice/agent.py", "from ..turn.client import allocation"),
        ("ice/checks/build.py", "from ...session import Session"),
        ("session/session.py", "from ..aio.driver import Driver"),
        ("aio/agent.py", "from ..serve import Server"),
        ("lab/network.py", "from ..aio import driver"),
        ("lab/network.py", "from .real import namespaces"),
        ("serve/server.py", "from ..cli import main"),
        ("aio/agent.py", "from .. import Agent"),
        ("__init__.py", "from .cli import main"),
    ],
)
def test_an_import_against_the_direction_is_found(path: str, text: str) -> None:
    assert wrong_direction(Module(path, text)) != []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/trace.py", "from .instants import Instant\nimport json"),
        ("ice/agent.py", "from ..stun.message import Message\nfrom .pairs import Pair\nfrom ..core import flows"),
        ("lab/real/driver.py", "from ...aio import driver\nfrom .. import network"),
        ("cli/serve.py", "import polynya\nfrom polynya.serve import Server"),
        ("__init__.py", "from .aio.agent import Agent"),
        ("__main__.py", "from .cli import main"),
    ],
)
def test_an_import_with_the_direction_passes(path: str, text: str) -> None:
    assert wrong_direction(Module(path, text)) == []


@pytest.mark.parametrize(
    "texts",
    [
        {"ice/a.py": "from .b import B", "ice/b.py": "from . import a"},
        {"ice/a.py": "from .b import B", "ice/b.py": "import polynya.ice.a"},
        {"ice/a.py": "from .b import B", "ice/b.py": "def f():\n    from .a import A"},
        {"ice/a.py": "from .b import B", "ice/b.py": "if TYPE_CHECKING:\n    from .a import A"},
        {"ice/a.py": "from .b import B", "ice/b.py": "from .c import C", "ice/c.py": "from polynya.ice.a import A"},
        {"ice/__init__.py": "from .a import A", "ice/a.py": "from polynya.ice import B"},
        {"ice/a.py": "from ..core.b import B", "core/b.py": "from ..ice.a import A"},
    ],
)
def test_a_circle_is_found(texts: dict[str, str]) -> None:
    assert len(import_circles([Module(path, text) for path, text in texts.items()])) == 1


@pytest.mark.parametrize(
    "texts",
    [
        {"ice/a.py": "from .b import B\nfrom .c import C", "ice/b.py": "from .c import C", "ice/c.py": "import json"},
        {"ice/__init__.py": "from .a import A", "ice/a.py": "from .b import B", "ice/b.py": "from ..core import a"},
        {"ice/a.py": "from .a import A"},
        {"ice/a.py": "from ..stun.a import A", "stun/a.py": "from ..core.a import A", "core/a.py": ""},
    ],
)
def test_imports_without_a_circle_pass(texts: dict[str, str]) -> None:
    assert import_circles([Module(path, text) for path, text in texts.items()]) == []


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "import asyncio.events",
        "import os.path",
        "import random\nx = random.random()",
        "from random import randint",
        "import random as dice\ndef f(): return dice.randint(1, 6)",
        "from random import Random as Dice\nfrom time import monotonic as now",
        "import random\nx = random.Random()",
        "from socket import inet_pton",
        "def f():\n    import secrets",
    ],
)
def test_an_impure_machine_is_found(text: str) -> None:
    assert impure_imports(Module("ice/agent.py", text)) != []
    assert impure_imports(Module("aio/agent.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import random\ndef f(r: random.Random) -> float:\n    return r.random()",
        "from random import Random\nr = Random(7)",
        "from random import Random\ndef f(random: Random): return random.randbytes(12)",
        "import random as dice\ndef f(random: dice.Random): return random.randbytes(12)",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import asyncio",
        "import hmac, struct, zlib, errno",
    ],
)
def test_types_and_injected_randomness_are_allowed(text: str) -> None:
    assert impure_imports(Module("ice/agent.py", text)) == []


def test_only_addresses_may_use_the_systems_parser_of_addresses() -> None:
    assert impure_imports(Module("core/addresses.py", "import socket\nsocket.inet_pton(socket.AF_INET, '')")) == []
    assert impure_imports(Module("core/addresses.py", "import socket\nsocket.socket()")) != []
    assert impure_imports(Module("core/flows.py", "import socket\nsocket.inet_pton(socket.AF_INET, '')")) != []


@pytest.mark.parametrize(
    "text",
    [
        "x = hash('a')",
        "for x in {1, 2}: pass",
        "class A:\n    def f(self):\n        self.seen: set[int] = set()\n        return [x for x in self.seen]",
        "class A:\n    def f(self):\n        self.seen = set()\n        self.seen.pop()",
        "@dataclass\nclass A:\n    seen: set[int]\n    def f(self): return list(self.seen)",
        "def f(known: frozenset[str], new: set[str]): return ', '.join(known - new)",
        "x = tuple(set('ab'))",
    ],
)
def test_an_iteration_over_a_set_is_found(text: str) -> None:
    assert unordered(Module("ice/agent.py", text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "for x in sorted({1, 2}): pass",
        "x = 1 in {1, 2}",
        "class A:\n    def __hash__(self): return hash(self.x)",
        "x: set[int] = set()\nx.add(1)\nlen(x)",
        "for x in {1: 2}: pass",
    ],
)
def test_a_membership_test_or_a_sorted_set_passes(text: str) -> None:
    assert unordered(Module("ice/agent.py", text)) == []


MACHINE = """
class Agent:
    def tick(self, now): ...
    def next_timer(self):
        {}
"""


@pytest.mark.parametrize("line", ["self.due = 3", "self.timers.due(0)", "del self.timers[0]", "self.asked += 1"])
def test_a_next_timer_that_mutates_is_found(line: str) -> None:
    assert impure_timers(Module("ice/agent.py", MACHINE.format(line))) != []


@pytest.mark.parametrize("line", ["return self._timers.next()", "due = min(self.a, self.b); return due"])
def test_a_next_timer_that_only_reads_passes(line: str) -> None:
    assert impure_timers(Module("ice/agent.py", MACHINE.format(line))) == []


@pytest.mark.parametrize(
    "line", ["def tick(self, now): ...", "async def tick(self, at, now, /): ...", "def tick(self, now=0, *, more): ..."]
)
def test_a_time_by_position_is_found(line: str) -> None:
    assert positional_now(Module("ice/agent.py", line)) != []


@pytest.mark.parametrize("line", ["def tick(self, *, now): ...", "tick = lambda now: None", "tick(now)"])
def test_a_time_by_name_passes(line: str) -> None:
    assert positional_now(Module("ice/agent.py", line)) == []


def test_a_shell_is_found_by_its_imports() -> None:
    assert shell_imports(Module("serve/server.py", "import asyncio")) != []
    assert shell_imports(Module("core/addresses.py", "import socket")) == []
    assert machines(Module("serve/server.py", MACHINE.format("pass"))) != []
    assert machines(Module("serve/server.py", MACHINE.format("pass").replace("Agent", "Agent(Protocol[A])"))) == []


def test_every_room_of_machines_is_a_room() -> None:
    assert MAY_IMPORT.keys() >= PURE
