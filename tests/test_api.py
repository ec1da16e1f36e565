"""The public API: `polynya.__all__`, what is reachable from it, its page in the documentation, and its help."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path

import pytest

import polynya
from polynya.aio.dns import ResolveName
from polynya.aio.options import FAMILIES
from polynya.aio.servers import AskCredentials

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "api.md"
PUBLIC = [getattr(polynya, name) for name in polynya.__all__]

MADE_BY_THE_LIBRARY = {"Connection", "MuxedAgent", "PendingConnection"}
"""Users get instances and never call the constructor."""
OPAQUE = {"IpPacket"}
"""Passed from `capture` to `PcapngWriter.write`; its fields are not part of the API."""


@pytest.mark.parametrize("name", polynya.__all__)
def test_every_name_is_defined_by_its_module(name: str) -> None:
    value = getattr(polynya, name)
    assert value.__name__ == name and value.__module__.startswith("polynya.")
    assert getattr(polynya, name) is value and name in dir(polynya)


def test_the_table_of_homes_has_every_name_and_nothing_else() -> None:
    assert sorted(name for names in polynya._HOMES.values() for name in names) == sorted(polynya.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert polynya.__version__ == version("polynya")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = polynya.Nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["polynya", "polynya.plane.worker"])
def test_a_program_that_needs_little_imports_little(module: str) -> None:
    """A worker process of the server is one loop over epoll."""
    program = f"import sys, {module}; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"asyncio", "ssl", "ifaddr", "polynya.ice", "polynya.session", "polynya.aio"} & set(imported)


# ----------------------------------------------------------------------------------------------------- reachable names


def classes(hint: object) -> Iterator[type]:
    """Yields the classes of Polynya within a type hint."""
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, type) and origin.__module__.partition(".")[0] == "polynya":
        yield origin
    for argument in typing.get_args(hint):
        for each in argument if isinstance(argument, list | tuple) else (argument,):
            yield from classes(each)


def hints(thing: typing.Any) -> Iterator[tuple[str, object]]:
    """Yields where a type is named, and the type: attributes, parameters and results of what is public in `thing`."""
    if not inspect.isclass(thing):
        yield from ((f"{thing.__name__}({name})", hint) for name, hint in typing.get_type_hints(thing).items())
        return
    if thing.__name__ in OPAQUE:
        return
    if not issubclass(thing, Enum):
        for name, hint in typing.get_type_hints(thing).items():
            where = f"{thing.__name__}.{name}"
            if not name.startswith("_"):
                yield where, hint
    for name, member in inspect.getmembers_static(thing):
        public = not name.startswith("_") or name in {"__aiter__", "__aenter__", "__await__"}
        constructor = name == "__init__" and not is_dataclass(thing) and thing.__name__ not in MADE_BY_THE_LIBRARY
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        where = f"{thing.__name__}.{name}"
        if (public or constructor) and inspect.isfunction(function):
            yield from ((f"{where}({each})", hint) for each, hint in typing.get_type_hints(function).items())


def unexported(public: list[typing.Any]) -> dict[str, str]:
    """Returns the classes that public signatures name and `public` lacks, with a place that names each."""
    return {
        found.__name__: where
        for thing in public
        for where, hint in hints(thing)
        for found in classes(hint)
        if found not in public
    }


def test_every_class_that_a_public_signature_names_is_exported() -> None:
    assert unexported(PUBLIC) == {}


def test_the_walk_finds_a_class_that_is_not_exported() -> None:
    kept = [thing for thing in PUBLIC if thing not in {polynya.PairState, polynya.Address, polynya.SessionReport}]
    assert set(unexported(kept)) == {"PairState", "Address", "SessionReport"}


# ----------------------------------------------------------------------------------------------------- page and help


def test_the_page_has_every_name_once_and_nothing_else() -> None:
    names = re.findall(r"^::: polynya\.(\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(polynya.__all__)


def test_the_help_of_the_module_groups_every_name() -> None:
    text = polynya.__doc__ or ""
    listed = text[text.index("The names") : text.index("Each name is imported")]
    named = re.findall(r"\b[A-Za-z_]+\b(?=,|$)", listed.partition("\n\n")[2], re.MULTILINE)
    assert sorted(set(named)) == sorted(polynya.__all__)
    whole = pydoc.plain(pydoc.render_doc(polynya))
    assert "class Agent(" in whole and "discover_behavior(" in whole


@pytest.mark.parametrize("name", polynya.__all__)
def test_every_name_has_a_docstring_of_its_own(name: str) -> None:
    text = getattr(polynya, name).__doc__ or ""
    assert text and not text.startswith(f"{name}("), "made by dataclass() or NamedTuple()"


def documented_members() -> Iterator[str]:
    for thing in PUBLIC:
        if inspect.isclass(thing) and thing.__module__.startswith("polynya.aio"):
            for name, member in inspect.getmembers_static(thing):
                if not name.startswith("_") and inspect.isfunction(member):
                    yield f"{thing.__name__}.{name}"


@pytest.mark.parametrize("path", list(documented_members()))
def test_every_method_says_what_it_does(path: str) -> None:
    name, _, method = path.partition(".")
    if name != "ConnectionAgent":  # the protocol of what `Agent` documents
        assert inspect.getdoc(getattr(getattr(polynya, name), method))


# -------------------------------------------------------------------------------------------------- one way everywhere


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters that are called `name`, by their function."""
    callables = [thing for thing in PUBLIC if thing.__module__.startswith("polynya.aio")]
    found = {thing.__name__: inspect.signature(thing, eval_str=True).parameters.get(name) for thing in callables}
    return {function: parameter for function, parameter in found.items() if parameter is not None}


def test_families_have_one_default() -> None:
    given = parameters("families")
    assert {"Agent", "Mux", "TurnClient", "discover_behavior", "discover_lifetime"} <= set(given)
    assert {parameter.default for parameter in given.values()} == {FAMILIES} == {(6, 4)}


@pytest.mark.parametrize(
    ("name", "kind", "functions"),
    [
        ("credentials", AskCredentials | None, {"Agent", "TurnClient"}),
        ("resolve", ResolveName | None, {"Agent", "Mux", "TurnClient", "discover_behavior", "discover_stream_mapping"}),
    ],
)
def test_a_callback_has_one_signature(name: str, kind: object, functions: set[str]) -> None:
    given = parameters(name)
    assert functions <= set(given)
    assert all(parameter.annotation == kind and parameter.default is None for parameter in given.values())
