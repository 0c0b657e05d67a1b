"""Sharpness against learning rate, test error, and the exact stability limits, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {"sgd": "SGD, one sample", "gd": "GD", "same-rate": "SGD at one rate (control)"}


def sharpness(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, axes = plots.subplots(1, 3, width=4.0)
    rows = table[(table["experiment"] == "minima") & (table["problem"] == "sparse")]
    panels = {"scaled_trace": "Trace", "scaled_top": "Largest eigenvalue", "used": "Mean-square limit"}
    for ax, (metric, word) in zip(axes, panels.items(), strict=True):
        _spread(ax, rows, metric, paper, ["sgd", "gd"])
        limit = 1.0 if metric == "used" else 2.0
        ax.axhline(limit, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="limit of stability", zorder=1.5)
        ax.set_yscale("log")
        plots.title(ax, word)
    axes[0].legend(loc="upper left", fontsize=7.5)
    return fig


def generalisation(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, axes = plots.subplots(1, 3, width=4.0)
    rows = table[table["experiment"] == "minima"]
    _spread(axes[0], rows[rows["problem"] == "sparse"], "norm", paper, ["sgd", "gd", "same-rate"])
    plots.title(axes[0], "Norm, sparse target")
    for ax, kind in zip(axes[1:], ("sparse", "dense"), strict=True):
        _spread(ax, rows[rows["problem"] == kind], "test_error", paper, ["sgd", "gd"])
        plots.title(ax, f"Test error, {kind} target")
    for ax in axes:
        ax.legend(fontsize=7.5)
    return fig


def limits(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, (left, right) = plots.subplots(1, 2)
    rows = table[table["metric"] == "critical_trace"]
    methods = sorted(set(rows["method"]), key=lambda name: (name == "gd", len(name), name))
    for name, colour in zip(methods, plots.sequence(len(methods)), strict=True):
        values = np.sort(rows[rows["method"] == name]["value"])
        left.step(
            values,
            100 * np.arange(1, len(values) + 1) / len(values),
            color=colour,
            label=name.upper().replace("BATCH", "batch"),
        )
    left.axvline(2, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="the paper's bound")
    left.set_xscale("log")
    plots.few_log_ticks(left, "x")
    left.set_xlabel(plots.axis_label(paper, "critical_trace"))
    left.set_ylabel("random problems up to here (%)")
    left.legend(fontsize=7.5)
    plots.title(left, "Exact limits of stability")
    plots.band(right, table, "octaves", paper, methods=["weighted norm", "path norm"])
    right.axhline(1, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="a factor of two")
    right.set_xscale("log")
    right.set_xlabel("hidden units")
    right.legend(fontsize=7.5)
    plots.title(right, "Trace against norms, ReLU network")
    return fig


def _spread(ax: Axes, rows: pd.DataFrame, metric: str, paper: Paper, arms: list[str]) -> None:
    """Median over seeds and the range of all of them: the runs that settle are few at the largest rates."""
    for i, arm in enumerate(arms):
        at = rows[(rows["metric"] == metric) & (rows["method"] == arm)].groupby("step")["value"]
        if not len(at):
            continue
        low, mid, high = at.min(), at.median(), at.max()
        c = plots.colour(arm)
        ax.plot(mid.index, mid, color=c, marker=plots.MARKERS[i], label=NAMES[arm])
        ax.fill_between(mid.index, low, high, color=c, alpha=0.18, lw=0)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate")
    ax.set_ylabel(plots.axis_label(paper, metric))
