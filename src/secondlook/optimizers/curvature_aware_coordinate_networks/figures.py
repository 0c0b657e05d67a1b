"""Curves and speed-ups, drawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {"lbfgs": "L-BFGS", "adam": "Adam", "adam-batches": "Adam, batches"}
ACTIVATIONS = {"sine": "sine", "gauss": "Gaussian", "relu_pe": "ReLU, encoded", "tanh": "tanh"}


def split(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric, with the signal and the activation of their problem, both in the order of the run."""
    rows = table[table["metric"] == metric]
    parts = rows["problem"].str.split("-", expand=True)
    return rows.assign(signal=parts[0], activation=parts[1])


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """PSNR against work, a row for each signal and a panel for each activation."""
    rows = split(table, "psnr")
    signals, activations = rows["signal"].unique(), [a for a in ACTIVATIONS if a in set(rows["activation"])]
    fig, axes = plots.subplots(len(signals), len(activations), width=3.4, squeeze=False, sharey="row")
    for line, signal in zip(axes, signals, strict=True):
        for ax, activation in zip(line, activations, strict=True):
            here = rows[(rows["signal"] == signal) & (rows["activation"] == activation)]
            plots.band(ax, here, "psnr", paper, methods=list(LABELS), labels=LABELS, markers=False)
            plots.title(ax, f"{signal}, {ACTIVATIONS[activation]}")
    for ax in (ax for line in axes for ax in line[1:]):
        ax.set_ylabel("")
    axes[0][0].legend(loc="lower right")
    return fig


def speedups(table: pd.DataFrame, paper: Paper) -> Figure:
    """Gradients that Adam needs over those that L-BFGS needs, by activation; a panel for each signal."""
    rows = split(table, "evals_to_target")
    wide = rows.pivot_table(index=["signal", "activation", "seed"], columns="method", values="value")
    ratios = np.log(wide["adam"] / wide["lbfgs"]).rename("value").reset_index()
    signals = rows["signal"].unique()
    fig, axes = plots.subplots(1, len(signals), width=4.2, squeeze=False, sharey=True)
    for ax, signal in zip(axes[0], signals, strict=True):
        stats = plots.summary(ratios[ratios["signal"] == signal], ["activation"]).set_index("activation")
        stats = np.exp(stats.loc[[a for a in ACTIVATIONS if a in stats.index], ["mean", "low", "high"]])
        error = np.nan_to_num([stats["mean"] - stats["low"], stats["high"] - stats["mean"]])
        at = np.arange(len(stats))
        ax.errorbar(at, stats["mean"], error, fmt="o", color=plots.colour("lbfgs"), ecolor=plots.INK, capsize=3)
        ax.axhline(1.5, color=plots.MUTED, ls=":")
        ax.axhline(1, color=plots.INK, lw=0.8)
        ax.set(yscale="log", xlim=(-0.5, len(stats) - 0.5), ylabel="fewer gradients than Adam (x)")
        plots.few_log_ticks(ax, "y")
        ax.set_xticks(at, [ACTIVATIONS[a] for a in stats.index])
        plots.title(ax, signal)
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    return fig
