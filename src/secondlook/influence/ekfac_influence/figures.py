"""Redraws the paper's comparisons from the tidy table alone."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "dot": "gradient dot product",
    "dot-copy": "dot product, other network",
    "dot-scaled": "dot product, layers rescaled",
    "diagonal": "diagonal",
    "kfac": "K-FAC",
    "ekfac": "EK-FAC",
    "ekfac-other-network": "EK-FAC, other network's factors",
    "ekfac-random-basis": "EK-FAC, random eigenbasis",
    "lissa": "LiSSA",
    "lissa-batched": "LiSSA, queries together",
    "exact": "exact damped inverse",
    "svd": "leading singular directions",
    "random-subspace": "random directions",
    "gaussian": "Gaussian numbers",
}
MAIN = ["dot", "diagonal", "kfac", "ekfac", "lissa"]
CONTROLS = ["dot", "dot-copy", "dot-scaled", "ekfac-random-basis", "ekfac-other-network", "ekfac"]


def below(ax: Axes, columns: int = 2) -> None:
    """Legend under the axes, where it covers no data."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)


def correlation(table: pd.DataFrame, paper: Paper) -> Figure:
    """Correlation with the exact response, a group of bars a task: the methods, and what breaks EK-FAC."""
    fig, axes = plots.subplots(1, 2, width=5.2, height=4.0, sharey=True)
    for ax, methods, text in zip(axes, (MAIN, CONTROLS), ("Methods", "Controls"), strict=True):
        plots.bars(ax, table, "pearson", paper, methods=methods, labels=LABELS)
        plots.title(ax, text)
        below(ax)
    axes[1].set_ylabel("")
    return fig


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Seconds against the number of queries."""
    fig, ax = plots.subplots(1, 1)
    methods = ["lissa", "lissa-batched", "ekfac"]
    plots.band(ax, table[table["experiment"] == "cost"], "seconds", paper, methods=methods, labels=LABELS)
    ax.set(xscale="log", yscale="log")
    counts = sorted(table.loc[table["metric"] == "seconds", "step"].dropna().unique())
    ax.set_xticks(counts, [f"{c:g}" for c in counts])
    ax.minorticks_off()
    ax.legend()
    plots.title(ax, "Fit included")
    return fig


def compression(table: pd.DataFrame, paper: Paper) -> Figure:
    """Correlation of compressed with full scores against the rank."""
    fig, ax = plots.subplots(1, 1)
    plots.band(ax, table, "rank_correlation", paper, methods=["svd", "random-subspace"], labels=LABELS)
    low = paper.claim("low-rank-queries-lossless")
    plots.published(ax, low.published["shutdown_rank32"], "Fig. 3, rank 32 of a 52B model")
    ranks = sorted(table.loc[table["metric"] == "rank_correlation", "step"].dropna().unique())
    ax.set_xscale("log")
    ax.set_xticks(ranks, [f"{r:g}" for r in ranks])
    ax.minorticks_off()
    below(ax, 1)
    plots.title(ax, "Character transformer")
    return fig


def retraining(table: pd.DataFrame, paper: Paper) -> Figure:
    """Linear datamodeling score, a group of bars a task."""
    fig, ax = plots.subplots(1, 1, width=5.6, height=4.0)
    methods = ["dot", "dot-copy", "diagonal", "kfac", "ekfac", "exact"]
    plots.bars(ax, table, "lds", paper, methods=methods, labels=LABELS)
    below(ax)
    plots.title(ax, "Networks retrained on random halves of the data")
    return fig


def tails(table: pd.DataFrame, paper: Paper) -> Figure:
    """Power-law exponents of the largest influences: printed for 52B parameters, and measured where it was run."""
    fig, ax = plots.subplots(1, 1)
    printed = paper.claim("heavy-tailed-influence").published
    exponents = {k.removeprefix("exponent_"): v for k, v in printed.items() if k.startswith("exponent_")}
    ax.bar(list(exponents), list(exponents.values()), color=plots.MUTED, width=0.6, label="published, Table 1")
    measured = table[table["metric"] == "tail_exponent"]
    for method, rows in measured.groupby("method"):
        label = f"measured, {LABELS.get(method, method)}"
        ax.axhline(rows["value"].mean(), color=plots.colour(method), label=label)
    ax.set_ylabel(plots.axis_label(paper, "tail_exponent"))
    ax.set_xlabel("query of the paper")
    ax.legend()
    plots.title(ax, "Tail exponents" if len(measured) else "Tail exponents, not measured at this scale")
    return fig
