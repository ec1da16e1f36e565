"""Writes the map of packages and files into docs/explanation/architecture.md, from the docstrings of the modules.

Run it (`make map`) after adding, moving or renaming a file, or changing the first sentence of a module's docstring.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "polynya"
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
MAP = re.compile(r"<!-- map: .*?<!-- end of the map -->", re.DOTALL)


def first_sentence(text: str) -> str:
    """The first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(text)) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0]


def rendered() -> str:
    """The map: a table for each folder, with a line for each file."""
    lines = ["<!-- map: written by `make map` from the module docstrings -->"]
    for folder in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        files = sorted(folder.glob("*.py"), key=lambda path: (path.stem != "__init__", path.stem))
        name = folder.relative_to(SOURCE).as_posix()
        lines += ["", f"### `polynya/{name}`" if name != "." else "### `polynya`", "", "| file | |", "|---|---|"]
        for path in files:
            sentence = first_sentence(path.read_text(encoding="utf-8")).replace("|", "\\|")
            lines.append(f"| `{path.name}` | {sentence} |")
    return "\n".join([*lines, "", "<!-- end of the map -->"])


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if MAP.search(page) is None:
        raise SystemExit(f"{PAGE.name} has no place for the map: two comments, as in scripts/map.py")
    PAGE.write_text(MAP.sub(lambda _: rendered(), page), encoding="utf-8")


if __name__ == "__main__":
    main()
