"""The step law's figures, from the tidy table alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from secondlook.suite import plots
from secondlook.suite.cards import Paper

PRINTED = {"lr_exp_N": -0.713, "lr_exp_D": 0.307, "bs_exp_D": 0.571}
NAMES = {
    "released-bootstrap": "released bootstrap",
    "refit": "refit from losses",
    "refit-strict": "refit, within 0.1%",
    "refit-loose": "refit, within 0.5%",
}


def exponents(table: pd.DataFrame, paper: Paper) -> Figure:
    """Exponents of the laws with 95% bootstrap ellipses against the published point."""
    figure, axes = plots.subplots(1, 2, width=4.9, height=3.9)
    for ax, (x, y) in zip(axes, (("lr_exp_N", "lr_exp_D"), ("bs_exp_D", "lr_exp_D")), strict=True):
        for method, label in NAMES.items():
            draws = table[table["method"] == method].pivot_table(index="step", columns="metric", values="value")
            points = draws[[f"{x}_draw", f"{y}_draw"]].dropna().to_numpy()
            values, vectors = np.linalg.eigh(np.cov(points.T))
            width, height = 2 * np.sqrt(5.991 * values)  # chi-squared, two degrees of freedom, 95%
            angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
            c = plots.colour(method)
            ax.add_patch(Ellipse(points.mean(0), width, height, angle=angle, fc=c, alpha=0.18, lw=0))
            ax.plot(*points.mean(0), "o", color=c, label=label)
        ax.plot(PRINTED[x], PRINTED[y], "*", ms=12, color=plots.INK, label="published")
        ax.set(xlabel=plots.axis_label(paper, x), ylabel=plots.axis_label(paper, y))
        ax.autoscale_view()
    axes[1].legend(loc="best")
    return figure


def gaps(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss gap of each rule over the 17 settings."""
    rows = table[table["metric"] == "gap"]
    order = {
        "printed-law": "printed law",
        "refit": "refitted law",
        "constant-rule": "best constant\n(hindsight)",
        "shuffled-labels": "shuffled labels\n(control)",
        "random-run": "median run",
    }
    figure, ax = plots.subplots(1, 1, width=6.4, height=3.6)
    rng = np.random.default_rng(0)
    for i, method in enumerate(order):
        values = rows[rows["method"] == method]["value"].to_numpy()
        # A gap of exactly zero (the law hits the best run) is drawn at the axis' lower end.
        ax.plot(
            i + rng.uniform(-0.16, 0.16, len(values)),
            np.maximum(values, 0.005),
            "o",
            color=plots.colour(method),
            alpha=0.75,
        )
        ax.plot([i - 0.28, i + 0.28], [values.mean()] * 2, color=plots.INK, lw=2)
    plots.published(ax, 0.094, "abstract, version 7")
    ax.set_yscale("log")
    ax.set_xticks(range(len(order)), order.values())
    ax.set_ylabel(plots.axis_label(paper, "gap"))
    ax.legend()
    return figure


def one_bowl(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss against learning rate, one line a batch size, in one setting."""
    rows = table[(table["metric"] == "loss") & table["method"].str.startswith("batch ")]
    rows = rows[rows["problem"] == rows["problem"].iloc[0]]
    rows = rows.assign(batch=rows["method"].str.removeprefix("batch ").astype(float))
    sizes = sorted(rows["batch"].unique())
    figure, ax = plots.subplots(1, 1, width=7.0, height=3.8)
    shades = plots.sequence(len(sizes))
    for batch, shade in zip(sizes, shades, strict=True):
        line = rows[rows["batch"] == batch].sort_values("step")
        ax.plot(line["step"], line["value"], "o-", ms=3, color=shade, label=f"{batch / 1e6:.2f} M tokens")
    best = rows["value"].min()
    ax.set(
        xscale="log", ylim=(best - 0.01, best + 0.16), xlabel="learning rate", ylabel=plots.axis_label(paper, "loss")
    )
    ax.legend(title="batch", loc="center left", bbox_to_anchor=(1.01, 0.5))
    plots.title(ax, rows["problem"].iloc[0])
    return figure


def optima(table: pd.DataFrame, paper: Paper) -> Figure:
    """The law's optimum against the vertex of each setting's bowl."""
    figure, axes = plots.subplots(1, 2, width=4.2, height=3.8)
    for ax, metric in zip(axes, ("best_lr", "best_batch"), strict=True):
        wide = table[table["metric"] == metric].pivot(index="problem", columns="method", values="value")
        ax.plot(wide["printed-law"], wide["bowl"], "o", color=plots.colour("refit"))
        ends = [wide.to_numpy().min() * 0.85, wide.to_numpy().max() * 1.15]
        ax.plot(ends, ends, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="published law")
        label = plots.axis_label(paper, metric)
        ax.set(xscale="log", yscale="log", xlabel=f"{label}, law", ylabel=f"{label}, vertex of the bowl")
        plots.few_log_ticks(ax)
        ax.legend()
    return figure
