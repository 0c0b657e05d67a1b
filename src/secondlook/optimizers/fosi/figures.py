"""The paper's figures, redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

BASES = {"gd": "gradient descent", "heavy-ball": "heavy ball", "adam": "Adam"}
OTHERS = {"kfac": "K-FAC", "lbfgs": "L-BFGS"}
# Levels read off the published figure, n = 100 and lam1 = 5
LEVELS = {"gd": 6e-1, "fosi-gd": 1e-5, "adam": 5e-4, "fosi-adam": 4e-6}


def lines(ax: Axes, rows: pd.DataFrame, methods: dict[str, str], paper: Paper, metric: str) -> None:
    """Geometric mean and 95% interval of each method; FOSI's line has its base's colour, dashed."""
    rows = rows[rows["metric"] == metric]
    stats = plots.summary(rows.assign(value=np.log(rows["value"])), ["method", "step"])
    stats[["mean", "low", "high"]] = np.exp(stats[["mean", "low", "high"]])
    for base, label in methods.items():
        for method, style in ((base, "-"), (f"fosi-{base}", "--")):
            s = stats[stats["method"] == method]
            if s.empty:
                continue
            s = s[s["n"] == s["n"].max()]  # a line ends where the first of its runs diverged
            colour = plots.colour(base)
            ax.plot(s["step"], s["mean"], style, color=colour, label=label if style == "-" else f"FOSI, {label}")
            if s["low"].notna().any():
                ax.fill_between(s["step"].astype(float), s["low"], s["high"], color=colour, alpha=0.18, lw=0)
    ax.set(yscale="log", xlabel=paper.metrics[metric].step, ylabel=plots.axis_label(paper, metric))


def quadratics(table: pd.DataFrame, paper: Paper) -> Figure:
    """The four functions: value against iteration."""
    table = table[table["experiment"] == "quadratics"]
    problems = sorted(table["problem"].unique(), key=lambda p: [int(x) for x in p[1:].split("-top")])
    fig, axes = plots.subplots(1, len(problems), width=3.5, height=3.6, sharey=True, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        n, top = problem[1:].split("-top")
        lines(ax, table[table["problem"] == problem], BASES, paper, "loss")
        plots.title(ax, f"n = {n}, $\\lambda_1$ = {top}")
        if problem == "n100-top5":
            for method, level in LEVELS.items():
                colour = plots.colour(method.removeprefix("fosi-"))
                ax.plot([200], [level], marker="<", color=colour, ms=8, mec=plots.INK, mew=0.8, clip_on=False, zorder=5)
            ax.plot(
                [], [], marker="<", ls="", color="white", mec=plots.INK, label="published, n = 100, $\\lambda_1$ = 5"
            )
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig


def rotations(table: pd.DataFrame, paper: Paper) -> Figure:
    """Final value against the number of mixed coordinates, a panel for each growth of the spectrum."""
    table = table[table["metric"] == "rotated_loss"]
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), width=3.5, sharey=True, squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        lines(ax, table[table["problem"] == problem], {"gd": BASES["gd"], "adam": BASES["adam"]}, paper, "rotated_loss")
        plots.title(ax, f"eigenvalues grow by {float(problem.removeprefix('growth')):g}")
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    axes[0][0].legend(loc="lower right")
    return fig


def training(table: pd.DataFrame, paper: Paper) -> Figure:
    """Training loss by epoch and by backward pass, a row for each problem."""
    table = table[table["experiment"] == "softmax"]
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(len(problems), 2, squeeze=False)
    arms = {"heavy-ball": BASES["heavy-ball"], "adam": BASES["adam"], **OTHERS}
    for row, problem in zip(axes, problems, strict=True):
        rows = table[table["problem"] == problem]
        for ax, metric in zip(row, ("train_loss", "loss_at_cost"), strict=True):
            lines(ax, rows, arms, paper, metric)
        plots.title(row[0], problem.replace("-", ", "))
        plots.title(row[1], "by backward pass")
    axes[0][1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return fig
