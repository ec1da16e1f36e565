"""The hooks of mkdocs: they fill the reference pages with text from the code, so that it is never out of date.

Each directive is a line of its own in a page:

    ::: polynya.Agent           the docstring of a class with its fields and public methods, or of a function
    ::: trace-kinds             the table of trace events and the fields that each must carry
    ::: errors                  the tree of errors
    ::: cli                     every command of `polynya` with its options
    ::: configuration           every key of the server's configuration file
    ::: states:polynya.ice.pairs.TRANSITIONS    a table of states, as the machine itself uses it
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, ForwardRef

import typer
import typer.main

from polynya.core import errors as error_tree
from polynya.core.errors import PolynyaError
from polynya.core.trace import KINDS

DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every directive of a page."""
    return DIRECTIVE.sub(lambda match: render(match[1]), markdown)


def render(directive: str) -> str:
    """The Markdown of a directive; raises for one that names nothing."""
    special = {"trace-kinds": trace_kinds, "errors": errors, "cli": commands, "configuration": configuration}
    if directive in special:
        return special[directive]()
    if directive.startswith("states:"):
        return states(directive.removeprefix("states:"))
    module_name, _, name = directive.rpartition(".")
    return "\n".join(document(name, getattr(importlib.import_module(module_name), name)))


def document(name: str, thing: Any) -> Iterator[str]:
    """A class with its public methods and properties, or a function."""
    yield f"### `{name}`\n"
    if inspect.isclass(thing):
        if not issubclass(thing, Enum) and (signature := _signature(thing)) != "()":
            yield f"```python\n{name}{signature}\n```\n"
        yield _text(thing)
        if fields := [f"- `{field}`: {text}" for field, text in _fields(thing)]:
            yield "\n".join(["", *fields, ""])
        for member_name, member in _members(thing).items():
            if member_name.startswith("_") or not _documented(member_name, thing):
                continue
            function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if isinstance(member, property):
                yield f"\n**`{name}.{member_name}`**\n"
            elif inspect.isroutine(function):
                awaited = "await " if inspect.iscoroutinefunction(function) else ""
                yield f"\n**`{awaited}{name}.{member_name}{' '.join(_signature(function).split())}`**\n"
            else:
                continue
            yield f"{_documented(member_name, thing)}\n"
    else:
        awaited = "await " if inspect.iscoroutinefunction(thing) else ""
        yield f"```python\n{awaited}{name}{_signature(thing)}\n```\n"
        yield _text(thing)


def _fields(thing: type) -> Iterator[tuple[str, str]]:
    """The public fields of a class that have a docstring below them; of an enum every member with its value."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except OSError:
        return
    assert isinstance(tree.body[0], ast.ClassDef)
    body = tree.body[0].body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        if not isinstance(target, ast.Name) or target.id.startswith("_"):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        if issubclass(thing, Enum):
            yield target.id, f"`{thing[target.id].value!r}`{'. ' if text else ''}{text}"
        elif text:
            yield target.id, text


def _members(thing: type) -> dict[str, Any]:
    """The members of a class and its bases in polynya, in the order of the code, inherited ones first."""
    found: dict[str, Any] = {}
    for each in reversed(thing.__mro__):
        if each.__module__.startswith("polynya."):
            found.update(vars(each))
    return found


def _documented(name: str, thing: type) -> str:
    """The docstring of a member, or of the member that it overrides."""
    texts = (inspect.getdoc(vars(each)[name]) for each in thing.__mro__ if name in vars(each))
    return next((text for text in texts if text), "")


def _signature(thing: Any) -> str:
    """The parameters without `self`, as in the code; a long list has one parameter in each line."""
    try:
        signature = inspect.signature(thing)
    except ValueError:  # an exception that is made as its built-in base
        return "()"
    parts, star = [], False
    for each in signature.parameters.values():
        if each.name in {"self", "cls"}:
            continue
        if each.kind is each.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        parts.append(_parameter(each))
    returned = _annotation(signature.return_annotation)
    arrow = f" -> {returned}" if returned and returned != "None" and not inspect.isclass(thing) else ""
    line = f"({', '.join(parts)}){arrow}"
    return line if len(line) < 100 else "(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    annotation = _annotation(parameter.annotation)
    typed = f"{parameter.name}: {annotation}" if annotation else parameter.name
    if parameter.default is parameter.empty:
        return {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + typed
    default = repr(parameter.default)
    shown = "..." if default.startswith("<") else default
    return f"{typed} = {shown}" if annotation else f"{typed}={shown}"


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _text(thing: Any) -> str:
    """A docstring as Markdown: indented blocks in it become code."""
    if inspect.isclass(thing) and thing.__doc__ is None:
        return ""
    text = inspect.getdoc(thing) or ""
    return f"{text}\n"


def states(path: str) -> str:
    """A table of transitions: state -> event -> next state, or state -> next states, with a row for each state."""
    module_name, _, name = path.rpartition(".")
    table = getattr(importlib.import_module(module_name), name)
    if not all(isinstance(row, Mapping) for row in table.values()):
        rows = [
            f"| `{_name(state)}` | {', '.join(f'`{_name(each)}`' for each in row)} |" for state, row in table.items()
        ]
        return "\n".join(["| state | next states |", "|---|---|", *rows])
    events = list(dict.fromkeys(event for row in table.values() for event in row))
    lines = [f"| state | {' | '.join(_name(event) for event in events)} |", "|---" * (len(events) + 1) + "|"]
    for state, row in table.items():
        cells = [f"`{_name(row[event])}`" if event in row else "" for event in events]
        lines.append(f"| `{_name(state)}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(thing: Any) -> str:
    return str(getattr(thing, "value", thing))


def trace_kinds() -> str:
    """Every kind of trace event."""
    rows = [
        f"| `{kind}` | {', '.join(f'`{each}`' for each in sorted(fields)) or '-'} |" for kind, fields in KINDS.items()
    ]
    return "\n".join(["| kind | must carry |", "|---|---|", *rows])


def errors() -> str:
    """Every error, below its base class."""

    def lines(kind: type[Exception], depth: int) -> Iterator[str]:
        yield f"{'    ' * depth}- `{kind.__name__}`: {inspect.cleandoc(kind.__doc__ or '').splitlines()[0]}"
        for below in sorted(kind.__subclasses__(), key=lambda each: each.__name__):
            if below.__module__ == error_tree.__name__:
                yield from lines(below, depth + 1)

    return "\n".join(lines(PolynyaError, 0))


def commands() -> str:
    """Every command of the command line, with its own help texts."""
    root = typer.main.get_command(importlib.import_module("polynya.cli.app").app)
    context = typer.Context(root, info_name="polynya")
    return "\n".join(_command(context, root, name) for name in root.list_commands(context))


def configuration() -> str:
    """Every key of the server's configuration file, table by table, with its default."""
    schema = importlib.import_module("polynya.serve.schema")
    settings = importlib.import_module("polynya.serve.settings")
    lines = []
    for path, kind in schema.TABLES.items():
        lines += [f"## `{path}`" if path else "## At the top", "", inspect.getdoc(kind) or "", ""]
        lines += ["| key | default | |", "|---|---|---|"]
        for key, about, default in settings.defaults(kind):
            lines.append(f"| `{key}` | `{default}` | {about} |".replace(" `` ", " "))
        lines.append("")
    return "\n".join(lines)


def _command(parent: Any, group: Any, name: str) -> str:
    command = group.get_command(parent, name)
    if command.hidden:
        return ""
    context = typer.Context(command, info_name=name, parent=parent)
    lines = [f"### `polynya {name}`\n", f"{inspect.cleandoc(command.help or '')}\n"]
    rows = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
        text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        rows.append(f"| {names} | {text} |")
    if rows:
        lines += ["| option | |", "|---|---|", *rows, ""]
    return "\n".join(lines)
