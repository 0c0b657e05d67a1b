"""The paper's kind of figures, redrawn from the tidy table."""

import pandas as pd
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "oasis": "OASIS, untuned",
    "oasis-fixed": "OASIS, fixed step, tuned",
    "adgd": "no scaling (AdGD)",
    "gd": "gradient descent, tuned",
    "gd-theory": "gradient descent, 1/L",
    "gd-fixed": "gradient descent at that step",
    "nesterov": "Nesterov, tuned",
    "adam": "Adam, tuned",
    "adahessian": "AdaHessian, tuned",
    "sgd": "SGD with momentum, tuned",
    "lbfgs": "L-BFGS",
}
RACE = ("oasis", "adgd", "adahessian", "gd-theory", "gd", "nesterov", "adam", "lbfgs")
NETWORKS = ("oasis", "oasis-fixed", "adahessian", "adam", "sgd")


def gaps(table: pd.DataFrame, paper: Paper) -> Figure:
    """A panel for each objective: the relative gap against evaluations, one line a seed."""
    table = table[(table["experiment"] == "evaluations") & (table["metric"] == "gap")]
    problems = sorted(table["problem"].unique())
    fig, axes = plots.subplots(1, len(problems), width=3.4, height=3.6, squeeze=False, sharey=True)
    for ax, problem in zip(axes[0], problems, strict=True):
        for method in RACE:
            lines = table[(table["problem"] == problem) & (table["method"] == method)].groupby("seed")
            for i, (_, line) in enumerate(lines):
                label = LABELS[method] if i == 0 else None
                ax.plot(line["step"], line["value"], color=plots.colour(method), lw=1, alpha=0.7, label=label)
        ax.set(xscale="log", yscale="log", xlabel=paper.metrics["gap"].step, ylim=(1e-7, 1e2))
        plots.title(ax, problem)
    axes[0, 0].set_ylabel(plots.axis_label(paper, "gap"))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def lengths(table: pd.DataFrame, paper: Paper) -> Figure:
    """The step lengths that the rule finds, one line a seed."""
    table = table[(table["experiment"] == "evaluations") & (table["metric"] == "step_length")]
    fig, ax = plots.subplots(1, 1)
    for problem in sorted(table["problem"].unique()):
        for i, (_, line) in enumerate(table[table["problem"] == problem].groupby("seed")):
            label = problem if i == 0 else None
            ax.plot(line["step"] + 1, line["value"], color=plots.colour(problem), lw=1, alpha=0.7, label=label)
    ax.axhline(0.5, color=plots.MUTED, ls=":", lw=1)
    ax.set(xscale="log", yscale="log", xlabel=paper.metrics["step_length"].step)
    ax.set_ylabel(plots.axis_label(paper, "step_length"))
    plots.title(ax, "step length of OASIS")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def sensitivity(table: pd.DataFrame, paper: Paper) -> Figure:
    """Iterations against the first step, and the gap when features are badly scaled."""
    fig, (left, right) = plots.subplots(1, 2)
    first = table[table["experiment"] == "first_step"]
    for problem, style in zip(sorted(first["problem"].unique()), ("-", "--", ":", "-."), strict=False):
        before = len(left.lines)
        labels = {name: f"{LABELS[name]}, {problem}" for name in ("oasis", "gd-fixed")}
        rows = first[first["problem"] == problem]
        plots.band(left, rows, "iterations", paper, methods=("oasis", "gd-fixed"), labels=labels)
        for line in left.lines[before:]:
            line.set_linestyle(style)
    left.set(xscale="log", yscale="log")
    plots.title(left, "first step")
    left.legend(loc="center left", handlelength=4)
    scaled = table[(table["experiment"] == "scaling") & (table["metric"] == "scaled_gap")]
    for method in ("oasis", "adgd"):
        for i, (_, line) in enumerate(scaled[scaled["method"] == method].groupby(["problem", "seed"])):
            label = LABELS[method] if i == 0 else None
            right.plot(line["step"], line["value"], color=plots.colour(method), lw=1, alpha=0.7, label=label)
    right.set(xscale="log", yscale="log", xlabel=paper.metrics["scaled_gap"].step)
    right.set_ylabel(plots.axis_label(paper, "scaled_gap"))
    plots.title(right, "features scaled over six decades")
    right.legend(loc="lower left")
    return fig


def networks(table: pd.DataFrame, paper: Paper) -> Figure:
    """Validation loss of the networks by step, and their final test accuracy."""
    table = table[table["experiment"] == "networks"]
    problems, methods = sorted(table["problem"].unique()), [m for m in NETWORKS if m in set(table["method"])]
    fig, axes = plots.subplots(1, len(problems) + 1, width=3.8)
    for ax, problem in zip(axes, problems, strict=False):
        rows = table[table["problem"] == problem]
        plots.band(ax, rows, "val_loss", paper, methods=methods, labels=LABELS, markers=False)
        ax.set_ylim(0, 2)
        plots.title(ax, problem)
    plots.bars(axes[-1], table, "accuracy", paper, methods=methods, labels=LABELS)
    axes[-1].set_ylim(70, 100)
    fig.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig
