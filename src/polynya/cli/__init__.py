"""The command line, one file for each command. Commands parse options and print; other packages do the work."""

from __future__ import annotations

import signal
import sys

from . import process

CLI_PACKAGES = frozenset({"typer", "click", "rich"})


def main() -> None:
    """Run the command `polynya`, and exit with its exit code."""
    if sys.argv[1:2] == ["serve"]:
        _ignore_signals()
    process.run(_run)


def _run() -> None:
    if sys.argv[1:] == ["--version"]:  # works without the packages of the commands
        from polynya import __version__  # noqa: PLC0415

        print(f"polynya {__version__}")
        return
    try:
        from .app import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in CLI_PACKAGES:
            raise
        print(f"polynya: the command line needs {error.name}; run: pip install 'polynya[cli]'", file=sys.stderr)
        sys.exit(process.WRONG)
    app(prog_name="polynya")


def _ignore_signals() -> None:
    """Ignore the signals of operators until the server handles them: by default they would end the process."""
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
