"""`secondlook new`: a room that already runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.console import out


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Extend")(new)


def new(
    paper: Annotated[str, typer.Argument(help="The paper's slug: lower case, digits and dashes.")],
    family: Annotated[str | None, typer.Option(help="Its family; known already for the papers of the list.")] = None,
    title: Annotated[str | None, typer.Option(help="Its full title.")] = None,
    year: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Scaffold a paper's room: it passes the harness and runs at smoke scale before you change a line."""
    from secondlook.suite import rooms

    made = rooms.scaffold(paper, family=family, title=title, year=year)
    for path in made:
        out.print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", highlight=False)
    out.print(f"\nNext: docs/adding-a-paper.md, and [bold]secondlook run {paper} --scale smoke[/].")
