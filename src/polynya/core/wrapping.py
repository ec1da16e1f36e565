"""Reports for terminals of 80 columns: long lines continue on the next line, further indented."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap
from typing import Final

COLUMNS: Final = 80


def wrapped(lines: Iterable[str]) -> str:
    """Returns lines as one text of at most 80 columns. A longer word, such as a long host name, stays whole."""
    text = []
    for line in lines:
        if len(line) <= COLUMNS:
            text.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        text += wrap(
            line,
            COLUMNS,
            subsequent_indent=f"{indent}    ",
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    return "\n".join(text)
