"""The transfer measure against its bound, accuracy by method, and the distance of Hessians during training."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

ARMS = ["erm", "irm", "vrex", "gradient", "hgp", "hutchinson", "exact"]
_COLOURS = [plots.PALETTE[i] for i in (7, 0, 9, 1, 2, 3, 4)]
NAMES = {
    "erm": "ERM",
    "irm": "IRM",
    "vrex": "V-REx",
    "gradient": "gradient",
    "hgp": "HGP",
    "hutchinson": "Hutchinson",
    "exact": "whole\nHessian",
    "train_accuracy": "training domains",
    "test_accuracy": "test, correlation reversed",
    "grey_accuracy": "test, no colour",
    "aligned": "one minimiser",
    "moved": "minimisers differ (control)",
}


def bound(table: pd.DataFrame, paper: Paper) -> Figure:
    """A point for every trial; nothing with one minimiser may lie above the diagonal."""
    rows = table[table["metric"].isin(["gap", "bound"])]
    problems = sorted(rows["problem"].unique(), key=lambda name: float(name.split("=")[1]))
    fig, axes = plots.subplots(1, len(problems), width=3.8, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        wide = rows[rows["problem"] == problem].pivot_table(
            index=["method", "seed", "step"], columns="metric", values="value", observed=True
        )
        for method, colour in (("moved", plots.PALETTE[7]), ("aligned", plots.PALETTE[0])):
            points = wide.loc[method]
            ax.plot(points["bound"], points["gap"], ".", color=colour, alpha=0.6, label=NAMES[method])
        ends = [wide["bound"].min(), wide["bound"].max()]
        ax.plot(ends, ends, color=plots.INK, lw=1, label="equality")
        ax.set(xscale="log", yscale="log", xlabel=plots.axis_label(paper, "bound"))
        plots.title(ax, problem.replace("delta", r"$\delta$"))
    axes[0, 0].set_ylabel(plots.axis_label(paper, "gap"))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def accuracy(table: pd.DataFrame, paper: Paper) -> Figure:
    """Accuracy in the training domains and on both tests, for every method; a panel for each kind of domains."""
    metrics = ["train_accuracy", "test_accuracy", "grey_accuracy"]
    rows = table[table["metric"].isin(metrics)]
    problems = list(dict.fromkeys(rows["problem"]))
    fig, axes = plots.subplots(1, len(problems), width=5.6, squeeze=False, sharey=True)
    for ax, problem in zip(axes[0], problems, strict=True):
        own = rows[(rows["problem"] == problem) & rows["method"].isin(ARMS)]
        arms = [arm for arm in ARMS if arm in set(own["method"])]
        own = own.assign(value_of=own["metric"], metric="accuracy").sort_values(
            "method", key=lambda column: column.map(arms.index), kind="stable"
        )
        plots.bars(ax, own, "accuracy", x="method", hue="value_of", methods=metrics, labels=NAMES)
        ax.axhline(75, color=plots.INK, lw=1, ls=":")
        ax.axhline(50, color=plots.MUTED, lw=1, ls=":")
        ax.tick_params(axis="x", labelsize=8)
        ax.set_ylim(0, 120)
        ax.set_yticks(range(0, 101, 25))
        plots.title(ax, problem)
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[0, 0].legend(loc="upper left", ncols=3, fontsize=7.5)
    return fig


def distance(table: pd.DataFrame, paper: Paper) -> Figure:
    """How far the training domains' head Hessians are apart during training."""
    rows = table[table["metric"] == "hessian_distance"]
    problems = list(dict.fromkeys(rows["problem"]))
    fig, axes = plots.subplots(1, len(problems), width=5.2, squeeze=False)
    stats = plots.summary(rows, ["problem", "method", "step"])
    apart = 0.008 * float(stats["step"].max())  # so that intervals stand side by side
    for ax, problem in zip(axes[0], problems, strict=True):
        own = stats[stats["problem"] == problem]
        for i, arm in enumerate(ARMS):
            s = own[own["method"] == arm]
            if s.empty:
                continue
            error = [(s["mean"] - s["low"]).fillna(0), (s["high"] - s["mean"]).fillna(0)]
            label = NAMES[arm].replace("\n", " ")
            where = s["step"] + (i - 3) * apart
            ax.errorbar(
                where, s["mean"], error, color=_COLOURS[i], marker=plots.MARKERS[i], elinewidth=0.8, label=label
            )
        ax.set_ylim(0, None)
        ax.set(xlabel=paper.metrics["hessian_distance"].step, ylabel=plots.axis_label(paper, "hessian_distance"))
        plots.title(ax, problem)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=7)
    return fig
