"""`import polynya` is light, and everything that it promises is there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import polynya


@pytest.mark.parametrize("name", polynya.__all__)
def test_every_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(polynya, name)
    assert value.__name__ == name and value.__module__.startswith("polynya.")
    assert getattr(polynya, name) is value and name in dir(polynya)


def test_the_table_of_homes_holds_all_and_nothing_else() -> None:
    assert sorted(name for names in polynya._HOMES.values() for name in names) == sorted(polynya.__all__)


def test_the_version_is_the_distributions() -> None:
    assert polynya.__version__ == version("polynya")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = polynya.Nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["polynya", "polynya.plane.worker"])
def test_who_needs_little_imports_little(module: str) -> None:
    """A worker process of the server is one loop over epoll."""
    program = f"import sys, {module}; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"asyncio", "ssl", "ifaddr", "polynya.ice", "polynya.session", "polynya.aio"} & set(imported)
