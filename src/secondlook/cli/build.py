"""Commands that turn measurements into tables, verdicts, figures, notebooks and the site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.cli.console import ResultsOption, ScaleOption, badge, out, results_of
from secondlook.suite import registry
from secondlook.suite.errors import SecondLookError, UnknownName


def register(app: typer.Typer) -> None:
    panel = "Judge and report"
    for command in (judge, report, assess, collect, notebook):
        app.command(rich_help_panel=panel)(command)
    app.command(hidden=True)(reference)


def assess(
    paper: Annotated[list[str], typer.Argument(help="One paper or more, by their slugs.")],
    scale: ScaleOption = "laptop",
    results: ResultsOption = None,
) -> None:
    """Collect a paper's measurements, judge its claims and draw its figures."""
    papers = [registry.paper(slug) for slug in paper]
    from secondlook.suite import assembly

    for each in papers:
        assembly.assess(each, scale, results_of(results, scale))


def collect(scale: ScaleOption = "laptop", results: ResultsOption = None) -> None:
    """Put the papers' tables together, as Parquet and CSV."""
    from secondlook.suite import assembly

    assembly.collect(results_of(results, scale))


def judge(
    paper: Annotated[str | None, typer.Argument(help="Only this paper.")] = None,
    scale: ScaleOption = "laptop",
    results: ResultsOption = None,
    summary: Annotated[bool, typer.Option("--summary", help="Only the totals, from the tables as they lie.")] = False,
) -> None:
    """Recompute the verdicts from the tidy tables alone, and show them."""
    from secondlook.suite import assembly

    if paper:
        registry.paper(paper)
    folder = results_of(results, scale)
    verdicts = assembly.verdicts(folder) if summary else assembly.rejudge(scale, folder)
    if paper:
        verdicts = verdicts[verdicts["paper"] == paper]
    _print_verdicts(verdicts, folder, totals_only=summary)


def _print_verdicts(verdicts, folder: Path, totals_only: bool) -> None:
    from rich.table import Table

    from secondlook.suite.cards import VERDICT_NAMES

    counts = verdicts["verdict"].value_counts()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    if totals_only:
        table.add_column("paper")
        for v in VERDICT_NAMES:
            table.add_column(badge(v), justify="right")
        for slug, g in verdicts.groupby("paper", sort=False):
            n = g["verdict"].value_counts()
            table.add_row(str(slug), *(str(n.get(v, "")) for v in VERDICT_NAMES))
        table.add_section()
        table.add_row(
            f"[bold]{verdicts['paper'].nunique()} papers[/]", *(f"[bold]{counts.get(v, 0)}[/]" for v in VERDICT_NAMES)
        )
    else:
        for column in ("paper", "claim", "measured", "needed", "published", "control", "verdict"):
            table.add_column(column, no_wrap=column == "verdict")
        for r in verdicts.itertuples():
            measured = "" if r.effect != r.effect else f"{r.effect:.3g} [dim][{r.low:.3g}, {r.high:.3g}][/] {r.unit}"
            published = "" if r.published != r.published else f"{r.published:g}"
            control = "" if r.control_effect != r.control_effect else f"{r.control_effect:.3g}"
            table.add_row(r.paper, r.claim, measured, r.threshold, published, control, badge(r.verdict))
    out.print(table)
    site = folder / "report" / "index.html"
    if site.exists():
        out.print(f"\nReport: [bold]{site}[/]", soft_wrap=True)


def notebook(
    kind: Annotated[str, typer.Argument(help="paper, family or scoreboard.")],
    names: Annotated[list[str] | None, typer.Argument(help="The papers or families.")] = None,
    scale: ScaleOption = "laptop",
    results: ResultsOption = None,
) -> None:
    """Execute notebooks with papermill."""
    known = {"paper": registry.paper, "family": registry.family, "scoreboard": None}
    if kind not in known:
        raise UnknownName("notebook", kind, known)
    if known[kind] and not names:
        raise SecondLookError(f"say which {kind}: `secondlook notebook {kind} NAME`")
    for name in names or []:
        known[kind](name)  # type: ignore[misc]
    from secondlook.suite.report import notebooks

    folder = results_of(results, scale)
    template = Path("notebooks") / f"{kind}.ipynb"
    if not template.exists():
        template = registry.PACKAGE.parents[1] / template
    place = {"paper": "{}.ipynb", "family": "families/{}.ipynb", "scoreboard": "scoreboard.ipynb"}[kind]
    for name in names or [""]:
        parameters = {"results": str(folder.resolve()), "scale": scale} | ({kind: name} if name else {})
        notebooks.execute(template, folder / "notebooks" / place.format(name), parameters)


def report(scale: ScaleOption = "laptop", results: ResultsOption = None) -> None:
    """Build the static site from what is there; what is missing shows as a hole."""
    from secondlook.suite.report import site

    path = site.build(results_of(results, scale), scale)
    out.print(f"Report: [bold]{path}[/]", soft_wrap=True)


def reference(scale: ScaleOption = "laptop", results: ResultsOption = None) -> None:
    """Keep this run's tables under results/reference/SCALE as the suite's own last measured ones."""
    from secondlook.suite import assembly

    target = Path("results/reference") / scale
    assembly.keep_reference(results_of(results, scale), target)
    out.print(f"kept in [bold]{target}[/]; now read every card's finding again (pytest tests/test_findings.py)")
