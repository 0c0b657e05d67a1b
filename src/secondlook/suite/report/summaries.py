"""Summary tables of measurements, cut to what a reader takes in at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from secondlook.suite.cards import Metric
from secondlook.suite.report import evidence, marks, words

ROWS, STEPS = 40, 6  # what a table shows at most; the rest is in the CSV


def summaries(table: pd.DataFrame, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Summary tables for display, one an (experiment, metric): a row a (problem, method), a column a step."""
    if table.empty:
        return []
    blocks = []
    for (experiment, metric, unit), g in evidence.summary(table).groupby(["experiment", "metric", "unit"], sort=False):
        card = metrics.get(metric)
        steps = sorted(g["step"].dropna().unique())
        shown = (
            steps
            if len(steps) <= STEPS
            else [steps[round(i * (len(steps) - 1) / (STEPS - 2))] for i in range(STEPS - 1)]
        )
        columns = [*shown, *([None] if g["step"].isna().any() else [])]
        cells = {(r.problem, r.method, None if r.step != r.step else r.step): r for r in g.itertuples()}
        keys = list(dict.fromkeys((r.problem, r.method) for r in g.itertuples()))
        blocks.append(
            {
                "experiment": experiment,
                "metric": metric,
                "label": card.label if card else metric.replace("_", " "),
                "unit": words.unit(unit),
                "step": (card.step if card else None) or "step",
                "columns": columns,
                "all_steps": len(steps),
                "rows": [
                    (problem, method, [cells.get((problem, method, c)) for c in columns])
                    for problem, method in keys[:ROWS]
                ],
                "hidden": max(0, len(keys) - ROWS),
                "n": int(g["count"].max()),
                "timing": bool(card and card.timing),
            }
        )
    return blocks


def dots(block: dict[str, Any]) -> list[dict[str, Any]]:
    """Dot plots of a summary table: for each problem, the methods' last values with intervals on one axis."""
    problems: dict[str, list[tuple[str, Any]]] = {}
    for problem, method, cells in block["rows"]:
        last = next((c for c in reversed(cells) if c is not None and c.mean == c.mean), None)
        if last is not None:
            problems.setdefault(problem, []).append((method, last))
    return [
        {
            "problem": problem,
            "plot": marks.dot_plot([(m, c.mean, c.low, c.high) for m, c in methods]),
            "methods": methods,
        }
        for problem, methods in problems.items()
        if len(methods) > 1
    ]
