"""Reports for assertions: `why()` breaks its lines at 80 columns, so a sentence may stand on two of them."""

from __future__ import annotations


def flat(report: object) -> str:
    """Returns the text of a report on one line."""
    return " ".join(str(report).split())
