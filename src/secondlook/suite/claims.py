"""Evaluates one claim's test on the tidy table. Knows the forms, and nothing of verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from secondlook.suite.cards import ClaimTest, Selector
from secondlook.suite.statistics import Estimate, correlation, estimate, loglog_slope


class Unmeasured(Exception):
    """The table holds no measurements for a selector."""


@dataclass(frozen=True)
class Outcome:
    """What a test found. `p_for` and `p_against` are one-sided and uncorrected; None where no chance is involved."""

    effect: float
    low: float
    high: float
    n: int
    holds: bool  # the bare inequality
    p_for: float | None
    p_against: float | None
    note: str = ""


def select(table: pd.DataFrame, s: Selector) -> pd.DataFrame:
    """The rows a selector names. Raises `Unmeasured` when there are none."""
    keep = np.ones(len(table), dtype=bool)
    for column in ("experiment", "problem", "method", "seed", "metric", "step"):
        wanted = getattr(s, column)
        if wanted is None or wanted in ("first", "last"):
            continue
        keep &= table[column].isin(wanted if isinstance(wanted, list) else [wanted]).to_numpy()
    rows = table[keep]
    if s.step in ("first", "last") and len(rows):
        by = rows.groupby(["problem", "method", "metric", "seed"], observed=True)["step"]
        rows = rows[rows["step"] == by.transform("min" if s.step == "first" else "max")]
    if rows.empty:
        named = ", ".join(f"{k}={v}" for k, v in s.model_dump(exclude_none=True).items())
        raise Unmeasured(f"no measurement matches {named}")
    return rows


def evaluate(test: ClaimTest, table: pd.DataFrame, deterministic: bool = False) -> Outcome:
    """Evaluate a claim's test on one paper's measurements.

    Args:
        test: the card's test (or that of its control).
        table: tidy measurements of one paper at one scale.
        deterministic: the inequality itself decides, no p-value is formed.

    Raises:
        Unmeasured: a selector matches nothing.
        ValueError: the selection is ambiguous (several values a pair and no `aggregate`) or outside the form's domain.
    """
    if test.form == "bound":
        return _bound(test, table)
    if test.form == "ordering":
        return _ordering(test, table, deterministic)
    values, note = _per_pair(test, table)
    log = test.form == "ratio"
    e = estimate(values)
    outcome = _compare(test, e, log)
    if deterministic:
        outcome = replace(outcome, p_for=None, p_against=None)
    if log:
        outcome = replace(outcome, effect=math.exp(e.mean), low=math.exp(e.low), high=math.exp(e.high))
    if test.form == "correlation":  # no coefficient lies beyond 1
        outcome = replace(outcome, low=max(e.low, -1.0), high=min(e.high, 1.0))
    return replace(outcome, note=note)


def _compare(test: ClaimTest, e: Estimate, log: bool) -> Outcome:
    scale = math.log if log else float
    if test.target is not None:
        # Two one-sided tests: inside both limits supports, outside either one contradicts.
        lower = test.target - test.tolerance  # type: ignore[operator]
        lo = scale(lower) if lower > 0 or not log else -math.inf
        hi = scale(test.target + test.tolerance)  # type: ignore[operator]
        p_for = max(e.p_above(lo), e.p_below(hi))
        p_against = min(1.0, 2 * min(e.p_below(lo), e.p_above(hi)))
        holds = lo <= e.mean <= hi
    else:
        t = scale(test.threshold)
        p_for, p_against, holds = e.p_above(t), e.p_below(t), e.mean > t
        if test.is_ == "below":
            p_for, p_against, holds = p_against, p_for, e.mean < t
    return Outcome(e.mean, e.low, e.high, e.n, bool(holds), p_for, p_against)


def _per_pair(test: ClaimTest, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """One number a pair, in the scale the comparison is made on."""
    match test.form:
        case "value":
            return _drop_diverged(test, _series(test, test.of, table))
        case "difference" | "ratio":
            other = test.minus if test.form == "difference" else test.over
            a, b = _series(test, test.of, table).align(_series(test, other, table), join="inner")  # type: ignore[arg-type]
            if a.empty:
                raise Unmeasured(f"the two sides share no {test.pairs}")
            if test.form == "difference":
                return _drop_diverged(test, a - b)
            ok = a.notna() & b.notna()
            if (a[ok] <= 0).any() or (b[ok] <= 0).any():
                raise ValueError("a ratio needs positive values on both sides")
            return _drop_diverged(test, np.log(a) - np.log(b))
        case "slope":
            rows = select(table, test.fill(test.of))  # type: ignore[arg-type]
            return _by_pair(test, rows, lambda g: loglog_slope(g["step"], g["value"]))
        case "correlation" if test.of is not None:
            rows = select(table, test.fill(test.of))  # type: ignore[arg-type]
            return _by_pair(test, rows, lambda g: correlation(g["step"], g["value"], test.kind))
        case "correlation":
            on = ["seed", "problem", "step"]
            x, y = (select(table, test.fill(s)).set_index(on)["value"] for s in (test.x, test.y))  # type: ignore[arg-type]
            if x.index.has_duplicates or y.index.has_duplicates:
                raise ValueError("`x` and `y` must be unique in seed, problem and step")
            both = pd.concat({"x": x, "y": y}, axis=1, join="inner").reset_index()
            if both.empty:
                raise Unmeasured("`x` and `y` share no seed, problem and step")
            return _by_pair(test, both, lambda g: correlation(g["x"], g["y"], test.kind))
    raise AssertionError(test.form)


def _by_pair(test: ClaimTest, rows: pd.DataFrame, f) -> tuple[np.ndarray, str]:
    columns = [c for c in ("value", "x", "y") if c in rows]
    bad = rows[columns].isna().any(axis=1)
    groups = rows[~bad].groupby(test.pairs, observed=True, sort=True)
    note = f"{int(bad.sum())} diverged measurements left out" if bad.any() else ""
    return np.array([f(g) for _, g in groups], dtype=float), note


def _series(test: ClaimTest, selector: Selector, table: pd.DataFrame) -> pd.Series:
    """The selected values, one a pair."""
    rows = select(table, test.fill(selector))
    groups = rows.groupby(test.pairs, observed=True, sort=True)["value"]
    if test.aggregate:
        return (
            groups.agg(test.aggregate)
            if rows["value"].notna().all()
            else groups.agg(lambda v: getattr(v, test.aggregate)(skipna=False))
        )
    if (groups.size() > 1).any():
        example = rows[rows[test.pairs] == rows[test.pairs].iloc[0]][["problem", "method", "metric", "step"]].head(3)
        raise ValueError(
            f"several values for one {test.pairs} (for instance {example.to_dict('records')}); "
            "narrow the selector or set `aggregate`"
        )
    return groups.first()


def _drop_diverged(test: ClaimTest, values: pd.Series) -> tuple[np.ndarray, str]:
    bad = ~np.isfinite(values)
    note = f"{int(bad.sum())} of {len(values)} pairs diverged" if bad.any() else ""
    return values[~bad].to_numpy(), note


def _ordering(test: ClaimTest, table: pd.DataFrame, deterministic: bool) -> Outcome:
    """Every adjacent gap must hold: the largest p of the gaps is the p of all (intersection-union)."""
    chain = [_series(test, s, table) for s in test.of]  # type: ignore[union-attr]
    gaps, notes = [], []
    for a, b in pairwise(chain):
        a, b = a.align(b, join="inner")
        values, note = _drop_diverged(test, a - b)
        gaps.append(estimate(values))
        notes.append(note)
    worst = min(gaps, key=lambda e: e.mean)
    p_for = max(e.p_above(test.threshold) for e in gaps)
    p_against = min(1.0, len(gaps) * min(e.p_below(test.threshold) for e in gaps))
    holds = all(e.mean > test.threshold for e in gaps)
    p_for, p_against = (None, None) if deterministic else (p_for, p_against)
    return Outcome(worst.mean, worst.low, worst.high, worst.n, holds, p_for, p_against, "; ".join(filter(None, notes)))


def _bound(test: ClaimTest, table: pd.DataFrame) -> Outcome:
    """A bound that must never be broken: one value beyond it, or one that is not a number, breaks it."""
    v = select(table, test.fill(test.of))["value"].to_numpy(dtype=float)  # type: ignore[arg-type]
    bad = ~np.isfinite(v)
    finite = v[~bad]
    worst = finite.max(initial=-np.inf) if test.is_ == "below" else finite.min(initial=np.inf)
    inside = worst <= test.threshold if test.is_ == "below" else worst >= test.threshold
    note = f"{int(bad.sum())} of {v.size} values are not finite" if bad.any() else ""
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)
    return Outcome(float(worst), low, high, int(v.size), bool(inside and not bad.any()), None, None, note)
