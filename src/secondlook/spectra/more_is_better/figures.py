"""Risk against sizes, and against how closely one fits, redrawn from the tidy table."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper


def sizes(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[table["experiment"] == "sweep"]
    arms = sorted({m for m in rows["method"] if m.startswith("ridge ")}, key=lambda m: float(m.split()[1]))
    colours = dict(zip([*arms, "best ridge"], [*plots.sequence(len(arms)), plots.PALETTE[3]], strict=True))
    fig, axes = plots.subplots(1, 2, sharey=True)
    for ax, problem in zip(axes, ("features", "samples"), strict=True):
        here = rows[rows["problem"] == problem]
        for arm, colour in colours.items():
            both = here[here["method"] == arm]
            theory = both[both["metric"] == "risk"].groupby("step")["value"].mean()
            ax.plot(theory.index, theory, color=colour, label=arm, lw=2.4 if arm == "best ridge" else 1.5)
            _dots(ax, both[both["metric"] == "test_error"], colour)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_yscale("log")
        plots.few_log_ticks(ax, "y")
        ax.set_xlabel(problem)
        plots.title(ax, f"More {problem}")
    axes[0].set_ylabel("test error (noise included)")
    axes[0].legend()
    return fig


def overfitting(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[(table["experiment"] == "fitting") & (table["metric"] == "relative_error")]
    groups: dict[str, list[str]] = {}
    for problem in dict.fromkeys(rows["problem"]):
        exponents, noise = problem.rsplit(", noise ", 1)
        groups.setdefault(exponents, []).append(noise)
    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    fig, axes = plots.subplots(lines, columns, height=3.0, squeeze=False)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax, (exponents, noises) in zip(axes.flat, groups.items(), strict=False):
        for noise, colour in zip(noises, plots.sequence(len(noises)), strict=True):
            here = rows[rows["problem"] == f"{exponents}, noise {noise}"]
            theory, limit = (here[here["method"] == m].groupby("step")["value"].mean() for m in ("framework", "limit"))
            ax.plot(theory.index, theory, color=colour, label=f"noise {noise}")
            ax.plot(limit.index, limit, color=colour, ls=":", lw=1.2)
            ax.plot(theory.idxmin(), theory.min(), "o", mfc="none", mec=colour, ms=11, clip_on=False)
            _dots(ax, here[here["method"] == "simulation"], colour)
        ax.set_xlabel("training error / test error")
        ax.set_ylabel("test error / interpolation's")
        ax.legend()
        plots.title(ax, exponents)
    return fig


def image_classes(table: pd.DataFrame, paper: Paper) -> Figure:
    rows = table[table["metric"] == "image_error"]
    problems = [*dict.fromkeys(rows["problem"])]
    fig, axes = plots.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        here = rows[(rows["problem"] == problem) & (rows["method"] != "copy")]
        arms = sorted(set(here["method"]), key=lambda m: float(m.split()[1]))
        for arm, colour in zip(arms, plots.sequence(len(arms)), strict=True):
            for i, (_, line) in enumerate(here[here["method"] == arm].groupby("seed")):
                ax.plot(line["step"], line["value"], color=colour, lw=1, alpha=0.8, label=None if i else arm)
        ax.set_xlim(-0.02, 1)
        ax.set_ylim(0.95, 2)
        ax.set_xlabel("training error / test error")
        ax.set_ylabel("test error / lowest")
        ax.legend()
        plots.title(ax, problem)
    return fig


def _dots(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Mean and 95% interval over seeds, without a line."""
    s = plots.summary(rows, ["step"])
    error = [(s["mean"] - s["low"]).fillna(0), (s["high"] - s["mean"]).fillna(0)]
    ax.errorbar(s["step"], s["mean"], error, fmt="o", ms=4, color=colour, capsize=2, lw=1)
