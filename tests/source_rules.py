"""The rules of the source tree. Each function returns the lines that break its rule, for `test_architecture.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

PACKAGE = "polynya"
FACE = "the public face"
"""The room of `polynya/__init__.py`."""

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
"""(Module, forbidden import) -> the names of that import that are allowed."""

SHELL_MODULES = {"asyncio", "socket", "select", "selectors", "ssl", "subprocess", "threading"}
"""A file that imports one of these is a shell."""

POSITIONAL_NOW = {("core/trace.py", "_write")}
"""(Module, function) that accepts `now` by position: only the tracer's own methods call it, for each event."""

CHANGES = {
    "add", "append", "appendleft", "cancel", "clear", "discard", "due", "extend", "insert", "pop", "popitem", "popleft",
    "remove", "set", "setdefault", "update",
}  # fmt: skip
"""Methods that change their object."""


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
    """One import, at any depth of a file."""

    target: str
    """The absolute module, also of a relative import."""
    name: str
    """The imported name; "" for `import MODULE`."""
    bound: str
    """The name that the import binds in the file."""
    line: int


def imports(module: Module, *, typing_only: bool = True) -> Iterator[Import]:
    """Every import of a module.

    `typing_only=False` leaves out imports under `if TYPE_CHECKING:`.
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
    """Imports of rooms that the module's own room must not import."""
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


def import_circles(modules: Sequence[Module]) -> list[str]:
    """Groups of files that import each other, directly or through others; imports for type checkers count."""
    edges = {path: sorted(others) for path, others in file_imports(modules).items()}
    return [f"these files import each other: {', '.join(group)}" for group in _components(edges) if len(group) > 1]


def file_imports(modules: Sequence[Module]) -> dict[str, set[str]]:
    """The path of each file -> the paths of the files that it imports. A file never counts as importing itself."""
    files = {module.path for module in modules}
    return {module.path: set(_imported_files(module, files)) - {module.path} for module in modules}


def _imported_files(module: Module, files: set[str]) -> Iterator[str]:
    for target, name, _, _ in imports(module):
        top, *parts = target.split(".")
        if top != PACKAGE:
            continue
        base = "/".join(parts)
        submodule = f"{base}/{name}".strip("/")
        candidates = (f"{submodule}.py", f"{submodule}/__init__.py", f"{base}.py", f"{base}/__init__.py".strip("/"))
        yield from [path for path in candidates if path in files][:1]


def _components(edges: dict[str, list[str]]) -> list[list[str]]:
    """Strongly connected components of a graph (Tarjan), each sorted, in the order of their first node."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        numbers[node] = lowest[node] = len(numbers)
        stack.append(node)
        for other in edges.get(node, []):
            if other not in numbers:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], numbers[other])
        if lowest[node] == numbers[node]:
            start = stack.index(node)
            found.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(edges):
        if node not in numbers:
            visit(node)
    return sorted(found)


def positional_now(module: Module) -> list[str]:
    """Functions that accept the time, `now`, by position; lambdas aside. Two times in a row are easily swapped."""
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            by_position = [*node.args.posonlyargs, *node.args.args]
            allowed = (module.path, node.name) in POSITIONAL_NOW
            if not allowed and any(argument.arg == "now" for argument in by_position):
                wrong.append(f"{module.path}:{node.lineno}: {node.name} takes `now` by position")
    return wrong


def impure_imports(module: Module) -> list[str]:
    """Uses of forbidden modules in a room of machines, except for type checkers and in `EXCEPTIONS`."""
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
    """Uses of hash order in a room of machines: `hash()`, and iteration over names that the file declares as sets."""
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
    """The classes that define `next_timer` and `tick`: machines, by the contract of `core/machine.py`.

    A Protocol with these methods is no machine: a shell may declare what it drives.
    """
    return [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and {"next_timer", "tick"} <= {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
        and not any(ast.unparse(base).split("[")[0] == "Protocol" for base in node.bases)
    ]


def impure_timers(module: Module) -> list[str]:
    """Statements in a machine's `next_timer` that change the machine; the method must be pure."""
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
    """Imports that make a module a shell, outside `if TYPE_CHECKING:` and the named exceptions."""
    return [
        f"{module.path}:{line}: imports {target}"
        for target, _, _, line in imports(module, typing_only=False)
        if target.split(".")[0] in SHELL_MODULES and not _excepted(module, target.split(".")[0])
    ]
