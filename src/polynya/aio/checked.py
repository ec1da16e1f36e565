"""Checks of the arguments of an agent's methods: each returns the argument, or raises UsageError for a wrong one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from polynya.core import arguments
from polynya.core.errors import UsageError
from polynya.ice.candidates import Candidate
from polynya.ice.config import check_components
from polynya.ice.description import Description

MAX_STREAM: Final = 0xFFFF


def stream(value: int) -> int:
    return arguments.number("stream", value, 0, MAX_STREAM, error=UsageError)


def stream_or_all(value: int | None) -> int | None:
    return None if value is None else stream(value)


def index(value: int) -> int:
    """Returns the number of a stream or component, which may be one that does not exist."""
    return arguments.number("a stream or component", value, -MAX_STREAM, MAX_STREAM, error=UsageError)


def pair(number: int) -> int:
    return arguments.number("the number of a pair", number, 0, sys.maxsize, error=UsageError)


def controlling(value: bool) -> bool:
    return arguments.flag("controlling", value, error=UsageError)


def components(value: Sequence[int] | None) -> tuple[int, ...] | None:
    """Returns the components of both sides after a restart; None keeps them."""
    return None if value is None else check_components(value, error=UsageError)


def description(value: Description) -> Description:
    hint = "Description.parse(text) reads a session description"
    return arguments.instance("description", value, Description, hint=hint, error=UsageError)


def candidate(value: Candidate | None) -> Candidate | None:
    hint = "pass its SDP line as text"
    return None if value is None else arguments.instance("candidate", value, Candidate, hint=hint, error=UsageError)


def timeout(value: float | None) -> float | None:
    return arguments.timeout(value)
