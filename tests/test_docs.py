"""The documentation is true: its programs run, its commands exist, its links work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from polynya.cli.app import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_A_SERVER = "# needs a server"
SERVER = "http://SERVER:8080"


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        found = [match[2] for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if match[1] == language]
        for number, text in enumerate(found, start=1):
            yield pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        stdout, stderr = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        pytest.fail(f"it did not end within 30 s:\n{stdout}{stderr}")
    assert process.returncode == 0, stderr
    assert stderr == ""
    return stdout


@pytest.mark.parametrize("program", [block for block in blocks("python") if NEEDS_A_SERVER not in block.values[0]])
def test_a_program_of_the_documentation_runs(program: str) -> None:
    compile(program, "block", "exec")
    if "asyncio.run(" not in program:
        return  # a signature, or a part
    assert finish(start(program)) != ""


@pytest.mark.parametrize("program", [block for block in blocks("python") if NEEDS_A_SERVER in block.values[0]])
def test_a_program_that_needs_a_server_runs_with_one(program: str) -> None:
    assert SERVER in program
    serve = [sys.executable, "-m", "polynya", "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            address = re.search(r"\bhttp=(?:http://)?(\S+)", ready)
            assert address, ready
            with ExitStack() as stack:
                both = [stack.enter_context(start(program.replace(SERVER, f"http://{address[1]}"))) for _ in range(2)]
                for process in both:
                    stack.callback(process.kill)  # of a pair, one may wait for the other that has failed
                assert [finish(process) for process in both] == ["b'hello'\n"] * 2
        finally:
            server.terminate()
        assert server.wait(timeout=10) == 0


def commands() -> dict[str, set[str]]:
    """Every command of the command line with its options, from the command line itself."""
    root = typer.main.get_command(app)
    context = typer.Context(root)
    found = {}
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        found[name] = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    return found


def test_every_command_and_option_that_is_named_exists() -> None:
    known, wrong, seen = commands(), [], 0
    for page in PAGES:
        for name, rest in re.findall(r"(?<=[`$ \n])polynya ([a-z]+)\b([^\n`|;&#]*)", _code(page)):
            seen += 1
            options = {option for option in re.findall(r"--[a-z-]+", rest) if option not in known.get(name, set())}
            if name not in known or options - {"--help"}:
                wrong.append(f"{page.relative_to(ROOT)}: polynya {name} {' '.join(sorted(options))}")
    assert wrong == []
    assert seen > 5


def _code(page: Path) -> str:
    """The shell code of a page: its blocks, and the code in running text."""
    text = page.read_text(encoding="utf-8")
    shown = [match[2] for match in BLOCK.finditer(text) if match[1] == "sh"]
    running = re.findall(r"`[^`\n]+`", BLOCK.sub("", text))
    return "\n" + "\n".join([*shown, *running])


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(mkdocs, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    reference = (tmp_path / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert "add_candidate" in reference
    assert ":::" not in reference
