"""Build the wheel and use it in clean virtual environments: bare and with all extras, on the oldest and newest Python.

    python scripts/check_wheel.py [--keep FOLDER]

In the bare environment the first Python example of the README runs, and a command without its extra says which one to
install. With all extras the demonstration runs. The wheel is used from a folder outside of the checkout.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
LIMIT = 120.0
"""Seconds for each command in an environment."""


def version_of(python: str | Path) -> tuple[int, int] | None:
    """The version of an interpreter that has pip; None where it cannot be run or is too old."""
    code = "import sys, pip; print(*sys.version_info[:2])"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT)
    except OSError:
        return None
    if found.returncode != 0:
        return None
    major, minor = map(int, found.stdout.split())
    return (major, minor) if (major, minor) >= OLDEST else None


def pythons() -> list[tuple[tuple[int, int], str]]:
    """The oldest and the newest supported Python of this machine."""
    named = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 30)]
    kept = sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin/python"))
    found: dict[tuple[int, int], str] = {}
    for python in [sys.executable, *filter(None, named), *map(str, kept)]:
        if (version := version_of(python)) is not None:
            found.setdefault(version, python)
    return [(version, found[version]) for version in sorted({min(found), max(found)})]


def readme_example() -> str:
    """The first Python example of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, "the README has no Python example"
    return found[1]


class Environment:
    """A virtual environment outside of the checkout in which only the wheel is installed."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self._bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self._run(python, "-m", "venv", str(folder))

    def install(self, requirement: str) -> None:
        """Install a requirement in the versions of constraints.txt."""
        constraints = str(ROOT / "constraints.txt")
        self.python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints, requirement)

    def python(self, *arguments: str, expect: int = 0) -> str:
        return self._run(str(self._bin / "python"), *arguments, expect=expect)

    def polynya(self, *arguments: str, expect: int = 0) -> str:
        return self._run(str(self._bin / "polynya"), *arguments, expect=expect)

    def _run(self, *command: str, expect: int = 0) -> str:
        """Run a command and return what it printed; fail when it exits otherwise than expected."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            command, cwd=self.folder.parent, env=clean, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode != expect:
            sys.exit(f"{' '.join(command)}\nexited {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def check_bare(environment: Environment) -> None:
    """Without extras: the library works, and a command names the extra that it needs."""
    environment.python("-W", "error", "-c", readme_example())
    said = environment.polynya("gather", expect=2)
    assert "polynya[cli]" in said, said
    said = environment.python("-c", "import polynya; polynya.connect_room", expect=1)
    assert "polynya[signaling]" in said, said


def check_all(environment: Environment) -> None:
    """With all extras: the commands work."""
    environment.python("-W", "error", "-c", readme_example())
    environment.polynya("--version")
    environment.polynya("gather", "--loopback")
    environment.polynya("demo", "--messages", "3")


def main() -> None:
    parser = argparse.ArgumentParser(description="Use the wheel in clean environments.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there and leave everything for a look")
    keep: Path | None = parser.parse_args().keep
    folder = (keep or Path(tempfile.mkdtemp(prefix="polynya-wheel-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
        [wheel] = folder.glob("polynya-*.whl")
        for version, python in pythons():
            for name, extra, check in (("bare", "", check_bare), ("all", "[all]", check_all)):
                environment = Environment(folder / f"{name}-{version[0]}.{version[1]}", python)
                environment.install(f"polynya{extra} @ {wheel.as_uri()}")
                check(environment)
                print(f"the wheel works on Python {version[0]}.{version[1]}, {name}", flush=True)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
