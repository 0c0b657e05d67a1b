"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper
from secondlook.suite.errors import NotMeasured

LABELS = {
    "bce": "cross-entropy",
    "bce-copy": "cross-entropy, again",
    "hinge": "hinge",
    "exp": "exponential",
    "ensloss": "EnsLoss",
    "unsorted": "EnsLoss, not sorted",
}
SHIFT = 0.07  # between the points of neighbouring arms

for _arm in ("ensloss", "hinge", "exp", "unsorted", "bce-copy", "bce"):
    plots.colour(_arm)


def depth(table: pd.DataFrame, paper: Paper) -> Figure:
    """Test accuracy minus that of cross-entropy by depth: the mean over problems, then every problem."""
    rows = table[table["metric"] == "gain"]
    mean = rows.groupby(["method", "seed", "step"], as_index=False, observed=True)["value"].mean()
    problems = sorted(rows["problem"].unique())
    fig, axes = plots.subplots(1, 1 + len(problems), width=3.0, sharey=True)
    panels = [("mean of the problems", mean), *((p, rows[rows["problem"] == p]) for p in problems)]
    depths = sorted(rows["step"].unique())
    for ax, (name, part) in zip(axes, panels, strict=True):
        stats = plots.summary(part, ["method", "step"])
        for i, arm in enumerate(a for a in LABELS if a != "bce" and a in set(part["method"])):
            s = stats[stats["method"] == arm]
            at = [depths.index(step) + SHIFT * (i - 2) for step in s["step"]]
            error = [(s["mean"] - s["low"]).fillna(0), (s["high"] - s["mean"]).fillna(0)]
            ax.errorbar(at, s["mean"], error, color=plots.colour(arm), marker=plots.MARKERS[i], ls="", capsize=2,
                        label=LABELS[arm])  # fmt: skip
        ax.axhline(0, color=plots.MUTED, lw=1)
        ax.set_xticks(range(len(depths)), [f"{d:g}" for d in depths])
        ax.set(xlim=(-0.5, len(depths) - 0.5), xlabel=paper.metrics["gain"].step)
        plots.title(ax, name)
    axes[0].set_ylabel(plots.axis_label(paper, "gain"))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def drawn(table: pd.DataFrame, paper: Paper) -> Figure:
    """Derivatives of a few batches against the margin, with and without the order."""
    rows = table[table["metric"] == "derivative"]
    fig, axes = plots.subplots(1, 2, sharey=True)
    for ax, arm in zip(axes, ("ensloss", "unsorted"), strict=True):
        mine = rows[rows["method"] == arm]
        batches = sorted(mine["problem"].unique())
        for i, (batch, colour) in enumerate(zip(batches, plots.sequence(len(batches)), strict=True)):
            b = mine[mine["problem"] == batch].sort_values("step")
            ax.plot(b["step"], b["value"], color=colour, marker=plots.MARKERS[i], ms=3, lw=1, label=batch)
        ax.set_xlabel(paper.metrics["derivative"].step)
        plots.title(ax, LABELS[arm])
    axes[0].set_ylabel(plots.axis_label(paper, "derivative"))
    axes[0].legend()
    return fig


def curves(table: pd.DataFrame, paper: Paper) -> Figure:
    """Test accuracy by epoch on the hardest pair, cats and dogs."""
    rows = table[(table["metric"] == "image_accuracy") & table["problem"].str.endswith("-3-5")]
    if rows.empty:
        raise NotMeasured("networks for images are trained at scale gpu only, see the claim cat-dog-accuracy")
    problems = sorted(rows["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        arms = [a for a in LABELS if a in set(rows["method"])]
        plots.band(ax, rows[rows["problem"] == problem], "image_accuracy", paper, methods=arms, labels=LABELS)
        if problem.startswith("vgg16"):
            plots.published(ax, 81.13, "out_cifar.md, EnsLoss")
        plots.title(ax, problem.replace("-3-5", ", cats and dogs"))
        ax.legend(loc="lower right")
    return fig
