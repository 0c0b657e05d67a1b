"""The paper's figures, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "bp": "descent (BP)",
    "oig-bp": "with gains (OIG-BP)",
    "hwo": "whitened (HWO)",
    "oig-hwo": "with gains (OIG-HWO)",
    "lm": "Levenberg-Marquardt",
}
DASHES = {"descent (BP)": "--", "whitened (HWO)": ":"}

for _arm in ("lm", "oig-bp", "oig-hwo", "hwo", "bp"):
    plots.colour(_arm)


def lines(ax: Axes, rows: pd.DataFrame, metric: str, paper: Paper) -> None:
    """Means and intervals of every algorithm; those without gains are broken lines."""
    plots.band(ax, rows, metric, paper, methods=list(LABELS), labels=LABELS, markers=False)
    for line in ax.lines:
        line.set_linestyle(DASHES.get(line.get_label(), "-"))


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Training error against multiplications, a panel for each problem."""
    rows = table[table["metric"] == "error_at_cost"]
    problems = list(dict.fromkeys(rows["problem"]))
    fig, axes = plots.subplots(1, len(problems), width=3.0, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        mine = rows[rows["problem"] == problem]
        everywhere = mine.groupby(["method", "step"], observed=True)["value"].transform("size")
        whole = mine[everywhere == mine["seed"].nunique()]  # a mean over the seeds that went on longest would mislead
        lines(ax, whole, "error_at_cost", paper)
        ax.set(xscale="log", xlabel=paper.metrics["error_at_cost"].step, ylim=(0, None))
        if ax is not axes[0, 0]:
            ax.set_ylabel("")
        plots.title(ax, problem)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def rivals(table: pd.DataFrame, paper: Paper) -> Figure:
    """Test error and cost relative to Levenberg-Marquardt, geometric means."""
    fig, axes = plots.subplots(1, 2, width=5.4)
    arms = [arm for arm in LABELS if arm != "lm"]
    for ax, metric in zip(axes, ("test_over_lm", "cost_over_lm"), strict=True):
        rows = table[table["metric"] == metric]
        problems = list(dict.fromkeys(rows["problem"]))
        stats = plots.summary(rows.assign(value=np.log(rows["value"])), ["method", "problem"])
        stats[["mean", "low", "high"]] = np.exp(stats[["mean", "low", "high"]])
        for i, arm in enumerate(arms):
            s = stats[stats["method"] == arm].set_index("problem").reindex(problems)
            at = [k + 0.15 * (i - 1.5) for k in range(len(problems))]
            error = [(s["mean"] - s["low"]).fillna(0), (s["high"] - s["mean"]).fillna(0)]
            ax.errorbar(at, s["mean"], error, color=plots.colour(arm), marker=plots.MARKERS[i], ls="", capsize=2,
                        label=LABELS[arm])  # fmt: skip
        ax.axhline(1, color=plots.MUTED, lw=1)
        ax.set_xticks(range(len(problems)), problems)
        ax.set(ylabel=plots.axis_label(paper, metric), yscale="log")
    plots.title(axes[0], "test error")
    plots.title(axes[1], "multiplications to the same training error")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def changed(table: pd.DataFrame, paper: Paper) -> Figure:
    """Training error by iteration with inputs as they are and changed."""
    rows = table[table["metric"] == "error_on_changed"]
    start = rows[rows["step"] == 0].set_index(["method", "problem", "seed"])["value"].rename("start")
    rows = rows.join(start, on=["method", "problem", "seed"])
    rows = rows.assign(value=rows["value"] / rows["start"])
    fig, axes = plots.subplots(1, 3, width=3.6, sharey=True)
    titles = {"as they are": "inputs as they are", "units": "in other units", "mixed": "mixed with each other"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        lines(ax, rows[rows["problem"] == name], "error_on_changed", paper)
        ax.set_ylabel("")
        plots.title(ax, title)
    axes[0].set_ylabel("training error / that at the start")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
