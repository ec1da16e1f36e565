"""The fixture that runs tests with real sockets, shared with the tests of the server."""

from __future__ import annotations

from tests.serve.conftest import run

__all__ = ["run"]
