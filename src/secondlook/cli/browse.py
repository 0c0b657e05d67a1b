"""Commands that look: papers, show, claims, diff, doctor."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from secondlook.cli.console import PaperArgument, ResultsOption, ScaleOption, badge, err, out
from secondlook.suite import registry, scales
from secondlook.suite.cards import Paper
from secondlook.suite.errors import SecondLookError


def register(app: typer.Typer) -> None:
    panel = "Look"
    app.command(rich_help_panel=panel)(papers)
    app.command(rich_help_panel=panel)(show)
    app.command(rich_help_panel=panel)(claims)
    app.command(rich_help_panel=panel)(diff)
    app.command(rich_help_panel=panel)(doctor)


def papers(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    replicated: Annotated[bool, typer.Option("--replicated", help="Only papers with experiments.")] = False,
    scale: ScaleOption = "laptop",
    results: ResultsOption = None,
) -> None:
    """List all papers with family, fidelity and status."""
    if family:
        registry.family(family)
    found = verdicts(results, scale)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("paper", "family", "fidelity", "status"):
        table.add_column(column, no_wrap=column != "status")
    shown = 0
    for p in registry.papers().values():
        if (family and p.family != family) or (replicated and not p.replicated):
            continue
        shown += 1
        table.add_row(p.slug, p.family, p.fidelity, _status(p, found))
    out.print(table)
    done = len(registry.replicated())
    out.print(f"\n[dim]{shown} papers shown; {done} of {len(registry.papers())} have a replication.[/]")


def _status(p: Paper, found: dict[str, dict[str, str]]) -> str:
    if not p.replicated:
        return "[dim]no replication yet[/]"
    if p.slug not in found:
        return f"{len(p.claims)} claims, not run here"
    counts: dict[str, int] = {}
    for verdict in found[p.slug].values():
        counts[verdict] = counts.get(verdict, 0) + 1
    return "  ".join(f"{badge(v)} {n}" for v, n in counts.items())


def verdicts(results: Path | None, scale: str) -> dict[str, dict[str, str]]:
    """Verdicts by paper and claim, as they lie; {} where none were made. Reads CSV: pandas is slow to load."""
    path = (results or Path("results") / scales.scale(scale).name) / "tables" / "verdicts.csv"
    found: dict[str, dict[str, str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                found.setdefault(row["paper"], {})[row["claim"]] = row["verdict"]
    return found


def show(paper: PaperArgument, scale: ScaleOption = "laptop", results: ResultsOption = None) -> None:
    """Show one paper: what it says, its experiments and its claims."""
    p = registry.paper(paper)
    found = verdicts(results, scale).get(p.slug, {})
    links = [f"arXiv {p.arxiv}" if p.arxiv else "", f"code {p.code} ({p.licence or 'no licence'})" if p.code else ""]
    out.print(Panel(f"[bold]{p.title}[/]\n{p.family} · {p.year} · {p.fidelity}\n{' · '.join(filter(None, links))}"))
    out.print(Markdown(p.says or p.summary))
    if not p.replicated:
        out.print(f"\nNo replication yet. Start one with [bold]secondlook new {p.slug}[/].")
        return
    out.print("\n[bold]Experiments[/]")
    for name, e in p.experiments.items():
        out.print(f"  [cyan]{name}[/]  {e.about}  [dim]{', '.join(e.scales)}[/]")
    out.print("\n[bold]Claims[/]")
    for c in p.claims:
        out.print(f"  {badge(found.get(c.id, 'untested'))}  [cyan]{c.id}[/]  {c.statement} [dim]({c.source})[/]")
    if p.finding:
        out.print(f"\n[bold]Finding[/]  {p.finding.text}")


def claims(
    paper: Annotated[str | None, typer.Argument(help="Only this paper.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only this verdict.")] = None,
    scale: ScaleOption = "laptop",
    results: ResultsOption = None,
) -> None:
    """List claims with their tests, published values and verdicts."""
    chosen = [registry.paper(paper)] if paper else registry.replicated().values()
    found = verdicts(results, scale)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("paper", "claim", "test", "published", "verdict"):
        table.add_column(column, no_wrap=column in ("paper", "verdict"))
    for p in chosen:
        for c in p.claims:
            v = found.get(p.slug, {}).get(c.id, "untested")
            if verdict in (None, v):
                published = "" if c.published_effect is None else f"{c.published_effect:g} {c.unit}"
                table.add_row(p.slug, c.id, c.test.form if c.test else "", published, badge(v))
    out.print(table)


def diff(
    a: Annotated[Path, typer.Argument(help="A results folder (`results/laptop`) or a reference of one.")],
    b: Annotated[Path, typer.Argument(help="The one to compare it with.")],
    rtol: Annotated[
        float | None,
        typer.Option(
            help="Relative tolerance of values.", show_default="0: bit for bit; 1e-9 where a reference takes part"
        ),
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Compare times and the like as well.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every row, and not the worst of each metric.")] = False,
) -> None:
    """Compare two results: experiments, verdicts, values. Exits with 0 when nothing differs, else 1; 2 on bad input.

    A reference (`results/reference/SCALE`) keeps ten digits of every number. Values of metrics that a card marks
    `timing` are left out; a verdict that changed is always shown, also where it rests on times.
    """
    from secondlook.cli import differences
    from secondlook.suite import comparison

    try:
        sides = [comparison.read(folder) for folder in (a, b)]
        rtol = comparison.default_rtol(*sides) if rtol is None else rtol
        leave_out = set() if timing else comparison.timing_metrics(registry.replicated().values())
        found = comparison.compare(*sides, rtol=rtol, leave_out=leave_out)
    except SecondLookError as error:
        err.print(f"[bold red]error[/]  {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    differences.show(found, rtol, everything)
    if not found.none:
        raise typer.Exit(1)


def doctor() -> None:
    """Say what this machine can run, and why not the rest."""
    from secondlook.cli.doctor import examine

    if not examine():
        raise typer.Exit(1)
