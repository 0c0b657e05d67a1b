"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "sgd": "SGD",
    "sgd-matched": "SGD, 10x step",
    "sgd-momentum": "SGD, momentum",
    "sgd-nesterov": "SGD",
    "sgdp": "SGDP",
    "sgdp-released": "SGDP, released",
    "sgdp-nesterov": "SGDP",
    "adamw": "AdamW",
    "adamw-copy": "AdamW, other start",
    "adamw-half-batch": "AdamW, half the batch",
    "adamp": "AdamP",
    "sgdp-peer": "SGDP, peer",
    "adamp-peer": "AdamP, peer",
    "char-gpt": "transformer",
    "char-gpt-wn": "with weight norm",
}
PUBLISHED_NORMS = {"cosine-0.9": 2.93, "cosine-0.99": 27.87}


def norms(table: pd.DataFrame, paper: Paper) -> Figure:
    """Norm, effective step and accuracy by epoch: a row for SGD's kind, a row for Adam's."""
    table = table[(table["experiment"] == "norms") & (table["problem"] != "digits-mlp-plain")]
    rows = (("sgd", "sgd-matched", "sgd-momentum", "sgdp", "sgdp-released"), ("adamw", "adamp"))
    fig, axes = plots.subplots(2, 3, width=3.9)
    for row, methods in zip(axes, rows, strict=True):
        for ax, metric in zip(row, ("weight_norm", "effective_step", "test_accuracy"), strict=True):
            plots.band(ax, table, metric, paper, methods=methods, labels=LABELS, markers=False)
        row[1].set_yscale("log")
        plots.few_log_ticks(row[1], "y")
        row[2].legend(loc="lower right")
    for ax, text in zip(axes[0], ("weight norms", "effective steps", "accuracies"), strict=True):
        plots.title(ax, text)
    return fig


def toy(table: pd.DataFrame, paper: Paper) -> Figure:
    """Norm and angle by step, a column for each momentum."""
    table = table[table["experiment"] == "toy"]
    problems = sorted(table.loc[table["metric"] == "norm", "problem"].unique())
    fig, axes = plots.subplots(2, len(problems), width=3.9, height=3.0, squeeze=False)
    for (top, bottom), problem in zip(axes.T, problems, strict=True):
        rows = table[table["problem"] == problem]
        for ax, metric in ((top, "norm"), (bottom, "angle")):
            plots.band(ax, rows, metric, paper, methods=("sgd", "sgd-momentum", "sgdp"), labels=LABELS, markers=False)
            ax.set(xscale="log", yscale="log")
        if problem in PUBLISHED_NORMS:
            plots.published(top, PUBLISHED_NORMS[problem], "project page")
        top.set_ylim(0.9, 10 * rows.loc[rows["metric"] == "norm", "value"].max())  # room for the legend
        plots.few_log_ticks(top, "y")
        bottom.set_ylim(1e-6, 5)
        top.legend(loc="upper left")
        plots.title(top, f"momentum {problem.removeprefix('cosine-')}")
    return fig


def gains(table: pd.DataFrame, paper: Paper) -> Figure:
    """Accuracy and perplexity, everything tuned."""
    with_text = (table["metric"] == "gain").any()
    fig, axes = plots.subplots(1, 2 if with_text else 1, squeeze=False)
    left = axes[0, 0]
    methods = ["sgd-nesterov", "sgdp-nesterov", "adamw", "adamp"]
    rows = table[(table["metric"] == "final_accuracy") & table["method"].isin(methods)]
    ends = plots.summary(rows, ["method"]).set_index("method").reindex(methods)
    error = [ends["mean"] - ends["low"], ends["high"] - ends["mean"]]
    left.errorbar(range(len(methods)), ends["mean"], error, fmt="o", color=plots.INK, capsize=3)
    left.set_xticks(range(len(methods)), [LABELS[m] for m in methods])
    left.set(xlim=(-0.5, len(methods) - 0.5), ylabel=plots.axis_label(paper, "final_accuracy"))
    plots.title(left, "test accuracy")
    if with_text:
        right = axes[0, 1]
        plots.bars(right, table, "gain", paper, methods=("adamp", "adamw-copy"), labels=LABELS)
        right.axhline(0, color=plots.INK, lw=1)
        right.legend()
        plots.title(right, "perplexity saved")
    return fig


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Time of a step."""
    arms = ["sgd-momentum", "sgdp", "sgdp-peer", "adamw-half-batch", "adamw", "adamp", "adamp-peer"]
    table = table[table["method"].isin(arms)].sort_values("method", key=lambda names: names.map(arms.index))
    fig, axes = plots.subplots(1, 2)
    for ax, problem, text in zip(
        axes, ("resnet20", "small-tensors"), ("ResNet-20 step", "optimizer alone"), strict=True
    ):
        rows = table[table["problem"] == problem].assign(colour="adam")  # one colour, the methods are named below
        plots.bars(ax, rows, "step_time", paper, x="method", hue="colour", labels=LABELS)
        ax.set_xticks(ax.get_xticks(), [tick.get_text().replace(", ", ",\n") for tick in ax.get_xticklabels()], size=8)
        plots.title(ax, text)
    return fig
