"""Correlation by gap and by dimension, and the rows stored, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "block-store": "block method, heavy rows stored",
    "block": "block method, nothing stored",
    "oja": "Oja, best fixed rate in hindsight",
    "sorted": "block method, sorted stream",
    "largest-row": "row of largest norm",
}


def by_gap(table: pd.DataFrame, paper: Paper) -> Figure:
    """One panel for each number of heavy rows."""
    problems = sorted(table.loc[table["metric"] == "correlation", "problem"].unique(), key=lambda p: int(p[2:]))
    fig, axes = plots.subplots(1, len(problems), width=3.8, height=4.2, sharey=True, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        _curves(ax, table[table["problem"] == problem], "correlation", paper)
        gaps = np.geomspace(*ax.get_xlim(), 50)
        ax.plot(gaps, 1 - 1 / np.sqrt(gaps), color=plots.INK, ls=":", lw=1.2, label=r"$1 - 1/\sqrt{R}$")
        plots.title(ax, _heading(problem))
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    handles = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return fig


def by_dimension(table: pd.DataFrame, paper: Paper) -> Figure:
    """Correlation as the dimension grows, and the largest store against the number of heavy rows."""
    rows = table[table["metric"] == "by_dimension"]
    problems = sorted(rows["problem"].unique())
    fig, axes = plots.subplots(1, len(problems) + 1, width=3.8, height=3.6, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=False):
        _curves(ax, rows[rows["problem"] == problem], "by_dimension", paper, base=2)
        plots.title(ax, _heading(problem))
    axes[0, 0].legend(fontsize=7.5, loc="lower left")
    last = axes[0, -1]
    stored = table[(table["metric"] == "stored") & (table["method"] == "block-store")]
    stored = stored.assign(heavy=stored["problem"].str[2:].astype(int))
    stored = stored.groupby(["heavy", "seed"], as_index=False)["value"].mean()
    s = plots.summary(stored, ["heavy"])
    gap = (s["mean"] - s["low"]).fillna(0)
    last.errorbar(s["heavy"], s["mean"], gap, fmt="o-", color=plots.colour("block-store"), capsize=3)
    last.axline((0, 0), slope=1, color=plots.INK, ls=":", lw=1.2, label="the heavy rows alone")
    last.set(xlabel="heavy rows h", ylabel=plots.axis_label(paper, "stored"), ylim=(0, None))
    last.set_xticks(s["heavy"])
    last.legend(loc="upper left")
    last.set_ylim(0, 1.2 * last.get_ylim()[1])
    plots.title(last, "memory")
    return fig


def _heading(problem: str) -> str:
    heavy = problem.removeprefix("h=")
    return {"0": "no heavy rows", "1": "one heavy row", "4": "four heavy rows"}.get(heavy, f"{heavy} heavy rows")


def _curves(ax: Axes, rows: pd.DataFrame, metric: str, paper: Paper, base: int | None = None) -> None:
    """One line a method with its interval, against the step on a logarithmic axis."""
    for name in NAMES:  # colours in this order in every panel
        plots.colour(name)
    plots.band(ax, rows, metric, paper, methods=list(NAMES), labels=NAMES)
    ax.set_xscale("log", **({"base": base} if base else {}))
    ticks = sorted(rows.loc[rows["metric"] == metric, "step"].unique())
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.03, 1.05)
