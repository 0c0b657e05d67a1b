"""The paper's figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "raw": "whole matrix",
    "farms": "FARMS",
    "same-aspect": "windows of the matrix's\nown aspect ratio (control)",
    "calibrated": "whole matrix,\nnoise subtracted",
    "uniform": "uniform",
    "overall": "smallest of all layers",
    "sgd": "one rate",
    "balance-raw": "rates by whole matrix",
    "balance-farms": "rates by FARMS",
}
COLOURS = dict(zip(NAMES, (plots.PALETTE[i] for i in (3, 0, 1, 2, 7, 4, 7, 3, 0)), strict=True))


def line(ax: Axes, rows: pd.DataFrame, method: str, style: str = "o-") -> None:
    """Mean and 95% interval over seeds against the step."""
    s = plots.summary(rows[rows["method"] == method], ["step"])
    ax.plot(s["step"], s["mean"], style, color=COLOURS[method], label=NAMES[method])
    if s["low"].notna().any():
        ax.fill_between(s["step"].astype(float), s["low"], s["high"], color=COLOURS[method], alpha=0.18, lw=0)


def shapes(table: pd.DataFrame, paper: Paper) -> Figure:
    table = table[table["experiment"] == "bias"]
    problems = {"gaussian": "Gaussian entries", "student-t3": "Student t entries, 3 d.o.f."}
    fig, axes = plots.subplots(1, 3, width=3.9, height=3.4)
    for ax, (problem, title) in zip(axes, problems.items(), strict=False):
        rows = table[(table["metric"] == "alpha") & (table["problem"] == problem)]
        for method in ("raw", "same-aspect", "farms"):
            line(ax, rows, method)
        theory = rows[rows["method"] == "null"].groupby("step")["value"].first()
        if len(theory):
            ax.plot(theory.index, theory, "x", color=plots.INK, label="Marchenko-Pastur", zorder=5)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(rows["step"].unique()))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="rows / columns of the matrix", ylabel=plots.axis_label(paper, "alpha"))
        plots.title(ax, title)
    axes[0].legend(fontsize=7.5)
    rows = table[(table["metric"] == "quantile") & (table["problem"] == "gaussian")]
    ax = axes[2]
    for method, style in (("raw", "-"), ("farms", "--")):
        names = [name for name in dict.fromkeys(rows["method"]) if name.startswith(method)]
        for name, colour in zip(names, plots.sequence(len(names)), strict=True):
            one = rows[rows["method"] == name].sort_values("step")
            label = name.removeprefix("raw ") if method == "raw" else None
            ax.plot(one["step"], one["value"], style, color=colour, lw=1.3, label=label)
    ax.plot([], [], "--", color=plots.INK, lw=1.3, label="windows (all alike)")
    ax.set_xlim(50, 100)
    ax.set_ylim(0.9, 6)
    ax.set(xlabel=paper.metrics["quantile"].step, ylabel=plots.axis_label(paper, "quantile"))
    ax.legend(fontsize=7.5)
    plots.title(ax, "Upper half of the spectra")
    return fig


def strengths(table: pd.DataFrame, paper: Paper) -> Figure:
    table = table[table["experiment"] == "ranking"]
    fig, (left, middle, right) = plots.subplots(1, 3, width=3.9, height=3.4)
    alphas = table[table["metric"] == "alpha"]
    problems = [*dict.fromkeys(alphas["problem"])]
    levels = sorted(alphas["step"].unique())
    for ax, method in ((left, "raw"), (middle, "farms")):
        for k, (problem, colour) in enumerate(zip(problems, plots.sequence(len(problems)), strict=True)):
            rows = alphas[(alphas["method"] == method) & (alphas["problem"] == problem)]
            where = [levels.index(step) + 0.13 * (k - (len(problems) - 1) / 2) for step in rows["step"]]
            ax.plot(where, rows["value"], plots.MARKERS[k], color=colour, ms=3.5, alpha=0.8, label=problem)
        ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        ax.set(xlabel="strength of the planted signal (noise edge = 1)", ylabel=plots.axis_label(paper, "alpha"))
        plots.title(ax, NAMES[method])
    left.legend(fontsize=7.5)
    methods = ["raw", "same-aspect", "calibrated", "farms"]
    means(right, table[table["metric"] == "rank_correlation"], methods, vertical=False)
    right.set_xlabel(plots.axis_label(paper, "rank_correlation"))
    plots.title(right, "Order by strength")
    return fig


def means(ax: Axes, rows: pd.DataFrame, methods: list[str], vertical: bool = True) -> None:
    """Mean and 95% interval over seeds, one bar a method."""
    stats = plots.summary(rows, ["method"]).set_index("method")
    for place, method in enumerate(methods):
        s = stats.loc[method]
        error = [[s["mean"] - s["low"]], [s["high"] - s["mean"]]] if s["n"] > 1 else None
        if vertical:
            ax.bar(place, s["mean"], 0.6, color=COLOURS[method], yerr=error, ecolor=plots.INK, capsize=3)
        else:
            ax.barh(-place, s["mean"], 0.6, color=COLOURS[method], xerr=error, ecolor=plots.INK, capsize=3)
    names = [NAMES[m] for m in methods]
    if vertical:
        ax.set_xticks(range(len(methods)), names, fontsize=7.5)
    else:
        ax.set_yticks([-i for i in range(len(methods))], names, fontsize=7.5)
    ax.grid(axis="x" if vertical else "y", visible=False)


def allocation(table: pd.DataFrame, paper: Paper) -> Figure:
    trained = table[table["metric"] == "test_accuracy"]
    table = table[table["experiment"] == "pruning"]
    fig, axes = plots.subplots(1, 5 if len(trained) else 4, width=3.5, height=3.4)
    left, middle, *pruned = axes
    alphas = table[table["metric"] == "layer_alpha"]
    for ax, method in ((left, "raw"), (middle, "farms")):
        for when, style in (("untrained", "s:"), ("trained", "o-")):
            s = plots.summary(alphas[(alphas["method"] == method) & (alphas["problem"] == when)], ["step"])
            ax.plot(s["step"], s["mean"], style, color=COLOURS[method], label=when)
            if s["low"].notna().any():
                ax.fill_between(s["step"].astype(float), s["low"], s["high"], color=COLOURS[method], alpha=0.18, lw=0)
        ax.set_xticks(sorted(alphas["step"].unique()))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel=paper.metrics["layer_alpha"].step, ylabel=plots.axis_label(paper, "layer_alpha"))
        ax.legend()
        plots.title(ax, NAMES[method])
    rows = table[(table["metric"] == "accuracy") & (table["step"] > 0)]
    problems = {"all-layers": "Pruned, all layers", "last-kept": "Pruned, last layer kept"}
    for ax, (problem, title) in zip(pruned, problems.items(), strict=False):
        for method in ("uniform", "overall", "raw", "farms"):
            line(ax, rows[rows["problem"] == problem], method)
        ax.set(xlabel=paper.metrics["accuracy"].step, ylabel=plots.axis_label(paper, "accuracy"), ylim=(0, 130))
        ax.set_yticks(range(0, 101, 20))
        ax.legend(fontsize=7.5, ncols=2, loc="upper center")
        plots.title(ax, title)
    for ax in pruned[2:]:
        means(ax, trained, ["sgd", "balance-raw", "balance-farms"])
        ax.set_ylim(trained["value"].min() - 1, trained["value"].max() + 1)
        ax.set_ylabel(plots.axis_label(paper, "test_accuracy"))
        plots.title(ax, "Learning rates by layer")
    return fig
