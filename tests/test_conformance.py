"""The conformance tables name, for every rule, a test that exists; or say that it is a deviation."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "reference").glob("conformance*.md"))
NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
DEVIATION = re.compile(r"\[deviation\w*\]\(\.\./deviations\.md#[\w-]+\)")


def rules() -> Iterator[tuple[str, list[str]]]:
    """Each rule of each table whose last column is `test`, with where it stands and its cells."""
    for page in PAGES:
        in_table = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
            if not cells:
                in_table = False
            elif cells[-1] == "test":
                in_table = True
            elif in_table and not set(line) <= set("|-: "):
                yield f"{page.name}:{number}", cells


RULES = list(rules())


@cache
def defined_in(path: str) -> frozenset[str]:
    """The names that a test file defines at its top."""
    file = ROOT / path
    if not file.exists():
        return frozenset()
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign):  # as hypothesis' state machines become tests
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return frozenset(name for name in names if name.lower().startswith("test"))


@pytest.mark.parametrize(("where", "cells"), RULES, ids=[where for where, _ in RULES])
def test_every_rule_names_a_test_that_exists(where: str, cells: list[str]) -> None:
    named = NAMED.findall(cells[-1])
    assert named or DEVIATION.search(cells[-1]), f"{where} names neither a test nor a deviation"
    for path, name in named:
        assert name in defined_in(path), f"{where}: {path} has no {name}"


@pytest.mark.parametrize(("where", "cells"), RULES, ids=[where for where, _ in RULES])
def test_every_module_that_is_named_exists(where: str, cells: list[str]) -> None:
    for name in re.findall(r"`(?:src/polynya/)?([\w/]+\.py)`", cells[-2]):
        assert (ROOT / "src" / "polynya" / name).exists(), f"{where}: there is no {name}"


def test_the_tables_are_found() -> None:
    assert len(RULES) > 100
