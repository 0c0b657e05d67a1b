"""Redraws convergence, Table 1, and what makes the method work."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "sinkhorn": "Sinkhorn (stabilised)",
    "sns": "SNS",
    "newton": "Newton, full Hessian",
    "sns-random": "SNS, random entries",
    "sns-default": "SNS, 2/n of the Hessian",
    "sns-16": "SNS, 16/n of the Hessian",
    "sinkhorn-columns": "Sinkhorn, columns first",
}
ORDER = list(LABELS)
PRINTED = {"l1": "image-l1", "l2": "image-l2", "random": "random-assignment-iterations"}


def convergence(table: pd.DataFrame, paper: Paper) -> Figure:
    traces = table[table["metric"].isin(["marginal_error", "elapsed"])]
    wide = traces.pivot_table(
        index=["problem", "method", "seed", "step"], columns="metric", values="value"
    ).reset_index()
    problems = sorted(wide["problem"].unique(), key=lambda p: (not p.startswith("random"), p))
    fig, axes = plots.subplots(2, len(problems), width=3.9, squeeze=False)
    for column, problem in enumerate(problems):
        for row, x in enumerate(["step", "elapsed"]):
            _lines(axes[row, column], wide[wide["problem"] == problem], x)
        plots.title(axes[0, column], problem)
        axes[0, column].set_xlabel("iteration")
        axes[1, column].set_xlabel("time (s)")
    for ax in axes[:, 0]:
        ax.set_ylabel(plots.axis_label(paper, "marginal_error"))
    axes[0, 0].legend()
    return fig


def _lines(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    for method in [m for m in ORDER if m in set(rows["method"])]:
        for i, (_, line) in enumerate(rows[rows["method"] == method].groupby("seed")):
            label = LABELS[method] if i == 0 else None
            ax.plot(line[x], line["marginal_error"], color=plots.colour(method), lw=1, alpha=0.8, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(1e-15, 3)


def table_one(table: pd.DataFrame, paper: Paper) -> Figure:
    shown = table[table["experiment"].isin(["assignment", "images"])]
    methods = [m for m in ORDER if m in set(shown["method"])]
    fig, axes = plots.subplots(2, 1, width=8.4, height=3.0)
    for ax, metric in zip(axes, ["iterations", "seconds"], strict=True):
        plots.bars(ax, shown, metric, paper, methods=methods, labels=LABELS)
        ax.set_yscale("log")
    groups = list(dict.fromkeys(shown[shown["metric"] == "iterations"]["problem"]))
    for place, group in enumerate(groups):
        claim = next(claim for part, claim in PRINTED.items() if part in group)
        for i, value in enumerate((paper.claim(claim).published or {}).values()):
            label = "published" if place == i == 0 else None
            axes[0].hlines(value, place - 0.42, place + 0.42, color=plots.INK, ls=(0, (4, 2)), lw=1.2, label=label)
    axes[0].legend(ncols=2)
    return fig


def anatomy(table: pd.DataFrame, paper: Paper) -> Figure:
    fig, axes = plots.subplots(1, 4, width=3.6)
    outside = table[table["metric"] == "outside_mass"]
    decay = sorted(outside["method"].unique(), key=_sweeps)
    for i, method in enumerate(decay):
        mean = outside[outside["method"] == method].groupby("step")["value"].mean()
        shade = 0.35 + 0.65 * i / max(len(decay) - 1, 1)
        axes[0].plot(mean, color=plots.colour("sns"), alpha=shade, label=f"after {_sweeps(method)} sweeps")
    axes[0].set(xscale="log", yscale="log", ylim=(1e-12, 2), xlabel=paper.metrics["outside_mass"].step)
    axes[0].set_ylabel(plots.axis_label(paper, "outside_mass"))
    steps = table[table["metric"] == "newton_steps"]
    for ax, arm, label in (
        (axes[1], "kept", "entries of the Hessian kept, in units of n"),
        (axes[2], "warm-up", "sweeps first"),
    ):
        plots.band(ax, steps[steps["method"] == arm].assign(method="sns"), "newton_steps", paper, err="bars")
        ax.set(xlabel=label, ylim=(0, None))
    gain = table[(table["metric"] == "speed_up") & (table["experiment"] == "regularisation")]
    gain = gain.assign(eta=gain["problem"].str.removeprefix("eta-").astype(float))
    methods = [m for m in ORDER if m in set(gain["method"]) and m != "sinkhorn"]
    plots.band(axes[3], gain, "speed_up", paper, x="eta", methods=methods, labels=LABELS, err="bars")
    axes[3].set(xscale="log", yscale="log", xlabel=r"$\eta$")
    axes[0].legend()
    axes[3].legend()
    return fig


def _sweeps(method: str) -> int:
    return int(method.removeprefix("sweeps-"))
