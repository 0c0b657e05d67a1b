"""The `secondlook` command. Each group of commands has a file of its own; heavy imports happen inside the commands."""

from __future__ import annotations

import sys

import typer

from secondlook.cli import browse, build, scaffold, work
from secondlook.cli.console import err
from secondlook.suite.errors import SecondLookError

app = typer.Typer(
    name="secondlook",
    help="A second look at 169 papers on second-order machine learning: run each method, judge each claim.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (browse, work, build, scaffold):
    group.register(app)


def main() -> None:
    """Entry point: errors meant for the user come without a traceback."""
    try:
        app()
    except SecondLookError as error:
        err.print(f"[bold red]error[/]  {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
