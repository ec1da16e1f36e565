"""The application: all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from polynya import __version__

from .connect import connect
from .credentials import credentials
from .demo import demo
from .gather import gather
from .relay import relay
from .serve import serve

app = typer.Typer(
    name="polynya",
    help="Connect two programs across NATs and firewalls.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        print(f"polynya {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Connect two programs across NATs and firewalls."""


app.command()(demo)
app.command()(serve)
app.command()(gather)
app.command()(connect)
app.command()(relay)
app.command()(credentials)
