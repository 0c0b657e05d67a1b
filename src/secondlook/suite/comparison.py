"""What differs between two results folders: experiments, verdicts and single values."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from secondlook.suite import tables
from secondlook.suite.assembly import TABLES
from secondlook.suite.cards import Paper
from secondlook.suite.errors import SecondLookError

PAIR = ["paper", "experiment"]
ROW = [*PAIR, "problem", "method", "seed", "metric", "step"]
CLAIM = ["paper", "claim"]
ABSENT = "absent"
KEPT_DIGITS = 10  # of numbers in a reference folder, see `assembly.keep_reference`
KEPT_RTOL = 1e-9  # rounding to ten digits moves a number by at most half of this


@dataclass(frozen=True)
class Results:
    """The tables of one results folder. `exact` is False where numbers were rounded to `KEPT_DIGITS`."""

    measurements: pd.DataFrame
    runs: pd.DataFrame
    verdicts: pd.DataFrame
    exact: bool = True


@dataclass(frozen=True)
class Difference:
    """What differs between results A and B; every frame is empty where they agree.

    experiments: paper, experiment, a, b: how its runs ended on either side ("absent" where there is none).
    verdicts: paper, claim, and on either side verdict, effect, low, high (`verdict_a`, `verdict_b`, ...).
    values: the columns of `ROW`, value_a, value_b, `gap` (relative; infinite where one side has no number) and `only`
        ("a" or "b" for a row that one side lacks, else "").
    compared: rows of measurements that were looked at; left_out: rows that were not, on the side that has more of them.
    """

    experiments: pd.DataFrame
    verdicts: pd.DataFrame
    values: pd.DataFrame
    compared: int
    left_out: int

    @property
    def none(self) -> bool:
        """Nothing differs."""
        return not (len(self.experiments) or len(self.verdicts) or len(self.values))


def read(folder: Path) -> Results:
    """Read a results folder (`tables/*.parquet`) or a reference folder (`*.csv`).

    Raises `SecondLookError` when the folder holds neither, `TableError` for a table that is missing or damaged.
    """
    for exact, place, suffix in ((True, folder / "tables", ".parquet"), (False, folder, ".csv")):
        paths = {name: place / f"{name}{suffix}" for name in TABLES}
        if any(path.exists() for path in paths.values()):
            return Results(**{name: tables.read(path, TABLES[name]) for name, path in paths.items()}, exact=exact)
    raise SecondLookError(
        f"{folder} holds neither tables/measurements.parquet nor measurements.csv; "
        "name a results folder (results/laptop) or a reference (results/reference/laptop)"
    )


def default_rtol(*sides: Results) -> float:
    """Bit for bit, or the rounding of a reference folder where one takes part."""
    return 0.0 if all(side.exact for side in sides) else KEPT_RTOL


def timing_metrics(papers: Iterable[Paper]) -> set[tuple[str, str]]:
    """(paper, metric) of every metric that differs between two runs of the same seed."""
    return {(p.slug, name) for p in papers for name, metric in p.metrics.items() if metric.timing}


def compare(
    a: Results, b: Results, *, rtol: float = 0.0, leave_out: Collection[tuple[str, str]] = frozenset()
) -> Difference:
    """Compare two results.

    Args:
        rtol: values x and y agree when |x - y| <= rtol max(|x|, |y|); 0 means bit for bit. Two missing values
            (diverged runs) agree. With `rtol` > 0 steps are matched to ten digits, as a reference keeps them.
        leave_out: (paper, metric) pairs whose values are not compared.

    Rows are matched on `ROW`; where that names several rows, in the order in which they stand. Experiments that one
    side did not measure are listed once, and not again value by value; so are papers, and not again claim by claim.
    """
    if not (math.isfinite(rtol) and rtol >= 0):
        raise SecondLookError(f"the relative tolerance must be a number from 0 on, got {rtol}")
    experiments = _experiments(a, b)
    parts = [_chosen(side.measurements, leave_out) for side in (a, b)]
    silent = set(map(tuple, experiments[PAIR].to_numpy())) - (_pairs(parts[0]) & _pairs(parts[1]))
    both = _matched(*(_keyed(part[~_isin(part, PAIR, silent)], rtol) for part in parts), ROW)
    values = both.assign(gap=_gap(both), only=_only(both))[[*ROW, "value_a", "value_b", "gap", "only"]]
    return Difference(
        experiments=experiments,
        verdicts=_verdicts(a, b),
        values=values[values["gap"] > rtol].reset_index(drop=True),
        compared=len(values),
        left_out=max(len(s.measurements) - len(part) for s, part in zip((a, b), parts, strict=True)),
    )


def _experiments(a: Results, b: Results) -> pd.DataFrame:
    """Experiments whose runs ended otherwise on one side, or that only one side has."""
    ended = [_endings(side) for side in (a, b)]
    rows = [(*pair, *(e.get(pair, ABSENT) for e in ended)) for pair in ended[0] | ended[1]]
    return pd.DataFrame([row for row in rows if row[-2] != row[-1]], columns=[*PAIR, "a", "b"])


def _endings(side: Results) -> dict[tuple[str, str], str]:
    """How the runs of each (paper, experiment) ended, in the order in which they stand."""
    groups = side.runs.groupby(PAIR, sort=False)["status"]
    ended = groups.agg(lambda status: ", ".join(sorted(set(status)))).to_dict()
    return ended | dict.fromkeys(sorted(_pairs(side.measurements) - set(ended)), "no run recorded")


def _verdicts(a: Results, b: Results) -> pd.DataFrame:
    """Claims of the papers that both sides ran whose verdicts differ."""
    shared = set(a.runs["paper"]) & set(b.runs["paper"])
    both = _matched(*(v[v["paper"].isin(shared)] for v in (a.verdicts, b.verdicts)), CLAIM)
    both = both.fillna({"verdict_a": ABSENT, "verdict_b": ABSENT})
    columns = [f"{name}_{side}" for side in "ab" for name in ("verdict", "effect", "low", "high")]
    return both.loc[both["verdict_a"] != both["verdict_b"], [*CLAIM, *columns]].reset_index(drop=True)


def _chosen(table: pd.DataFrame, leave_out: Collection[tuple[str, str]]) -> pd.DataFrame:
    return table[~_isin(table, ["paper", "metric"], leave_out)]


def _keyed(table: pd.DataFrame, rtol: float) -> pd.DataFrame:
    """The table with steps as they can be matched: exactly, or to the digits that a reference keeps."""
    if not rtol:
        return table
    rounded = {s: float(f"{s:.{KEPT_DIGITS}g}") for s in table["step"].dropna().unique()}
    return table.assign(step=table["step"].map(rounded))


def _matched(a: pd.DataFrame, b: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """Outer join of two tables; the n-th row of a key meets the n-th, and a missing step meets a missing one."""
    a, b = (t.assign(nth=t.groupby(on, dropna=False, sort=False).cumcount()) for t in (a, b))
    return a.merge(b, on=[*on, "nth"], how="outer", suffixes=("_a", "_b"), indicator="side", sort=False)


def _gap(both: pd.DataFrame) -> np.ndarray:
    x, y = (both[f"value_{side}"].to_numpy(dtype=float) for side in "ab")
    with np.errstate(invalid="ignore"):
        gap = np.abs(x - y) / np.where(x == y, 1.0, np.maximum(np.abs(x), np.abs(y)))
    gap[np.isnan(x) & np.isnan(y) & (both["side"] == "both").to_numpy()] = 0.0
    return np.where(np.isnan(gap), np.inf, gap)


def _only(both: pd.DataFrame) -> pd.Series:
    return both["side"].astype(str).map({"left_only": "a", "right_only": "b", "both": ""})


def _pairs(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(table[PAIR].drop_duplicates().itertuples(index=False, name=None))


def _isin(table: pd.DataFrame, columns: list[str], wanted: Collection[tuple[str, str]]) -> np.ndarray:
    return pd.MultiIndex.from_frame(table[columns]).isin(list(wanted)) if wanted else np.zeros(len(table), dtype=bool)
