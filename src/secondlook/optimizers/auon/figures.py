"""The paper's argument in figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "sgd": "momentum SGD",
    "sgd-copy": "momentum SGD, copy",
    "auon": "AuON, released",
    "auon-printed": "AuON, printed",
    "hybrid": "hybrid",
    "hybrid-one-step": "hybrid, one step",
    "muon": "Muon",
    "adamw": "AdamW",
    "torch-muon": "torch's Muon (bfloat16)",
    "auon/sgd": "AuON, released / momentum SGD",
    "auon-printed/normalised-sgd": "AuON, printed / normalised SGD",
    "hybrid/muon": "hybrid / Muon",
    "muon/sgd": "Muon / momentum SGD",
    "sgd-float32/sgd": "momentum SGD, float32 / float64",
}
# Two rules that give one line are drawn one over the other, the first wide and pale.
UNDER = {"sgd", "muon"}

for _method in ("auon", "muon", "hybrid", "auon-printed"):
    plots.colour(_method)  # the clear colours to those that share a panel


def rates(table: pd.DataFrame, paper: Paper) -> Figure:
    """Loss against learning rate, and the test loss at the best one."""
    table = table[table["experiment"] == "training"]
    methods = [m for m in LABELS if m in set(table["method"])]
    fig, (left, right) = plots.subplots(1, 2, width=4.9)
    tuning = table[table["metric"] == "tuning_loss"]
    for method in methods:
        rows = tuning[tuning["method"] == method].sort_values("step")
        under = method in UNDER
        left.plot(rows["step"], rows["value"], color=plots.colour(method), lw=6 if under else 1.6,
                  alpha=0.45 if under else 1, marker=None if under else "o", zorder=1 if under else 2,
                  label=LABELS[method] if len(rows) else None)  # fmt: skip
    left.set(xscale="log", ylim=(0, 5 * tuning["value"].min()))
    left.set_xlabel(paper.metrics["tuning_loss"].step)
    left.set_ylabel(plots.axis_label(paper, "tuning_loss"))
    plots.title(left, "while tuning")
    fig.legend(loc="outside lower center", ncols=4)
    stats = plots.summary(table[table["metric"] == "best_test_loss"], ["method"]).set_index("method").reindex(methods)
    error = [stats["mean"] - stats["low"], stats["high"] - stats["mean"]]
    right.errorbar(stats["mean"], range(len(stats)), xerr=error, fmt="o", color=plots.INK, capsize=3)
    right.set_yticks(range(len(stats)), [LABELS[m] for m in stats.index])
    right.set(xlabel=plots.axis_label(paper, "best_test_loss"), xlim=(0, None), ylim=(len(stats) - 0.5, -0.5))
    plots.title(right, "tuned, fresh seeds")
    return fig


def spectra(table: pd.DataFrame, paper: Paper) -> Figure:
    """Singular values of updates made of one momentum matrix, relative to the largest."""
    rows = table[table["metric"] == "singular_value"]
    layer = sorted(rows["problem"].unique())[-1]
    fig, ax = plots.subplots(1, 1)
    for method in ("sgd", "auon", "auon-printed", "hybrid-one-step", "muon", "hybrid"):
        line = rows[(rows["method"] == method) & (rows["problem"] == layer)].sort_values("step")
        under = method in UNDER
        ax.plot(line["step"], line["value"], color=plots.colour(method), lw=6 if under else 1.6,
                alpha=0.45 if under else 1, ls="--" if method == "auon-printed" else "-",
                zorder=1 if under else 2, label="momentum" if method == "sgd" else LABELS[method])  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlabel(paper.metrics["singular_value"].step)
    ax.set_ylabel(plots.axis_label(paper, "singular_value"))
    plots.title(ax, "spectrum of an update")
    ax.legend(loc="lower left")
    return fig


def paths(table: pd.DataFrame, paper: Paper) -> Figure:
    """Relative distance between the paths of two rules, a line for each pair."""
    stats = plots.summary(table[table["metric"] == "path_gap"], ["method", "step"])
    fig, ax = plots.subplots(1, 1, width=6.8)
    pairs = ("muon/sgd", "hybrid/muon", "auon-printed/normalised-sgd", "auon/sgd", "sgd-float32/sgd")
    for i, pair in enumerate(pairs):
        s = stats[stats["method"] == pair].sort_values("step")
        error = [s["mean"] - s["low"], s["high"] - s["mean"]]
        ax.errorbar(s["step"], s["mean"], error, color=plots.PALETTE[i], marker=plots.MARKERS[i], capsize=2,
                    label=LABELS[pair])  # fmt: skip
    ax.set(yscale="log", xlabel=paper.metrics["path_gap"].step, ylabel=plots.axis_label(paper, "path_gap"))
    plots.title(ax, "how far two rules part")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Operations, and where it was measured time, of a step against the number of entries."""
    metrics = [m for m in ("operations", "step_time") if m in set(table["metric"])]
    fig, axes = plots.subplots(1, len(metrics), squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        rows = table[table["metric"] == metric]
        methods = [m for m in ("adamw", "auon", "muon", "torch-muon") if m in set(rows["method"])]
        plots.band(ax, rows, metric, paper, methods=methods, labels=LABELS)
        ax.set(xscale="log", yscale="log")
        plots.title(ax, "a square matrix")
        ax.legend()
    return fig
