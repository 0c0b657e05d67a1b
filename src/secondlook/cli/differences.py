"""`secondlook diff`: how two results differ, as tables in the terminal."""

from __future__ import annotations

import pandas as pd
from rich.markup import escape
from rich.table import Table

from secondlook.cli.console import STYLE, badge, out
from secondlook.suite.comparison import ROW, Difference
from secondlook.suite.report.numerals import number, quantity
from secondlook.suite.report.words import plural

FEW = 12  # rows of a table unless all are asked for


def show(found: Difference, rtol: float, everything: bool) -> None:
    """Print experiments, verdicts and values that differ, and one line that sums up."""
    rows = None if everything else FEW
    if len(found.experiments):
        _print(["paper", "experiment", "A", "B"], found.experiments.to_numpy().tolist(), rows)
    if len(found.verdicts):
        lines = [[v.paper, v.claim, *(_verdict(v, side) for side in "ab")] for v in found.verdicts.itertuples()]
        _print(["paper", "claim", "A", "B"], lines, rows, markup=True)
    if len(found.values):
        values = found.values.sort_values("gap", ascending=False, kind="stable")
        if everything:
            _print([*ROW, "A", "B", "relative gap"], [_line(v) for v in values.itertuples()], None)
        else:
            _print(["experiment", "metric", "rows", "A", "B", "worst gap", "where"], _worst(values), rows)
    out.print(_summary(found, rtol), highlight=False)


def _worst(values: pd.DataFrame) -> list[list[str]]:
    """A line for each (paper, experiment, metric): how many rows, and the one that is furthest off."""
    lines = []
    for (paper, experiment, metric), g in values.groupby(["paper", "experiment", "metric"], sort=False):
        v = next(g.itertuples())
        at = f"{v.problem}, {v.method}, seed {v.seed}" + ("" if v.step != v.step else f", step {v.step:g}")
        lines.append([f"{paper}/{experiment}", metric, f"{len(g):,}", *_sides(v), _gap(v), at])
    return lines


def _line(v) -> list[str]:
    step = "" if v.step != v.step else f"{v.step:.10g}"
    return [v.paper, v.experiment, v.problem, v.method, str(v.seed), v.metric, step, *_sides(v), _gap(v)]


def _sides(v) -> list[str]:
    return [
        "absent" if v.only not in ("", side) else "diverged" if x != x else f"{x:.10g}"
        for side, x in (("a", v.value_a), ("b", v.value_b))
    ]


def _gap(v) -> str:
    return "" if v.gap == float("inf") else number(v.gap, 2)


def _verdict(v, side: str) -> str:
    name, *effect = (getattr(v, f"{column}_{side}") for column in ("verdict", "effect", "low", "high"))
    if name not in STYLE:
        return name
    shown = " ".join(filter(None, quantity(*effect))) if effect[0] == effect[0] else ""
    return f"{badge(name)} {escape(shown)}".rstrip()


def _summary(found: Difference, rtol: float) -> str:
    how = "bit for bit" if rtol == 0 else f"to a relative {rtol:g}"
    left = f"; {plural(found.left_out, 'timing value')} left out" if found.left_out else ""
    looked = f"{plural(found.compared, 'value')} compared {how}{left}"
    if found.none:
        return f"[green]✓[/] nothing differs: {looked}"
    parts = {"experiment": len(found.experiments), "verdict": len(found.verdicts), "value": len(found.values)}
    differ = ", ".join(plural(n, name) for name, n in parts.items() if n)
    return f"[yellow]≠[/] {differ} {'differs' if sum(parts.values()) == 1 else 'differ'}; {looked}"


def _print(columns: list[str], lines: list[list[str]], rows: int | None, markup: bool = False) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines[:rows]:
        table.add_row(*(str(cell) if markup else escape(str(cell)) for cell in line))
    out.print(table, highlight=False)
    if rows is not None and len(lines) > rows:
        out.print(f"[dim]and {len(lines) - rows:,} more; --all shows every row[/]")
    out.print()
