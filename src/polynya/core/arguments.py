"""Checks of arguments of the public API: a wrong one is refused at once, by its name and with the values it may have.

An option of a constructor raises ConfigurationError, an argument of a method UsageError: the parameter `error`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from inspect import iscoroutinefunction
from io import BufferedIOBase, RawIOBase, TextIOBase
from math import isfinite
from typing import Any, Final, TypeVar

from .errors import ConfigurationError, PolynyaError, UsageError

T = TypeVar("T")
Error = type[PolynyaError]

LONGEST: Final = 10**9
"""Seconds, 31 years: longer durations overflow the timers of event loops."""

_SHOWN: Final = 60
_WRITTEN: Final[dict[type, str]] = {str: "text", bytes: "string of bytes", dict: "dictionary"}


def shown(value: object) -> str:
    """Returns a value for a message: a simple one as it is written, cut if it is long, otherwise its type."""
    if type(value) in (str, bytes) and len(value) > _SHOWN:  # type: ignore[arg-type]
        return f"{value[:_SHOWN]!a}... of length {len(value)}"  # type: ignore[index, arg-type]
    written = ascii(value) if type(value) in (int, float, bool, str, bytes, tuple, list, type(None)) else ""
    return written if 0 < len(written) <= 2 * _SHOWN else type(value).__name__


def text(name: str, value: object, *, error: Error = ConfigurationError) -> str:
    """Returns a text; refuses bytes, other types and surrogates, which cannot be encoded."""
    if not isinstance(value, str):
        hint = ": decode it first" if isinstance(value, bytes | bytearray | memoryview) else ""
        raise error(f"{name} is a text, not {type(value).__name__}{hint}")
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise error(f"{name} has a surrogate, which is not a character: {ascii(value)[:_SHOWN]}")
    return value


def secret(name: str, value: object, *, error: Error = ConfigurationError) -> str:
    """Like `text`; the message never shows the value."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise error(f"{name} has a surrogate, which is not a character") from None
    return text(name, value, error=error)


def flag(name: str, value: object, *, error: Error = ConfigurationError) -> bool:
    """Returns True or False; refuses other types, since `"no"` is true."""
    if not isinstance(value, bool):
        raise error(f"{name} is True or False, not {shown(value)}")
    return value


def number(name: str, value: object, low: int, high: int, *, error: Error = ConfigurationError) -> int:
    """Returns an integer within `low` and `high`; refuses True and False."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        limits = f"at least {low}" if high == sys.maxsize else f"within {low}..{high}"
        raise error(f"{name} is a number {limits}, not {shown(value)}")
    return value


def real(name: str, value: object, high: float, *, error: Error = ConfigurationError) -> float:
    """Returns a number within 0 and `high`."""
    if isinstance(value, bool) or not _is_finite(value) or not 0 <= value <= high:  # type: ignore[operator]
        raise error(f"{name} is a number within 0..{high}, not {shown(value)}")
    return value  # type: ignore[return-value]


def seconds(name: str, value: object, *, above_zero: bool = False, error: Error = ConfigurationError) -> float:
    """Returns a duration: a finite number of seconds, zero or more."""
    if isinstance(value, bool) or not _is_finite(value) or value < 0 or (above_zero and value == 0):  # type: ignore[operator]
        least = "more than zero" if above_zero else "zero or more"
        raise error(f"{name} is {least} seconds, not {shown(value)}")
    if value > LONGEST:  # type: ignore[operator]
        raise error(f"{name} is at most {LONGEST} seconds, not {shown(value)}")
    return value  # type: ignore[return-value]


def timeout(value: object, *, error: Error = UsageError) -> float | None:
    """Returns the seconds of a time limit, or None for no limit."""
    return None if value is None else seconds("timeout", value, error=error)


def instance(name: str, value: object, kind: type[T], *, hint: str = "", error: Error = ConfigurationError) -> T:
    """Returns an object of a type; `hint` is how to make one."""
    if not isinstance(value, kind):
        written = _WRITTEN.get(kind, kind.__name__)
        article = "an" if written[0] in "AEIOU" or written.startswith("SSL") else "a"
        raise error(f"{name} is {article} {written}, not {shown(value)}{hint and f': {hint}'}")
    return value


def function(name: str, value: object, *, plain: bool = False, error: Error = ConfigurationError) -> None:
    """Refuses what cannot be called; with `plain` also async functions, whose result nothing awaits."""
    if not callable(value):
        raise error(f"{name} is a function, not {shown(value)}")
    if plain and iscoroutinefunction(value):
        raise error(f"{name} is a plain function, not an async one")


def items(name: str, value: Iterable[T], *, error: Error = ConfigurationError) -> tuple[T, ...]:
    """Returns the items of a list; refuses one text and one mapping, which are iterable but no lists."""
    if isinstance(value, str):
        raise error(f"{name} is a list: write {name}=[{shown(value)}]")
    if isinstance(value, bytes | bytearray | memoryview | Mapping) or not isinstance(value, Iterable):
        raise error(f"{name} is a list, not {shown(value)}")
    return tuple(value)


def families(value: Iterable[int]) -> tuple[int, ...]:
    """Returns the IP versions of an option `families`: 4, 6 or both, each once, the preferred one first."""
    chosen = items("families", value)
    if not chosen or len(chosen) > 2 or not all(type(each) is int and each in (4, 6) for each in chosen):
        raise ConfigurationError(f"families must be (4,), (6,) or both, not {shown(value)}")
    if len(set(chosen)) < len(chosen):
        raise ConfigurationError(f"families must be (4,), (6,) or both, each once, not {shown(value)}")
    return chosen


def binary_file(name: str, value: object) -> None:
    """Refuses a file that was opened for text, and what is no file."""
    if isinstance(value, TextIOBase):
        raise ConfigurationError(f'{name} is opened for text: open it with mode "wb"')
    function(f"{name}.write", getattr(value, "write", None))


def text_file(name: str, value: object) -> None:
    """Refuses a file that was opened for bytes, and what is no file."""
    if isinstance(value, RawIOBase | BufferedIOBase):
        raise ConfigurationError(f'{name} is opened for bytes: open it with mode "w"')
    function(f"{name}.write", getattr(value, "write", None))


def _is_finite(value: Any) -> bool:
    if isinstance(value, str | bytes | bytearray):
        return False
    try:
        return isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
