"""The rules of the source tree, as functions from a module's text to what breaks them. `test_architecture.py` asks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = "polynya"
FACE = "the public face"
"""Stands for `polynya/__init__.py`."""

PROTOCOLS = {"core", "stun"}
MACHINES = PROTOCOLS | {"turn", "ice", "nat", "portmap", "signaling"}
SHELLS = MACHINES | {"session", "plane", "aio"}
ABOVE = SHELLS | {"stream", "serve", "lab", "lab/real", "view", "compat", "demo"}

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "stun": {"core"},
    "turn": PROTOCOLS,
    "ice": PROTOCOLS,
    "nat": PROTOCOLS,
    "portmap": PROTOCOLS,
    "signaling": PROTOCOLS,
    "session": MACHINES,
    "plane": {"core", "turn"},
    "aio": MACHINES | {"session"},
    "stream": SHELLS,
    "serve": SHELLS,
    "lab": MACHINES | {"session"},
    "lab/real": SHELLS | {"lab"},
    "view": {"core"},
    "compat": SHELLS | {FACE},
    "demo": SHELLS | {"stream", "serve", "lab"},
    FACE: SHELLS | {"stream", "serve"},
    "cli": ABOVE | {FACE},
    "__main__": {"cli"},
}
"""Room -> the rooms that it may import, beside itself: design.md, section 2."""

PURE = MACHINES | {"session", "lab"}
"""Rooms whose modules do no I/O, read no clock and draw no randomness of their own."""

FORBIDDEN = {
    "asyncio", "concurrent", "datetime", "multiprocessing", "os", "random", "secrets", "select", "selectors", "signal",
    "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

EXCEPTIONS: dict[tuple[str, str], set[str]] = {
    ("*", "random"): {"Random"},
    ("core/addresses.py", "socket"): {"AF_INET", "AF_INET6", "inet_pton", "inet_ntop"},
    ("*", "uuid"): {"UUID"},
}
"""(Module, forbidden import) -> the names of it that may be used all the same."""

SHELL_MODULES = {"asyncio", "socket", "select", "selectors", "ssl", "subprocess", "threading"}
"""Whoever imports one of these is a shell."""

CHANGES = {
    "add", "append", "appendleft", "cancel", "clear", "discard", "due", "extend", "insert", "pop", "popitem", "popleft",
    "remove", "set", "setdefault", "update",
}  # fmt: skip
"""Methods that change what they are called on."""


@dataclass(frozen=True)
class Module:
    """One source file: its path below src/polynya, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def room(self) -> str:
        return room_of([*Path(self.path).parent.parts, Path(self.path).stem])

    @property
    def folder(self) -> str:
        return Path(self.path).parent.as_posix()


def room_of(parts: list[str]) -> str:
    """The room of a dotted path below `polynya`: `ice`, `lab/real`, or the public face."""
    if parts[:2] == ["lab", "real"]:
        return "lab/real"
    return parts[0] if parts and parts[0] in MAY_IMPORT else FACE


class Import(NamedTuple):
    """One import, wherever it stands in a file."""

    target: str
    """The absolute module, also of a relative import."""
    name: str
    """The name that is taken from it; "" for `import MODULE`."""
    bound: str
    """What it is called in the file."""
    line: int


def imports(module: Module, *, typing_only: bool = True) -> Iterator[Import]:
    """Every import of a module.

    `typing_only=False` leaves out what stands under `if TYPE_CHECKING:`.
    """
    package = [PACKAGE, *Path(module.path).parent.parts]
    skipped: set[int] = set()
    for node in ast.walk(module.tree):
        if not typing_only and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", alias.asname or alias.name.split(".")[0], node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            absolute = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(absolute, alias.name, alias.asname or alias.name, node.lineno)


def wrong_direction(module: Module) -> list[str]:
    """Imports of a room that this module's room must not know."""
    allowed = MAY_IMPORT[module.room] | {module.room}
    wrong = []
    for target, name, _, line in imports(module):
        parts = target.split(".")
        if parts[0] != PACKAGE:
            continue
        room = room_of([*parts[1:], name])
        if room not in allowed:
            wrong.append(f"{module.path}:{line}: {module.room} must not import {room}")
    return wrong


def impure_imports(module: Module) -> list[str]:
    """Uses of a forbidden module in a room of machines; types and the named exceptions aside."""
    if module.room not in PURE:
        return []
    wrong, names = [], {}
    for target, name, bound, line in imports(module, typing_only=False):
        top = target.split(".")[0]
        if top not in FORBIDDEN:
            continue
        allowed = _excepted(module, top)
        if name and name not in allowed:
            wrong.append(f"{module.path}:{line}: a machine must not use {top}.{name}")
        elif not name and not allowed:
            wrong.append(f"{module.path}:{line}: a machine must not import {top}")
        elif not name:
            names[bound] = allowed
    for node in ast.walk(module.tree):
        used = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
        if used in names and node.attr not in names[used]:
            wrong.append(f"{module.path}:{node.lineno}: a machine must not use {used}.{node.attr}")
        if isinstance(node, ast.Call) and not node.args and ast.unparse(node.func).split(".")[-1] == "Random":
            wrong.append(f"{module.path}:{node.lineno}: a machine must not seed randomness from the system")
    return wrong


def _excepted(module: Module, name: str) -> set[str]:
    return EXCEPTIONS.get((module.path, name), set()) | EXCEPTIONS.get(("*", name), set())


def unordered(module: Module) -> list[str]:
    """Uses of hash order in a room of machines: `hash()`, and walks over what this file itself calls a set."""
    if module.room not in PURE:
        return []
    sets = _names_of_sets(module.tree)
    wrong = []
    for node in ast.walk(module.tree):
        walked: list[ast.expr] = []
        if isinstance(node, (ast.For, ast.comprehension)):
            walked = [node.iter]
        elif isinstance(node, ast.Starred):
            walked = [node.value]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called == "hash" and not _inside(module.tree, node, "__hash__"):
                wrong.append(f"{module.path}:{node.lineno}: hash() differs from run to run")
            if called in {"list", "tuple", "iter", "enumerate", "next", "dict.fromkeys", "map", "zip"}:
                walked = node.args
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "pop" and not node.args:
                walked = [node.func.value]
            elif isinstance(node.func, ast.Attribute) and node.func.attr in {"join", "extend"}:
                walked = node.args
        wrong += [
            f"{module.path}:{expression.lineno}: the order of a set differs from run to run: {ast.unparse(expression)}"
            for expression in walked
            if _is_set(expression, sets)
        ]
    return wrong


def _names_of_sets(tree: ast.Module) -> set[str]:
    """Names and `self.` attributes that are annotated or first assigned as sets."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else ast.Name(node.arg)
            if ast.unparse(node.annotation).split("[")[0] in {"set", "frozenset", "AbstractSet"}:
                names.add(ast.unparse(target))
        elif isinstance(node, ast.Assign) and _is_set(node.value, set()):
            names |= {ast.unparse(target) for target in node.targets}
    return names | {f"self.{name}" for name in names if "." not in name}


def _is_set(expression: ast.expr, names: set[str]) -> bool:
    if isinstance(expression, (ast.Set, ast.SetComp)):
        return True
    if isinstance(expression, ast.Call):
        return ast.unparse(expression.func) in {"set", "frozenset"}
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)):
        return _is_set(expression.left, names) or _is_set(expression.right, names)
    return ast.unparse(expression) in names


def _inside(tree: ast.Module, wanted: ast.AST, function: str) -> bool:
    return any(
        isinstance(node, ast.FunctionDef) and node.name == function and any(inner is wanted for inner in ast.walk(node))
        for node in ast.walk(tree)
    )


def machines(module: Module) -> list[ast.ClassDef]:
    """The classes that have a `next_timer` and a `tick`: machines, by the contract of core."""
    return [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and {"next_timer", "tick"} <= {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
    ]


def impure_timers(module: Module) -> list[str]:
    """What a machine's `next_timer` changes of the machine: it must change nothing."""
    wrong = []
    for machine in machines(module):
        for function in machine.body:
            if not isinstance(function, ast.FunctionDef) or function.name != "next_timer":
                continue
            for node in ast.walk(function):
                targets: list[ast.expr] = []
                if isinstance(node, (ast.Assign, ast.Delete)):
                    targets = node.targets
                elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
                    targets = [node.target]
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                    targets = [node.func.value]
                wrong += [
                    f"{module.path}:{target.lineno}: {machine.name}.next_timer changes {ast.unparse(target)}"
                    for target in targets
                    if ast.unparse(target).startswith("self.")
                ]
    return wrong


def shell_imports(module: Module) -> list[str]:
    """The modules that make this one a shell, outside of `if TYPE_CHECKING:` and the named exceptions."""
    return [
        f"{module.path}:{line}: imports {target}"
        for target, _, _, line in imports(module, typing_only=False)
        if target.split(".")[0] in SHELL_MODULES and not _excepted(module, target.split(".")[0])
    ]
