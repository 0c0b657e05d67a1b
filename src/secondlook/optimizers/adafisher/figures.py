"""What F does, how training goes, and what lies off the diagonal of the factors; redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "adafisher": "AdaFisher",
    "adafisher-scalar": "one number a layer",
    "adafisher-printed": "AdaFisher, printed constants",
    "sgd-matched": "heavy ball, matched schedule",
    "sgd": "heavy ball, tuned",
    "adam": "Adam",
    "adahessian": "AdaHessian, half the epochs",
    "factors": "as it is",
    "turned": "in a random basis",
    "noise": "noise",
    "diagonal-only": "diagonal only",
}
DAMPING = 1e-3


for _method in ("adafisher", "adafisher-scalar", "adafisher-printed", "sgd-matched"):
    plots.colour(_method)  # the clear colours to those that share a panel


def fisher(table: pd.DataFrame, paper: Paper) -> Figure:
    """Range of F by step, and the largest ratio within a layer."""
    table = table[table["experiment"] == "training"]
    table = table[table["problem"] == _problems(table)[0]]
    methods = ("adafisher-printed", "adafisher", "adafisher-scalar")
    fig, (left, right) = plots.subplots(1, 2)
    for method in methods[:2]:
        rows = table[table["method"] == method]
        low, high = (plots.summary(rows[rows["metric"] == m], ["step"]) for m in ("fisher_low", "fisher_high"))
        colour = plots.colour(method)
        left.fill_between(low["step"], low["mean"], high["mean"], color=colour, alpha=0.15, lw=0)
        for edge, label in ((low, None), (high, LABELS[method])):
            error = np.nan_to_num([edge["mean"] - edge["low"], edge["high"] - edge["mean"]])
            left.errorbar(edge["step"], edge["mean"], error, color=colour, lw=1.5, capsize=1.5, label=label)
    left.axhline(DAMPING, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="damping")
    left.set(yscale="log", xlabel="step", ylabel="smallest and largest entry of F")
    left.legend(loc="center right", bbox_to_anchor=(1, 0.62))
    plots.title(left, "entries of F")
    plots.band(right, table, "fisher_ratio", paper, methods=methods, labels=LABELS)
    right.set(yscale="log", ylabel="largest / smallest within a layer")
    plots.few_log_ticks(right, "y")
    right.legend(loc="center right", bbox_to_anchor=(1, 0.62))
    plots.title(right, "what F tells apart")
    return fig


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Training loss and test accuracy, a row for each problem."""
    table = table[table["experiment"] == "training"]
    problems = _problems(table)
    order = [m for m in LABELS if m in set(table["method"])]
    fig, axes = plots.subplots(len(problems), 2, squeeze=False)
    for row, problem in zip(axes, problems, strict=True):
        rows = table[table["problem"] == problem]
        losses = rows[rows["metric"] == "train_loss"]
        losses = plots.summary(losses.assign(value=np.log(losses["value"])), ["method", "step"])
        for i, method in enumerate(order):
            mine = losses[losses["method"] == method]
            at, mean, low, high = (mine[c].astype(float) for c in ("step", "mean", "low", "high"))
            line = {"color": plots.colour(method), "marker": plots.MARKERS[i], "label": LABELS[method]}
            row[0].plot(at, np.exp(mean), **line)
            row[0].fill_between(at, np.exp(low), np.exp(high), color=line["color"], alpha=0.18, lw=0)
        row[0].set(yscale="log", xlabel="epoch", ylabel=plots.axis_label(paper, "train_loss"))
        plots.band(row[1], rows, "test_accuracy", paper, methods=order, labels=LABELS)
        best = rows.loc[rows["metric"] == "test_accuracy", "value"].max()
        row[1].set_ylim(min(60.0, best - 5), min(101.0, best + 2))
        for ax in row:
            plots.title(ax, problem)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3)
    return fig


def _problems(table: pd.DataFrame) -> list[str]:
    return sorted(table["problem"].unique(), reverse=True)


def diagonals(table: pd.DataFrame, paper: Paper) -> Figure:
    """Diagonal shares and changes of eigenvalues."""
    table = table[table["experiment"] == "factors"]
    fig, (left, right) = plots.subplots(1, 2)
    rows = table[table["metric"] == "diagonal_share"]
    count = int(rows["step"].max()) + 1
    for i, method in enumerate(("factors", "turned")):
        mine = rows[rows["method"] == method]
        where = mine["step"] + 0.25 * (i - 0.5)
        left.plot(where, mine["value"], plots.MARKERS[i], color=plots.PALETTE[3 * i], ms=4, label=LABELS[method])
    left.axhline(0.5, color=plots.INK, ls=(0, (4, 2)), lw=1.2)
    names = [f"layer {i // 2 + 1}\n{'gradients' if i % 2 else 'inputs'}" for i in range(count)]
    left.set_xticks(range(count), names if count <= 8 else [""] * count, fontsize=7.5)
    left.set(ylabel=plots.axis_label(paper, "diagonal_share"))
    plots.title(left, "energy on the diagonal")
    left.set_ylim(0, 1.2)
    left.set_yticks([0, 0.25, 0.5, 0.75, 1])
    left.legend(loc="upper right", ncols=2)
    changed = table[table["metric"] == "eigenvalue_change"]
    for i, method in enumerate(("noise", "diagonal-only")):
        mine = changed.loc[changed["method"] == method, "value"]
        right.plot([i] * len(mine), mine, plots.MARKERS[i], color=plots.PALETTE[3 * i], ms=5)
    right.axhline(5, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label="5%")
    right.set_xticks(range(2), [LABELS["noise"], LABELS["diagonal-only"]])
    right.set(yscale="log", xlim=(-0.5, 1.5), ylabel=plots.axis_label(paper, "eigenvalue_change"))
    plots.title(right, "large eigenvalues")
    right.legend()
    return fig
