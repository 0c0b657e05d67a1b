"""The figure of a spectrum report: density, top eigenvalues, layers."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots

MOST_LAYERS = 24
DECADES = 1e6


def draw(report: Any, name: str) -> Figure:
    """One panel for each part the report has; `name` heads it."""
    parts = [_top]
    if report.density:
        parts.insert(0, _density)
    if report.layers:
        parts.append(_layers)
    rows = min(len(report.layers), MOST_LAYERS)
    figure, axes = plots.subplots(1, len(parts), width=4.4, height=max(3.6, 1.3 + 0.2 * rows), squeeze=False)
    for part, ax in zip(parts, axes[0], strict=True):
        part(ax, report)
    kind = {"hessian": "Hessian", "ggn": "GGN"}[report.matrix]
    t = report.trace
    figure.suptitle(
        f"{kind} of {name}: {report.parameters:,} parameters, {report.points:,} points, loss {report.loss:.3g}, "
        f"trace {t.value:.4g} [{t.low:.4g}, {t.high:.4g}]",
        fontsize=9.5,
        color=plots.INK,
    )
    return figure


def _density(ax: Axes, report: Any) -> None:
    curve, colour = report.density, plots.PALETTE[0]
    floor = max(curve.value) / DECADES
    ax.plot(curve.grid, [v if v >= floor else math.nan for v in curve.value], color=colour)
    low, high = ([max(v, floor) for v in side] for side in (curve.low, curve.high))
    ax.fill_between(curve.grid, low, high, color=colour, alpha=0.2, lw=0, label=f"{100 * report.level:g}% interval")
    values = [e.value for e in report.eigenvalues]
    ax.plot(values, [0.02] * len(values), "|", color=plots.PALETTE[3], ms=9, transform=ax.get_xaxis_transform())
    ax.plot([], [], "|", color=plots.PALETTE[3], ms=9, label=f"top {len(values)} eigenvalues")
    ax.set_yscale("log")
    ax.set_ylim(floor, 5 * max(curve.high))
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density (1 / eigenvalue)")
    ax.legend(loc="upper right")
    plots.title(ax, f"Density, smoothed by {curve.width:.2g}")


def _top(ax: Axes, report: Any) -> None:
    found = report.eigenvalues
    values = [e.value for e in found]
    errors = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
    ax.errorbar(range(1, len(found) + 1), values, errors, fmt="o", color=plots.PALETTE[3], capsize=3, lw=1)
    if min(e.low for e in found) > 0 and max(values) > 20 * min(values):
        ax.set_yscale("log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("rank")
    ax.set_ylabel("eigenvalue")
    plots.title(ax, "Top eigenvalues, with certificates")


def _layers(ax: Axes, report: Any) -> None:
    rows = report.layers[:MOST_LAYERS]
    places = range(len(rows))
    numbers: list[float] = []
    parts = (("eigenvalue", "largest eigenvalue", 3, -0.12, "o"), ("trace", "trace", 0, 0.12, "s"))
    for what, label, colour, shift, marker in parts:
        found = [getattr(row, what) for row in rows]
        numbers += [x for f in found for x in (f.low, f.high)]
        errors = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
        ax.errorbar(
            [f.value for f in found],
            [p + shift for p in places],
            xerr=errors,
            fmt=marker,
            color=plots.PALETTE[colour],
            ms=4,
            capsize=2,
            lw=1,
            label=label,
        )
    largest = max(map(abs, numbers)) or 1.0
    if min(numbers) > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=largest / 1e3)
    ax.set_yticks(list(places), [f"{row.name} ({row.parameters:,})" for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("largest eigenvalue, and sum of eigenvalues")
    ax.set_ylabel("layer (parameters)")
    ax.legend(loc="best")
    whole = f"the sharpest {len(rows)} of {len(report.layers)}" if len(rows) < len(report.layers) else "own blocks"
    plots.title(ax, f"Layers, {whole}")
