"""The exceptions: their base classes and messages."""

from __future__ import annotations

import inspect

import pytest

from polynya.core import errors
from polynya.core.errors import (
    Attempt,
    ConfigurationError,
    ConnectError,
    ConnectionClosed,
    DecodeError,
    PolynyaError,
    ProtocolError,
    SignalingError,
    TransactionError,
    UsageError,
)

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_all_errors_derive_from_polynya_error(kind: type[Exception]) -> None:
    assert issubclass(kind, PolynyaError)
    assert kind.__name__ in (errors.__doc__ or "") and kind.__doc__


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (ConfigurationError, [ValueError]),
        (UsageError, [RuntimeError]),
        (DecodeError, [ProtocolError, ValueError]),
        (TransactionError, [ProtocolError]),
        (SignalingError, [PolynyaError]),
        (ConnectError, [ConnectionError, OSError]),
        (ConnectionClosed, [ConnectionError, OSError]),
    ],
)
def test_errors_also_derive_from_pythons_exceptions(kind: type[Exception], parents: list[type[Exception]]) -> None:
    assert all(issubclass(kind, parent) for parent in parents)


def test_a_transaction_error_shows_its_code_if_there_is_one() -> None:
    assert str(TransactionError(401, "Unauthenticated")) == "401 Unauthenticated"
    silent = TransactionError(None, "192.0.2.1:3478 did not answer 7 sends")
    assert (silent.code, str(silent)) == (None, "192.0.2.1:3478 did not answer 7 sends")


def test_a_connect_error_lists_every_attempt_with_its_reason() -> None:
    error = ConnectError("no pair works", [Attempt("a -> b", "no answer"), Attempt("a -> c", "port unreachable")])
    assert str(error) == "no pair works\n  a -> b: no answer\n  a -> c: port unreachable"
    assert error.message == "no pair works"
    assert [attempt.reason for attempt in error.attempts] == ["no answer", "port unreachable"]
    assert isinstance(error.attempts, tuple)


def test_a_connect_error_without_attempts_is_one_line() -> None:
    assert str(ConnectError("there is no local address")) == "there is no local address"


def test_connection_closed_shows_its_reason() -> None:
    closed = ConnectionClosed("the peer did not answer for 30 s")
    assert (closed.reason, str(closed)) == ("the peer did not answer for 30 s",) * 2
