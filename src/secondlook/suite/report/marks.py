"""Small drawn things: a verdict's sign and badge, and the plot of an effect with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from secondlook.suite.cards import ClaimTest
from secondlook.suite.report.numerals import missing, number, printed, ticks

# Verdicts differ in shape as well as in colour: star, disc, half disc, crossed square, dashed ring, dot.
_CUT = 'fill="none" stroke="var(--sl-paper, #fff)" stroke-width="1.9" stroke-linecap="round" stroke-linejoin="round"'
_SHAPES = {
    "reproduced": '<path d="M8 .9l2.1 4.5 4.9.6-3.6 3.4.9 4.9L8 11.9l-4.3 2.4.9-4.9L1 6l4.9-.6z" fill="currentColor"/>',
    "supported": f'<circle cx="8" cy="8" r="7" fill="currentColor"/><path d="M4.9 8.3l2.2 2.2 4-4.6" {_CUT}/>',
    "inconclusive": '<circle cx="8" cy="8" r="6.1" fill="none" stroke="currentColor" stroke-width="1.7"/>'
    '<path d="M8 1.9a6.1 6.1 0 0 1 0 12.2z" fill="currentColor"/>',
    "contradicted": '<rect x="1.3" y="1.3" width="13.4" height="13.4" rx="2.6" fill="currentColor"/>'
    f'<path d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4" {_CUT}/>',
    "untested": '<circle cx="8" cy="8" r="6.1" fill="none" stroke="currentColor" stroke-width="1.6" '
    'stroke-dasharray="2.6 2.2"/>',
    "none": '<circle cx="8" cy="8" r="2" fill="currentColor"/>',
}


def icon(verdict: str) -> Markup:
    """A verdict's sign. It is decoration: words stand beside it, or an `aria-label` around it."""
    shape = _SHAPES.get(verdict, _SHAPES["none"])
    return Markup(f'<svg class="sl-icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">{shape}</svg>')


def badge(verdict: str) -> Markup:
    """A verdict as sign, word and colour."""
    return Markup('<span class="sl-badge sl-{0}">{1}<span>{0}</span></span>').format(verdict, icon(verdict))


@dataclass(frozen=True)
class Row:
    """One line of an interval plot, in percent of its width. `low` and `high` are None without an interval."""

    label: str
    at: float
    low: float | None
    high: float | None
    kind: str  # ours | control | published


@dataclass(frozen=True)
class Plot:
    """An effect on one axis: where the claim holds, what was measured, its control, the printed number."""

    region: tuple[float, float]
    edges: list[float]
    rows: list[Row]
    ticks: list[tuple[float, str]]
    log: bool
    described: str


def interval_plot(test: ClaimTest, verdict: dict[str, Any]) -> Plot | None:
    """The plot of a judged claim; None where nothing was measured."""
    if missing(verdict["effect"]) or math.isinf(verdict["effect"]):
        return None
    marks = {
        "ours": [verdict[k] for k in ("effect", "low", "high")],
        "control": [verdict[f"control_{k}"] for k in ("effect", "low", "high")],
        "published": [verdict["published"]],
    }
    edges = (
        [test.target - test.tolerance, test.target + test.tolerance] if test.target is not None else [test.threshold]
    )
    seen = [v for values in marks.values() for v in values if not missing(v) and math.isfinite(v)]
    # Ratios, and bounds far apart, are read on a logarithmic axis.
    everything = [v for v in (*seen, *edges) if v is not None]
    spread = min(everything) > 0 and (test.form == "ratio" or max(everything) / min(everything) > 300)
    if spread and max(everything) / min(everything) < 1.0001:
        spread = False
    scale = math.log10 if spread else float
    low, high = min(map(scale, everything)), max(map(scale, everything))
    pad = 0.09 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (scale(x) - low) / (high - low))), 2)

    rows = []
    for kind, label in (("ours", "measured"), ("control", "control"), ("published", "published")):
        at, *ends = marks[kind]
        if missing(at) or math.isinf(at):
            continue
        has = len(ends) == 2 and not any(missing(e) or math.isinf(e) for e in ends) and (not spread or min(ends) > 0)
        rows.append(Row(label, place(at), place(ends[0]) if has else None, place(ends[1]) if has else None, kind))
    return Plot(
        region=_region(test, [place(e) for e in edges]),
        edges=[place(e) for e in edges],
        rows=rows,
        ticks=[(place(t), _tick(t)) for t in _ticks(low, high, spread)],
        log=spread,
        described="; ".join(f"{r.label} {printed(marks[r.kind][0])}" for r in rows),
    )


def _region(test: ClaimTest, places: list[float]) -> tuple[float, float]:
    """Where the claim holds, as left and right edge."""
    if len(places) == 2:
        return places[0], places[1]
    above = test.form == "ordering" or test.is_ == "above"
    return (places[0], 100.0) if above else (0.0, places[0])


def _tick(t: float) -> str:
    return printed(t) if t == 0 or 1e-3 <= abs(t) < 1e5 else number(t, 1).replace("1×10", "10")


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if not log:
        return [float(f"{t:.10g}") for t in ticks(low, high)]
    if high - low >= 1.5:
        whole = range(math.ceil(low), math.floor(high) + 1)
        return [10.0**t for t in whole][:: max(1, len(whole) // 4)]
    return [float(f"{t:.10g}") for t in ticks(10**low, 10**high)]


def dot_plot(values: list[tuple[str, float, float, float]]) -> Plot:
    """Several methods' means with intervals on one axis, logarithmic where they lie far apart."""
    seen = [v for _, *numbers in values for v in numbers if not missing(v) and math.isfinite(v)]
    spread = min(seen) > 0 and max(seen) / min(seen) > 30
    scale = math.log10 if spread else float
    low, high = min(map(scale, seen)), max(map(scale, seen))
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def place(x: float) -> float:
        return round(100 * (scale(x) - low) / (high - low), 2)

    rows = [
        Row(name, place(mean), *((None, None) if missing(a) or (spread and a <= 0) else (place(a), place(b))), "ours")
        for name, mean, a, b in values
    ]
    shown = [(place(t), _tick(t)) for t in _ticks(low, high, spread)]
    return Plot((0.0, 0.0), [], rows, shown, spread, "; ".join(f"{name} {number(mean)}" for name, mean, *_ in values))
