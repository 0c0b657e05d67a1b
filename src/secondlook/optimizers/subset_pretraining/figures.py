"""The paper's figures, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper


def line(ax: Axes, rows: pd.DataFrame, label: str, colour: str, style: str = "o-", log: bool = False) -> None:
    """Mean and 95% interval over seeds against the step; of the logarithms where asked for."""
    forth, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    s = plots.summary(rows.assign(value=forth(rows["value"])), ["step"])
    ax.plot(s["step"], back(s["mean"]), style, color=colour, label=label)
    if s["low"].notna().any():
        ax.fill_between(s["step"].astype(float), back(s["low"]), back(s["high"]), color=colour, alpha=0.18, lw=0)


def thresholds(table: pd.DataFrame, paper: Paper) -> Figure:
    """Excess loss, and training and test loss at a subset's minimum, against the overdetermination ratio."""
    fig, (left, *others) = plots.subplots(1, 3, width=3.7, height=3.5)
    excess = table[table["metric"] == "excess"]
    line(left, excess[excess["method"] == "measured"], "least squares on a subset", plots.PALETTE[0], "o", log=True)
    law = excess[excess["method"] == "exact-law"].groupby("step")["value"].first()
    left.plot(law.index, law, color=plots.INK, lw=1, label="$P / (K - P - 1)$")
    left.set(xscale="log", yscale="log", xlabel=paper.metrics["excess"].step, ylabel=plots.axis_label(paper, "excess"))
    plots.few_log_ticks(left)
    plots.title(left, "linear model")
    left.legend()
    for ax, metric in zip(others, ("train_ratio", "test_loss"), strict=True):
        rows = table[(table["metric"] == metric) & (table["method"] == "subset")]
        problems = sorted(rows["problem"].unique(), key=lambda p: int(p.split()[0]))
        for problem, colour in zip(problems, plots.sequence(len(problems)), strict=True):
            line(ax, rows[rows["problem"] == problem], problem, colour, log=metric == "train_ratio")
        ax.axvline(1, color=plots.MUTED, lw=1, ls=":")
        ax.set(xscale="log", yscale="log", xlabel=paper.metrics[metric].step, ylabel=plots.axis_label(paper, metric))
        plots.few_log_ticks(ax, "y")
    broken = table[(table["metric"] == "train_ratio") & (table["method"] == "half-the-classes")]
    if len(broken):
        mean = np.exp(np.log(broken["value"]).groupby(broken["step"]).mean())
        others[0].plot(mean.index, mean, "x", color=plots.PALETTE[3], label="half the classes only")
    plots.title(others[0], "full training loss")
    plots.title(others[1], "test loss")
    others[0].legend()
    return fig


def costs(table: pd.DataFrame, paper: Paper) -> Figure:
    """Accuracy by cost, accuracy by the subset's size, and the cost of reaching the target."""
    table = table[table["experiment"] == "cost"]
    fig, (curve, size, bar) = plots.subplots(1, 3, width=3.7, height=3.5)
    names = {"adam": "conventional, Adam", "subset": "through the cheapest subset"}
    colours = {"adam": plots.colour("adam"), "subset": plots.PALETTE[3], "adam-copy": plots.PALETTE[7]}
    for arm, name in names.items():
        for k, (_, one) in enumerate(table[(table["metric"] == "val") & (table["method"] == arm)].groupby("seed")):
            one = one[one["step"] > 0].sort_values("step")
            curve.plot(one["step"], one["value"], color=colours[arm], lw=0.9, label=name if k == 0 else None)
    curve.set(xscale="log", xlabel=paper.metrics["val"].step, ylabel=plots.axis_label(paper, "val"))
    curve.legend(loc="upper left")
    curve.set_ylim(0, 115)
    for k, arm in enumerate(("pretrained", "fine-tuned")):
        rows = table[(table["metric"] == "accuracy_by_fraction") & (table["method"] == arm)]
        line(size, rows, {"pretrained": "subset alone", "fine-tuned": "after fine-tuning"}[arm], plots.PALETTE[2 + k])
    conventional = table[(table["metric"] == "accuracy") & (table["method"] == "adam")]["value"].mean()
    size.axhline(conventional, color=colours["adam"], ls="--", lw=1.2, label=names["adam"])
    size.set(xscale="log", ylabel=plots.axis_label(paper, "accuracy"))
    size.set_xlabel(paper.metrics["accuracy_by_fraction"].step)
    shares = sorted(table.loc[table["metric"] == "cost_by_fraction", "step"].unique())
    size.set_xticks(shares, [f"{share:.2g}" for share in shares])
    size.minorticks_off()
    size.legend(loc="lower right")
    labels = {"adam": "Adam,\nto its best", "adam-copy": "Adam,\nto the target", "subset": "subset,\nto the target"}
    stats = plots.summary(table[table["metric"] == "cost"], ["method"]).set_index("method")
    for place, arm in enumerate(labels):
        bar.bar(place, stats.loc[arm, "mean"], 0.6, color=colours[arm])
        if np.isfinite(stats.loc[arm, "low"]):
            error = [
                [stats.loc[arm, "mean"] - stats.loc[arm, "low"]],
                [stats.loc[arm, "high"] - stats.loc[arm, "mean"]],
            ]
            bar.errorbar(place, stats.loc[arm, "mean"], error, fmt="none", ecolor=plots.INK, capsize=3, lw=1)
    bar.set_xticks(range(len(labels)), list(labels.values()))
    bar.set(ylabel=plots.axis_label(paper, "cost"), ylim=(0, None))
    bar.ticklabel_format(axis="y", style="sci", scilimits=(0, 3))
    bar.grid(axis="x", visible=False)
    return fig
