"""Some lines are about real sockets: what runs them is the serving tests' own."""

from __future__ import annotations

from tests.serve.conftest import run

__all__ = ["run"]
