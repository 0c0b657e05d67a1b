"""Redraws the paper's comparisons from the tidy table alone."""

from __future__ import annotations

import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from secondlook.suite import plots
from secondlook.suite.cards import Paper

MAIN = ["rtn", "rtn-mse", "gptq", "gptq-mse", "gptq-grouped"]
SIZES = {"square_seconds": "square layer, GPTQ", "row_seconds": "more rows, GPTQ"}


def plain_log(axis: Axis) -> None:
    """A logarithmic axis that spans about a decade, with plain numbers on it."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def bits(table: pd.DataFrame, paper: Paper) -> Figure:
    """Perplexity against bits: measured on the left, published for LLaMA-7B on the right."""
    fig, (ours, theirs) = plots.subplots(1, 2)
    plots.band(ours, table, "perplexity", paper, methods=MAIN)
    dense = table[(table["metric"] == "perplexity") & (table["method"] == "dense")]["value"].mean()
    ours.axhline(dense, color=plots.MUTED, lw=1, ls=":", label="full precision")
    plots.title(ours, "Character-level GPT, measured")
    four, three = (paper.claim(f"better-than-rtn-{b}bit").published for b in (4, 3))
    for method in ("rtn", "gptq"):
        values = [three[f"llama_7b_{method}"], four[f"llama_7b_{method}"]]
        theirs.plot([3, 4], values, color=plots.colour(method), marker="o", label=method)
    plots.published(theirs, 5.68, "full precision, release README")
    theirs.set_xlim(*ours.get_xlim())
    theirs.set(xlabel="bits per weight", ylabel="perplexity on WikiText-2")
    plots.title(theirs, "LLaMA-7B, published")
    for ax in (ours, theirs):
        plain_log(ax.yaxis)
        ax.set_xticks([2, 3, 4])
    ours.legend()
    theirs.legend(loc="upper left")
    return fig


def variants(table: pd.DataFrame, paper: Paper) -> Figure:
    """All variants and controls at 3 bits, best first."""
    fig, ax = plots.subplots(1, 1, width=6.2, height=4.2)
    rows = table[(table["metric"] == "perplexity") & (table["step"] == 3)]
    stats = plots.summary(rows, ["method"]).sort_values("mean", ascending=False)
    y = range(len(stats))
    for at, row in zip(y, stats.itertuples(), strict=True):
        c = plots.colour(row.method)
        ax.plot([row.low, row.high], [at, at], color=c)
        ax.plot(row.mean, at, "o", color=c)
    ax.set_yticks(y, stats["method"])
    dense = table[(table["metric"] == "perplexity") & (table["method"] == "dense")]["value"].mean()
    ax.axvline(dense, color=plots.MUTED, lw=1, ls=":", label="full precision")
    ax.set_xlabel(plots.axis_label(paper, "perplexity"))
    ax.legend(loc="upper right")
    plots.title(ax, "Every variant and control at 3 bits")
    return fig


def order(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error of every layer over that of the greedy order, paired by seed."""
    fig, ax = plots.subplots(1, 1, width=7.5)
    rows = table[table["metric"] == "output_error"].copy()
    greedy = rows[rows["method"] == "obq"].set_index(["problem", "seed"])["value"]
    keys = pd.MultiIndex.from_frame(rows[["problem", "seed"]])
    rows["value"] = rows["value"].to_numpy() / greedy.reindex(keys).to_numpy()
    rows["problem"] = rows["problem"].astype(str).str.split("blocks.").str[-1]
    shown = ["gptq", "gptq-act-order", "gptq-random-order", "gptq-reverse-order", "rtn"]
    plots.bars(ax, rows, "output_error", methods=shown)
    ax.axhline(1.0, color=plots.MUTED, lw=1, ls=":")
    ax.set(xlabel="layer", ylabel="output error over that of the greedy order")
    ax.legend(ncols=2)
    plots.title(ax, "How much does the column order matter?")
    return fig


def time(table: pd.DataFrame, paper: Paper) -> Figure:
    """Log-log times against the layer's size."""
    fig, (left, right) = plots.subplots(1, 2)
    for metric, label in SIZES.items():
        plots.band(left, table, metric, labels={"gptq": label}, methods=["gptq"])
    for line, metric in zip(left.get_lines(), SIZES, strict=False):
        line.set_linestyle("-" if metric == "square_seconds" else "--")
    plots.band(left, table, "small_seconds", methods=["obq"], labels={"obq": "square layer, OBQ"})
    left.set(xscale="log", yscale="log", xlabel="rows", ylabel=plots.axis_label(paper, "square_seconds"))
    plots.title(left, "Time for one layer")
    plots.band(right, table, "speedup", paper, methods=["gptq", "obq-copy"])
    right.set_yscale("log")
    plain_log(right.xaxis)
    plots.title(right, "The greedy order's time over this")
    for ax in (left, right):
        ax.legend()
    return fig


def settings(table: pd.DataFrame, paper: Paper) -> Figure:
    """Dampening on the left, block sizes on the right."""
    fig, (left, right) = plots.subplots(1, 2)
    plots.band(left, table, "damped_perplexity", paper)
    left.axvline(0.01, color=plots.MUTED, lw=1, ls=":", label="the paper's choice")
    left.set_xscale("log")
    plots.title(left, "Dampening at 3 bits")
    plots.band(right, table.groupby(["metric", "method", "seed", "step"], observed=True, as_index=False)["value"].sum(),
               "changed_integers", paper, labels={"gptq-grouped-released": "gptq-grouped, as released"})  # fmt: skip
    right.set_xscale("log")
    plots.title(right, "Integers that depend on the block size")
    for ax in (left, right):
        ax.legend()
    return fig
