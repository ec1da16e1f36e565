"""Prose is plain English with American spelling, in the code and in the documentation (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

REFUSED = re.compile(r"\b(told|whoever|whomever|nobody|somebody|anew|asked on)\b", re.IGNORECASE)
"""Words that make a reader translate before he understands."""

REFUSED_FIRST = re.compile(r"(what|tell|tells)\b", re.IGNORECASE)
"""Words that no docstring begins with: it begins with its actor."""

BRITISH = re.compile(
    r"\b(\w*(?:behaviour|colour|neighbour|honour|favour)\w*|signall(?:ed|ing|er)|labell(?:ed|ing)|modell(?:ed|ing)"
    r"|travell(?:ed|ing|er)|dial(?:led|ling)|(?:re|un)?(?:priorit|recogn|organ|initial|normal|serial|optim|minim|maxim"
    r"|summar|author|synchron|general|special|util|real)is(?:e|es|ed|ing|ation|ations)|analys(?:e|es|ed|ing)|centre"
    r"|licence|defence|catalogue|grey|whilst|spelt|learnt)\b",
    re.IGNORECASE,
)
"""British spellings; the RFCs are American. `cancelled` is asyncio's own word."""

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
CODE = [path for folder in ("src", "bench", "examples", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__).resolve()]


def wrong_words(text: str, line: int = 1) -> list[str]:
    """Refused words and British spellings in a text, each with its line; `line` is that of the text's beginning."""
    return [
        f"{line + text.count(chr(10), 0, match.start())}: {match[0]}"
        for pattern in (REFUSED, BRITISH)
        for match in pattern.finditer(text)
    ]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The docstrings of a file with their lines: of modules, classes, functions, and of attributes below them."""
    for node in ast.walk(tree):
        body = node.body if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) else []
        for statement in body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The string literals of a file: docstrings, messages, help texts, names of counters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def comments(text: str) -> Iterator[tuple[int, str]]:
    """The comments of a file with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def wrong_prose(text: str, *, messages: bool = True) -> list[str]:
    """Lines of a Python file with refused words; `messages=False` leaves out strings that are no docstrings."""
    tree = ast.parse(text)
    prose = [*comments(text), *(strings(tree) if messages else docstrings(tree))]
    wrong = [word for line, words in prose for word in wrong_words(words, line)]
    for line, words in docstrings(tree):
        if first := REFUSED_FIRST.match(words.lstrip()):
            wrong.append(f"{line}: a docstring begins with {first[0]}")
    return wrong


def found(paths: list[Path], *, messages: bool = True) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in wrong_prose(path.read_text(encoding="utf-8"), messages=messages)
    ]


def test_the_code_is_in_plain_english() -> None:
    assert found(CODE) == []


def test_the_tests_are_in_plain_english() -> None:
    """Strings of tests are packets, names and quotations, so only their comments and docstrings count."""
    assert found(TESTS, messages=False) == []


def test_the_documentation_is_in_plain_english() -> None:
    assert [
        f"{path.relative_to(ROOT)}:{word}" for path in PAGES for word in wrong_words(path.read_text(encoding="utf-8"))
    ] == []


# ----------------------------------------------------------------------------------------------------------- controls


@pytest.mark.parametrize(
    "text",
    [
        '"""The server is told."""',
        '"""Whoever comes."""',
        'def f():\n    """Sends it.\n\n    Nobody reads it."""',
        'class A:\n    x = 1\n    """Somebody else\'s."""',
        "# begun anew",
        "x = 1  # is asked on",
        'raise ValueError("nobody\'s")',
        'raise ValueError(f"{x} was told to whomever")',
        'option(help="the behaviour")',
        '"""What it sends."""',
        'class A:\n    """Tell the server."""',
        'x = 1\n"""What x is."""',
        "# signalled, coloured, a neighbour, prioritised, recognises, dialled",
    ],
)
def test_refused_words_are_found(text: str) -> None:
    assert wrong_prose(text) != []


@pytest.mark.parametrize(
    "text",
    [
        '"""Sends what the machine asks for and tells apart two flows."""',
        "told = nobody = 1",
        "# cancelled, signaled, behavior, exercise, promise, a new one, analysis",
        'x = "what"',
    ],
)
def test_plain_words_pass(text: str) -> None:
    assert wrong_prose(text) == []


def test_strings_of_tests_are_their_own() -> None:
    assert wrong_prose('send("told")', messages=False) == []
    assert wrong_prose('"""It was told."""', messages=False) != []
