"""Whether two results folders hold the same results, bit for bit: times, memory and provenance aside."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from secondlook.suite import cards, tables
from secondlook.suite.cards import Paper

TIMES = ["started_at", "wall_s", "cpu_s", "peak_mb"]


def papers_of(checkout: Path) -> dict[str, Paper]:
    """The replicated papers of a checkout, which need not be the one that runs this."""
    found = [cards.load(p) for p in sorted(checkout.glob("src/secondlook/*/*/card.yaml"))]
    return {p.slug: p for p in found if p.replicated}


def compare(a: Path, b: Path, papers: dict[str, Paper]) -> int:
    """Raise AssertionError where the tables of two results folders differ; returns how many rows were compared.

    Left out: values of metrics that a card declares as `timing`, verdicts that rest on these, and the times and the
    memory of runs. Everything else is compared bit for bit, the order of rows included.
    """
    timing = {(p.slug, name) for p in papers.values() for name, metric in p.metrics.items() if metric.timing}
    timed = {
        (p.slug, c.id)
        for p in papers.values()
        for c in p.claims
        for test in (c.test, c.control_test)
        if test and any((p.slug, s.metric) in timing for s in test.selectors())
    }

    def kept(folder: Path, name: str, schema, keys: list[str], out: set) -> pd.DataFrame:
        table = tables.read(folder / "tables" / f"{name}.parquet", schema)
        aside = [tuple(row) in out for row in table[keys].to_numpy()]
        return table[[not x for x in aside]].drop(columns=TIMES, errors="ignore").reset_index(drop=True)

    rows = 0
    for name, schema, keys, out in (
        ("measurements", tables.MEASUREMENTS, ["paper", "metric"], timing),
        ("runs", tables.RUNS, ["paper", "experiment"], set()),
        ("verdicts", tables.VERDICTS, ["paper", "claim"], timed),
    ):
        left, right = (kept(folder, name, schema, keys, out) for folder in (a, b))
        pd.testing.assert_frame_equal(left, right, check_exact=True, obj=name)
        rows += len(left)
    return rows
