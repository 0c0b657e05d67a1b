"""Kernels for growing states, their errors, and the table of initialisations as bars, from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

NAMES = {
    "half-B": "B/2",
    "full-B": "B (control)",
    "legs": "LegS",
    "inv": "Inv",
    "lin": "Lin",
    "real": "Real",
    "random": "random",
    "lin-copy": "Lin, again\n(control)",
}
ARMS = ("legs", "inv", "lin", "lin-copy", "random", "real")


def kernels(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[table["metric"] == "kernel"]
    problems = sorted(rows["problem"].unique())
    sizes = sorted({m for m in rows["method"] if m.startswith("N")}, key=lambda name: int(name.split()[-1]))
    fig, axes = plots.subplots(1, len(problems), width=3.8, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        for name, colour in zip([*sizes, "HiPPO-LegS"], [*plots.sequence(len(sizes)), plots.INK], strict=True):
            line = rows[(rows["problem"] == problem) & (rows["method"] == name)].sort_values("step")
            ax.plot(line["step"], line["value"], color=colour, lw=1.8 if name == "HiPPO-LegS" else 0.9, label=name)
        ax.set_xlabel(paper.metrics["kernel"].step)
        ax.set_ylabel(plots.axis_label(paper, "kernel"))
        plots.title(ax, problem.capitalize())
    axes[0, -1].legend()
    return fig


def errors(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, (left, right) = plots.subplots(1, 2)
    for metric, style in {"step_error": "-", "kernel_error": "--"}.items():
        for method in ("half-B", "full-B"):
            rows = table[(table["metric"] == metric) & (table["method"] == method)]
            stats = rows.groupby("step")["value"].agg(["mean", "min", "max"])
            colour = plots.PALETTE[0 if method == "half-B" else 7]
            what = "step response" if metric == "step_error" else "kernel"
            left.plot(stats.index, stats["mean"], style, marker="o", color=colour, label=f"{what}, {NAMES[method]}")
            left.fill_between(stats.index, stats["min"], stats["max"], color=colour, alpha=0.18, lw=0)
    left.set(xscale="log", yscale="log", xlabel=paper.metrics["step_error"].step, ylabel="error (signal = 1)")
    left.legend(handlelength=3.2, loc="lower left", fontsize=7.5)
    plots.title(left, "Distance to HiPPO-LegS")
    rows = table[table["metric"] == "frequency"]
    for kind, style in {"legs": "-", "inv": "--", "lin": ":"}.items():
        line = rows[rows["method"] == kind].sort_values("step")
        line = line[line["value"] > 0]  # the linear law starts at 0
        right.plot(line["step"], line["value"], style, color=plots.colour(kind), label=NAMES[kind])
    right.set(xscale="log", yscale="log", xlabel=paper.metrics["frequency"].step)
    right.set_ylabel(plots.axis_label(paper, "frequency"))
    right.legend()
    plots.title(right, "Eigenvalues and formulas")
    return fig


def accuracies(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, (left, right) = plots.subplots(1, 2)
    rows = table[table["experiment"] == "inits"]
    arms = [arm for arm in ARMS if arm in set(rows["method"])]
    final = plots.summary(rows[rows["metric"] == "test_accuracy"], ["method"]).set_index("method").loc[arms]
    left.bar(range(len(arms)), final["mean"], color=[plots.colour(arm) for arm in arms])
    error = (final[["mean", "high"]].to_numpy() - final[["low", "mean"]].to_numpy()).T
    left.errorbar(range(len(arms)), final["mean"], error, fmt="none", ecolor=plots.INK, capsize=2, lw=1)
    left.set_xticks(range(len(arms)), [NAMES[arm] for arm in arms], fontsize=8)
    left.set_ylabel(plots.axis_label(paper, "test_accuracy"))
    left.grid(axis="x", visible=False)
    plots.title(left, "After training")
    plots.band(right, rows, "val_accuracy", paper, methods=arms)
    plots.title(right, "During training (same colours)")
    return fig
