"""Keeps the architecture page true: its walks follow the imports, and its map lists every file."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from scripts.map import MAP, first_sentence, rendered
from tests.source_rules import PACKAGE, Module, file_imports

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / PACKAGE
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
MODULES = [
    Module(path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
]
IMPORTS = file_imports(MODULES)

MOST_FILES = 12
MOST_QUEUES = 2
WALK = re.compile(r"^### Walk: (.+?)\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\| \d+ \| `([\w/]+\.py)` \| `([\w.]+)` \| (.*) \|$", re.MULTILINE)
QUEUE = re.compile(r"waits in `([\w.]+)`")
CONTRACT = re.compile(r"through `([\w/]+\.py)`")


@dataclass(frozen=True)
class Step:
    """One row of a walk: the file that the packet enters, the name that handles it, and the page's sentence."""

    file: str
    name: str
    text: str


@dataclass(frozen=True)
class Walk:
    title: str
    steps: tuple[Step, ...]

    @property
    def files(self) -> set[str]:
        return {step.file for step in self.steps}

    @property
    def queues(self) -> list[str]:
        return [queue for step in self.steps for queue in QUEUE.findall(step.text)]


def walks(text: str) -> list[Walk]:
    return [
        Walk(title, tuple(Step(*row) for row in STEP.findall(table))) for title, table in WALK.findall(text + "\n## ")
    ]


WALKS = walks(PAGE.read_text(encoding="utf-8"))


@cache
def defined_in(path: str) -> frozenset[str]:
    """The names that a file defines: functions, classes and constants, `Class.method` and `Class.attribute`."""
    module = next((module for module in MODULES if module.path == path), None)
    if module is None:
        return frozenset()
    names: set[str] = set()
    for node in module.tree.body:
        names |= _names(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in _names(inner)}
            names |= {
                f"{node.name}.{inner.attr}"
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self"
            }
    return frozenset(names)


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.target.id} if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else set()


def connected(first: str, second: str, imports: dict[str, set[str]]) -> bool:
    """Whether a call can go from one file to the other: one of them imports the other."""
    return first == second or second in imports.get(first, ()) or first in imports.get(second, ())


def breaks(walk: Walk, imports: dict[str, set[str]]) -> list[str]:
    """Steps whose file is connected with no earlier step of the walk, by an import or through a named contract."""
    broken = []
    for number, step in enumerate(walk.steps[1:], start=1):
        earlier = [each.file for each in walk.steps[:number]]
        contracts = CONTRACT.findall(step.text)
        by_contract = any(
            contract in imports.get(step.file, ()) and any(contract in imports.get(file, ()) for file in earlier)
            for contract in contracts
        )
        if not by_contract and not any(connected(file, step.file, imports) for file in earlier):
            broken.append(f"{walk.title}, step {number + 1}: nothing before it imports {step.file}, nor the reverse")
    return broken


def test_the_page_has_the_four_walks() -> None:
    assert [walk.title for walk in WALKS] == [
        "a connectivity check, outward",
        "a STUN packet, inward",
        "application data, both ways",
        "an Allocate and a relayed packet",
    ]


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.title)
def test_each_file_and_name_of_a_walk_exists(walk: Walk) -> None:
    missing = [f"{step.file} has no {step.name}" for step in walk.steps if step.name not in defined_in(step.file)]
    assert walk.steps and missing == []


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.title)
def test_each_step_of_a_walk_follows_an_import(walk: Walk) -> None:
    assert breaks(walk, IMPORTS) == []


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.title)
def test_a_walk_enters_a_dozen_files_and_two_queues_at_most(walk: Walk) -> None:
    assert len(walk.files) <= MOST_FILES and len(walk.queues) <= MOST_QUEUES
    known = {name for file in walk.files for name in defined_in(file)}
    assert [queue for queue in walk.queues if queue not in known] == []


def test_the_map_lists_every_file_with_its_docstrings_first_sentence() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = MAP.search(text)
    assert found is not None
    assert found[0] == rendered(), "run `make map`"


def test_every_file_says_in_its_first_sentence_what_it_is_for() -> None:
    sentences = {module.path: first_sentence(module.text) for module in MODULES}
    assert {path: text for path, text in sentences.items() if not text or len(text.split()) > 25} == {}


# ----------------------------------------------------------------------------------------------------------- controls

TABLE = """
### Walk: a packet

| | file | name | |
|---|---|---|---|
| 1 | `aio/driver.py` | `Driver` | reads |
| 2 | `ice/agent.py` | `IceAgent.receive` | takes it through `core/machine.py`; it waits in `Outbox.packets` |

## More
"""


def test_a_walk_is_read_from_its_table() -> None:
    [walk] = walks(TABLE)
    assert [(step.file, step.name) for step in walk.steps] == [
        ("aio/driver.py", "Driver"),
        ("ice/agent.py", "IceAgent.receive"),
    ]
    assert walk.queues == ["Outbox.packets"]


@pytest.mark.parametrize(
    ("imports", "broken"),
    [
        ({}, 1),
        ({"aio/driver.py": {"ice/agent.py"}}, 0),
        ({"ice/agent.py": {"aio/driver.py"}}, 0),
        ({"aio/driver.py": {"core/machine.py"}}, 1),
        ({"aio/driver.py": {"core/machine.py"}, "ice/agent.py": {"core/machine.py"}}, 0),
        ({"aio/driver.py": {"core/flows.py"}, "ice/agent.py": {"core/flows.py"}}, 1),
    ],
)
def test_a_step_without_a_connection_is_found(imports: dict[str, set[str]], broken: int) -> None:
    [walk] = walks(TABLE)
    assert len(breaks(walk, imports)) == broken


def test_a_name_that_does_not_exist_is_found() -> None:
    assert "IceAgent.tick" in defined_in("ice/agent.py") and "IceAgent.nonsense" not in defined_in("ice/agent.py")
    assert defined_in("ice/nonsense.py") == frozenset()
