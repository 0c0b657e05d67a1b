"""Maintained inverses, the cost of a refresh, and training; redrawn from the tidy table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secondlook.suite import plots
from secondlook.suite.cards import Paper

LABELS = {
    "exact": "exact",
    "printed": "printed",
    "package": "released",
    "products": "printed, with matrix products",
    "cholesky": "Cholesky",
    "sgd": "heavy ball",
    "adam": "Adam",
    "mkor-exact": "MKOR, exact",
    "mkor-printed": "MKOR, printed",
    "mkor-package": "MKOR, released",
    "mkor-package-raw": "MKOR, released, not rescaled",
}
RULES = ("exact", "printed", "package")
COLOURS = {rule: plots.PALETTE[i] for rule, i in zip(RULES, (2, 3, 4), strict=True)}
COLOURS |= {f"mkor-{rule}": colour for rule, colour in COLOURS.items()}
COLOURS |= {"mkor-package-raw": plots.PALETTE[1], "cholesky": plots.INK, "products": plots.PALETTE[0]}


def lines(ax: Axes, table: pd.DataFrame, metric: str, methods: tuple[str, ...], paper: Paper) -> None:
    """Geometric mean and 95% interval of each method on a logarithmic axis."""
    rows = table[(table["metric"] == metric) & table["method"].isin(methods)]
    stats = plots.summary(rows.assign(value=np.log(rows["value"])), ["method", "step"])
    for method in methods:
        s = stats[stats["method"] == method].sort_values("step")
        if s.empty:
            continue
        at, mean, low, high = (s[c].astype(float) for c in ("step", "mean", "low", "high"))
        colour = COLOURS.get(method) or plots.colour(method)
        ax.plot(at, np.exp(mean), color=colour, label=LABELS[method])
        ax.fill_between(at, np.exp(low), np.exp(high), color=colour, alpha=0.18, lw=0)
    ax.set(yscale="log", xlabel=paper.metrics[metric].step, ylabel=plots.axis_label(paper, metric))


def inverses(table: pd.DataFrame, paper: Paper) -> Figure:
    """Error and largest eigenvalue by update."""
    fig, axes = plots.subplots(1, 2)
    for ax, metric, text in zip(
        axes, ("inverse_error", "top_eigenvalue"), ("is it the inverse?", "does it stay bounded?"), strict=True
    ):
        lines(ax, table, metric, RULES, paper)
        plots.title(ax, text)
        low, high = ax.get_ylim()
        ax.set_ylim(low, min(high, 1e12))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def cost(table: pd.DataFrame, paper: Paper) -> Figure:
    """Work and time of a refresh by width."""
    fig, axes = plots.subplots(1, 2)
    for ax, metric, text in zip(axes, ("refresh_work", "refresh_time"), ("operations", "time"), strict=True):
        lines(ax, table, metric, (*RULES, "products", "cholesky"), paper)
        rows = table[(table["metric"] == metric) & (table["method"] == "package")]
        mine = rows.groupby("step")["value"].mean()
        guide = 2 * mine.iloc[0] * (mine.index / mine.index[0]) ** 2
        ax.plot(mine.index, guide, ":", color=plots.MUTED, lw=1.2, label="slope 2")
        ax.set_xscale("log")
        plots.few_log_ticks(ax, "x")
        plots.title(ax, f"{text} of one refresh")
    found = dict(item[::-1] for ax in axes for item in zip(*ax.get_legend_handles_labels(), strict=True))
    fig.legend(found.values(), found.keys(), loc="outside lower center", ncols=6)
    return fig


def training(table: pd.DataFrame, paper: Paper) -> Figure:
    """Training loss, and how far the gradient is turned."""
    table = table[table["experiment"] == "training"]
    fig, (left, right) = plots.subplots(1, 2)
    arms = ("sgd", "adam", "mkor-exact", "mkor-printed", "mkor-package", "mkor-package-raw")
    lines(left, table, "train_loss", arms, paper)
    plots.few_log_ticks(left, "y")
    plots.title(left, " ".join(sorted(table["problem"].unique())))
    rows = table[(table["metric"] == "turn") & table["method"].str.startswith("mkor")]
    stats = plots.summary(rows, ["method", "step"])
    for method in (m for m in arms if m in set(stats["method"])):
        s = stats[stats["method"] == method]
        right.plot(s["step"], s["mean"], color=COLOURS[method])
        right.fill_between(s["step"].astype(float), s["low"], s["high"], color=COLOURS[method], alpha=0.18, lw=0)
    right.set(xlabel="step", ylabel=plots.axis_label(paper, "turn"), ylim=(None, 1.02))
    plots.title(right, "what preconditioning turns")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
